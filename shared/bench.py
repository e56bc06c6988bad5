"""`make bench`: measure the speeds that the project aims for, beside the aims.

Nothing here passes or fails: times depend on the machine, so they are reported, with what was
run, and written to `.labs/bench/bench.json`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from shared.errors import UserError
from shared.grading.check import EngineName, Request, wanted_engine
from shared.grading.feedback import SilentWatcher
from shared.grading.lab import Lab, lab_folders, load_lab
from shared.grading.results import write_atomically
from shared.grading.runner import Runner
from shared.paths import ROOT, STATE

_RUNS = 3
_ENGINE_AIMS: tuple[tuple[EngineName, float], ...] = (("portable", 3.0), ("vllm", 45.0))


@dataclass(frozen=True)
class Figure:
    """One measured figure, in `unit`, and the aim where there is one."""

    what: str
    value: float
    unit: str
    aim: float | None = None
    note: str = ""


def run_bench(console: Console, only: str = "") -> None:
    """Measure, print a table, and keep the figures."""
    labs = [load_lab(only)] if only else [load_lab(n) for n in lab_folders()]
    figures: list[Figure] = []

    def measure(title: str, work: Callable[[], list[Figure]]) -> None:
        with console.status(f"measuring {title} …"):
            figures.extend(work())

    if not only:
        measure("engines", lambda: _engines(console))
    for lab in labs:
        measure(f"lab {lab.number}", lambda lab=lab: _grading(lab))  # type: ignore[misc]
    console.print(_table(figures))
    record = {
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "figures": [asdict(f) for f in figures],
    }
    path = STATE / "bench" / "bench.json"
    write_atomically(path, json.dumps(record, indent=1))
    console.print(f"kept in {path.relative_to(ROOT)}", markup=False)
    for lab in labs:
        for extra in sorted(lab.folder.glob("bench_*.py")):
            console.print(f"\n[bold]{extra.relative_to(ROOT)}[/]")
            subprocess.run([sys.executable, str(extra)], cwd=ROOT, check=False)


def _grading(lab: Lab) -> list[Figure]:
    """A task cold and warm, and the whole lab, on the solution."""
    task = lab.tasks[0]
    checks = lab.expected_checks(task)
    live = any(checks.values())
    command = [sys.executable, "-m", "shared.cli", "check", str(lab.number)]
    environment = os.environ | {"TARGET": "solution", "TASK": task.id, "ENGINE": "portable"}
    cold = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
        cold.append(time.perf_counter() - started)
    with Runner() as runner:
        one = _request(lab, task.id)
        warm = [_timed(runner, one) for _ in range(_RUNS + 1)][1:]
        whole = _timed(runner, _request(lab, ""))
    note = "with its live check, engine up" if live else ""
    return [
        Figure(f"lab {lab.number}: TASK={task.id}, cold", statistics.median(cold), "s", 5, note),
        Figure(f"lab {lab.number}: TASK={task.id}, warm", statistics.median(warm), "s", 1, note),
        Figure(f"lab {lab.number}: all tasks, engine up", whole, "s", 30),
    ]


def _engines(console: Console) -> list[Figure]:
    """Each engine that is installed: start to first token, reuse, tokens a second."""
    from shared.engine import EngineError, ensure_engine, stop_engine
    from shared.engine.bench import measure_engine

    figures = []
    for name, aim in _ENGINE_AIMS:
        try:
            if wanted_engine(name, explicit=True).name != name:
                continue
            stop_engine()
            started = time.perf_counter()
            engine = ensure_engine(name)
            measure_engine(engine, concurrency=1, requests=1)
            figures.append(
                Figure(
                    f"{engine.kind}: start to first answer", time.perf_counter() - started, "s", aim
                )
            )
            started = time.perf_counter()
            ensure_engine(name)
            figures.append(
                Figure(f"{engine.kind}: found running", (time.perf_counter() - started) * 1e3, "ms")
            )
            for concurrency in (1, 4, 16):
                measured = measure_engine(
                    engine, concurrency=concurrency, requests=max(4, 2 * concurrency)
                )
                figures.append(
                    Figure(
                        f"{engine.kind}: {concurrency} at once",
                        measured.tokens_per_second,
                        "tokens/s",
                        note=f"TTFT median {measured.ttft_p50_s * 1e3:.0f} ms",
                    )
                )
        except (EngineError, UserError) as error:
            console.print(f"{name}: not measured. {error}", markup=False)
        finally:
            stop_engine()
    return figures


def _request(lab: Lab, task: str) -> Request:
    engine = "portable" if lab.engine != "none" else ""
    return Request.of(str(lab.number), task=task, target="solution", engine=engine)


def _timed(runner: Runner, request: Request) -> float:
    started = time.perf_counter()
    runner.grade(request.grading(Console(quiet=True), None), SilentWatcher())
    return time.perf_counter() - started


def _table(figures: list[Figure]) -> Table:
    table = Table(box=None, padding=(0, 2))
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column("aim", justify="right", style="bright_black")
    table.add_column("", style="bright_black")
    for figure in figures:
        table.add_row(
            figure.what,
            f"{figure.value:.1f} {figure.unit}",
            "" if figure.aim is None else f"{figure.aim:g} {figure.unit}",
            figure.note,
        )
    return table
