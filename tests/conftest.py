"""Fixtures for the project's own tests."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from shared.bench import TEST_RECORD
from shared.grading.feedback import SilentWatcher
from shared.grading.lab import Hint, Lab, Task
from shared.grading.results import LabResult, ResultStore, now, write_atomically
from shared.grading.runner import Grading, Runner
from shared.grading.target import resolve_target
from shared.paths import ROOT
from shared.setup.bootstrap import SetupError, engine_kind

STARTED = pytest.StashKey[float]()
CHECKS = """
from shared.grading.expect import expect_equal


def test_double_doubles(learner, rng):
    x = int(rng.integers(1, 1000))
    expect_equal(learner.double(x), 2 * x, what="the double", why="Bills are sent.", hint="times")


def test_double_of_nothing_is_nothing(learner):
    expect_equal(learner.double(0), 0, what="the double of 0", why="Empty carts exist.")
"""
SOLUTION = '''
"""Doubles."""


def double(x: int) -> int:
    """Return twice `x`."""
    return 2 * x
'''


class SmallLab:
    """A lab of one task, made in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lab = Lab(
            number=9,
            title="Small",
            engine="none",
            domains=False,
            folder=folder,
            tasks=[
                Task(
                    id="9.1",
                    title="Double",
                    kind="build",
                    file="double.py",
                    symbols=["double"],
                    points=10,
                    minutes=1,
                    hints=[Hint(id="times", text="How many times is twice?")],
                )
            ],
        )
        self.write("checks/test_double.py", CHECKS)
        self.write("solution/double.py", SOLUTION)
        self.write("starter/double.py", SOLUTION)
        self.store = ResultStore(folder / ".labs")

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
        return path

    def learner(self, body: str) -> None:
        """Write the learner's file."""
        self.write("starter/double.py", body)

    def grading(self, seed: int = 1, target: str = "starter") -> Grading:
        return Grading(
            lab=self.lab,
            tasks=self.lab.tasks,
            target=resolve_target(target, self.folder),
            seed=seed,
        )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note when it began, for the record of a whole run."""
    session.config.stash[STARTED] = time.monotonic()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep for `make bench` how long it took, if nothing was left out."""
    config = session.config
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS and not (
        config.option.keyword or config.option.markexpr or session.shouldstop
    )
    if whole and not config.option.collectonly:
        record = {
            "at": now(),
            "seconds": time.monotonic() - config.stash[STARTED],
            "tests": session.testscollected,
            "failed": session.testsfailed,
        }
        write_atomically(TEST_RECORD, json.dumps(record))


@pytest.fixture
def small_lab(tmp_path: Path) -> SmallLab:
    """A lab of one task, solved."""
    return SmallLab(tmp_path)


@pytest.fixture(scope="session")
def vllm_environment() -> None:
    """vLLM, installed if it is not yet; skipped, with the reason, where it has no build."""
    try:
        engine_kind()
    except SetupError as error:
        pytest.skip(str(error))
    bootstrap = ROOT / "shared" / "setup" / "bootstrap.py"
    subprocess.run([sys.executable, str(bootstrap), "engine"], check=True)


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    """One warm runner for all tests that keep no results."""
    with Runner() as warm:
        yield warm


@pytest.fixture
def grade(small_lab: SmallLab, runner: Runner) -> Callable[[str], LabResult]:
    """Grade a learner's file in the small lab."""

    def graded(body: str) -> LabResult:
        small_lab.learner(body)
        return runner.grade(small_lab.grading(), SilentWatcher())

    return graded
