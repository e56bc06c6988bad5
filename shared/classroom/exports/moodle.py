"""Moodle: a CSV for *Grades, Import, CSV file*.

Format: https://docs.moodle.org/en/Grade_import, and what the importer does with it,
https://github.com/moodle/moodle/blob/main/grade/import/csv/classes/load_data.php:

- One column says who it is; "Map from" and "Map to" name it at the import. A person that Moodle
  does not find ends the whole import, and a row that names nobody is given to the person of the
  row before. So there is exactly one such column, and who lacks it is left out and named in a
  warning. The number in Moodle's names of hand-ins is none of these: it changes with each
  assignment.
- Grades above 100 end the import too, unless the site allows more. So each lab is out of 100.
- "-" stands for no grade.
- Map a lab's grade and its feedback together: importing the feedback alone would wipe the grade.
  Moodle renders feedback as HTML, so there is nothing of a submission in it.
"""

from __future__ import annotations

from collections.abc import Callable

from shared.classroom.gradebook import table
from shared.classroom.records import ClassResult, GradedLab, Learner
from shared.classroom.text import cell, one_line
from shared.classroom.verdicts import NOT_THERE, Labs, by_name, score, settled, verdicts
from shared.grading.lab import Lab

_IDENTITIES: tuple[tuple[str, Callable[[Learner], str]], ...] = (
    ("Email address", lambda learner: learner.email),
    ("ID number", lambda learner: learner.moodle.get("ID number", "")),
    ("Username", lambda learner: learner.moodle.get("Username", "")),
)


def moodle_csv(result: ClassResult, labs: Labs) -> tuple[str, str]:
    """The file's text, and a warning that names who is not in it; empty when all are."""
    column, identity = next(
        ((name, of) for name, of in _IDENTITIES if any(map(of, result.learners))), _IDENTITIES[0]
    )
    header = [column]
    for lab in result.labs:
        header += [f"Lab {lab} (of 100)", f"Lab {lab} feedback"]
    rows: list[list[object]] = [[*header]]
    left_out = []
    for learner in by_name(result):
        who = identity(learner)
        if not who or cell(who) != who:
            left_out.append(one_line(learner.id, 80))
            continue
        row: list[object] = [who]
        for lab in result.labs:
            graded = result.of(learner.id, lab)
            row += [_grade(graded, result.max_scores.get(lab, 0)), _feedback(graded, labs.get(lab))]
        rows.append(row)
    if not left_out:
        return table(rows), ""
    if len(rows) == 1:
        return table(rows), (
            "exports/moodle.csv names nobody: no email address, ID number or username of Moodle is "
            "known. Give a roster with a column email, or Moodle's own list, as ROSTER."
        )
    return table(rows), (
        f"exports/moodle.csv leaves out who has no usable {column.lower()}: {', '.join(left_out)}. "
        "Enter their grades by hand, or complete the roster."
    )


def _grade(graded: GradedLab | None, maximum: int) -> object:
    points = score(graded)
    if points is None or not settled(graded) or maximum <= 0:
        return "-"
    return round(100 * points / maximum, 2)


def _feedback(graded: GradedLab | None, lab: Lab | None) -> str:
    if graded is None or graded.state != "graded":
        told = NOT_THERE | {"not_asked": ""}
        return told.get(graded.state if graded else "", "NOT GRADED")
    lines = [v.line for v in verdicts(graded, lab)]
    if not settled(graded):
        lines.append("some of it is NOT GRADED")
    return "; ".join(lines).replace("<", "‹").replace("&", "+")  # a title is no HTML either
