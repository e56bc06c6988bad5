"""`make bench`: measure the speeds that the project aims for, beside the aims.

Nothing here passes or fails: times depend on the machine, so they are reported, with what was
run, and written to `.labs/bench/bench.json`.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shared.errors import UserError
from shared.grading.check import EngineName, Request, wanted_engine
from shared.grading.feedback import SilentWatcher
from shared.grading.lab import Lab, Task, lab_folders, load_lab
from shared.grading.results import write_atomically
from shared.grading.runner import Runner
from shared.paths import ROOT, STATE

_RUNS = 3
_CONCURRENCY = (1, 4, 16, 32)
_ONE_BY_ONE = 4
_ENGINE_AIMS: tuple[tuple[EngineName, float], ...] = (("portable", 3.0), ("vllm", 45.0))
_IDLE_LOAD = 0.5
_SAVE_LIMIT_S = 120
TEST_RECORD = STATE / "bench" / "make_test.json"
"""Written by the project's own tests when all of them ran."""


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
    load = os.getloadavg()[0]
    if load > _IDLE_LOAD:
        console.print(
            f"The machine is not idle (load {load:.1f}), so times are upper figures.",
            style="yellow",
        )

    def measure(title: str, work: Callable[[], Iterator[Figure]]) -> None:
        with console.status(f"measuring {title} …"):
            try:
                figures.extend(work())
            except (UserError, OSError, subprocess.SubprocessError) as error:
                console.print(f"{title}: not measured. {error}", style="yellow", markup=False)

    if not only:
        for name, aim in _ENGINE_AIMS:
            measure(name, lambda name=name, aim=aim: _start(name, aim))  # type: ignore[misc]
        measure("throughput", lambda: _throughput(console))
    for lab in labs:
        measure(f"lab {lab.number}", lambda lab=lab: _grading(lab))  # type: ignore[misc]
    if only in ("", "2"):
        measure("a class of thirty", lambda: _class(console))
    if not only:
        measure("make test", _tests)
    console.print(_table(figures))
    record = {
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "load_before": load,
        "figures": [asdict(f) for f in figures],
    }
    path = STATE / "bench" / "bench.json"
    write_atomically(path, json.dumps(record, indent=1))
    console.print(f"kept in {path.relative_to(ROOT)}", markup=False)
    for lab in labs:
        for extra in sorted(lab.folder.glob("bench_*.py")):
            console.print(f"\n[bold]{extra.relative_to(ROOT)}[/]")
            subprocess.run([sys.executable, str(extra)], cwd=ROOT, check=False)


def _grading(lab: Lab) -> Iterator[Figure]:
    """A task cold, warm and from save to verdict, and the whole lab, on the solution."""
    task = next((t for t in lab.tasks if not any(lab.expected_checks(t).values())), lab.tasks[0])
    live = any(lab.expected_checks(task).values())
    if lab.engine != "none":
        from shared.engine import ensure_engine

        ensure_engine("portable")
    note = "solution, with its live check, engine up" if live else "solution, no engine"
    name = f"lab {lab.number}: TASK={task.id}"
    command = [sys.executable, "-m", "shared.cli", "check", str(lab.number)]
    environment = os.environ | {"TARGET": "solution", "TASK": task.id, "ENGINE": "portable"}
    cold = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
        cold.append(time.perf_counter() - started)
    yield Figure(f"{name}, cold", statistics.median(cold), "s", 5, note)
    yield Figure(f"{name}, watch mode, save to verdict", _save_to_verdict(lab, task), "s", 1, note)
    with Runner() as runner:
        request = Request.of(
            str(lab.number),
            target="solution",
            engine="portable" if lab.engine != "none" else "",
        )
        started = time.perf_counter()
        result = runner.grade(request.grading(Console(quiet=True), None), SilentWatcher())
        seconds = time.perf_counter() - started
    slowest = max(result.tasks, key=lambda t: t.seconds)
    note = f"{result.score} of {result.max_score} points; longest: {slowest.id}, "
    note += f"{slowest.seconds:.0f} s"
    yield Figure(f"lab {lab.number}: all tasks, engine up", seconds, "s", 30, note)


def _save_to_verdict(lab: Lab, task: Task) -> float:
    """Median seconds from saving a file to the verdict, as `make watch-lab-N` gives it.

    Raises:
        OSError: no verdict came.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "work"
        shutil.copytree(lab.folder / "solution", folder)
        environment = os.environ | {"TARGET": str(folder), "TASK": task.id, "ENGINE": "portable"}
        watching = subprocess.Popen(
            [sys.executable, "-u", "-m", "shared.cli", "watch", str(lab.number)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        lines: queue.Queue[float] = queue.Queue()

        def listen() -> None:
            for line in watching.stdout or ():
                if line.startswith("watching "):
                    lines.put(time.perf_counter())

        threading.Thread(target=listen, daemon=True).start()
        try:
            lines.get(timeout=_SAVE_LIMIT_S)
            waits = []
            for n in range(_RUNS + 1):
                time.sleep(1)  # a person's pause; the watcher gathers saves that come at once
                saved = time.perf_counter()
                with (folder / task.file).open("a") as file:
                    file.write(f"# save {n}\n")
                waits.append(lines.get(timeout=_SAVE_LIMIT_S) - saved)
            return statistics.median(waits[1:])
        except queue.Empty as error:
            raise OSError(f"watch mode gave no verdict in {_SAVE_LIMIT_S} s") from error
        finally:
            watching.send_signal(signal.SIGINT)
            try:
                watching.wait(timeout=20)
            except subprocess.TimeoutExpired:
                watching.kill()
                watching.wait()


def _start(name: EngineName, aim: float) -> Iterator[Figure]:
    """From nothing to the first answer, and finding an engine that runs."""
    from shared.engine import ensure_engine, stop_engine
    from shared.engine.bench import measure_engine, prompts

    wanted_engine(name, explicit=True)
    stop_engine()
    try:
        started = time.perf_counter()
        engine = ensure_engine(name)
        measure_engine(engine, 1, prompts(1), max_tokens=1)
        yield Figure(
            f"{engine.kind}: start to first token", time.perf_counter() - started, "s", aim
        )
        started = time.perf_counter()
        ensure_engine(name)
        yield Figure(f"{engine.kind}: found running", (time.perf_counter() - started) * 1e3, "ms")
    finally:
        stop_engine()


def _throughput(console: Console) -> Iterator[Figure]:
    """Generated tokens a second, the same prompts for each engine and for plain transformers."""
    from shared.engine import EngineError, ensure_engine, stop_engine
    from shared.engine.bench import MAX_TOKENS, measure_engine, measure_transformers, prompts

    asked = {c: prompts(max(_ONE_BY_ONE, 2 * c)) for c in _CONCURRENCY}
    for name, _ in _ENGINE_AIMS:
        try:
            wanted_engine(name, explicit=True)
            engine = ensure_engine(name)
            measure_engine(engine, 2, prompts(2), max_tokens=8)  # warm up
            for concurrency, texts in asked.items():
                measured = measure_engine(engine, concurrency, texts)
                yield Figure(
                    f"{engine.kind}: {concurrency} at once",
                    measured.tokens_per_second,
                    "tokens/s",
                    note=f"{len(texts)} requests of {MAX_TOKENS} tokens, TTFT median "
                    f"{measured.ttft_p50_s * 1e3:.0f} ms",
                )
        except (EngineError, UserError) as error:
            console.print(f"{name}: not measured. {error}", markup=False)
        finally:
            stop_engine()
    largest = asked[max(_CONCURRENCY)]
    plain = measure_transformers(largest, one_by_one=_ONE_BY_ONE, batches=(16, 32))
    where = f"{plain['threads']} threads" if plain["device"] == "cpu" else plain["device"]
    where += ", bfloat16, the weights that vLLM serves"
    yield Figure("transformers generate: one by one", plain["one_by_one"], "tokens/s", note=where)
    for size, speed in plain["batches"].items():
        yield Figure(
            f"transformers generate: one static batch of {size}", speed, "tokens/s", note=where
        )


def _class(console: Console) -> Iterator[Figure]:
    """Grading thirty learners of Lab 2 in sandboxes, beside one pytest after the other without."""
    from shared.classroom.bench import THIRTY, measure_class

    measured = measure_class(THIRTY)
    mix = ", ".join(f"{kind.learners} with {kind.name}" for kind in THIRTY)
    yield Figure("a class of thirty, lab 2: make grade", measured.grade, "s", note=mix)
    each = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in measured.pytest_each.items())
    yield Figure(
        "the same: pytest for each in turn",
        measured.pytest,
        "s",
        note=f"run on one learner of each kind, times their number: {each}",
    )
    yield Figure(
        "make grade against pytest in turn", measured.ratio, "x", 10, f"{measured.cores} cores"
    )


def _tests() -> Iterator[Figure]:
    """How long `make test` took when it last ran whole."""
    try:
        last = json.loads(TEST_RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError("It has not run whole in this checkout yet.") from None
    yield Figure(
        "make test, everything",
        last["seconds"] / 60,
        "min",
        20,
        f"{last['tests']} tests, {last['at']}",
    )


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
