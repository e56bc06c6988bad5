"""Processes that may be killed, forked from one in which no thread was ever started.

CrewAI starts threads at its first flow; a fork after that has their locks and not them. So one
process is forked before the first check, and all others from that one.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

# Elsewhere a fork after heavy imports is not safe; a fresh process is slow, and right.
_CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")

LEARNER = "crew"
"""The name of the learner's module there."""


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        exit_code: negative: the signal that killed it.
        value: what the function returned; None if it did not.
        error: its exception's class name and text; empty if there was none.
        printed: what it wrote to standard output and standard error.
    """

    exit_code: int
    value: Any = None
    error: str = ""
    printed: str = ""

    @property
    def killed(self) -> bool:
        """Whether a signal ended it."""
        return self.exit_code < 0


class Nursery:
    """Runs functions, each in a process of its own, one after the other."""

    def __init__(self) -> None:
        self._ours, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, self._ours))
        self._process.start()
        theirs.close()

    def run(self, function: Callable[..., Any], /, **arguments: Any) -> Ended:
        """Call a function of a module, with values that can be pickled."""
        self._ours.send((function, arguments))
        ended: Ended = self._ours.recv()
        return ended

    def close(self) -> None:
        """End the process that the others come from."""
        self._ours.close()
        self._process.join()


def load(file: str) -> ModuleType:
    """The learner's file as the module `LEARNER` of this process."""
    path = Path(file)
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(LEARNER, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[LEARNER] = module
    spec.loader.exec_module(module)
    return module


def _where(error: BaseException) -> str:
    """The last line of the learner's file that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename == getattr(sys.modules.get(LEARNER), "__file__", "")]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def _serve(jobs: Connection, other_end: Connection) -> None:
    other_end.close()
    while True:
        try:
            function, arguments = jobs.recv()
        except EOFError:
            return
        jobs.send(_run(function, arguments))


def _run(function: Callable[..., Any], arguments: dict[str, Any]) -> Ended:
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile() as output:
        process = _CONTEXT.Process(target=_child, args=(theirs, output.name, function, arguments))
        process.start()
        theirs.close()
        try:
            value, error = ours.recv()
        except EOFError:
            value, error = None, ""
        process.join()
        printed = Path(output.name).read_text(encoding="utf-8", errors="replace")
    ours.close()
    return Ended(process.exitcode, value, error, printed)


def _child(
    answer: Connection, output: str, function: Callable[..., Any], arguments: dict[str, Any]
) -> None:
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        answer.send((function(**arguments), ""))
    except BaseException as error:
        answer.send((None, f"{type(error).__name__}: {error}{_where(error)}"))
    sys.stdout.flush()
    sys.stderr.flush()
