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
  goes there; any other id of the roster goes to SIS User ID.
- An empty cell stands for no grade.
"""

from __future__ import annotations

from shared.classroom.gradebook import table
from shared.classroom.records import ClassResult, Learner
from shared.classroom.verdicts import by_name, score, settled


def canvas_csv(result: ClassResult) -> str:
    """The file's text. UTF-8 without a byte order mark, as Canvas's own exports are."""
    titles = [f"Lab {lab}" for lab in result.labs]
    header = ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", *titles]
    possible = ["Points Possible", "", "", "", ""]
    rows: list[list[object]] = [[*header]]
    rows.append([*possible, *(result.max_scores.get(lab, 0) for lab in result.labs)])
    rows += [[*_person(learner), *_scores(result, learner)] for learner in by_name(result)]
    return table(rows)


def _person(learner: Learner) -> list[str]:
    own = learner.external_id
    number = own.isascii() and own.isdigit()
    login = learner.email or learner.id
    return [learner.name, own if number else "", "" if number else own, login, learner.section]


def _scores(result: ClassResult, learner: Learner) -> list[object]:
    graded = [result.of(learner.id, lab) for lab in result.labs]
    return [score(g) if settled(g) else "" for g in graded]
