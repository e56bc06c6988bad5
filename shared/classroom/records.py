"""What is known about a class: its submissions, and the verdicts on them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from shared.grading.results import LabResult


class Record(BaseModel):
    """A record that does not change once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Note(Record):
    """Something seen in a submission that had no effect on its grade.

    Attributes:
        kind: what it is, in a word or two, e.g. ``"conftest.py"``, ``"symbolic link"``.
        text: a sentence for the instructor; may quote the submission, so escape it.
        lab: the lab that it concerns, if one.
        private: it is for the instructor alone, who is to look at it.
    """

    kind: str
    text: str
    lab: int | None = None
    private: bool = False


class Flag(Record):
    """Evidence that a submission tampered with its own grading; the task scores zero.

    Attributes:
        task: id of the task.
        kind: what was noticed, e.g. ``"a check that must fail passed"``.
        evidence: what was seen, in a sentence; may quote the submission, so escape it.
    """

    task: str
    kind: str
    evidence: str


class Learner(Record):
    """One person of the class.

    Attributes:
        id: what tells them from the others: of the roster, or the submission's name made safe
            (letters, digits, ``.``, ``_``, ``-``; at most 80 characters). Fit to name a folder.
        name: what to call them on pages and in gradebooks.
        email, section: of the roster, if it has them.
        external_id: the number by which a platform's names of hand-ins know them, or what the
            roster has for one. It finds hand-ins, and is no id of any other system.
        platform: whose number that is: ``"Canvas"``, ``"Moodle"``, another's name, or ``""`` where
            the roster does not say.
        canvas: Canvas's own columns and what they hold: all that its gradebook export has, or the
            ids that are Canvas's for sure.
        moodle: the same of Moodle: ``"ID number"``, ``"Username"``.
    """

    id: str
    name: str
    email: str = ""
    section: str = ""
    external_id: str = ""
    platform: str = ""
    canvas: dict[str, str] = {}
    moodle: dict[str, str] = {}


class Submission(Record):
    """What one learner handed in, made safe: plain files only, in a folder of ours.

    Attributes:
        source: where it came from, as the instructor would name it.
        labs: number of a lab to a folder that holds the learner's task files of it and nothing
            but regular ``.py`` files; a lab that is not in it was not handed in.
        notes: what was found and left out, or had no effect.
        problem: why nothing of it can be graded, or empty.
    """

    learner: Learner
    source: str
    labs: dict[int, Path]
    notes: tuple[Note, ...] = ()
    problem: str = ""

    @property
    def handed_in(self) -> bool:
        """Whether there was anything at all, usable or not."""
        return bool(self.source)


class GradedLab(Record):
    """The verdict on one learner's lab.

    Attributes:
        result: None when the lab was not handed in, or could not be graded (`problem` says why).
        flags: evidence of tampering; the tasks they name have no points in `result`.
        state: ``"graded"``; ``"missing"`` (not handed in); ``"unusable"`` (what was handed in
            cannot be read, or holds no lab: it counts as not handed in); ``"not_asked"`` (the lab
            was graded for some learners only, and this is none of them); or ``"not_graded"``, the
            only one that the next run can change by itself.
    """

    learner: str
    lab: int
    state: Literal["graded", "missing", "unusable", "not_asked", "not_graded"]
    result: LabResult | None = None
    flags: tuple[Flag, ...] = ()
    notes: tuple[Note, ...] = ()
    problem: str = ""


class ClassResult(Record):
    """Everything that is known about a class after grading.

    Attributes:
        max_scores: number of a lab to the points that it gives at most.
        graded: one entry for each learner and lab, in the order of learners and labs.
        for_some: labs that were graded for some learners only, by their names.
        sandbox: what held the submissions' code, e.g. ``"bubblewrap, warm"``, or ``"off"``.
        complete: False while some of it is not graded yet.
    """

    learners: tuple[Learner, ...]
    labs: tuple[int, ...]
    max_scores: dict[int, int]
    graded: tuple[GradedLab, ...]
    submissions: dict[str, Submission]
    domain: str
    seed: int
    sandbox: str
    complete: bool
    for_some: frozenset[int] = frozenset()

    def of(self, learner: str, lab: int) -> GradedLab | None:
        """The verdict on a learner's lab, if there is one."""
        return self._by_learner_and_lab.get((learner, lab))

    @cached_property
    def _by_learner_and_lab(self) -> dict[tuple[str, int], GradedLab]:
        return {(g.learner, g.lab): g for g in self.graded}
