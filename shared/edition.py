"""Which edition of the labs this is: the whole one, or the learner's, which `make release` makes.

The learner's edition has no solutions, variants and held-out sets. It is recognised by a file that
the release writes (`shared/edition.json`), and says in each report what it therefore cannot prove.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from shared.errors import UserError
from shared.paths import ROOT

if TYPE_CHECKING:
    from shared.grading.lab import Lab, Task

MARKER = "shared/edition.json"
PRISTINE = "pristine"
"""A lab's starters as they were: the learner's edition has no solution to derive them from."""
NOT_PROVEN = (
    "held-out data (graded on the published and practice data; your instructor's checkout grades "
    "on held-out data)"
)


class Edition(BaseModel):
    """What the marker says.

    Attributes:
        edition: ``"learner"``.
        made_from: the commit of the whole edition that it was made from.
        practice: for each lab's folder the tasks (their files without ``.py``) whose checks would
            use held-out data.
    """

    model_config = ConfigDict(extra="forbid")

    edition: str
    made_from: str
    practice: dict[str, list[str]]


def learners_edition(root: Path = ROOT) -> Edition | None:
    """The marker of the learner's edition; None in the whole one.

    Raises:
        UserError: the marker is there and cannot be read.
    """
    path = root / MARKER
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{MARKER} cannot be read: {error.strerror or error}.") from error
    try:
        return Edition.model_validate_json(text)
    except ValueError as error:
        raise UserError(f"{MARKER} is damaged. `git checkout {MARKER}` puts it back.") from error


def edition_not_proven(lab: Lab, task: Task) -> list[str]:
    """What the verdict on a task does not show because of the edition."""
    edition = learners_edition()
    if edition is None or task.stem not in edition.practice.get(lab.folder.name, ()):
        return []
    return [NOT_PROVEN]
