"""The pages: one a learner, and one of the whole class for the instructor. No script at all.

Each page is one file that loads nothing, so it can be mailed or printed. Its policy lets the
browser apply the one style sheet whose hash it names and nothing else. What comes from a
submission is data: made visible (`text`), escaped by the template, and isolated in its reading
direction.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from shared.classroom.records import ClassResult, GradedLab, Learner
from shared.classroom.text import number, one_line, visible
from shared.classroom.verdicts import (
    MARK_OF,
    NOT_ASKED,
    NOT_THERE,
    Labs,
    Measured,
    Totals,
    Verdict,
    by_name,
    counts,
    flagged,
    flagged_in_words,
    lab_problems,
    measured,
    note_line,
    notes,
    problems,
    score,
    to_look_at,
    totals,
    verdicts,
    without_file,
)
from shared.grading.feedback import MARKS

HERE = Path(__file__).parent
_NAME = 120
_MOST = 100
"""Entries of one list on a page."""
_MISCONCEPTIONS = 30

STATUSES = {status: (MARK_OF[status], word) for status, (_, _, word) in MARKS.items()} | {
    "tampered": ("⚑", "tampered"),
    "missing": ("–", NOT_THERE["missing"]),
    "unusable": ("!", NOT_THERE["unusable"]),
    "not_asked": ("", NOT_ASKED),
    "open": ("?", "no verdict"),
}
"""What a cell of the heat-map can say: a symbol, and words."""


@dataclass(frozen=True)
class LabOfLearner:
    """One lab on a learner's page.

    Attributes:
        path: where the lab is in the learner's checkout; empty when it is not known here.
        facts: pairs of a label and a text: what ran, and with which settings.
        files: pairs of a file and its SHA-256, or why there is none.
    """

    number: int
    title: str
    path: str
    points: int | None
    maximum: int
    problems: list[str]
    tasks: list[Verdict]
    figures: list[Measured]
    facts: list[tuple[str, str]]
    files: list[tuple[str, str]]
    not_proven: list[str]


def learner_page(result: ClassResult, learner: Learner, labs: Labs) -> str:
    """What the learner would have seen, as a page. It names nobody else."""
    submission = result.submissions.get(learner.id)
    asked = [lab for lab in result.labs if counts(result, learner.id, lab)]
    return render(
        "learner.html",
        name=one_line(learner.name, _NAME),
        sums=totals(result, learner.id),
        labs=[_lab(result, learner.id, lab, labs) for lab in asked],
        notes=[note_line(note) for note in notes(result, learner.id)][:_MOST],
        problem=visible(submission.problem, 600) if submission is not None else "",
        handed_in=submission is None or submission.handed_in,
        complete=result.complete,
    )


def _lab(result: ClassResult, learner: str, lab: int, labs: Labs) -> LabOfLearner:
    graded = result.of(learner, lab)
    known = labs.get(lab)
    found = graded.result if graded is not None else None
    return LabOfLearner(
        number=lab,
        title=_title(lab, labs, graded),
        path=f"labs/{known.folder.name}" if known is not None else "",
        points=score(graded),
        maximum=result.max_scores.get(lab, 0),
        problems=lab_problems(result, learner, lab),
        tasks=verdicts(graded, known),
        figures=measured(graded),
        facts=_facts(graded),
        files=[
            (one_line(name, _NAME), one_line(digest or "missing", 64))
            for name, digest in list(found.files.items())[:_MOST]
        ]
        if found is not None
        else [],
        not_proven=[visible(t) for t in found.not_proven[:_MOST]] if found is not None else [],
    )


def _title(lab: int, labs: Labs, graded: GradedLab | None) -> str:
    if lab in labs:
        return labs[lab].title
    return one_line(graded.result.title, 120) if graded is not None and graded.result else ""


def _facts(graded: GradedLab | None) -> list[tuple[str, str]]:
    if graded is None or graded.result is None:
        return []
    found = graded.result
    seeds = dict.fromkeys(found.seed if t.seed is None else t.seed for t in found.tasks)
    facts = [("engine", found.engine or "no model server was needed")]
    facts.append(("SEED", ", ".join(map(str, seeds)) or str(found.seed)))
    facts += [("DOMAIN", found.domain)] if found.domain else []
    return [(label, one_line(text, 120)) for label, text in facts]


@dataclass(frozen=True)
class Column:
    """One task of the heat-map.

    Attributes:
        last: whether its lab ends here.
        median: of the points of those who handed the lab in.
    """

    lab: int
    id: str
    title: str
    max_points: int
    last: bool
    passed: int
    median: str


@dataclass(frozen=True)
class Cell:
    """One learner's verdict on one task.

    Attributes:
        kind: its style: a status, or ``"failed-0"`` to ``"failed-3"`` by the share of checks that
            passed.
        mark: a symbol.
        words: the same for who does not see the symbol or the colour.
    """

    kind: str
    mark: str
    words: str
    last: bool


@dataclass(frozen=True)
class Row:
    """One learner of the heat-map."""

    name: str
    page: str
    cells: list[Cell]
    sums: Totals
    flags: int
    problems: int


@dataclass(frozen=True)
class Misconception:
    """A hint that fitted failures of several learners."""

    task: str
    title: str
    hint: str
    text: str
    learners: int
    names: str


@dataclass(frozen=True)
class LabOfClass:
    """One lab of the class in figures."""

    number: int
    title: str
    maximum: int
    tasks: int
    graded: int
    missing: int
    unusable: int
    open: int
    median: str


@dataclass(frozen=True)
class Flagged:
    """What was noticed of one kind in one learner's task, with what was seen of it, each once."""

    name: str
    task: str
    kind: str
    evidence: list[str]
    times: int


def class_page(result: ClassResult, labs: Labs, pages: Mapping[str, str]) -> str:
    """The instructor's page.

    Args:
        pages: a learner's id to the file of their page, relative to this one.
    """
    people = by_name(result)
    columns = _columns(result, labs)
    sums = [totals(result, learner.id) for learner in people]
    points = [s.points for s in sums if s.points is not None]
    whole = [lab for lab in result.labs if lab not in result.for_some]
    return render(
        "class.html",
        people=len(people),
        labs=[_lab_of_class(result, lab, labs, columns) for lab in result.labs],
        columns=columns,
        rows=[_row(result, p, labs, columns, pages) for p in people],
        statuses=STATUSES,
        median_total=number(median(points)) if points else "–",
        maximum=sum(result.max_scores.get(lab, 0) for lab in whole or result.labs),
        misconceptions=_misconceptions(result, labs, people)[:_MISCONCEPTIONS],
        flags=_flags(result, people),
        looks=[
            (one_line(p.name, _NAME), [note_line(n, 2000) for n in seen][:_MOST])
            for p in people
            if (seen := to_look_at(result, p.id))
        ],
        flagged=flagged_in_words(result.graded),
        problems=[
            (one_line(p.name, _NAME), found) for p in people if (found := problems(result, p.id))
        ],
        notes=[
            (one_line(p.name, _NAME), [note_line(n) for n in seen][:_MOST])
            for p in people
            if (seen := notes(result, p.id))
        ],
        domain=one_line(result.domain, 40),
        seed=result.seed,
        sandbox=one_line(result.sandbox, _NAME),
        complete=result.complete,
    )


def _columns(result: ClassResult, labs: Labs) -> list[Column]:
    found = []
    for lab in result.labs:
        graded = [g for p in result.learners if (g := result.of(p.id, lab)) is not None]
        points: dict[str, list[int]] = {}
        passed: dict[str, int] = {}
        tasks: dict[str, tuple[str, int]] = {}
        if lab in labs:
            tasks = {t.id: (t.title, t.points) for t in labs[lab].tasks}
        for one in graded:
            for v in verdicts(one, labs.get(lab)):
                tasks.setdefault(v.id, (v.title, v.max_points))
                passed[v.id] = passed.get(v.id, 0) + (v.status == "passed")
                if v.status != "not_graded":
                    points.setdefault(v.id, []).append(v.points)
        for id_, (title, most) in tasks.items():
            middle = number(median(points[id_])) if points.get(id_) else "–"
            last = id_ == list(tasks)[-1]
            found.append(Column(lab, id_, title, most, last, passed.get(id_, 0), middle))
    return found


def _row(
    result: ClassResult,
    learner: Learner,
    labs: Labs,
    columns: list[Column],
    pages: Mapping[str, str],
) -> Row:
    graded = {lab: result.of(learner.id, lab) for lab in result.labs}
    shown = {(lab, v.id): v for lab, g in graded.items() for v in verdicts(g, labs.get(lab))}
    return Row(
        name=one_line(learner.name, _NAME),
        page=quote(pages.get(learner.id, "")),
        cells=[_cell(c, shown.get((c.lab, c.id)), graded[c.lab]) for c in columns],
        sums=totals(result, learner.id),
        flags=sum(len(flagged(g)) for g in graded.values()),
        problems=len(problems(result, learner.id)),
    )


def _cell(column: Column, verdict: Verdict | None, graded: GradedLab | None) -> Cell:
    if verdict is None:
        kind = "open"
        if graded is not None and graded.state in STATUSES and graded.state != "not_graded":
            kind = graded.state
        if graded is not None and column.id in flagged(graded):
            kind = "tampered"
        mark, said = STATUSES[kind]
        return Cell(kind, mark, said, column.last)
    kind, words = verdict.status, verdict.word
    if verdict.status in ("failed", "timed_out"):
        words += f", {verdict.passed_checks} of {verdict.expected_checks} checks passed"
    if verdict.status == "failed":
        kind = f"failed-{min(3, int(4 * verdict.share))}"
    return Cell(kind, verdict.mark, words, column.last)


def _misconceptions(result: ClassResult, labs: Labs, people: list[Learner]) -> list[Misconception]:
    """Hints by how many learners ran into them, most first. Only the labs' own hints count."""
    hit: dict[tuple[int, str, str], list[str]] = {}
    for learner in people:
        for lab in result.labs:
            for key in sorted(_hints_hit(result.of(learner.id, lab), lab, labs)):
                hit.setdefault(key, []).append(one_line(learner.name, 40))
    found = []
    for (lab, task_id, hint_id), names in hit.items():
        task = labs[lab].task(task_id)
        hint = task.hint(hint_id)
        if hint is not None:
            some = ", ".join(names[:_MOST])
            found.append(Misconception(task_id, task.title, hint_id, hint.text, len(names), some))
    return sorted(found, key=lambda m: (-m.learners, m.task, m.hint))


def _hints_hit(graded: GradedLab | None, lab: int, labs: Labs) -> set[tuple[int, str, str]]:
    if graded is None or graded.result is None or lab not in labs:
        return set()
    nobodys = flagged(graded) | without_file(graded, labs[lab])
    known = {task.id: {hint.id for hint in task.hints} for task in labs[lab].tasks}
    return {
        (lab, task.id, check.hint)
        for task in graded.result.tasks
        if task.status == "failed" and task.id not in nobodys
        for check in task.checks
        if check.outcome != "passed" and check.hint and check.hint in known.get(task.id, ())
    }


def _flags(result: ClassResult, people: list[Learner]) -> list[Flagged]:
    """The flags, one row for each learner, task and kind: one run may be noticed many times."""
    seen: dict[tuple[str, str, str], list[str]] = {}
    for p in people:
        for lab in result.labs:
            graded = result.of(p.id, lab)
            for f in graded.flags if graded is not None else ():
                seen.setdefault((p.id, f.task, f.kind), []).append(visible(f.evidence, 1000))
    names = {p.id: one_line(p.name, _NAME) for p in people}
    return [
        Flagged(
            name=names[learner],
            task=one_line(task, 20),
            kind=one_line(kind),
            evidence=list(dict.fromkeys(evidence))[:_MOST],
            times=len(evidence),
        )
        for (learner, task, kind), evidence in seen.items()
    ]


def _lab_of_class(result: ClassResult, lab: int, labs: Labs, columns: list[Column]) -> LabOfClass:
    graded = [result.of(p.id, lab) for p in result.learners]
    points = [p for p in map(score, graded) if p is not None]
    states = Counter(g.state if g is not None else "" for g in graded)
    missing, unusable = states["missing"], states["unusable"]
    return LabOfClass(
        number=lab,
        title=_title(lab, labs, next((g for g in graded if g is not None and g.result), None)),
        maximum=result.max_scores.get(lab, 0),
        tasks=sum(c.lab == lab for c in columns),
        graded=len(points),
        missing=missing,
        unusable=unusable,
        open=len(graded) - len(points) - missing - unusable - states["not_asked"],
        median=number(median(points)) if points else "–",
    )


def render(template: str, **values: Any) -> str:
    """A page of this folder's templates, with its style and its policy."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (HERE / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment.globals["style"] = Markup(style)  # ours, and without "<"
    environment.globals["policy"] = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return environment
