"""No finished result is lost, whatever happens in the middle of a grading."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from shared.grading.feedback import SilentWatcher, show_result
from shared.grading.lab import Task
from shared.grading.results import ResultStore, TaskResult, write_atomically
from shared.grading.runner import NoEngine, Runner
from shared.paths import ROOT
from shared.tracking import make_empty_store
from tests.conftest import SOLUTION, SmallLab

TASKS = ("9.1", "9.2", "9.3")


class Notes(SilentWatcher):
    """Remembers which tasks were graded anew and which were kept."""

    def __init__(self) -> None:
        self.graded: list[str] = []
        self.kept: list[str] = []

    def task_finished(self, result: TaskResult, *, reused: bool) -> None:
        (self.kept if reused else self.graded).append(result.id)


@pytest.fixture
def three_tasks(small_lab: SmallLab) -> SmallLab:
    """The small lab with three tasks, all solved."""
    first = small_lab.lab.tasks[0]
    checks = (small_lab.folder / "checks" / "test_double.py").read_text()
    tasks: list[Task] = []
    for number, task_id in enumerate(TASKS):
        name = f"double_{number}"
        small_lab.write(f"checks/test_{name}.py", checks)
        small_lab.write(f"starter/{name}.py", SOLUTION)
        tasks.append(first.model_copy(update={"id": task_id, "file": f"{name}.py"}))
    small_lab.lab.tasks[:] = tasks
    return small_lab


class _CutAfter(Notes):
    """Ends the grading, as a kill would, after some tasks."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self._left = tasks

    def task_started(self, task: Task) -> None:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1


def test_a_run_that_was_cut_off_is_continued(three_tasks: SmallLab) -> None:
    with Runner(three_tasks.store) as runner:
        with pytest.raises(KeyboardInterrupt):
            runner.grade(three_tasks.grading(), _CutAfter(2))
        notes = Notes()
        result = runner.grade(three_tasks.grading(seed=2), notes)
    assert notes.kept == ["9.1", "9.2"]
    assert notes.graded == ["9.3"]
    assert result.passed
    assert three_tasks.store.unfinished(9, "starter") is None


def test_a_task_that_changed_since_the_cut_is_graded_anew(three_tasks: SmallLab) -> None:
    with Runner(three_tasks.store) as runner:
        with pytest.raises(KeyboardInterrupt):
            runner.grade(three_tasks.grading(), _CutAfter(2))
        three_tasks.write("starter/double_0.py", "def double(x):\n    return 3 * x\n")
        notes = Notes()
        result = runner.grade(three_tasks.grading(), notes)
    assert "9.1" in notes.graded
    assert result.tasks[0].status == "failed"


def test_a_failing_task_is_always_graded_anew(three_tasks: SmallLab) -> None:
    three_tasks.write("starter/double_0.py", "def double(x):\n    return 3 * x\n")
    with Runner(three_tasks.store) as runner:
        with pytest.raises(KeyboardInterrupt):
            runner.grade(three_tasks.grading(), _CutAfter(2))
        notes = Notes()
        runner.grade(three_tasks.grading(), notes)
    assert notes.graded[0] == "9.1"


STUCK = """
import os, pathlib, time


def double(x):
    pathlib.Path({pid_file!r}).write_text(str(os.getpid()))
    time.sleep(600)
    return 2 * x
"""
GRADE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore it
from shared.grading.feedback import SilentWatcher
from shared.grading.lab import Lab
from shared.grading.results import ResultStore
from shared.grading.runner import Grading, Runner
from shared.grading.target import resolve_target
lab = Lab.model_validate_json({lab!r})
target = resolve_target("starter", lab.folder)
with Runner(ResultStore(lab.folder / ".labs"), jobs={jobs}) as runner:
    runner.grade(Grading(lab=lab, tasks=lab.tasks, target=target, seed=1), SilentWatcher())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "Ctrl-C"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_is_ended_keeps_what_was_finished(
    three_tasks: SmallLab, how: signal.Signals, jobs: int
) -> None:
    pid_file = three_tasks.folder / "pid"
    three_tasks.write("starter/double_2.py", STUCK.format(pid_file=str(pid_file)))
    code = GRADE.format(lab=three_tasks.lab.model_dump_json(), jobs=jobs)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    try:
        _wait_for(lambda: _finished(three_tasks.store) == 2)
        _wait_for(pid_file.is_file)
        os.kill(process.pid, how)
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
    kept = three_tasks.store.unfinished(9, "starter")
    assert kept is not None
    assert [t.status for t in kept.tasks] == ["passed", "passed"]
    assert not kept.complete
    assert not kept.passed
    left_behind = int(pid_file.read_text())
    _wait_for(lambda: not psutil.pid_exists(left_behind))


WAITS_FOR = """
import pathlib, time

HERE = pathlib.Path({folder!r})


def double(x):
    (HERE / "{mine}").touch()
    for _ in range(200):
        if (HERE / "{other}").exists():
            return 2 * x
        time.sleep(0.05)
    return "nobody came"
"""


def test_two_at_once_are_graded_as_one_after_the_other(three_tasks: SmallLab) -> None:
    for mine, other in ((0, 1), (1, 0)):
        three_tasks.write(
            f"starter/double_{mine}.py",
            WAITS_FOR.format(folder=str(three_tasks.folder), mine=mine, other=other),
        )
    three_tasks.write("starter/double_2.py", "def double(x):\n    return 3 * x\n")
    with Runner(three_tasks.store, jobs=2) as runner:
        result = runner.grade(three_tasks.grading(), Notes())
    assert [(t.id, t.status) for t in result.tasks] == [
        ("9.1", "passed"),
        ("9.2", "passed"),
        ("9.3", "failed"),
    ]
    assert three_tasks.store.unfinished(9, "starter") is None


def test_a_full_disk_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_history_survives_a_line_cut_off_by_a_crash(three_tasks: SmallLab) -> None:
    with Runner(three_tasks.store) as runner:
        runner.grade(three_tasks.grading(), Notes())
        with (three_tasks.folder / ".labs" / "history.jsonl").open("a") as file:
            file.write('{"lab": 9, "ta')
            file.write("\n")
        runner.grade(three_tasks.grading(), Notes())
    assert len(three_tasks.store.history()) == 2


def test_a_result_that_a_crash_cut_off_counts_as_none(three_tasks: SmallLab) -> None:
    path = three_tasks.store.path(9, "starter")
    path.parent.mkdir(parents=True)
    path.write_text('{"lab": 9, "title": "Sm')
    assert three_tasks.store.latest(9) is None


def test_grading_one_task_keeps_the_verdicts_of_the_others(three_tasks: SmallLab) -> None:
    with Runner(three_tasks.store) as runner:
        runner.grade(three_tasks.grading(), Notes())
        three_tasks.write("starter/double_1.py", "def double(x):\n    return x\n")
        one = three_tasks.grading()
        one.tasks = [three_tasks.lab.tasks[1]]
        runner.grade(one, Notes())
    latest = three_tasks.store.latest(9)
    assert latest is not None
    assert {t.id: t.status for t in latest.tasks} == {
        "9.1": "passed",
        "9.2": "failed",
        "9.3": "passed",
    }
    assert (latest.score, latest.max_score) == (20, 30)


def test_the_json_has_what_other_tools_read(three_tasks: SmallLab) -> None:
    with Runner(three_tasks.store) as runner:
        runner.grade(three_tasks.grading(seed=41), Notes())
    record = json.loads(three_tasks.store.path(9, "starter").read_text())
    assert {"lab", "target", "files", "domain", "engine", "seed", "score", "max_score"} <= set(
        record
    )
    assert record["seed"] == 41
    for task in record["tasks"]:
        assert {"id", "title", "points", "status", "message", "hint", "seconds"} <= set(task)


def _finished(store: ResultStore) -> int:
    kept = store.unfinished(9, "starter")
    return len(kept.tasks) if kept is not None else 0


def _wait_for(condition: object, seconds: float = 60) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


class _FakeServer:
    """As much of a model server as the runner needs."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def alive(self) -> bool:
        return True

    def to_json(self) -> str:
        return ""


LIVE = """

@pytest.fixture
def engine():
    return None


def test_live(learner, engine):
    expect_equal(learner.double(2), 4, what="the double of 2", why="It is live.")
"""


@pytest.fixture
def live_tasks(three_tasks: SmallLab) -> SmallLab:
    """Three solved tasks, each with a check that asks for the model server."""
    for number in range(3):
        path = three_tasks.folder / "checks" / f"test_double_{number}.py"
        path.write_text("import pytest\n" + path.read_text() + LIVE)
    return three_tasks


def test_a_run_cut_off_before_the_server_was_asked_goes_on_from_there(live_tasks: SmallLab) -> None:
    grading = live_tasks.grading()
    with Runner(live_tasks.store) as runner:
        with pytest.raises(KeyboardInterrupt):
            runner.grade(grading, _CutAfter(3))  # all offline checks are done
        before = live_tasks.store.unfinished(9, "starter")
        assert before is not None
        assert [len(t.checks) for t in before.tasks] == [2, 2, 2]
        again = live_tasks.grading(seed=2)
        again.start_engine = lambda: _FakeServer("portable")
        result = runner.grade(again, Notes())
    assert result.passed
    assert [len(t.checks) for t in result.tasks] == [3, 3, 3]


def test_each_task_keeps_the_engine_and_seed_it_was_graded_with(live_tasks: SmallLab) -> None:
    with Runner(live_tasks.store) as runner:
        for seed, kind, tasks in ((1, "portable", TASKS), (2, "vllm-cpu", TASKS[:1])):
            grading = live_tasks.grading(seed=seed)
            grading.tasks = [t for t in live_tasks.lab.tasks if t.id in tasks]
            grading.start_engine = lambda kind=kind: _FakeServer(kind)  # type: ignore[misc]
            grading.not_proven = [] if kind.startswith("vllm") else ["vLLM"]
            runner.grade(grading, Notes())
    kept = live_tasks.store.latest(9)
    assert kept is not None
    assert [(t.engine, t.seed) for t in kept.tasks] == [
        ("vllm-cpu", 2),
        ("portable", 1),
        ("portable", 1),
    ]
    assert kept.engine == "vllm-cpu, portable"
    assert kept.not_proven == ["vLLM"]


def test_a_failure_says_that_live_checks_wait(live_tasks: SmallLab) -> None:
    live_tasks.write("starter/double_0.py", "def double(x):\n    return 3 * x\n")
    grading = live_tasks.grading()
    grading.tasks = grading.tasks[:1]
    with Runner(live_tasks.store) as runner:
        result = runner.grade(grading, Notes())
    console = Console(record=True, width=100, file=io.StringIO())
    show_result(console, live_tasks.lab, result, "make check-lab-9")
    assert "not run: 1 live check, until the others pass" in console.export_text()


def test_a_run_that_goes_on_with_another_engine_names_both(live_tasks: SmallLab) -> None:
    with Runner(live_tasks.store) as runner:
        grading = live_tasks.grading()
        grading.start_engine = lambda: _FakeServer("portable")
        grading.not_proven = ["vLLM"]
        with pytest.raises(KeyboardInterrupt):
            runner.grade(grading, _CutAfter(4))  # three offline, one live
        again = live_tasks.grading()
        again.start_engine = lambda: _FakeServer("vllm-cpu")
        result = runner.grade(again, Notes())
    assert result.engine == "portable, vllm-cpu"
    assert result.not_proven == ["vLLM"]


def test_what_could_not_be_graded_leaves_the_verdict_on_the_same_file(live_tasks: SmallLab) -> None:
    def no_server() -> _FakeServer:
        raise NoEngine("The port is in use.")

    with Runner(live_tasks.store) as runner:
        grading = live_tasks.grading()
        grading.start_engine = lambda: _FakeServer("portable")
        assert runner.grade(grading, Notes()).passed
        grading = live_tasks.grading()
        grading.start_engine = no_server
        assert {t.status for t in runner.grade(grading, Notes()).tasks} == {"not_graded"}
        kept = live_tasks.store.latest(9)
        assert kept is not None
        assert kept.passed
        live_tasks.write("starter/double_0.py", SOLUTION + "# changed\n")
        runner.grade(grading, Notes())
    kept = live_tasks.store.latest(9)
    assert kept is not None
    assert {t.status for t in kept.tasks} == {"not_graded"}  # a lab's files count for all its tasks


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    write_atomically(path, "new")
    assert path.stat().st_mode & 0o777 == 0o640


def test_an_empty_store_is_made_once_and_never_over_another(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    path = tmp_path / "own" / "mlflow.db"
    client = MlflowClient(make_empty_store(path))
    assert client.get_experiment("0").artifact_location == (
        (path.parent / "mlartifacts" / "0").as_uri()
    )
    made = client.create_experiment("mine")
    make_empty_store(path)
    assert client.get_experiment(made).name == "mine"
