"""JUnit XML: the whole class in one file, for CI systems and test dashboards.

Format: there is no official one; https://github.com/testmoapp/junitxml describes the common use,
and the file is valid to the schema of Jenkins, which pytest's own reports are held to as well:
https://github.com/jenkinsci/xunit-plugin/blob/master/src/main/resources/org/jenkinsci/plugins/xunit/types/model/xsd/junit-10.xsd.

A suite is a learner's lab; a case is a task (class `lab_1`), followed by its checks (class
`lab_1.1.1`). What is not graded or not handed in is "skipped", never green.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from shared.classroom.records import ClassResult, Learner
from shared.classroom.text import one_line, xml_text
from shared.classroom.verdicts import (
    Labs,
    Verdict,
    by_name,
    flagged,
    lab_problems,
    verdicts,
    without_file,
)
from shared.grading.results import TaskResult

_OUTCOMES = {
    "passed": "",
    "failed": "failure",
    "raised": "failure",
    "not_started": "failure",
    "error": "error",
    "timed_out": "error",
    "tampered": "error",
    "broken": "skipped",
    "engine": "skipped",
    "not_graded": "skipped",
    "missing": "skipped",
}
"""How a status of a task or an outcome of a check is said in JUnit's words."""


def junit_xml(result: ClassResult, labs: Labs) -> str:
    """The file's text."""
    root = ElementTree.Element("testsuites", name="class")
    for learner in by_name(result):
        for lab in result.labs:
            root.append(_suite(result, learner, lab, labs))
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _suite(result: ClassResult, learner: Learner, lab: int, labs: Labs) -> ElementTree.Element:
    graded = result.of(learner.id, lab)
    suite = ElementTree.Element("testsuite", name=_line(f"{learner.id}: Lab {lab}"))
    properties = ElementTree.SubElement(suite, "properties")
    ElementTree.SubElement(properties, "property", name="learner", value=_line(learner.name))
    if graded is None or graded.result is None:
        case = _case(suite, f"lab_{lab}", f"Lab {lab}")
        why = "; ".join(lab_problems(result, learner.id, lab))
        ElementTree.SubElement(case, "skipped", message=_line(why))
    else:
        spoilt = flagged(graded) | without_file(graded, labs.get(lab))
        shown = verdicts(graded, labs.get(lab))
        for verdict, task in zip(shown, graded.result.tasks, strict=True):
            _task(suite, lab, verdict)
            if task.id not in spoilt:
                _checks(suite, lab, task)
    suite.set("tests", str(len(suite.findall("testcase"))))
    for tag, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(name, str(len(suite.findall(f"testcase/{tag}"))))
    return suite


def _task(suite: ElementTree.Element, lab: int, verdict: Verdict) -> None:
    case = _case(suite, f"lab_{lab}", f"{verdict.id} {verdict.title}")
    tag = _OUTCOMES[verdict.status]
    if tag:
        message = _line(f"{verdict.word}, {verdict.points} of {verdict.max_points} points")
        found = ElementTree.SubElement(case, tag, message=message, type=verdict.status)
        found.text = xml_text(verdict.text, 20_000)


def _checks(suite: ElementTree.Element, lab: int, task: TaskResult) -> None:
    for outcome in task.checks:
        case = _case(suite, f"lab_{lab}.{task.id}", outcome.check or "the run as a whole")
        tag = _OUTCOMES[outcome.outcome]
        if tag:
            message = _line(outcome.observed or outcome.outcome)
            ElementTree.SubElement(case, tag, message=message, type=outcome.outcome)


def _case(suite: ElementTree.Element, group: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=_line(group), name=_line(name))


def _line(text: str) -> str:
    return xml_text(one_line(text, 300), 400)
