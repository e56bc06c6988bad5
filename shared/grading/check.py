"""`make check-lab-N`: from what was asked to an exit status."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from shared.errors import UserError
from shared.grading.feedback import ConsoleWatcher, show_result
from shared.grading.jobs import wanted_jobs
from shared.grading.lab import Lab, Task, load_lab
from shared.grading.results import LabResult, ResultStore, write_atomically
from shared.grading.runner import DOMAINS, Grading, NoEngine, Runner, draw_seed
from shared.grading.target import Target, resolve_target
from shared.paths import ROOT
from shared.setup.bootstrap import SetupError, engine_kind

if TYPE_CHECKING:
    from shared.engine import Engine

EngineName = Literal["vllm", "portable"]
_MOST_AT_ONCE = 4  # each holds its libraries in memory, up to 1 GB


@dataclass(frozen=True)
class Wanted:
    """Which model server to use, and what is not proven because of that choice."""

    name: EngineName
    not_proven: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What a person asked to be graded, understood."""

    lab: Lab
    tasks: list[Task]
    target: Target
    domain: str | None
    engine: Wanted | None
    seed: int

    @classmethod
    def of(
        cls,
        lab: str,
        *,
        task: str = "",
        target: str = "",
        domain: str = "",
        engine: str = "",
        seed: str = "",
    ) -> Request:
        """Understand the command's words.

        Raises:
            UserError: one of them is unknown; the message lists what there is.
        """
        loaded = load_lab(lab)
        tasks = [loaded.task(t) for t in task.split(",")] if task else loaded.tasks
        if domain and domain not in DOMAINS:
            raise UserError(f"DOMAIN={domain}: it takes {', '.join(DOMAINS)}.")
        if seed and not seed.isdigit():
            raise UserError(f"SEED={seed}: it takes a whole number, 0 or more.")
        wanted = None
        if loaded.engine != "none":
            wanted = wanted_engine(engine or loaded.engine, explicit=bool(engine))
        return cls(
            lab=loaded,
            tasks=tasks,
            target=resolve_target(target, loaded.folder),
            domain=(domain or DOMAINS[0]) if loaded.domains else None,
            engine=wanted,
            seed=int(seed) if seed else draw_seed(),
        )

    @property
    def command(self) -> str:
        """The command that asks for the same again, without the task."""
        words = [f"make check-lab-{self.lab.number}"]
        if self.target.label != "starter":
            words.append(f"TARGET={self.target.label}")
        if self.domain not in (None, DOMAINS[0]):
            words.append(f"DOMAIN={self.domain}")
        return " ".join(words)

    @property
    def environment_engine(self) -> Wanted | None:
        """The model server that has to be installed: none where no task has a live check."""
        live = any(any(self.lab.expected_checks(task).values()) for task in self.tasks)
        return self.engine if live else None

    def grading(self, console: Console, watcher: ConsoleWatcher | None = None) -> Grading:
        """The runner's order for this request."""
        say = watcher.busy if watcher is not None else None
        start = engine_starter(console, self.engine, say) if self.engine is not None else None
        return Grading(
            lab=self.lab,
            tasks=self.tasks,
            target=self.target,
            seed=self.seed,
            domain=self.domain,
            start_engine=start,
            not_proven=list(self.engine.not_proven) if self.engine is not None else [],
        )


def wanted_engine(name: str, *, explicit: bool) -> Wanted:
    """Decide on a model server: the one asked for, or the portable one where vLLM can't be.

    Raises:
        UserError: the name is unknown, or vLLM was asked for in so many words and can't be had.
    """
    if name == "portable":
        return Wanted("portable")
    if name != "vllm":
        raise UserError(f"ENGINE={name}: it takes vllm or portable.")
    try:
        engine_kind()
    except SetupError as error:
        if explicit:
            raise UserError(str(error)) from error
        return Wanted("portable", (str(error),))
    return Wanted("vllm")


def engine_starter(
    console: Console, wanted: Wanted | None, say: Callable[[str], None] | None = None
) -> Callable[[], Engine]:
    """A function that starts or finds the wanted model server."""

    def start() -> Engine:
        from shared.engine import EngineError, ensure_engine

        assert wanted is not None
        try:
            return ensure_engine(wanted.name, progress=say or console.print)
        except EngineError as error:
            raise NoEngine(str(error)) from error

    return start


def check_lab(
    console: Console,
    request: Request,
    json_path: Path | None = None,
    fresh: bool = False,
    jobs: str = "",
) -> int:
    """Grade and report; 0 only when every task passes.

    Args:
        jobs: how many tasks to grade at once; as many as there are cores if not given.
    """
    at_once = wanted_jobs(jobs, _MOST_AT_ONCE)
    build_environments(request.lab, request.environment_engine)
    with Runner(ResultStore(), at_once) as runner, ConsoleWatcher(console, request.lab) as watcher:
        console.print(f"[bold]Lab {request.lab.number}: {request.lab.title}[/]")
        grading = request.grading(console, watcher)
        grading.fresh = fresh
        try:
            result = runner.grade(grading, watcher)
        except KeyboardInterrupt:
            console.print(
                "Stopped. What was finished is kept: the same command goes on from there. "
                "A model server that was started stops when idle, or by `make engine-down`."
            )
            raise
        except OSError as error:
            raise UserError(
                f"The results could not be written ({error}). Tasks shown above as graded keep "
                f"their verdict if their result was written; free some space and run it again."
            ) from error
    show_result(console, request.lab, result, request.command)
    if json_path is not None:
        _write_json(json_path, result)
    return 0 if result.passed else 1


def build_environments(lab: Lab, wanted: Wanted | None) -> None:
    """Install what the lab needs beyond the common set, and vLLM, the first time.

    Raises:
        UserError: it could not be installed.
    """
    if lab.extra and not installed(lab.extra):
        raise UserError(
            f"What Lab {lab.number} needs could not be installed (the reason is above). Run this "
            "again when it is mended."
        )
    if wanted is not None and wanted.name == "vllm" and not installed("engine"):
        raise UserError(
            "vLLM could not be installed (the reason is above). Run this again when it is "
            "mended, or add ENGINE=portable to be graded without vLLM."
        )


def installed(what: str) -> bool:
    """Have set-up install what is not there yet; whether it is there now."""
    bootstrap = ROOT / "shared" / "setup" / "bootstrap.py"
    return subprocess.run([sys.executable, str(bootstrap), what], check=False).returncode == 0


def _write_json(path: Path, result: LabResult) -> None:
    try:
        write_atomically(path.absolute(), result.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise UserError(f"JSON={path} could not be written: {error}") from error
