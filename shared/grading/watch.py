"""`make watch-lab-N`: grade again at each save, with the checks process kept warm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from shared.grading.check import Request, build_environments
from shared.grading.feedback import ConsoleWatcher, show_result
from shared.grading.lab import Task
from shared.grading.results import ResultStore
from shared.grading.runner import Runner, draw_seed


def watch_lab(console: Console, request: Request) -> None:
    """Grade the open task, then whatever task's file is saved, until Ctrl-C."""
    import watchfiles

    build_environments(request.lab, request.environment_engine)
    store = ResultStore()
    with Runner(store) as runner:
        _grade(console, runner, replace(request, tasks=[open_task(store, request)]))
        _tell(console, request)
        changes = watchfiles.watch(
            request.target.folder, debounce=200, step=50, raise_interrupt=False, recursive=False
        )
        for change in changes:
            names = {Path(path).name for _, path in change}
            tasks = [t for t in request.tasks if t.file in names]
            if tasks:
                console.clear()
                _grade(console, runner, replace(request, tasks=tasks, seed=draw_seed()))
                _tell(console, request)


def open_task(store: ResultStore, request: Request) -> Task:
    """The first task that has not passed, as far as the last grading knows."""
    latest = store.latest(request.lab.number, request.target.label)
    passed = {t.id for t in latest.tasks if t.status == "passed"} if latest else set()
    return next((t for t in request.tasks if t.id not in passed), request.tasks[0])


def _grade(console: Console, runner: Runner, request: Request) -> None:
    with ConsoleWatcher(console, request.lab) as watcher:
        grading = request.grading(console, watcher)
        grading.fresh = True
        result = runner.grade(grading, watcher)
    show_result(console, request.lab, result, request.command)


def _tell(console: Console, request: Request) -> None:
    console.print(
        f"\n[bright_black]watching {request.target.label}; save a file to grade it, "
        f"Ctrl-C to stop[/]"
    )
