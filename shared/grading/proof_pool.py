"""Try many planned files at once: one warm runner for each core.

A runner stays with a task as long as it can, so that the task's heavy imports are paid once. All
share one model server. Live checks read that server's counters and load it, so they take turns;
everything else runs side by side.
"""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, replace

from rich.console import Console

from shared.grading.check import Request
from shared.grading.feedback import SilentWatcher
from shared.grading.lab import Lab
from shared.grading.proof import Outcome, Plan, Verdict
from shared.grading.runner import Runner


@dataclass(frozen=True)
class Trial:
    """One planned file, and with what to grade it. Empty words mean the lab's defaults."""

    lab: Lab
    plan: Plan
    domain: str = ""
    engine: str = ""
    seed: str = ""
    attempts: int = 1
    """Try again, with a new seed, up to this often until it is as planned."""
    alone: bool = False
    """Run only the check that must catch it, not those before it."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells this trial from others of a pool."""
        return self.plan.task.id, self.plan.kind, self.plan.name, self.domain

    def at(self, target: str) -> Trial:
        """The same trial on a file or folder elsewhere."""
        return replace(self, plan=replace(self.plan, target=target))


class ProofPool:
    """Works on trials in the background. Use it as a context manager."""

    def __init__(self, trials: list[Trial], jobs: int) -> None:
        self._waiting: dict[str, list[Trial]] = {}
        self._futures: dict[tuple[str, str, str, str], Future[list[Outcome]]] = {}
        for trial in trials:
            self._waiting.setdefault(trial.plan.task.id, []).append(trial)
            self._futures[trial.key] = Future()
        self._busy: dict[str, int] = dict.fromkeys(self._waiting, 0)
        self._lock = threading.Lock()
        self._live = threading.Lock()
        self._runners = [Runner() for _ in range(jobs)]
        self._threads = [
            threading.Thread(target=self._work, args=(runner,), daemon=True)
            for runner in self._runners
        ]

    def __enter__(self) -> ProofPool:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._waiting.clear()
        for future in self._futures.values():
            future.cancel()
        for runner in self._runners:
            runner.__exit__()
        for thread in self._threads:
            thread.join(timeout=30)

    def attempts(self, trial: Trial) -> list[Outcome]:
        """Wait for a trial: the outcome of each attempt, the last one last.

        Raises:
            Exception: what broke outside the checks, e.g. a malformed lab.
        """
        return self._futures[trial.key].result()

    def outcome(self, trial: Trial) -> Outcome:
        """Wait for a trial's last outcome."""
        return self.attempts(trial)[-1]

    def _work(self, runner: Runner) -> None:
        task = ""
        while (trial := self._next(task)) is not None:
            task = trial.plan.task.id
            future = self._futures[trial.key]
            try:
                outcomes = self._try(runner, trial)
            except BaseException as error:
                with suppress(Exception):
                    future.set_exception(error)
            else:
                # A pool that was closed meanwhile has cancelled what nobody waits for.
                with suppress(Exception, CancelledError):
                    future.set_result(outcomes)
            with self._lock:
                self._busy[task] -= 1

    def _next(self, task: str) -> Trial | None:
        """More of the same task; else the first that nobody is at; else help with the longest."""
        with self._lock:
            open_tasks = [t for t, trials in self._waiting.items() if trials]
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

    def _try(self, runner: Runner, trial: Trial) -> list[Outcome]:
        outcomes = []
        for _ in range(trial.attempts):
            outcomes.append(self._grade(runner, trial))
            if outcomes[-1].verdict is Verdict.AS_PLANNED:
                break
        return outcomes

    def _grade(self, runner: Runner, trial: Trial) -> Outcome:
        request = Request.of(
            str(trial.lab.number),
            task=trial.plan.task.id,
            target=trial.plan.target,
            domain=trial.domain,
            engine=trial.engine,
            seed=trial.seed,
        )
        grading = request.grading(Console(quiet=True), None)
        grading.stop_at_first_failure = trial.plan.kind in ("starter", "wrong")
        if trial.alone:
            grading.only_check = trial.plan.caught_by
        grading.live_turn = self._live
        result = runner.grade(grading, SilentWatcher())
        return replace(trial.plan.outcome(result.tasks[0]), seconds=result.seconds)
