"""`make grade` as an instructor types it: again, with other words, for some of the class."""

from __future__ import annotations

import csv
import io
import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from shared.classroom import grade as grade_module
from shared.classroom import reports
from shared.classroom.journal import Journal
from shared.errors import UserError
from shared.grading import lab as lab_module

LAB = """
[lab]
number = {number}
title = "Small"
engine = "none"
domains = true

[[task]]
id = "{number}.1"
title = "Double"
kind = "build"
file = "double.py"
symbols = ["double"]
points = 10
minutes = 1
hints = [{{ id = "times", text = "How many times is twice?" }}]

[[task]]
id = "{number}.2"
title = "Triple"
kind = "review"
draft = true
file = "triple.py"
symbols = ["triple"]
points = 20
minutes = 1
hints = [{{ id = "thrice", text = "How many times is thrice?" }}]
"""
DOUBLE = '"""Doubles."""\n\n\ndef double(x: int) -> int:\n    """Twice `x`."""\n    return 2 * x\n'
TRIPLE = '"""Triples."""\n\n\ndef triple(x: int) -> int:\n    """Thrice `x`."""\n    return 3 * x\n'
DRAFT = TRIPLE.replace("3 * x", "2 * x")
CHECKS = """
from shared.grading.expect import expect_equal


def test_of_nothing(learner):
    expect_equal(learner.{name}(0), 0, what="of 0", why="Empty carts exist.")


def test_of_seven(learner):
    expect_equal(learner.{name}(7), {seven}, what="of 7", why="Bills are sent.", hint="{hint}")
"""


class Course:
    """A folder of two labs, hand-ins, and an instructor who types commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.handed_in = folder / "handed-in"
        self.out = folder / "grades"
        self.said = ""
        for number in (8, 9):
            self.write_lab(number)

    def write_lab(self, number: int) -> None:
        lab = self.folder / "labs" / f"lab_{number}_small"
        texts = {
            "lab.toml": LAB.format(number=number),
            "solution/double.py": DOUBLE,
            "solution/triple.py": TRIPLE,
            "drafts/triple.py": DRAFT,
            "checks/test_double.py": CHECKS.format(name="double", seven=14, hint="times"),
            "checks/test_triple.py": CHECKS.format(name="triple", seven=21, hint="thrice"),
        }
        for name, text in texts.items():
            path = lab / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.lstrip("\n"), encoding="utf-8")

    def hand_in(self, name: str, lab: int = 9, double: str = DOUBLE, triple: str = TRIPLE) -> None:
        folder = self.handed_in / name / "labs" / f"lab_{lab}_small" / "starter"
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in (("double.py", double), ("triple.py", triple)):
            if text:
                (folder / file).write_bytes(text.encode())

    def roster(self, *names: str) -> str:
        path = self.folder / "roster.csv"
        path.write_text("id,name\n" + "".join(f"{n},{n.title()}\n" for n in names))
        return str(path)

    def grade(self, **words: str | bool) -> int:
        said = StringIO()
        try:
            return grade_module.grade(
                Console(file=said, width=200),
                str(self.handed_in),
                str(words.pop("out", self.out)),
                sandbox="off",
                **words,  # type: ignore[arg-type]
            )
        finally:
            self.said = said.getvalue()

    def refused(self, **words: str | bool) -> str:
        with pytest.raises(UserError) as error:
            self.grade(**words)
        return str(error.value)

    def book(self) -> dict[str, dict[str, str]]:
        text = (self.out / "gradebook.csv").read_text(encoding="utf-8-sig")
        return {row["Learner"]: row for row in csv.DictReader(io.StringIO(text))}

    def page(self, name: str) -> str:
        return " ".join((self.out / "feedback" / f"{name}.html").read_text().split())

    def class_page(self) -> str:
        return " ".join((self.out / "class.html").read_text().split())


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Course:
    monkeypatch.setattr(lab_module, "LABS", tmp_path / "labs")
    monkeypatch.setattr(reports, "log_class", lambda *_: 0)
    return Course(tmp_path)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


# One seed and one domain


def test_another_seed_or_domain_is_refused_and_changes_nothing(course: Course) -> None:
    course.hand_in("ada")
    course.hand_in("ben", double=DOUBLE.replace("2 * x", "x"))
    assert course.grade(seed="7", domain="healthcare") == 0
    before = everything(course.out)
    for words in (
        {"seed": "9"},
        {"domain": "climate"},
        {"seed": "9", "domain": "climate", "learner": "ben"},
        {"seed": "9", "fresh": True, "learner": "ben"},
        {"seed": "9", "fresh": True, "labs": "8"},
    ):
        said = course.refused(**words)
        assert "SEED=7 DOMAIN=healthcare" in said
        assert "another OUT=" in said
        assert "FRESH=1" in said
    assert everything(course.out) == before
    assert course.grade(seed="7") == 0
    assert course.grade(learner="ben", fresh=True) == 0
    for name in ("ada", "ben"):
        assert "<dt>SEED</dt><dd><bdi>7</bdi></dd>" in course.page(name)
        assert "<bdi>healthcare</bdi>" in course.page(name)


def test_everything_anew_takes_another_seed(course: Course) -> None:
    course.hand_in("ada")
    course.hand_in("ben")
    course.grade(seed="7")
    (course.handed_in / "ben").rename(course.folder / "ben")
    assert course.grade(seed="9", fresh=True) == 0
    assert "<bdi>9</bdi>" in course.page("ada")
    (course.folder / "ben").rename(course.handed_in / "ben")
    assert course.grade(learner="ada") == 1  # ben's verdict of the old seed is no verdict
    assert "without LEARNER= tries that again" in course.said
    assert course.grade() == 0
    assert "<bdi>9</bdi>" in course.page("ben")


def test_a_page_shows_what_its_own_verdicts_were_reached_with(course: Course) -> None:
    course.hand_in("ada")
    course.grade(seed="7", domain="healthcare")
    path = course.out / "grading.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 9, "domain": "climate"}))
    course.hand_in("ben")
    course.grade(learner="ben")
    assert "<bdi>7</bdi>" in course.page("ada")
    assert "<bdi>healthcare</bdi>" in course.page("ada")
    assert "<bdi>9</bdi>" in course.page("ben")
    assert "<bdi>climate</bdi>" in course.page("ben")


# What is refused leaves nothing


@pytest.mark.parametrize("out", ["handed-in/g", "handed-in", "handed-in/ada/../g"])
def test_an_out_among_the_submissions_is_refused_before_it_is_made(
    course: Course, out: str
) -> None:
    course.hand_in("ada")
    before = everything(course.handed_in)
    assert "inside of each other" in course.refused(out=str(course.folder / out))
    assert everything(course.handed_in) == before


@pytest.mark.parametrize(
    "words",
    [
        {"learner": "nobody"},
        {"seed": "-1"},
        {"domain": "x"},
        {"labs": "7"},
        {"engine": "x"},
        {"roster": "none.csv"},
    ],
)
def test_a_wrong_word_makes_no_out(course: Course, words: dict[str, str]) -> None:
    course.hand_in("ada")
    course.refused(**words)
    assert not course.out.exists()


def test_what_begins_with_a_dot_is_nobody(course: Course) -> None:
    course.hand_in("ada")
    (course.handed_in / ".lock").touch()
    (course.handed_in / ".cache").mkdir()
    assert course.grade() == 0
    assert set(course.book()) == {"ada"}


# Who handed in nothing, or nothing that can be read


def test_a_class_is_complete_without_those_who_handed_in_nothing(course: Course) -> None:
    course.hand_in("ada")
    (course.handed_in / "eve.zip").write_bytes(b"")
    (course.handed_in / "kim.rar").write_bytes(b"Rar!\x1a\x07\x01\x00" + bytes(50))
    people = course.roster("zoe", "ada", "eve", "kim")
    assert course.grade(roster=people) == 0
    assert "not graded" not in course.said.lower()
    rows = [line.split() for line in course.said.splitlines() if line.startswith("  ")]
    assert [row[:2] for row in rows if row[0] in ("Ada", "Eve", "Kim", "Zoe")] == [
        ["Ada", "30/30"],
        ["Eve", "–"],
        ["Kim", "–"],
        ["Zoe", "–"],
    ]
    book = course.book()
    for name in ("zoe", "eve", "kim"):
        assert (book[name]["Lab 9"], book[name]["Total"], book[name]["Percent"]) == ("", "", "")
        assert not (course.out / "exports" / "gradescope" / name).exists()
    assert book["zoe"]["Problems"] == "Nothing was handed in."
    assert "0 bytes" in book["eve"]["Problems"]
    assert "RAR" in book["kim"]["Problems"]
    page = course.class_page()
    assert "Not all of it is graded" not in page
    row = page.split('<th scope="row">9: Small</th>')[1].split("</tr>")[0]
    assert row.startswith('<td class="n">1</td><td class="n">1</td><td class="n">2</td>')
    assert "the hand-in cannot be used" in page
    zoe = course.page("zoe")
    assert "Nothing was handed in." in zoe
    assert "could not be graded" not in zoe
    assert "Your submission could not be graded: <bdi>eve.zip" in course.page("eve")


# What nobody has touched


def test_a_file_as_the_starter_has_it_is_not_started(course: Course) -> None:
    starter = DOUBLE.replace("return 2 * x", 'raise NotImplementedError("Task 9.1: write double")')
    course.hand_in("ada", double=starter, triple=DRAFT.replace("\n", "\r\n"))
    course.hand_in("ben", double=starter, triple=DRAFT + "# mine\n")
    assert course.grade() == 0
    with Journal(course.out) as journal:
        assert journal.verdicts("ada", 9)["9.2"].result.status == "failed"
    ada, ben = course.page("ada"), course.page("ben")
    assert "failed" not in ada.split("</style>")[1]
    assert "It is as the starter has it. Open labs/lab_9_small/starter/triple.py" in ada
    assert "1 of 2 checks pass" in ben
    table = course.class_page().split("Misconceptions that were hit most")[1].split("Flags")[0]
    assert "<strong>1</strong>" in table
    assert "ben" in table
    assert "ada" not in table


def test_a_file_that_was_not_handed_in_is_no_failure(course: Course) -> None:
    course.hand_in("ada", triple="")
    course.hand_in("ben")
    assert course.grade(labs="9") == 0
    page = course.page("ada").split("</style>")[1]
    assert "failed" not in page
    assert '<span class="badge missing"><span aria-hidden="true">–</span> not handed in' in page
    assert course.book()["ada"]["Total"] == "10"
    assert "9.2: not handed in" in course.class_page()


# Whom it goes on without


def test_files_of_who_is_no_longer_there_are_removed(course: Course) -> None:
    for name in ("ada", "ben", "cleo"):
        course.hand_in(name)
    course.grade()
    own = course.out / "feedback" / "mine.html"
    own.write_text("mine")
    noted = course.out / "feedback" / "cleo.html"
    noted.write_text(noted.read_text() + "<!-- a remark by hand -->")
    for name in ("ben", "cleo"):
        (course.handed_in / name).rename(course.folder / name)
    course.grade()
    kept = ("journal/", "submissions/")  # a verdict is never lost, and what it is on
    left = {p.relative_to(course.out).as_posix() for p in course.out.rglob("*") if p.is_file()}
    assert not [name for name in left if "ben" in name and not name.startswith(kept)]
    assert {"feedback/ada.html", "feedback/mine.html", "feedback/cleo.html"} <= left
    assert not (course.out / "exports" / "gradescope" / "ben").exists()


def test_a_lab_for_some_counts_for_nobody_else(course: Course) -> None:
    for name in ("ada", "ben"):
        course.hand_in(name, 9)
    course.hand_in("ben", 8, double=DOUBLE.replace("2 * x", "x"))
    assert course.grade(labs="9") == 0
    assert course.grade(labs="8", learner="ben") == 0
    book = course.book()
    columns = ("Lab 8", "Lab 8 max", "Total", "Max", "Percent", "Problems")
    assert [book["ada"][c] for c in columns] == ["", "", "30", "30", "100.0", ""]
    assert [book["ben"][c] for c in columns] == ["20", "30", "50", "60", "83.3", ""]
    assert "Lab 8" not in course.page("ada")
    assert "of 30</dd>" in course.class_page()
    assert course.grade(labs="8") == 0
    assert course.book()["ada"]["Max"] == "60"
    assert course.book()["ada"]["Problems"] == "Lab 8: not handed in"


def test_only_fresh_grades_again_what_has_not_changed(course: Course) -> None:
    for name in ("ada", "ben"):
        course.hand_in(name)
    course.grade()
    course.grade(learner="ben")
    assert "0 to grade, 2 known from before" in course.said
    course.grade(learner="ben", fresh=True)
    assert "2 to grade, 0 known from before" in course.said


# What it says meanwhile


def test_progress_says_whose_work_it_is_and_lists_in_the_order_of_names(course: Course) -> None:
    for name in ("Ivo", "ben", "ada"):
        course.hand_in(name)
    course.out = course.folder / "labs" / ".." / "grades"
    course.grade()
    assert "of Ivo and 2 more: passed)" in course.said
    assert f"written to {course.folder / 'grades'}\n" in course.said
    names = [line.split()[0] for line in course.said.splitlines() if "30/30" in line]
    assert names == ["ada", "ben", "Ivo"]
    assert list(course.book()) == names
