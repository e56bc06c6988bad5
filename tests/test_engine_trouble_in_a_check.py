"""The model server dies in the middle of a check: a sentence, no verdict, and recovery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from shared.engine import stop_engine
from shared.grading.check import Wanted, engine_starter
from shared.grading.feedback import SilentWatcher
from shared.grading.runner import Grading, Runner
from tests.conftest import SOLUTION, SmallLab

LIVE_CHECKS = """
import httpx

from shared.grading.expect import expect_equal


def test_double_doubles(learner):
    expect_equal(learner.double(3), 6, what="the double", why="Bills are sent.")


def test_the_live_server_answers(learner, engine):
    learner.meet(engine)
    expect_equal(
        httpx.get(engine.root_url + "/health").status_code, 200, what="status", why="Users wait."
    )
"""
KILLS = """
import os
import signal

import psutil


def meet(engine):
    for child in psutil.Process(engine.pid).children(recursive=True):
        child.kill()
    os.kill(engine.pid, signal.SIGKILL)
"""


@pytest.fixture
def live_lab(
    small_lab: SmallLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SmallLab]:
    """The small lab with a live check, and model servers of its own."""
    monkeypatch.setenv("ENGINE_STATE_DIR", str(tmp_path / "engine"))
    small_lab.write("checks/test_double.py", LIVE_CHECKS)
    small_lab.learner(SOLUTION + "\n\ndef meet(engine):\n    pass\n")
    yield small_lab
    stop_engine()


def with_engine(lab: SmallLab) -> Grading:
    grading = lab.grading()
    grading.start_engine = engine_starter(Console(quiet=True), Wanted("portable"), lambda _: None)
    return grading


def test_a_server_killed_in_a_check_gives_no_verdict_and_the_next_run_recovers(
    live_lab: SmallLab, runner: Runner
) -> None:
    live_lab.learner(SOLUTION + KILLS)
    task = runner.grade(with_engine(live_lab), SilentWatcher()).tasks[0]
    assert task.status == "not_graded"
    assert "stopped while this task was graded" in task.message
    live_lab.learner(SOLUTION + "\n\ndef meet(engine):\n    pass\n")
    assert runner.grade(with_engine(live_lab), SilentWatcher()).passed


def test_a_model_cache_that_is_gone_gives_a_sentence_and_no_verdict(
    live_lab: SmallLab, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as gone:
        gone.setenv("MLOPS_LABS_HOME", str(tmp_path / "empty"))
        gone.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
        gone.setenv("PIP_FIND_LINKS", str(tmp_path))
        gone.setenv("PIP_NO_INDEX", "1")
        task = runner.grade(with_engine(live_lab), SilentWatcher()).tasks[0]
    assert task.status == "not_graded"
    assert "did not run" in task.message
    assert "Traceback" not in task.message
    assert runner.grade(with_engine(live_lab), SilentWatcher()).passed


def test_a_fixed_port_in_use_is_named_and_nothing_is_graded(
    live_lab: SmallLab, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("ENGINE_PORT", str(port))
        task = runner.grade(with_engine(live_lab), SilentWatcher()).tasks[0]
    assert task.status == "not_graded"
    assert str(port) in task.message
    monkeypatch.delenv("ENGINE_PORT")
    assert runner.grade(with_engine(live_lab), SilentWatcher()).passed


def test_the_first_mistake_is_shown_without_starting_a_server(
    live_lab: SmallLab, runner: Runner
) -> None:
    live_lab.learner("def double(x):\n    return x\n")
    grading = live_lab.grading()

    def start() -> None:
        raise AssertionError("the server was started for nothing")

    grading.start_engine = start  # type: ignore[assignment]
    assert runner.grade(grading, SilentWatcher()).tasks[0].status == "failed"
