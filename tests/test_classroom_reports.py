"""What comes out of grading a class, read back format by format, with hostile texts in all."""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import io
import json
import os
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shared.classroom import reports, similarity, tracking
from shared.classroom.exports import (
    canvas_csv,
    canvas_unmatched,
    github_classroom_json,
    gradescope_json,
    junit_xml,
    moodle_csv,
)
from shared.classroom.gradebook import gradebook
from shared.classroom.pages import class_page, learner_page
from shared.classroom.records import ClassResult, Flag, GradedLab, Learner, Note, Submission
from shared.classroom.reports import file_names, write_all
from shared.classroom.roster import read_roster
from shared.classroom.similarity import (
    K,
    W,
    hashes,
    similar_pairs,
    similarity_csv,
    similarity_page,
    tokens,
    winnow,
)
from shared.classroom.text import cell, visible, xml_text
from shared.classroom.verdicts import TAMPERED, Labs, known_labs
from shared.errors import UserError
from shared.grading.lab import Lab, all_labs
from tests import made_class as made

FORMULA = tuple("=+-@\t\r\n＝＋－＠")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClassResult, Labs]:
    """A class whose every text is hostile."""
    return made.hostile_class(tmp_path_factory.mktemp("no-such-lab"))


@pytest.fixture(scope="module")
def usual() -> tuple[ClassResult, Labs]:
    """A class of thirty on two labs."""
    return made.usual_class()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A lab of two tasks, 10 and 20 points."""
    return made.small_lab(7, tmp_path / "lab_7_made")


def graded(lab: Lab, who: str, *statuses: str, **more: Any) -> GradedLab:
    tasks = [made.task_result(t, s) for t, s in zip(lab.tasks, statuses, strict=True)]
    result = made.lab_result(lab, tasks)
    return GradedLab(learner=who, lab=lab.number, state="graded", result=result, **more)


def people(*names: str) -> list[Learner]:
    return [Learner(id=n.lower(), name=n, email=f"{n.lower()}@example.org") for n in names]


def words(text: str) -> set[str]:
    return set(text.split())


def rows(text: str, delimiter: str = ",") -> list[list[str]]:
    return list(csv.reader(io.StringIO(text.removeprefix("\ufeff")), delimiter=delimiter))


# --- texts ---


@pytest.mark.parametrize("text", [*made.HOSTILE, made.EVERYTHING])
def test_a_shown_text_hides_nothing_and_steers_nothing(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    for character in shown:
        unseen = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        assert not unseen or character in "\n\t\u200c\u200d", ascii(character)
    assert len(shown) < 5000
    ElementTree.fromstring(f"<x>{re.sub('[<&>]', '', xml_text(text))}</x>")


def test_what_is_cut_says_how_much_is_missing() -> None:
    assert visible("x" * 10_000, 100).endswith("(9,900 more characters)")


def test_stacked_accents_do_not_climb_over_other_lines() -> None:
    assert len(visible(made.ZALGO)) < 10
    assert visible("e\u0301") == "e\u0301"


@pytest.mark.parametrize("text", [f"{c}1+1" for c in FORMULA] + [" =1", "\x00=1", '"=1"'])
def test_no_cell_is_a_formula(text: str) -> None:
    assert not cell(text).startswith(FORMULA)


# --- the gradebook ---


def test_the_gradebook_reads_back_with_any_separator_and_computes_nothing(
    hostile: tuple[ClassResult, Labs],
) -> None:
    text = gradebook(hostile[0])
    assert text.encode("utf-8").startswith(b"\xef\xbb\xbf")
    assert len(text.splitlines()) == 1 + len(hostile[0].learners)
    found = rows(text)
    assert {len(row) for row in found} == {len(found[0])}
    for delimiter in ",;|":
        for row in rows(text, delimiter):
            assert not [value for value in row if value.lstrip(' "').startswith(FORMULA)]


def test_the_gradebook_is_the_same_whatever_the_run_was_like(
    usual: tuple[ClassResult, Labs],
) -> None:
    result = usual[0]
    learners, labs = list(result.learners), []
    Random(1).shuffle(learners)
    for one in result.graded:
        flags = tuple(Flag(task=f.task, kind=f.kind, evidence="at 0x7f") for f in one.flags)
        if one.result is not None:
            later = one.result.model_copy(update={"seconds": 99.0, "started_at": "later"})
            one = one.model_copy(update={"result": later, "flags": flags})
        labs.append(one)
    Random(2).shuffle(labs)
    other = result.model_copy(update={"learners": tuple(learners), "graded": tuple(labs)})
    assert gradebook(ClassResult(**dict(other))) == gradebook(result)


def test_a_total_counts_what_was_not_handed_in_and_waits_for_what_is_not_graded(lab: Lab) -> None:
    other = made.small_lab(8, lab.folder)
    who = people("Absent", "Broken", "Complete", "Doubtful")
    result = made.class_of(
        [lab, other],
        [
            graded(lab, "absent", "passed", "passed"),
            GradedLab(learner="absent", lab=8, state="missing"),
            graded(lab, "broken", "passed", "passed"),
            GradedLab(learner="broken", lab=8, state="not_graded", problem="not a zip file"),
            graded(lab, "complete", "passed", "failed"),
            graded(other, "complete", "passed", "passed"),
            graded(lab, "doubtful", "passed", "not_graded"),
            graded(other, "doubtful", "passed", "passed"),
        ],
        who,
    )
    header, *found = rows(gradebook(result))
    by_id = {row[0]: dict(zip(header, row, strict=True)) for row in found}
    assert [by_id["absent"][c] for c in ("Lab 7", "Lab 8", "Total", "Max")] == [
        "30",
        "",
        "30",
        "60",
    ]
    assert by_id["absent"]["Percent"] == "50.0"
    assert by_id["absent"]["Problems"] == "Lab 8: not handed in"
    assert by_id["broken"]["Percent"] == ""
    assert by_id["broken"]["Problems"] == "Lab 8: NOT GRADED; Lab 8: not a zip file"
    assert by_id["complete"]["Percent"] == "66.7"
    assert by_id["doubtful"]["Percent"] == ""
    assert by_id["doubtful"]["Problems"] == "Lab 7: task 7.2 NOT GRADED"
    whole = Submission(learner=who[1], source="", labs={}, problem="not a zip file")
    told = ClassResult(**dict(result) | {"submissions": {"broken": whole}})
    assert rows(gradebook(told))[2][-2] == "not a zip file; Lab 8: NOT GRADED"
    # Half a verdict is no grade on a platform.
    canvas = {row[0]: row[5:] for row in rows(canvas_csv(result))}
    assert canvas["Doubtful"] == ["", "30"]
    assert canvas["Absent"] == ["30", ""]
    moodle = {row[0]: row for row in rows(moodle_csv(result, {7: lab, 8: other})[0])}
    assert moodle["complete@example.org"][1] == "33.33"
    assert moodle["doubtful@example.org"][1] == "-"


def test_who_handed_in_nothing_has_no_grade_anywhere(lab: Lab) -> None:
    result = made.class_of(
        [lab],
        [
            GradedLab(learner="absent", lab=7, state="missing", problem="Nothing was handed in."),
            GradedLab(learner="broken", lab=7, state="unusable", problem="not a zip file"),
            graded(lab, "zero", "failed", "failed"),
        ],
        people("Absent", "Broken", "Zero"),
    )
    header, *found = rows(gradebook(result))
    columns = [header.index(c) for c in ("Lab 7", "Total", "Percent")]
    assert [[row[c] for c in columns] for row in found] == [[""] * 3, [""] * 3, ["0", "0", "0.0"]]
    assert [row[5] for row in rows(canvas_csv(result))[2:]] == ["", "", "0"]
    moodle = rows(moodle_csv(result, {7: lab})[0])[1:]
    assert [row[1] for row in moodle] == ["-", "-", "0.0"]
    assert [row[2] for row in moodle[:2]] == ["not handed in", "the hand-in cannot be used"]
    said = " ".join(Page(class_page(result, {7: lab}, {})).text.split())
    assert "median total 0 of 30" in said
    assert "7: Made 7 1 1 1 0 0 30" in said
    assert "– of 30 points" in " ".join(
        Page(learner_page(result, result.learners[0], {7: lab})).text.split()
    )


# --- platforms ---


def test_canvas_finds_its_columns_and_never_takes_an_id_for_somebody_else_s(lab: Lab) -> None:
    who = [
        Learner(id="a", name="A", section="S", canvas={"ID": "41"}),
        Learner(id="b", name="B", email="b@example.org", canvas={"ID": "12-a"}),
        Learner(id="c", name="C", external_id="43", platform="Moodle", moodle={"ID number": "43"}),
        Learner(id="d", name="D", canvas={"SIS User ID": "12-a", "SIS Login ID": "=d"}),
    ]
    done = [graded(lab, "a", "passed", "failed"), graded(lab, "b", "passed", "passed")]
    result = made.class_of([lab], done, who)
    assert rows(canvas_csv(result)) == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "Lab 7"],
        ["Points Possible", "", "", "", "", "30"],
        ["A", "41", "", "", "S", "10"],
        ["B", "", "", "", "", "30"],
        ["C", "", "", "", "", ""],
        ["D", "", "12-a", "", "", ""],
    ]
    assert "no id of Canvas for b, c." in canvas_unmatched(result)
    assert canvas_unmatched(made.class_of([lab], [], who[:1])) == ""
    assert canvas_unmatched(made.class_of([lab], [], who[1:3])) == ""


@pytest.mark.parametrize(
    "header",
    [
        "Student,ID,SIS User ID,SIS Login ID,Section",
        "Student,ID,SIS Login ID,Section",
        "LastName,FirstName,ID,SIS User ID,SIS Login ID,Integration ID,Root Account,Section",
    ],
)
def test_canvas_s_own_columns_come_back_as_they_were(header: str, lab: Lab, tmp_path: Path) -> None:
    columns = header.split(",")
    person = {
        "Student": "Doe, Jane",
        "LastName": "Doe",
        "FirstName": "Jane",
        "ID": "4242",
        "SIS User ID": "S-7",
        "SIS Login ID": "jdoe",
        "Integration ID": "x",
        "Root Account": "canvas.test",
        "Section": "Group A and B",
    }
    path = tmp_path / "canvas.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*columns, "Essay (77)", "Current Score"])
        table.writerow([*("" for _ in columns), "Manual Posting", ""])
        table.writerow(["    Points Possible", *("" for _ in columns[1:]), "10", "(read only)"])
        table.writerow([*(person[c] for c in columns), "9", "90"])
    (learner,) = (row.learner for row in read_roster(path).rows)
    result = made.class_of([lab], [graded(lab, "jdoe", "passed", "passed")], [learner])
    back, _, line = rows(canvas_csv(result))
    assert back == [*columns, "Lab 7"]
    assert line == [*(person[c] for c in columns), "30"]
    assert canvas_unmatched(result) == ""
    assert "names nobody" in moodle_csv(result, {7: lab})[1]


def test_canvas_and_moodle_files_read_back_with_hostile_names(
    hostile: tuple[ClassResult, Labs],
) -> None:
    result, labs = hostile
    for text in (canvas_csv(result), moodle_csv(result, labs)[0]):
        text.encode("utf-8")
        found = rows(text)
        assert {len(row) for row in found} == {len(found[0])}
        assert len(text.splitlines()) == len(found)
        assert not [v for row in found for v in row if v.startswith(FORMULA) and v != "-"]


def test_moodle_gets_no_row_that_it_would_give_to_the_person_before(lab: Lab) -> None:
    who = [*people("A"), Learner(id="b", name="B"), Learner(id="c", name="C", email="=c@x.org")]
    done = [graded(lab, one.id, "passed", "passed") for one in who]
    text, warning = moodle_csv(made.class_of([lab], done, who), {7: lab})
    assert [row[0] for row in rows(text)] == ["Email address", "a@example.org"]
    assert "b, c" in warning


def test_moodle_identifies_by_what_is_moodle_s_own(lab: Lab) -> None:
    who = [Learner(id="a", name="A", moodle={"ID number": "7001"})]
    text, warning = moodle_csv(
        made.class_of([lab], [graded(lab, "a", "passed", "failed")], who), {7: lab}
    )
    assert not warning
    assert rows(text)[0] == ["ID number", "Lab 7 (of 100)", "Lab 7 feedback"]
    assert rows(text)[1][0] == "7001"
    assert not set("<&") & set(text)
    foreign = Learner(id="a", name="A", external_id="4242", canvas={"ID": "4242"})
    text, warning = moodle_csv(made.class_of([lab], [], [foreign]), {7: lab})
    assert rows(text) == [["Email address", "Lab 7 (of 100)", "Lab 7 feedback"]]
    assert "names nobody" in warning


GRADESCOPE_TEST = words(
    "score max_score status name name_format number output output_format tags visibility extra_data"
)
GRADESCOPE = words(
    "score execution_time output output_format test_output_format test_name_format visibility "
    "stdout_visibility extra_data tests leaderboard"
)


def test_gradescope_s_documented_keys_and_no_others(
    hostile: tuple[ClassResult, Labs], usual: tuple[ClassResult, Labs]
) -> None:
    for result, labs in (hostile, usual):
        for learner in result.learners:
            text = gradescope_json(result, learner.id, labs)
            found = json.loads(text.encode("utf-8"))
            assert found.keys() <= GRADESCOPE
            assert found["output_format"] == found["test_output_format"] == "text"
            assert found["test_name_format"] == "text"
            assert found["score"] == sum(test.get("score", 0) for test in found["tests"])
            for test in found["tests"]:
                assert test.keys() <= GRADESCOPE_TEST
                assert test.get("status") in ("passed", "failed", None)
                assert test["visibility"] == "visible"


def test_gradescope_shows_what_is_not_graded_without_points_or_verdict(lab: Lab) -> None:
    result = made.class_of([lab], [graded(lab, "a", "passed", "not_graded")], people("A"))
    passed, open_ = json.loads(gradescope_json(result, "a", {7: lab}))["tests"]
    assert (passed["score"], passed["max_score"], passed["status"]) == (10.0, 10.0, "passed")
    assert not {"score", "max_score", "status"} & open_.keys()
    assert open_["output"].startswith("NOT GRADED")


def test_github_s_reporter_finds_a_variable_for_each_runner_and_the_right_sum(
    usual: tuple[ClassResult, Labs],
) -> None:
    result, labs = usual
    header, *found = rows(gradebook(result))
    for row in found:
        whole = json.loads(github_classroom_json(result, row[0], labs))
        runners = [r for r in whole["runners"].split(",") if r]
        decoded = [
            json.loads(base64.b64decode(whole["env"][f"{runner.upper()}_RESULTS"]))
            for runner in runners
        ]
        assert decoded == [whole["results"][runner] for runner in runners]
        assert all(re.fullmatch("[a-zA-Z0-9]+", runner) for runner in runners)
        total = row[header.index("Total")]  # empty where nothing is graded
        assert sum(t["score"] for d in decoded for t in d["tests"]) == int(total or 0)
        assert bool(total) == bool(runners)
        for one in decoded:
            assert one.keys() == {"version", "status", "max_score", "tests"}
            (test,) = one["tests"]
            assert test["status"] == one["status"]
            assert test["status"] in ("pass", "fail", "error")
            assert test["score"] == (one["max_score"] if test["status"] == "pass" else 0)


def test_nothing_of_a_submission_is_a_command_in_github_s_log(
    hostile: tuple[ClassResult, Labs],
) -> None:
    result, labs = hostile
    for learner in result.learners:
        text = github_classroom_json(result, learner.id, labs)
        text.encode("utf-8")
        for found in json.loads(text)["results"].values():
            for said in (found["tests"][0]["name"], found["tests"][0]["message"]):
                assert "\n" not in said
                assert "::" not in said
                assert "##[" not in said


def test_junit_s_counts_are_those_of_its_cases(
    hostile: tuple[ClassResult, Labs], usual: tuple[ClassResult, Labs]
) -> None:
    for result, labs in (hostile, usual):
        root = ElementTree.fromstring(junit_xml(result, labs).encode("utf-8"))
        suites = root.findall("testsuite")
        assert len(suites) == len(result.learners) * len(result.labs)
        for suite in suites:
            cases = suite.findall("testcase")
            assert suite.get("tests") == str(len(cases)) != "0"
            assert suite.get("failures") == str(sum(c.find("failure") is not None for c in cases))
            assert suite.get("errors") == str(sum(c.find("error") is not None for c in cases))
            assert suite.get("skipped") == str(sum(c.find("skipped") is not None for c in cases))
        assert root.get("tests") == str(len(list(root.iter("testcase"))))
        assert root.get("failures") == str(len(list(root.iter("failure"))))


def test_junit_skips_what_is_not_graded(lab: Lab) -> None:
    result = made.class_of([lab], [graded(lab, "a", "passed", "not_graded")], people("A", "B"))
    cases = list(ElementTree.fromstring(junit_xml(result, {7: lab})).iter("testcase"))
    tasks = [c for c in cases if c.get("classname") == "lab_7"]
    assert [[child.tag for child in c] for c in tasks] == [[], ["skipped"], ["skipped"]]


# --- pages ---


class Page(HTMLParser):
    """A page's tags, attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.style = ""
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.style += data
        else:
            self.text += data


TAGS = words(
    "html head meta title style body header p main h1 h2 h3 bdi strong section nav ul li "
    "a table thead tbody tfoot tr th td caption span small article dl dt dd div code pre "
    "b br meter "
)
ATTRIBUTES = words(
    "lang charset http-equiv content name class id href scope colspan title min max value "
    "role tabindex aria-label aria-labelledby aria-hidden "
)


def assert_inert(text: str) -> Page:
    """The page holds our tags only, loads nothing, and its policy names its one style sheet."""
    text.encode("utf-8")
    page = Page(text)
    assert set(page.tags) <= TAGS
    assert {name for _, name, _ in page.attributes} <= ATTRIBUTES
    assert page.tags.count("style") == 1
    for tag, name, value in page.attributes:
        if name == "href":
            assert tag == "a"
            assert re.fullmatch(r"#[\w.-]+|feedback/[\w%.-]+\.html|", value), value
    (policy,) = [v for _, name, v in page.attributes if name == "content" and "default" in v]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy
    assert not re.search(r"@import|url\(", page.style)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]", text)
    return page


def test_pages_of_a_hostile_class_are_inert(hostile: tuple[ClassResult, Labs]) -> None:
    result, labs = hostile
    links = {learner.id: f"feedback/{learner.id}.html" for learner in result.learners}
    whole = assert_inert(class_page(result, labs, links))
    assert made.SCRIPT in whole.text
    assert "{{ 7 * 7 }}" in whole.text
    for learner in result.learners:
        text = learner_page(result, learner, labs)
        assert_inert(text)
        assert len(text) < 300_000


def test_a_learner_reads_nothing_of_others_and_nothing_of_how_tampering_is_noticed(
    usual: tuple[ClassResult, Labs], hostile: tuple[ClassResult, Labs]
) -> None:
    result, labs = usual
    for learner in result.learners:
        shown = Page(learner_page(result, learner, labs)).text
        shown += gradescope_json(result, learner.id, labs)
        shown += github_classroom_json(result, learner.id, labs)
        assert set(re.findall(r"[Ll]earner.?(\d\d)", shown)) <= {learner.id[-2:]}
        assert "canary" not in shown
        assert "must fail" not in shown
    assert TAMPERED in Page(learner_page(result, result.learners[4], labs)).text
    result, labs = hostile
    for learner in result.learners:
        assert "secret evidence" not in learner_page(result, learner, labs)
    assert "secret evidence" in class_page(result, labs, {})


def test_a_learner_s_page_says_what_the_terminal_would_have_said(lab: Lab) -> None:
    failed = {
        "observed": "3",
        "expected": "4",
        "why": "Bills are sent.",
        "call": "double(2)",
        "hint": "times",
        "printed": "".join(f"line {n}\n" for n in range(30)),
        "frames": [{"file": "task_1.py", "line": 7, "function": "double", "code": "return 3"}],
        "figures": [{"name": "share", "value": 0.1234, "reference": 2000.0, "unit": "s"}],
    }
    tasks = [
        made.task_result(lab.tasks[0], "failed", failed=failed, expected_checks=5),
        made.task_result(lab.tasks[1], "not_started"),
    ]
    one = GradedLab(learner="a", lab=7, state="graded", result=made.lab_result(lab, tasks))
    result = made.class_of([lab], [one], people("A"))
    page = Page(learner_page(result, result.learners[0], {7: lab}))
    said = " ".join(page.text.split())
    for text in (
        "0 of 30 points",
        "✘ failed 1 of 5 checks pass",
        "called double(2) observed 3 expected 4 why Bills are sent.",
        "task_1.py, line 7, in double return 3",
        "… 10 lines before line 10",
        "How many times is twice?",
        "also Three",
        "not run until the others pass: 2 checks",
        "make check-lab-7 TASK=7.1",
        "You have not written this yet. Open labs/lab_7_made/starter/task_2.py",
        "share 0.123 s 2,000 s",
        hashlib.sha256(b"task_1.py").hexdigest(),
    ):
        assert text in said


def test_the_class_page_counts_misconceptions_by_learner(lab: Lab) -> None:
    done = [
        graded(lab, n, "failed", s)
        for n, s in zip("abc", ["failed", "passed", "passed"], strict=True)
    ]
    flag = Flag(task="7.1", kind="k", evidence="e")
    done[2] = done[2].model_copy(update={"flags": (flag,)})
    result = made.class_of([lab], done, people("A", "B", "C"))
    said = " ".join(Page(class_page(result, {7: lab}, {})).text.split())
    table = said.split("Misconceptions that were hit most")[1].split("Flags")[0]
    assert "2 7.1 Task 1 <of> 7 times How many times is twice? A, B" in table
    assert "1 7.2 Task 2 <of> 7 times How many times is twice? A " in table


def test_the_class_page_counts_who_and_what_is_flagged_and_says_each_thing_once(lab: Lab) -> None:
    same = [Flag(task="7.1", kind="a forged line", evidence="line 3") for _ in range(10)]
    other = Flag(task="7.2", kind="a forged line", evidence="line 4")
    done = [
        graded(lab, "a", "failed", "failed", flags=(*same, other)),
        graded(lab, "b", "failed", "failed", flags=(same[0],)),
        graded(lab, "c", "passed", "passed"),
    ]
    result = made.class_of([lab], done, people("A", "B", "C"))
    page = class_page(result, {7: lab}, {})
    said = " ".join(Page(page).text.split())
    assert "flagged 2 learners, 3 tasks" in said
    table = said.split("Flags: who interfered")[1].split("Problems")[0]
    assert table.count("line 3") == 2
    assert table.count("a forged line (10 times)") == 1
    assert page.split('id="flags"')[1].split("</section>")[0].count('<th scope="row">') == 3
    none = made.class_of([lab], done[2:], people("C"))
    assert "flagged none" in " ".join(Page(class_page(none, {7: lab}, {})).text.split())


def test_a_missing_file_is_no_failure_and_no_misconception(lab: Lab) -> None:
    one = graded(lab, "a", "passed", "failed")
    assert one.result is not None
    result = one.result.model_copy(update={"files": {"task_1.py": "0" * 64, "task_2.py": None}})
    both = made.class_of([lab], [one.model_copy(update={"result": result})], people("A"))
    page = Page(learner_page(both, both.learners[0], {7: lab})).text
    assert "not handed in" in page
    assert "failed" not in page
    whole = Page(class_page(both, {7: lab}, {})).text
    assert "No failure fitted a hint." in whole
    root = ElementTree.fromstring(junit_xml(both, {7: lab}))
    assert (root.get("failures"), root.find("testsuite").get("skipped")) == ("0", "1")  # type: ignore[union-attr]


# --- MLflow ---


def test_logging_again_updates_and_never_doubles(lab: Lab, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    result = made.class_of(
        [lab],
        [
            graded(lab, "a", "passed", "failed"),
            GradedLab(learner="b", lab=7, state="missing"),
            graded(lab, "c", "passed", "passed", flags=(Flag(task="7.1", kind="k", evidence="e"),)),
            GradedLab(learner="d", lab=7, state="not_graded", problem="not a zip file"),
        ],
        [*people("A", "B"), Learner(id="c", name=made.EVERYTHING), *people("D")],
    )
    folder = tmp_path / "mlflow"
    pages = {learner.id: learner_page(result, learner, {7: lab}) for learner in result.learners}
    assert tracking.log_class(result, {7: lab}, folder, pages) == 4
    first = result.graded[0].result
    assert first is not None
    slower = first.model_copy(update={"seconds": 99.0, "started_at": "later"})
    same = result.graded[0].model_copy(update={"result": slower})
    again = ClassResult(**dict(result) | {"graded": (same, *result.graded[1:])})
    assert tracking.log_class(again, {7: lab}, folder, pages) == 0

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None

    def runs() -> dict[str, Any]:
        found = client.search_runs([experiment.experiment_id])
        assert len({run.data.tags["learner"] for run in found}) == len(found) == 4
        return {run.data.tags["learner"]: run for run in found}

    one = runs()["a"]
    assert {who: (run.info.status, run.info.run_name) for who, run in runs().items()} == {
        "a": ("FINISHED", "a, lab 7: 10 of 30"),
        "b": ("KILLED", "b, lab 7: not handed in"),
        "c": ("FINISHED", "c, lab 7: 30 of 30"),
        "d": ("FAILED", "d, lab 7: NOT GRADED"),
    }
    assert one.data.metrics["score"] == 10
    assert one.data.metrics["points 7.2"] == 0
    assert one.data.params["status 7.2"] == "failed"
    assert (one.data.params["seed"], one.data.params["domain"]) == ("7", "finance")
    place = Path(one.info.artifact_uri.removeprefix("file://"))
    assert place.is_relative_to(folder)
    assert (place / "feedback.html").read_text(encoding="utf-8") == pages["a"]
    assert json.loads((place / "verdict.json").read_text(encoding="utf-8"))["lab"] == 7
    assert "score" not in runs()["b"].data.metrics
    assert runs()["c"].data.tags["tampered"] == "7.1"

    # Somebody is graded anew, and a crash left a run of somebody else unfinished.
    regraded = [graded(lab, "a", "passed", "passed"), *result.graded[1:]]
    result = ClassResult(**dict(result) | {"graded": tuple(regraded)})
    client.set_terminated(runs()["b"].info.run_id, "RUNNING")
    assert tracking.log_class(result, {7: lab}, folder, pages) == 2
    assert runs()["a"].data.metrics["score"] == 30
    assert runs()["b"].info.status == "KILLED"

    # Somebody has left the class.
    there = ClassResult(**dict(result) | {"learners": result.learners[:2]})
    assert tracking.log_class(there, {7: lab}, folder, pages) == 0
    left = client.search_runs([experiment.experiment_id])
    assert {run.data.tags["learner"] for run in left} == {"a", "b"}


# --- similarity ---

STARTER = '"""Given."""\n\n\ndef given(rows):\n    """Doc."""\n    raise NotImplementedError\n' + (
    "def load(path):\n    with open(path) as file:\n        found = [row.split() for row in file]\n"
    "    return {row[0]: [float(v) for v in row[1:]] for row in found if row}\n"
)
OWN = """
def given(rows):
    total = {}
    for key, value in rows:
        if key in total and value > 0:
            total[key] += value * 2
        elif value < 0:
            total[key] = max(total.get(key, 0), -value) ** 2
        else:
            total.setdefault(key, 1)
    return sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))[:10]
"""
OTHER = """
def given(rows):
    import collections
    seen = collections.Counter()
    while rows:
        head, *rows = rows
        seen.update({head[0]: abs(head[1])})
    best = seen.most_common()
    try:
        return [(name, count) for name, count in best if not count % 3][0:10]
    except (TypeError, ValueError) as error:
        raise RuntimeError(str(error)) from error
"""

LONG = OWN.replace("given", "one") + "".join(
    f"\n\ndef more_{n}(rows, total):\n    {line}\n    return total[rows[{n}]] {sign} len(rows)\n"
    for n, (line, sign) in enumerate(
        [
            ("while total > 3 and rows: total -= rows.pop() or 1", "+"),
            (
                "with open(rows[0]) as file: total = [s.strip() for s in file if s and s != total]",
                "-",
            ),
            ("assert isinstance(total, dict) and not rows is None, (rows, total, 'no rows')", "**"),
            (
                "try: total = {k: v for k, v in zip(rows, total.values(), strict=True)}\n"
                "    except (KeyError, ValueError) as error: raise RuntimeError(rows) from error",
                "//",
            ),
            (
                "yield from sorted(total, key=lambda row: (-row[0], row[1] % 2))[::-2]",
                "%",
            ),
        ]
    )
)


def disguised(source: str) -> str:
    """The same code with other names, comments and layout."""
    for old, new in (("total", "zz"), ("key", "k0"), ("value", "amount"), ("rows", "stream")):
        source = re.sub(rf"\b{old}\b", new, source)
    return "# mine\n" + source.replace("):", "):  # own work").replace("    ", "  ")


def handed_in(lab: Lab, folder: Path, files: dict[str, str]) -> ClassResult:
    for part, source in (("starter", STARTER), ("solution", STARTER + OTHER)):
        (lab.folder / part).mkdir(parents=True, exist_ok=True)
        (lab.folder / part / "task_1.py").write_text(source, encoding="utf-8")
    submissions = {}
    for who, source in files.items():
        place = folder / who
        place.mkdir()
        (place / "task_1.py").write_bytes(source.encode("utf-8", "surrogatepass"))
        learner = Learner(id=who, name=f"{who} {made.SCRIPT}")
        submissions[who] = Submission(learner=learner, source=who, labs={lab.number: place})
    learners = [s.learner for s in submissions.values()]
    return made.class_of([lab], [], learners, submissions)


def test_any_thirty_tokens_in_common_give_a_common_fingerprint() -> None:
    random = Random(5)
    words = ["name", "number", "text", "if", "for", "(", ")", "=", "+", "in", ":", "return"]
    for _ in range(50):
        shared = random.choices(words, k=K + W - 1)
        a, b = (
            set(
                winnow(hashes([*random.choices(words, k=40), *shared, *random.choices(words, k=9)]))
            )
            for _ in range(2)
        )
        assert a & b
    assert winnow([]) == {}
    assert hashes(["name"] * (K - 1)) == []


def test_disguised_copies_are_found_and_nobody_else(lab: Lab, tmp_path: Path) -> None:
    files = {
        "copied": STARTER + disguised(OWN),
        "original": STARTER + OWN + "</script>" + made.SCRIPT,
        "broken": STARTER + '"""' + disguised(OWN),
        "starter-1": STARTER,
        "starter-2": disguised(STARTER),
        "reference-1": STARTER + OTHER,
        "reference-2": STARTER + disguised(OTHER),
        "binary": "\x00\ud83d" * 2000,
        "empty": "",
    }
    result = handed_in(lab, tmp_path, files)
    found = similar_pairs(result, {7: lab})
    pairs = [p for p in found if not p.of_reference]
    assert {(p.a, p.b) for p in pairs} == {
        ("broken", "copied"),
        ("broken", "original"),
        ("copied", "original"),
    }
    pair = next(p for p in pairs if (p.a, p.b) == ("copied", "original"))
    assert pair.similarity > 0.9
    assert pair.fragments[0].tokens > 80
    table = rows(similarity_csv(pairs))
    assert table[1][:2] == ["7", "task_1.py"]
    assert len(table) == 4
    page = assert_inert(similarity_page(pairs, result))
    assert "total.setdefault(key, 1)" in page.text
    assert "zz.setdefault(k0, 1)" in page.text
    assert made.SCRIPT in page.text


def test_who_is_close_to_the_reference_is_listed_apart(lab: Lab, tmp_path: Path) -> None:
    variants = lab.folder / "variants" / "task_1"
    variants.mkdir(parents=True)
    (variants / "right_own.py").write_text(STARTER + LONG, encoding="utf-8")
    (variants / "wrong_own.py").write_text(STARTER + 3 * OWN, encoding="utf-8")
    files = {
        "same": STARTER + LONG,
        "renamed": "# mine\n" + STARTER + LONG.replace("total", "zz").replace("):", "):  # own"),
        "wrong": STARTER + OWN,
        "starter": STARTER,
        "short": STARTER + OTHER,
    } | {f"many-{n}": STARTER + LONG for n in range(20)}
    result = handed_in(lab, tmp_path, files)
    found = similar_pairs(result, {7: lab})
    close = [p for p in found if p.of_reference]
    assert {p.a for p in close} == files.keys() - {"wrong", "starter", "short"}
    assert {(p.b, p.similarity) for p in close} == {("variants/task_1/right_own.py", 1.0)}
    assert rows(similarity_csv(found))[1][3] == "reference: variants/task_1/right_own.py"
    page = assert_inert(similarity_page(found, result))
    assert "Close to the reference" in page.text
    assert "22 files" in page.text
    assert "Nobody." in Page(similarity_page([], result)).text


def test_few_right_variants_are_close_to_the_solution_and_no_starter_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each task somebody handed in the starter, the solution, and each right variant."""
    references = similarity._references
    monkeypatch.setattr(
        similarity,
        "_references",
        lambda *at: {k: v for k, v in references(*at).items() if k.startswith("solution/")},
    )
    labs = {lab.number: lab for lab in all_labs()}
    variants: dict[str, dict[int, Path]] = {}
    for number, one in labs.items():
        places = [("starter", t.file, one.folder / "starter" / t.file) for t in one.tasks]
        places += [("copy", t.file, one.folder / "solution" / t.file) for t in one.tasks]
        for task in one.tasks:
            right = sorted((one.folder / "variants" / task.stem).glob("right_*.py"))
            places += [(f"right-{n}", task.file, path) for n, path in enumerate(right)]
        for who, file, source in places:
            folder = variants.setdefault(who, {}).setdefault(number, tmp_path / who / str(number))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(source.read_bytes())
    learners = people(*variants)
    handed = {one.id: Submission(learner=one, source="", labs=variants[one.id]) for one in learners}
    result = made.class_of(list(labs.values()), [], learners, handed)
    near = {(p.lab, p.file, p.a) for p in similar_pairs(result, labs) if p.of_reference}
    copies = {(lab, t.file, "copy") for lab, one in labs.items() for t in one.tasks}
    assert copies <= near
    assert "starter" not in {who for *_, who in near}
    assert len(near - copies) <= 2  # the author's own, rewritten in a place or two


def test_what_many_wrote_counts_for_nobody(lab: Lab, tmp_path: Path) -> None:
    result = handed_in(lab, tmp_path, {f"l{n:02}": STARTER + OWN for n in range(12)})
    assert similar_pairs(result, {7: lab}) == []


def test_a_file_made_to_be_slow_is_read_like_any_other() -> None:
    for source in (
        "'\\" * 200_000,
        "'''" * 99_999 + "\n",
        "(" * 300_000,
        "\t" * 500_000,
        "a" * 10**6,
    ):
        assert len(tokens(source).tokens) <= 200_000


# --- everything at once ---


def test_everything_is_written_and_written_again(lab: Lab, tmp_path: Path) -> None:
    who = [*people("Ann"), Learner(id="ann", name="Other"), Learner(id="../up", name="Up")]
    who[0] = who[0].model_copy(update={"id": "Ann"})
    done = [graded(lab, one.id, "passed", "failed") for one in who]
    result = made.class_of([lab], done, who)
    warnings: list[str] = []
    written = write_all(result, tmp_path / "out", labs={7: lab}, warn=warnings.append)
    names = [path.relative_to(tmp_path / "out").as_posix() for path in written]
    up, ann = (file_names(one.id for one in who)[i] for i in ("../up", "ann"))
    for name in ("gradebook.csv", "class.html", "similarity.csv", "mlflow/mlflow.db"):
        assert name in names
    for name in ("Ann", ann, up):
        assert f"feedback/{name}.html" in names
        assert f"exports/gradescope/{name}/results.json" in names
        assert f"exports/github-classroom/{name}.json" in names
    assert names[0] == "gradebook.csv"
    assert len(set(map(str.casefold, names))) == len(names) == 8 + 3 * 3
    assert all(path.is_file() for path in written)
    assert len(warnings) == 1
    assert "moodle" in warnings[0]
    before = {p: p.read_bytes() for p in written if p.suffix != ".db"}
    write_all(result, tmp_path / "out", labs={7: lab}, warn=warnings.append)
    assert {p: p.read_bytes() for p in before} == before
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize("room", [0, 1, 4, 9])
def test_a_full_disk_is_a_sentence_and_leaves_old_files_whole(
    room: int, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "log_class", lambda *_: 0)
    out = tmp_path / "out"
    who = people("A")
    one = made.class_of([lab], [graded(lab, "a", "failed", "failed")], who)
    old = {p: p.read_bytes() for p in write_all(one, out, labs={7: lab}) if p.is_file()}
    left = iter(range(room))
    fsync = os.fsync

    def full(fd: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(fd)

    monkeypatch.setattr("os.fsync", full)
    better = made.class_of([lab], [graded(lab, "a", "passed", "passed")], who)
    warnings: list[str] = []
    if room < 8:
        with pytest.raises(UserError, match="No space left on device"):
            write_all(better, out, labs={7: lab}, warn=warnings.append)
    else:
        write_all(better, out, labs={7: lab}, warn=warnings.append)
        assert "similarity.html" in warnings[0]  # the ninth and last of the files
    changed = [p for p, before in old.items() if p.read_bytes() != before]
    assert len(changed) <= room
    assert not list(out.rglob("*.tmp"))


def test_similarity_and_mlflow_never_cost_the_gradebook(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("the store is \x1b[2J locked")

    monkeypatch.setattr(reports, "similar_pairs", breaks)
    monkeypatch.setattr(reports, "log_class", breaks)
    warnings: list[str] = []
    result = made.class_of([lab], [graded(lab, "a", "passed", "passed")], people("A"))
    written = write_all(result, tmp_path, labs={7: lab}, warn=warnings.append)
    assert (tmp_path / "gradebook.csv") in written
    assert len(warnings) == 2
    assert all("locked" in w and "\x1b" not in w for w in warnings)


def test_file_names_are_safe_and_nobody_s_page_replaces_another_s() -> None:
    ids = ["ann", "Ann", "..", ".hidden", "a/b", "", "x" * 81, "con", "NUL.txt", "ok.", "e\u0301"]
    found = file_names(ids)
    assert found["ann"] == "ann"
    assert len({name.casefold() for name in found.values()}) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name) for name in found.values())


def test_a_lab_that_this_checkout_lacks_is_still_reported(lab: Lab, tmp_path: Path) -> None:
    one = made.small_lab(77, tmp_path)
    result = made.class_of([one], [graded(one, "a", "passed", "failed")], people("A"))
    assert known_labs(result) == {}
    assert "77.2" in class_page(result, {}, {})
    assert "77.2" in learner_page(result, result.learners[0], {})


def test_what_to_look_at_is_told_to_the_instructor_alone(usual: tuple[ClassResult, Labs]) -> None:
    result, labs = usual
    who = result.learners[0]
    note = Note(kind="look at this", text="a.py, line 3: sys.modules", lab=1, private=True)
    seen = Submission(learner=who, source="a", labs={}, notes=(note,))
    told = ClassResult(**dict(result) | {"submissions": result.submissions | {who.id: seen}})
    header, *found = rows(gradebook(told))
    row = next(r for r in found if r[0] == who.id)
    assert row[header.index("Look at")] == "Lab 1, look at this: a.py, line 3: sys.modules"
    assert row[header.index("Flags")] == ""
    assert "a.py, line 3: sys.modules" in class_page(told, labs, {})
    for text in (
        learner_page(told, who, labs),
        gradescope_json(told, who.id, labs),
        github_classroom_json(told, who.id, labs),
        canvas_csv(told),
        moodle_csv(told, labs)[0],
        junit_xml(told, labs),
    ):
        assert "look at this" not in text
        assert "sys.modules" not in text
