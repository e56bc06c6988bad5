"""The workers: each keeps a sandbox warm and takes work on one task as long as there is any."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from shared.classroom.listener import HEARD, INSIDE, REPLACED, Sign
from shared.classroom.looking import look_at, words_in
from shared.classroom.process import WalledChecks, walled_target
from shared.classroom.records import Flag, Note
from shared.classroom.sandbox import Wall
from shared.classroom.text import without_places
from shared.classroom.work import Work
from shared.grading.feedback import SilentWatcher
from shared.grading.jobs import usable_cores
from shared.grading.process import ChecksProcess
from shared.grading.results import TaskResult
from shared.grading.runner import Grading, NoEngine, Runner, RunningEngine
from shared.grading.target import Target

_CROWDED = 2.0
"""Processes that want a core, for each core there is."""


@dataclass(frozen=True)
class Graded:
    """A piece of work with its verdict."""

    work: Work
    result: TaskResult
    flags: tuple[Flag, ...]
    notes: tuple[Note, ...] = ()


class Pool:
    """Grades work with several workers at once.

    Args:
        wall: None grades as a learner's own machine does, without any wall.
        keep: called with each verdict, by the worker that reached it, one at a time.
    """

    def __init__(
        self, work: list[Work], wall: Wall | None, jobs: int, keep: Callable[[Graded], None]
    ) -> None:
        self._wall = wall
        self._keep = keep
        self._waiting: dict[str, list[Work]] = {}
        for piece in work:
            self._waiting.setdefault(piece.task.id, []).append(piece)
        self._busy: dict[str, int] = dict.fromkeys(self._waiting, 0)
        self._taking, self._keeping = threading.Lock(), threading.Lock()
        self._live = threading.Lock()
        self._errors: list[BaseException] = []
        self._workers = [Worker(wall, jobs) for _ in range(max(1, min(jobs, len(work))))]

    def run(self) -> None:
        """Grade everything.

        Raises:
            OSError: a verdict could not be written; what was written stays.
            KeyboardInterrupt: the person had enough.
        """
        threads = [
            threading.Thread(target=self._go, args=(worker,), daemon=True)
            for worker in self._workers
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(timeout=0.5)
        except BaseException as error:
            self._errors.insert(0, error)
            for worker in self._workers:
                worker.stop()
            for thread in threads:
                thread.join(timeout=30)
        if self._errors:
            raise self._errors[0]

    def _go(self, worker: Worker) -> None:
        task = ""
        try:
            with worker:
                while (piece := self._next(task)) is not None and not self._errors:
                    task = piece.task.id
                    graded = worker.grade(piece, self._live)
                    with self._keeping:
                        if self._errors:
                            return
                        self._keep(graded)
                    with self._taking:
                        self._busy[task] -= 1
        except BaseException as error:
            self._errors.append(error)

    def _next(self, task: str) -> Work | None:
        """More of the same task; else the first that nobody is at; else help with the longest."""
        with self._taking:
            open_tasks = [t for t, pieces in self._waiting.items() if pieces]
            if not open_tasks:
                return None
            if task not in open_tasks:
                untouched = [t for t in open_tasks if not self._busy[t]]
                task = (
                    untouched[0]
                    if untouched
                    else max(open_tasks, key=lambda t: len(self._waiting[t]))
                )
            self._busy[task] += 1
            return self._waiting[task].pop(0)


class Worker:
    """One runner, its processes, and a folder for the files at hand."""

    def __init__(self, wall: Wall | None, jobs: int) -> None:
        self._wall = wall
        self._threads = max(1, usable_cores() // jobs)
        self._lab: int | None = None
        self._runner: Runner | None = None
        self._process: ChecksProcess | None = None
        self._stopped = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End whatever runs."""
        self._stopped = True
        self._end()

    def grade(self, work: Work, live_turn: AbstractContextManager[object]) -> Graded:
        """Grade a piece of work; once more where the first verdict may not be the work's fault.

        That is where the grader's own processes broke, and where a check ran out of time while
        more was going on than the machine has cores for.
        """
        graded = self._try(work, live_turn)
        if not graded.flags and not self._stopped:
            broke = graded.result.status == "not_graded"
            if broke:
                self._end()
            if broke or (_out_of_time(graded.result) and _crowded()):
                graded = self._try(work, live_turn)
        return graded

    def _try(self, work: Work, live_turn: AbstractContextManager[object]) -> Graded:
        with_ = work.graded_with
        runner = self._runner_for(work)
        with tempfile.TemporaryDirectory(prefix="labs-work-") as name:
            folder = Path(name)
            for file, content in work.files.items():
                (folder / file).write_bytes(content)
            if self._wall is None:
                target = Target("submission", folder)
            else:
                target = walled_target(work.lab, folder, "submission")
            grading = Grading(
                lab=work.lab,
                tasks=[work.task],
                target=target,
                seed=with_.seed,
                domain=with_.domain,
                start_engine=with_.start_engine,
                not_proven=list(with_.not_proven),
                live_turn=live_turn,
            )
            result = runner.grade(grading, SilentWatcher()).tasks[0]
        result = TaskResult.model_validate(without_places(result.model_dump()))
        signs = self._process.take_signs() if isinstance(self._process, WalledChecks) else []
        signs, looks = _divided(work, signs)
        result = _without_points(result, signs)
        return Graded(work, result, _flags(work, signs), _notes(work, looks))

    def _runner_for(self, work: Work) -> Runner:
        if self._runner is None or self._lab != work.lab.number:
            self._end()
            process = (
                ChecksProcess()
                if self._wall is None
                else WalledChecks(self._wall, [work.lab], self._threads)
            )
            self._process, self._lab = process, work.lab.number
            self._runner = Runner(process=lambda: process)
        return self._runner

    def _end(self) -> None:
        process, self._process, self._runner = self._process, None, None
        if process is not None:
            process.close()


def once(start: Callable[[], RunningEngine]) -> Callable[[], RunningEngine]:
    """A start of the model server that, having failed, says so at once from then on."""
    failed: list[NoEngine] = []

    def begin() -> RunningEngine:
        if failed:
            raise failed[0]
        try:
            return start()
        except NoEngine as error:
            failed.append(error)
            raise

    return begin


def _out_of_time(result: TaskResult) -> bool:
    return any(c.outcome == "timed_out" and "still running" in c.observed for c in result.checks)


def _crowded() -> bool:
    return os.getloadavg()[0] > _CROWDED * usable_cores()


def _flags(work: Work, signs: list[Sign]) -> tuple[Flag, ...]:
    return tuple(Flag(task=work.task.id, kind=s.kind, evidence=s.evidence) for s in signs)


def _divided(work: Work, signs: list[Sign]) -> tuple[list[Sign], list[Sign]]:
    """Signs of tampering, and what is only to be looked at.

    Code may sort a list in place that a check has handed it. Who has no words for the checks in
    their files cannot well have meant more.
    """
    if any(s.kind == INSIDE for s in signs) and any(map(words_in, work.files.values())):
        signs = [Sign(REPLACED, s.evidence) if s.kind == INSIDE else s for s in signs]
    looks = [sign for sign in signs if sign.kind in (INSIDE, HEARD)]
    return [sign for sign in signs if sign not in looks], looks


def _notes(work: Work, looks: list[Sign]) -> tuple[Note, ...]:
    texts = [f"While task {work.task.id} was graded: {s.kind}: {s.evidence}." for s in looks]
    return tuple(look_at(text, work.lab.number) for text in texts)


def _without_points(result: TaskResult, signs: list[Sign]) -> TaskResult:
    """A task whose run was tampered with earns nothing, whatever was reported."""
    if not signs:
        return result
    kinds = ", ".join(dict.fromkeys(sign.kind for sign in signs))
    status = "failed" if result.status in ("passed", "not_graded") else result.status
    text = f"Not counted: while this task was graded, something tampered with the grader ({kinds})."
    return result.model_copy(update={"points": 0, "status": status, "message": text})
