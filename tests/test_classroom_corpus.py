"""Broken and hostile hand-ins in one batch, graded with a real lab from folder to verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from shared.classroom.collect import collect
from shared.classroom.grade import ClassRun, class_result, grade_class
from shared.classroom.journal import Journal, Settings
from shared.classroom.names import shown
from shared.classroom.records import GradedLab
from shared.classroom.sandbox import NoSandbox, find_wall
from shared.classroom.work import GradedWith
from shared.grading.jobs import usable_cores
from shared.grading.lab import load_lab
from tests.classroom_corpus import LAB, Case, corpus, honest_files, write_files

DRIFT = load_lab(LAB)
SOLVED = DRIFT.task("2.2")
HONEST = "neighbour"
CASES = corpus()


@dataclass(frozen=True)
class Batch:
    """What came of the hand-ins, by the name under which each lay there.

    Attributes:
        names: for each case the name of what it handed in.
    """

    graded: dict[str, GradedLab]
    names: dict[str, str]


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """All cases, and one honest learner who has solved a task."""
    try:
        wall = find_wall()
    except NoSandbox as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("batch")
    submissions = folder / "submissions"
    files = honest_files(DRIFT) | {SOLVED.file: honest_files(DRIFT, "solution")[SOLVED.file]}
    write_files(submissions / HONEST / DRIFT.folder.name / "starter", files)
    made = {case.name: case.build(submissions).relative_to(submissions) for case in CASES}
    found = list(collect(submissions, folder / "into", labs=[LAB]))
    run = ClassRun(
        submissions=found,
        labs=[GradedWith(DRIFT, seed=3, domain="finance")],
        wall=wall,
        jobs=usable_cores(),
    )
    with Journal(folder / "out") as journal:
        grade_class(Console(quiet=True), run, journal)
        result = class_result(run, journal, Settings(seed=3, labs=[LAB], domain="finance"))
    sources = {s.learner.id: s.source for s in found}
    return Batch(
        graded={sources[graded.learner]: graded for graded in result.graded},
        names={case: shown(path.parts[0]) for case, path in made.items()},
    )


def test_each_hand_in_has_a_verdict(batch: Batch) -> None:
    assert set(batch.graded) == {HONEST, *batch.names.values()}
    assert len(batch.graded) == len(CASES) + 1


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_it_earns_no_point(batch: Batch, case: Case) -> None:
    graded = batch.graded[batch.names[case.name]]
    if not case.statuses:
        assert graded.state == ("unusable" if case.problem else "missing")
        assert graded.result is None
        assert case.problem in graded.problem
        return
    assert graded.result is not None
    assert graded.result.score == 0
    for task in graded.result.tasks:
        assert task.status in case.statuses[task.id], f"{task.id}: {task.message}"
    assert {note.kind for note in graded.notes} == case.notes


def test_the_honest_one_beside_them_has_what_is_due(batch: Batch) -> None:
    result = batch.graded[HONEST].result
    assert result is not None
    assert {t.id for t in result.tasks if t.status == "passed"} == {SOLVED.id}
    assert result.score == SOLVED.points
    assert not Path("/tmp/escaped.py").exists()
