"""One run of one task's checks, in a process of its own.

The process knows what to run and where to report, and nothing of points or verdicts.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import BaseModel

STACK_SIGNAL = signal.SIGUSR1
"""On this signal the process writes the stack of every thread to its stack file."""


class ChildSpec(BaseModel):
    """What a checks process is told."""

    check_file: str
    checks: list[str]
    lab_folder: str
    scratch: str
    environment: dict[str, str]
    preload: list[str] = []
    stop_at_first_failure: bool = False


def preload(modules: list[str]) -> None:
    """Import what is slow to import, so that it is paid before the fork, once."""
    for name in modules:
        # A missing module shows, with its reason, in the check that needs it.
        with suppress(Exception):
            importlib.import_module(name)


def run_checks(
    spec: ChildSpec,
    event_fd: int,
    output_fd: int,
    stack_fd: int,
    *,
    plugins: Sequence[object] = (),
) -> int:
    """Run the checks that `spec` names; return pytest's exit status.

    Args:
        event_fd: where the plugin writes its events.
        output_fd: a file that takes what the learner's code prints.
        stack_fd: a file that takes the stack when the runner asks for it.
        plugins: further pytest plugins.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    faulthandler.register(STACK_SIGNAL, file=stack_fd, all_threads=True)
    os.environ.update(spec.environment)
    os.environ["LABS_EVENT_FD"] = str(event_fd)
    os.environ["LABS_LAB_FOLDER"] = spec.lab_folder
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.dont_write_bytecode = True
    os.chdir(spec.scratch)
    preload(spec.preload)

    import pytest

    return int(
        pytest.main(
            [
                *(f"{spec.check_file}::{name}" for name in spec.checks),
                "-p", "shared.grading.plugin",
                "-p", "no:cacheprovider",
                "-p", "no:faulthandler",
                "--noconftest",
                "--capture=no",
                *(["--exitfirst"] if spec.stop_at_first_failure else []),
                "-c", str(Path(__file__).with_name("checks.ini")),
                "--rootdir", spec.lab_folder,
                "--basetemp", str(Path(spec.scratch) / "tmp"),
            ],
            plugins=plugins,
        )
    )  # fmt: skip


def end_descendants(pid: int) -> None:
    """End everything below a process (not the process itself)."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _end_with(parent: int) -> None:
    """Watch for the runner's end, so that no check outlives it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        end_descendants(os.getpid())
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Entry for systems without a safe fork: fds and the spec come as arguments."""
    _end_with(os.getppid())
    event_fd, output_fd, stack_fd = map(int, sys.argv[1:4])
    spec = ChildSpec.model_validate_json(sys.argv[4])
    os._exit(run_checks(spec, event_fd, output_fd, stack_fd))


if __name__ == "__main__":
    main()
