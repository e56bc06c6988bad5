"""Canvas: a CSV for *Grades, Import*.

Format: https://community.canvaslms.com/t5/Instructor-Guide/How-do-I-import-grades-in-the-Gradebook/ta-p/807,
and what Canvas's importer does with it,
https://github.com/instructure/canvas-lms/blob/master/lib/gradebook_importer.rb:

- The columns are Student, ID, SIS User ID, SIS Login ID, Section, then one an assignment. A row
  whose first cell says "Points Possible" gives each assignment's points.
- An assignment is found by its title. "Lab 1" is found or made anew; a title that ends in a number
  in brackets would be taken for an id of Canvas, so ours has none.
- A person is found by ID, else SIS User ID, else SIS Login ID, else by name. Canvas reads ID as a
  number and ignores what follows the digits ("12-a" would be person 12), so only a plain number
  goes there. An id is only one that is Canvas's: of its own export, or of the names that it gives
  to hand-ins. Any other number could be somebody else's there, so the cell stays empty.
- Of its export all that says who it is stays as it came, and no column is added, but for Section,
  without which Canvas refuses the file.
- An empty cell stands for no grade.
"""

from __future__ import annotations

from shared.classroom.gradebook import table
from shared.classroom.records import ClassResult, Learner
from shared.classroom.text import cell, one_line
from shared.classroom.verdicts import by_name, score, settled

_COLUMNS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
_IDS = ("ID", "SIS User ID", "SIS Login ID")


def canvas_csv(result: ClassResult) -> str:
    """The file's text. UTF-8 without a byte order mark, as Canvas's own exports are."""
    columns = _columns(result)
    titles = [f"Lab {lab}" for lab in result.labs]
    possible = ["Points Possible", *("" for _ in columns[1:])]
    rows: list[list[object]] = [[*columns, *titles]]
    rows.append([*possible, *(result.max_scores.get(lab, 0) for lab in result.labs)])
    for learner in by_name(result):
        person = [_about(learner, column) for column in columns]
        rows.append([*person, *_scores(result, learner)])
    return table(rows)


def canvas_unmatched(result: ClassResult) -> str:
    """A warning that names whom Canvas has no id for; empty when all have one.

    Empty, too, when nobody has one: the class is then hardly in Canvas.
    """
    without = [
        one_line(learner.id, 80)
        for learner in by_name(result)
        if not any(_about(learner, column) for column in _IDS)
    ]
    if not without or len(without) == len(result.learners):
        return ""
    return (
        f"exports/canvas.csv has no id of Canvas for {', '.join(without)}. It looks for them by "
        "name: give its gradebook export as ROSTER, or look at each of them at the import."
    )


def _columns(result: ClassResult) -> list[str]:
    """Those of Canvas's export where the roster is one."""
    known = next((one.canvas for one in result.learners if "Section" in one.canvas), None)
    return list(_COLUMNS if known is None else known)


def _about(learner: Learner, column: str) -> str:
    value = learner.canvas.get(column)
    if column == "ID":
        return value if value is not None and value.isascii() and value.isdigit() else ""
    if value is None:
        own = {"Student": learner.name, "LastName": learner.name, "Section": learner.section}
        return own.get(column, "")
    return value if column not in _IDS or cell(value) == value else ""


def _scores(result: ClassResult, learner: Learner) -> list[object]:
    graded = [result.of(learner.id, lab) for lab in result.labs]
    return [score(g) if settled(g) else "" for g in graded]
