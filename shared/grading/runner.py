"""Grade a lab: run the checks task by task, decide the statuses, count the points.

Checks that need no model server run first, several tasks at once where there are cores for it.
The server is started only when a task has passed those, so that an early mistake is shown within
seconds. Live checks run one after the other and alone: some of them measure.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shared.edition import edition_not_proven
from shared.errors import UserError
from shared.grading.child import ChildSpec
from shared.grading.events import CheckOutcome
from shared.grading.lab import Lab, Task
from shared.grading.process import ChecksProcess
from shared.grading.results import (
    LabResult,
    ResultStore,
    Status,
    TaskResult,
    engines_of,
    not_proven_of,
    now,
)
from shared.grading.target import ENV_TARGET, Target
from shared.offline import OFFLINE_ENV
from shared.paths import STATE
from shared.tracking import own_store

WAITING = "Its other checks pass; the live ones had not run yet."

DOMAINS = ("finance", "healthcare", "climate")


class NoEngine(UserError):
    """The model server cannot be had; the message says why, and what to do."""


class RunningEngine(Protocol):
    """What the runner needs of a model server."""

    @property
    def kind(self) -> str:
        """vllm-gpu, vllm-cpu or portable."""

    def alive(self) -> bool:
        """Whether it answers."""

    def to_json(self) -> str:
        """Everything a checks process needs to reach it."""


@dataclass
class Grading:
    """What to grade, and with what.

    Attributes:
        start_engine: starts or reuses the model server, or raises `NoEngine`.
        not_proven: what this run cannot show, known beforehand.
        fresh: grade everything, also what an interrupted run had finished.
        stop_at_first_failure: leave a task at its first failure; enough to see what catches it.
        only_check: leave out all other checks of the task: does this one, by itself, catch it?
        live_turn: held while live checks run, where several gradings share one model server.
    """

    lab: Lab
    tasks: list[Task]
    target: Target
    seed: int
    domain: str | None = None
    start_engine: Callable[[], RunningEngine] | None = None
    not_proven: list[str] = field(default_factory=list)
    fresh: bool = False
    stop_at_first_failure: bool = False
    only_check: str = ""
    live_turn: AbstractContextManager[object] = field(default_factory=nullcontext)


class Watcher(Protocol):
    """Hears how a grading goes on."""

    def task_started(self, task: Task) -> None:
        """The task's checks begin."""

    def task_waiting(self, task: Task) -> None:
        """All but the task's live checks pass; those come when the others are through."""

    def engine_starting(self) -> None:
        """The model server is being started or found."""

    def task_finished(self, result: TaskResult, *, reused: bool) -> None:
        """The task has its verdict; `reused` when an interrupted run had reached it."""


def draw_seed() -> int:
    """A seed for a run that was given none."""
    return random.SystemRandom().randrange(1, 1_000_000)


class Runner:
    """Grades; keeps its checks processes warm between gradings. Use it as a context manager.

    Args:
        jobs: how many tasks may be graded at once.
        process: makes what runs the checks; a sandboxed one for other people's code.
    """

    def __init__(
        self,
        store: ResultStore | None = None,
        jobs: int = 1,
        process: Callable[[], ChecksProcess] = ChecksProcess,
    ) -> None:
        self._processes = [process() for _ in range(jobs)]
        self._store = store

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.close()

    def grade(self, grading: Grading, watcher: Watcher) -> LabResult:
        """Grade, telling `watcher` as it goes.

        Each task's result is on disk before the next begins. A run that was cut off is
        continued if nothing that counts has changed since.
        """
        started, started_at = time.perf_counter(), now()
        run = _Run(grading, watcher)
        writing = threading.Lock()
        finished, half = self._finished_before(grading)
        run.go_on(half)
        for task in grading.tasks:
            if task.id in finished:
                watcher.task_finished(finished[task.id], reused=True)

        def snapshot(complete: bool) -> LabResult:
            known = half | finished
            tasks = [known[t.id] for t in grading.tasks if t.id in known]
            return LabResult(
                lab=grading.lab.number,
                title=grading.lab.title,
                target=grading.target.label,
                files=grading.target.hashes([t.file for t in grading.tasks]),
                domain=grading.domain,
                engine=engines_of(tasks),
                not_proven=not_proven_of(tasks),
                seed=grading.seed,
                score=sum(t.points for t in tasks),
                max_score=sum(t.points for t in grading.tasks),
                tasks=tasks,
                started_at=started_at,
                seconds=time.perf_counter() - started,
                complete=complete,
            )

        def keep_half(result: TaskResult) -> None:
            with writing:
                half[result.id] = result
                watcher.task_waiting(grading.lab.task(result.id))
                if self._store is not None:
                    self._store.keep_partial(snapshot(complete=False))

        def keep(result: TaskResult) -> None:
            with writing:
                finished[result.id] = result
                watcher.task_finished(result, reused=False)
                if self._store is not None and len(finished) < len(grading.tasks):
                    self._store.keep_partial(snapshot(complete=False))

        # Pass one: what needs no model server. Pass two: live checks of what passed so far.
        open_tasks = [task for task in grading.tasks if task.id not in finished]

        def without_engine(task: Task, process: ChecksProcess) -> Callable[[], None]:
            watcher.task_started(task)
            waits = task.id in half or run.without_engine(task, process)
            return lambda: (keep_half if waits else keep)(run.result(task))

        self._each(open_tasks, without_engine)
        for task in (t for t in open_tasks if t.id not in finished):
            watcher.task_started(task)
            with grading.live_turn:
                run.with_engine(task, self._processes[0])
            keep(run.result(task))
        result = snapshot(complete=True)
        if self._store is not None:
            self._store.keep(result)
        return result

    def _each(
        self, tasks: list[Task], work: Callable[[Task, ChecksProcess], Callable[[], None]]
    ) -> None:
        """Work on the tasks in order, as many at once as there are processes.

        `work` returns what is to be done with its outcome. That is left out once another task's
        work has failed or the person has had enough: a process that was ended shows nothing.
        """
        todo = iter(tasks)
        if len(self._processes) == 1 or len(tasks) < 2:
            for task in todo:
                work(task, self._processes[0])()
            return
        taking, errors = threading.Lock(), list[BaseException]()

        def go(process: ChecksProcess) -> None:
            try:
                while (task := _next(todo, taking)) is not None and not errors:
                    keep = work(task, process)
                    if not errors:
                        keep()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=go, args=(p,), daemon=True) for p in self._processes]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except KeyboardInterrupt as error:
            errors.insert(0, error)
            for process in self._processes:
                process.close()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]

    def _finished_before(
        self, grading: Grading
    ) -> tuple[dict[str, TaskResult], dict[str, TaskResult]]:
        """What a run that was cut off had proven: tasks that passed, and those that waited for
        the model server.
        """
        if self._store is None or grading.fresh:
            return {}, {}
        before = self._store.unfinished(grading.lab.number, grading.target.label)
        if before is None or before.domain != grading.domain:
            return {}, {}
        same = {
            t.id: t
            for t in before.tasks
            if any(t.id == task.id for task in grading.tasks)
            and t.sha256 == _fingerprint(grading, grading.lab.task(t.id))
        }
        passed = {id_: t for id_, t in same.items() if t.status == "passed"}
        half = {id_: t for id_, t in same.items() if t.message == WAITING}
        return passed, half


class _Run:
    """The outcomes of one grading while it goes on."""

    def __init__(self, grading: Grading, watcher: Watcher) -> None:
        self._grading = grading
        self._watcher = watcher
        self._outcomes: dict[str, list[CheckOutcome]] = {}
        self._trouble: dict[str, str] = {}
        self._seconds: dict[str, float] = {}
        self._engine: RunningEngine | None = None
        self._engine_trouble = ""
        self._asked: set[str] = set()
        self.engine_kind: str | None = None
        self.not_proven: list[str] = []

    def go_on(self, half: Mapping[str, TaskResult]) -> None:
        """Take over what an earlier run found out before it asked the model server."""
        for id_, result in half.items():
            self._outcomes[id_] = list(result.checks)
            self._seconds[id_] = result.seconds

    def without_engine(self, task: Task, process: ChecksProcess) -> bool:
        """Run the checks that need no server; say whether live ones are to follow."""
        expected = self._expected(task)
        offline = [name for name, live in expected.items() if not live]
        if offline:
            self._run(task, offline, process)
        passed = {c.check for c in self._outcomes.get(task.id, []) if c.outcome == "passed"}
        wait = set(offline) <= passed and len(offline) < len(expected)
        if wait:
            self._trouble.setdefault(task.id, WAITING)
        return wait

    def with_engine(self, task: Task, process: ChecksProcess) -> None:
        """Run the live checks, starting the server if it is not up."""
        started = time.perf_counter()
        if self._trouble.get(task.id) == WAITING:
            del self._trouble[task.id]
        engine = self._have_engine()
        self._seconds[task.id] = self._seconds.get(task.id, 0.0) + time.perf_counter() - started
        if engine is None:
            self._trouble[task.id] = self._engine_trouble
            return
        expected = self._expected(task)
        self._asked.add(task.id)
        self._run(task, [name for name, live in expected.items() if live], process, engine)
        if any(c.outcome != "passed" for c in self._outcomes[task.id]) and not engine.alive():
            self._engine = None
            self._trouble[task.id] = (
                "The model server stopped while this task was graded, so the live checks say "
                "nothing about your code. Run the command again: it starts the server anew. "
                "`make engine-status` shows the end of its log."
            )

    def _expected(self, task: Task) -> dict[str, bool]:
        """The checks that count in this grading, each with whether it is live."""
        expected, only = self._grading.lab.expected_checks(task), self._grading.only_check
        return {only: expected[only]} if only else expected

    def result(self, task: Task) -> TaskResult:
        """Decide the task's status from what has been reported."""
        expected = self._expected(task)
        live = any(expected.values())
        outcomes = self._outcomes.get(task.id, [])
        status, message = _decide(list(expected), outcomes, self._trouble.get(task.id, ""))
        failure = next((c for c in outcomes if c.outcome != "passed"), None)
        return TaskResult(
            id=task.id,
            title=task.title,
            points=task.points if status == "passed" else 0,
            max_points=task.points,
            status=status,
            message=message,
            hint=failure.hint if failure is not None and status == "failed" else None,
            seconds=round(self._seconds.get(task.id, 0.0), 3),
            sha256=_fingerprint(self._grading, task),
            checks=outcomes,
            expected_checks=len(expected),
            engine=self.engine_kind if task.id in self._asked else None,
            seed=self._grading.seed,
            not_proven=[
                *([*self._grading.not_proven, *self.not_proven] if live else []),
                *edition_not_proven(self._grading.lab, task),
            ],
        )

    def _run(
        self,
        task: Task,
        checks: list[str],
        process: ChecksProcess,
        engine: RunningEngine | None = None,
    ) -> None:
        started = time.perf_counter()
        grading = self._grading
        scratch_root = STATE / "scratch"
        scratch_root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=scratch_root, prefix=f"{task.stem}-"))
        environment = OFFLINE_ENV | {
            ENV_TARGET: str(_target_argument(grading.target)),
            "LABS_SEED": str(grading.seed),
            "DOMAIN": grading.domain or "finance",
            "LABS_ENGINE_INFO": engine.to_json() if engine is not None else "",
            "LABS_STORE": str(own_store().folder) if grading.target.label == "starter" else "",
            "MPLBACKEND": "Agg",
        }
        spec = ChildSpec(
            check_file=str(grading.lab.check_file(task)),
            checks=checks,
            lab_folder=str(grading.lab.folder),
            scratch=str(scratch),
            environment=environment,
            preload=task.preload,
            stop_at_first_failure=grading.stop_at_first_failure,
        )
        try:
            end = process.run(spec, grading.target)
        except ChildProcessError as error:
            self._trouble[task.id] = f"{error} Run the command again."
        else:
            self._outcomes.setdefault(task.id, []).extend(end.outcomes)
            if end.broken:
                self._trouble[task.id] = (
                    "The lab's checks could not be loaded. This is a defect of the lab, not of "
                    f"your work:\n{end.broken}"
                )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self._seconds[task.id] = self._seconds.get(task.id, 0.0) + time.perf_counter() - started

    def _have_engine(self) -> RunningEngine | None:
        if self._engine is None and self._grading.start_engine is not None:
            self._watcher.engine_starting()
            try:
                self._engine = self._grading.start_engine()
            except NoEngine as error:
                self._engine_trouble = f"The live checks did not run. {error}"
                return None
            self.engine_kind = self._engine.kind
            if self._grading.lab.engine == "vllm" and not self.engine_kind.startswith("vllm"):
                self.not_proven.append(
                    "vLLM (the live checks ran on the portable engine, llama.cpp)"
                )
        return self._engine


def _decide(expected: list[str], outcomes: list[CheckOutcome], trouble: str) -> tuple[Status, str]:
    """The status of a task, and one sentence.

    Only reports for checks that were expected count, and one that did not report has not passed.
    """
    by_name = {c.check: c for c in outcomes if c.check in expected}
    kinds = {c.outcome for c in by_name.values()}
    passed = sum(c.outcome == "passed" for c in by_name.values())
    first = next((c for c in outcomes if c.outcome != "passed"), None)
    tally = f"{passed} of {len(expected)} checks pass"
    if "error" in kinds and first is not None:
        return "error", f"Your file cannot be imported: {first.observed}"
    if trouble:
        return "not_graded", trouble
    if "timed_out" in kinds:
        stopped = next(c for c in by_name.values() if c.outcome == "timed_out")
        return "timed_out", f"{tally}; one was stopped: {stopped.observed}"
    if "not_started" in kinds and passed == 0:
        stopped = next(c for c in by_name.values() if c.outcome == "not_started")
        return "not_started", stopped.observed
    if kinds & {"failed", "raised", "not_started"}:
        return "failed", tally
    if "engine" in kinds and first is not None:
        return "not_graded", f"The model server could not be had: {first.observed}"
    if "broken" in kinds and first is not None:
        return "not_graded", (
            f"A check broke ({first.observed}). This is a defect of the lab, not of your work: "
            f"please report it with the seed."
        )
    if not by_name:
        return "not_graded", "No check reported, so nothing was graded. Run the command again."
    if passed < len(expected):
        missing = ", ".join(n for n in expected if n not in by_name)
        return "failed", f"{tally}; these never reported: {missing}"
    return "passed", tally


def _next(tasks: Iterator[Task], taking: threading.Lock) -> Task | None:
    with taking:
        return next(tasks, None)


def _target_argument(target: Target) -> Path:
    return target.replaced[0][1] if target.replaced else target.seen_at or target.folder


def _fingerprint(grading: Grading, task: Task) -> str:
    """SHA-256 over the learner's files and the task's checks: equal if the verdict would be."""
    digest = hashlib.sha256()
    folder = grading.target.folder
    files = [grading.target.path(task.file), *sorted(folder.glob("*.py"))]
    files += [grading.lab.check_file(task), *sorted(grading.lab.folder.glob("checks/support/*"))]
    for path in files:
        digest.update(path.name.encode() + b"\0")
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()
