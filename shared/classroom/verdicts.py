"""A class's verdicts in plain words: one place that all reports take their sentences from.

What is said here may be read by the learner. So it holds no other learner, and of tampering only
that it was noticed: how it was noticed is for the instructor's page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.classroom.records import ClassResult, GradedLab, Learner, Note
from shared.classroom.text import cut, number, one_line, visible
from shared.errors import UserError
from shared.grading.events import CheckOutcome
from shared.grading.feedback import MARKS, sentence
from shared.grading.lab import Lab, Task, load_lab
from shared.grading.results import TaskResult

TAMPERED = (
    "This task scores zero: the submission interfered with its own grading. "
    "Your instructor has the details."
)
MARK_OF = {status: mark for status, (mark, _, _) in MARKS.items()} | {"timed_out": "◷"}
"""Each status as a symbol that common fonts of browsers have, unlike the terminal's hourglass."""
_LINES = 20
_OTHERS = 6
_FRAMES = 5
_SHORT = 400

AS_GIVEN = "It is as the starter has it."
"""The message of a task that did not pass and whose file nobody has touched."""
NOT_THERE = {"missing": "not handed in", "unusable": "the hand-in cannot be used"}
"""States of a lab of which there was nothing to grade, in words."""
NOT_ASKED = "not graded for this learner"

Labs = Mapping[int, Lab]
"""The labs that are known here, by number."""


def known_labs(result: ClassResult) -> dict[int, Lab]:
    """The labs of a class as this checkout describes them; one that it lacks is left out."""
    found = {}
    for lab in result.labs:
        try:
            found[lab] = load_lab(lab)
        except UserError:
            continue
    return found


def by_name(result: ClassResult) -> list[Learner]:
    """The learners in the order of their names: the same, whatever order they came in."""
    return sorted(result.learners, key=lambda learner: (learner.name.casefold(), learner.id))


def settled(graded: GradedLab | None) -> bool:
    """Whether a lab's points are final: all of it was graded."""
    if graded is None or graded.result is None or graded.state != "graded":
        return False
    tasks = graded.result.tasks
    return graded.result.complete and all(t.status != "not_graded" for t in tasks)


def score(graded: GradedLab | None) -> int | None:
    """A lab's points; None where there is no verdict."""
    if graded is None or graded.result is None or graded.state != "graded":
        return None
    return graded.result.score


@dataclass(frozen=True)
class Totals:
    """One learner's points.

    Attributes:
        points: of all that is graded; None where nothing is: who handed in nothing has no total.
        maximum: of all the labs that count for this learner (`counts`), handed in or not.
        final: whether everything is either graded or was not handed in.
    """

    points: int | None
    maximum: int
    final: bool

    @property
    def percent(self) -> float | None:
        """Of the maximum; None while something is not graded, and where there is nothing."""
        if self.points is None or not self.final or not self.maximum:
            return None
        return 100 * self.points / self.maximum


def totals(result: ClassResult, learner: str) -> Totals:
    """Add up a learner's labs."""
    labs = {lab: result.of(learner, lab) for lab in result.labs if counts(result, learner, lab)}
    found = [points for g in labs.values() if (points := score(g)) is not None]
    return Totals(
        points=sum(found) if found else None,
        maximum=sum(result.max_scores.get(lab, 0) for lab in labs),
        final=all(settled(g) or (g is not None and g.state in NOT_THERE) for g in labs.values()),
    )


def counts(result: ClassResult, learner: str, lab: int) -> bool:
    """Whether a lab is part of what a learner can reach.

    A lab that was asked for without names counts for everybody, handed in or not. One that was
    only ever asked for with some learners' names counts for those who have a verdict in it, so
    that trying a lab on one learner lowers nobody's percentage.
    """
    graded = result.of(learner, lab)
    return lab not in result.for_some or (graded is not None and graded.state != "not_asked")


def flagged(graded: GradedLab | None) -> set[str]:
    """Ids of the tasks that were tampered with."""
    return set() if graded is None else {flag.task for flag in graded.flags}


def flagged_in_words(graded: Iterable[GradedLab], kind: str = "") -> str:
    """How many learners and tasks are flagged; of one kind of tampering, if one is given.

    One task can have many flags, so their number says little.
    """
    found = {(g.learner, flag.task) for g in graded for flag in g.flags if kind in ("", flag.kind)}
    learners, tasks = len({learner for learner, _ in found}), len(found)
    if not found:
        return "none"
    return f"{learners} learner{'s' * (learners > 1)}, {tasks} task{'s' * (tasks > 1)}"


def problems(result: ClassResult, learner: str) -> list[str]:
    """Why there are points missing that the learner's code may not have lost; one line each."""
    found = []
    submission = result.submissions.get(learner)
    if submission is not None and submission.problem:
        found.append(one_line(submission.problem))
    for lab in result.labs:
        graded = result.of(learner, lab)
        if not counts(result, learner, lab):
            continue
        if found and graded is not None and graded.state in NOT_THERE:
            continue  # why there is nothing is said already
        told = lab_problems(result, learner, lab)
        found.extend(f"Lab {lab}: {text}" for text in told)
    return list(dict.fromkeys(found))


def lab_problems(result: ClassResult, learner: str, lab: int) -> list[str]:
    """Why a lab has no verdict, or not a whole one; what the whole submission lacks comes once."""
    graded = result.of(learner, lab)
    submission = result.submissions.get(learner)
    if graded is None:
        return ["not graded yet"]
    found = []
    if graded.state in NOT_THERE:
        found.append(NOT_THERE[graded.state])
    elif graded.state == "not_asked":
        found.append(NOT_ASKED)
    elif graded.state == "not_graded":
        found.append("NOT GRADED")
    if graded.problem and not (submission and submission.problem == graded.problem):
        found.append(one_line(graded.problem))
    if graded.result is not None and graded.state == "graded":
        open_ = [f"task {t.id} NOT GRADED" for t in graded.result.tasks if t.status == "not_graded"]
        if not open_ and not graded.result.complete:
            open_ = ["only partly graded"]
        found.extend(open_)
    return found


def notes(result: ClassResult, learner: str) -> list[Note]:
    """What was found in a submission and had no effect, each once."""
    return [note for note in _all_notes(result, learner) if not note.private]


def to_look_at(result: ClassResult, learner: str) -> list[Note]:
    """What the instructor alone is told of a submission, to look at it; no accusation yet."""
    return [note for note in _all_notes(result, learner) if note.private]


def _all_notes(result: ClassResult, learner: str) -> list[Note]:
    submission = result.submissions.get(learner)
    found = list(submission.notes) if submission is not None else []
    for lab in result.labs:
        graded = result.of(learner, lab)
        found.extend(graded.notes if graded is not None else ())
    return list(dict.fromkeys(found))


def note_line(note: Note, limit: int = 500) -> str:
    """A note in one line."""
    where = f"Lab {note.lab}, " if note.lab is not None else ""
    return f"{where}{one_line(note.kind, 80)}: {one_line(note.text, limit)}"


@dataclass(frozen=True)
class Failure:
    """What did not hold, ready to be shown. Every text is visible and cut.

    Attributes:
        facts: pairs of a label ("called", "observed", "expected", "why") and its text.
        frames: pairs of a place in the learner's code and the line that stands there.
        printed: the end of what the learner's code printed.
    """

    sentence: str
    facts: tuple[tuple[str, str], ...]
    frames: tuple[tuple[str, str], ...]
    printed: str


@dataclass(frozen=True)
class Verdict:
    """One task as its learner may see it. Every text is visible and cut.

    Attributes:
        status: one of the grader's, ``"tampered"``, or ``"missing"``: the lab was handed in
            without the task's file.
        mark, word: the status as a symbol and in words.
        share: of the expected checks that passed, from 0 to 1.
        message: what there is to say when no single check failed.
        hint: the hint that fits the failure; empty when there is none.
        also: sentences of further checks that did not pass.
        waiting: how many checks were not run, because they wait for the others to pass.
    """

    id: str
    title: str
    file: str
    status: str
    mark: str
    word: str
    points: int
    max_points: int
    passed_checks: int
    expected_checks: int
    message: str = ""
    failure: Failure | None = None
    hint: str = ""
    also: tuple[str, ...] = ()
    waiting: int = 0

    @property
    def share(self) -> float:
        """Of the expected checks that passed."""
        return min(1.0, self.passed_checks / self.expected_checks) if self.expected_checks else 0.0

    @property
    def line(self) -> str:
        """The verdict in one line of our own words: nothing in it is the submission's."""
        return f"{self.id} {self.title}: {self.word}, {self.points} of {self.max_points} points"

    @property
    def text(self) -> str:
        """All of it as plain text, for platforms that show no page."""
        parts = [self.message] if self.message else []
        if self.failure is not None:
            parts.append(self.failure.sentence)
            parts.extend(f"{label}: {text}" for label, text in self.failure.facts)
            for place, code in self.failure.frames:
                parts.append(f"at {place}" + (f"\n    {code}" if code else ""))
            if self.failure.printed:
                parts.append(f"your code printed:\n{self.failure.printed}")
        if self.hint:
            parts.append(f"hint: {self.hint}")
        parts.extend(f"also: {text}" for text in self.also)
        if self.waiting:
            parts.append(f"not run until the others pass: {self.waiting}")
        return "\n".join(parts)


def verdicts(graded: GradedLab | None, lab: Lab | None) -> list[Verdict]:
    """A lab's tasks, in order; empty where there is no result."""
    if graded is None or graded.result is None:
        return []
    known = {task.id: task for task in lab.tasks} if lab is not None else {}
    spoilt, absent = flagged(graded), without_file(graded, lab)
    return [
        _verdict(t, known.get(t.id), lab, t.id in spoilt, t.id in absent)
        for t in graded.result.tasks
    ]


def without_file(graded: GradedLab | None, lab: Lab | None) -> set[str]:
    """Ids of the tasks whose files are not among what was handed in."""
    if graded is None or graded.result is None or lab is None:
        return set()
    files = {task.id: task.file for task in lab.tasks}
    return {
        t.id
        for t in graded.result.tasks
        if t.status not in ("passed", "not_graded")
        and graded.result.files.get(files.get(t.id, ""), "") is None
    }


def _verdict(
    result: TaskResult, task: Task | None, lab: Lab | None, tampered: bool, absent: bool
) -> Verdict:
    mark, (_, _, word) = MARK_OF[result.status], MARKS[result.status]
    common: dict[str, Any] = {
        "id": one_line(result.id, 20),
        "title": one_line(result.title, 120),
        "file": task.file if task is not None else "",
        "points": result.points,
        "max_points": result.max_points,
        "passed_checks": result.passed_checks,
        "expected_checks": result.expected_checks,
    }
    if tampered:
        common |= {"passed_checks": 0}
        return Verdict(**common, status="tampered", mark="⚑", word="tampered", message=TAMPERED)
    if absent:
        common |= {"passed_checks": 0}
        text = (
            f"{common['file']} is not in what was handed in, or was left out: then a note says why."
        )
        return Verdict(
            **common, status="missing", mark="–", word=NOT_THERE["missing"], message=text
        )
    first = result.first_failure if result.status in ("failed", "error", "timed_out") else None
    hint = task.hint(result.hint) if task is not None and result.hint else None
    others = [c for c in result.checks if c.outcome != "passed" and c is not first]
    also = [one_line(sentence(c), 200) for c in others[:_OTHERS]] if first is not None else []
    if first is not None and len(others) > _OTHERS:
        also.append(f"{len(others) - _OTHERS} more")
    waiting = max(0, result.expected_checks - len({c.check for c in result.checks}))
    message = "" if first is not None or result.status == "passed" else visible(result.message)
    if result.status == "not_started":
        message = _not_started(task, lab, result.message == AS_GIVEN)
    if first is not None and first.detail and not (first.observed or first.frames):
        message = visible(first.detail)
    return Verdict(
        **common,
        status=result.status,
        mark=mark,
        word=word,
        message=message,
        failure=_failure(first) if first is not None else None,
        hint=visible(hint.text) if hint is not None else "",
        also=tuple(also),
        waiting=waiting if result.status == "failed" else 0,
    )


def _not_started(task: Task | None, lab: Lab | None, as_given: bool) -> str:
    begun = AS_GIVEN if as_given else "You have not written this yet."
    if task is None or lab is None:
        return begun
    path = f"labs/{lab.folder.name}/starter/{task.file}"
    if task.draft:
        return f"{begun} Open {path}, and read the draft against its docstrings."
    return (
        f"{begun} Open {path}, read the docstring of {', '.join(task.symbols)}, and replace the "
        "line that raises NotImplementedError."
    )


def _failure(outcome: CheckOutcome) -> Failure:
    facts = (
        ("called", outcome.call),
        ("observed", outcome.observed),
        ("expected", outcome.expected),
        ("why", outcome.why),
    )
    frames = []
    for frame in outcome.frames[-_FRAMES:]:
        place = f"{frame.file}, line {frame.line}"
        place += f", in {frame.function}" if frame.function else ""
        frames.append((one_line(place, _SHORT), one_line(frame.code, _SHORT)))
    return Failure(
        sentence=one_line(sentence(outcome), 200),
        facts=tuple((label, visible(text)) for label, text in facts if text),
        frames=tuple(frames),
        printed=_end_of(outcome.printed),
    )


def _end_of(printed: str) -> str:
    lines = printed.rstrip().splitlines()
    shown = [visible(cut(line, _SHORT)) for line in lines[-_LINES:]]
    if len(lines) > _LINES:
        shown.insert(0, f"… {len(lines) - _LINES:,} lines before")
    return "\n".join(shown)


@dataclass(frozen=True)
class Measured:
    """A number that a check measured, as text."""

    task: str
    name: str
    value: str
    reference: str


def measured(graded: GradedLab | None, limit: int = 60) -> list[Measured]:
    """What a lab's checks measured; nothing of tasks that were tampered with."""
    if graded is None or graded.result is None:
        return []
    spoilt = flagged(graded)
    found = []
    for task in graded.result.tasks:
        for figure in task.figures if task.id not in spoilt else []:
            unit = f" {one_line(str(figure['unit']), 20)}" if figure.get("unit") else ""
            reference = figure.get("reference")
            found.append(
                Measured(
                    task=one_line(task.id, 20),
                    name=one_line(str(figure.get("name", "")), 120),
                    value=number(figure.get("value")) + unit,
                    reference="" if reference is None else number(reference) + unit,
                )
            )
    return found[:limit]
