"""CLUSTER=ray: a local cluster of several workers gives the gradebook that one machine gives."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from shared.classroom.cluster import cluster
from shared.classroom.grade import grade
from shared.classroom.sandbox import NoSandbox, Wall, find_wall
from shared.errors import UserError
from shared.paths import ROOT
from tests.test_classroom_grading import QUIET, SMALL, School, class_of, gradebook

SLOW = "import time\n\n\ndef double(x):\n    time.sleep(1.5)\n    return 2 * x\n"


@pytest.fixture(scope="module")
def wall() -> Wall:
    try:
        return find_wall(SMALL)
    except NoSandbox as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", autouse=True)
def ray_is_installed() -> None:
    bootstrap = ROOT / "shared" / "setup" / "bootstrap.py"
    subprocess.run([sys.executable, str(bootstrap), "classroom"], check=True)


class ClusterSchool(School):
    """A class that is graded on a local cluster of three workers."""

    def run(self, *, learners: frozenset[str] | None = None, fresh: bool = False):  # type: ignore[no-untyped-def]
        return replace(super().run(learners=learners, fresh=fresh), cluster=True, jobs=3)


def workers() -> list[psutil.Process]:
    """The cluster's workers that are grading at this moment."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[:1] == ["ray::Grader.grade"]:
                found.append(process)
    return found


def test_one_of_three_workers_is_killed_and_the_gradebook_is_the_same(
    wall: Wall, tmp_path: Path
) -> None:
    here, there = School(tmp_path / "here", wall), ClusterSchool(tmp_path / "there", wall)
    handed_in = class_of(12) | {f"slow{n}": f"{SLOW}# {n}\n" for n in range(6)}
    here.hand_in(**handed_in)
    there.hand_in(**handed_in)
    killed: list[int] = []
    seen: Counter[int] = Counter()
    through = threading.Event()

    def kill_one_at_work() -> None:
        while not killed and not through.wait(0.05):
            for process in workers():
                seen[process.pid] += 1
                if seen[process.pid] == 10:
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
                    return

    killer = threading.Thread(target=kill_one_at_work)
    killer.start()
    try:
        on_cluster = there.grade()
    finally:
        through.set()
        killer.join()
    assert len(killed) == 1
    assert len(seen) >= 2, "more than one worker was at work"
    assert on_cluster.complete
    assert gradebook(on_cluster) == gradebook(here.grade())
    assert not workers()


def test_work_that_no_worker_survives_is_not_graded_and_the_rest_is(
    wall: Wall, tmp_path: Path
) -> None:
    school = ClusterSchool(tmp_path, wall)
    school.hand_in(fine="def double(x):\n    return x + x\n", deadly=SLOW)
    through = threading.Event()

    def kill_whoever_takes_long() -> None:
        since: dict[int, float] = {}
        while not through.wait(0.05):
            for process in workers():
                if time.monotonic() - since.setdefault(process.pid, time.monotonic()) > 1:
                    with suppress(psutil.Error):
                        process.kill()

    killer = threading.Thread(target=kill_whoever_takes_long)
    killer.start()
    try:
        result = school.grade()
    finally:
        through.set()
        killer.join()
    scores = school.scores(result)
    assert scores["fine"] == 10
    assert scores["deadly"] in (-1, 0)
    assert not result.complete


def test_a_machine_with_other_labs_is_refused(
    wall: Wall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    school = ClusterSchool(tmp_path, wall)
    school.hand_in(one="def double(x):\n    return 2 * x\n")
    monkeypatch.setattr("shared.classroom.cluster.grader_hash", lambda _: "another commit")
    with pytest.raises(UserError, match="same commit"):
        school.grade()


def test_a_cluster_that_is_not_there_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1"), cluster(1):
        pass


def test_another_scheduler_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes ray"):
        grade(QUIET, str(tmp_path), str(tmp_path / "out"), cluster="slurm")


def test_nothing_is_left_of_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    with cluster(1) as ray:
        assert ray.is_initialized()
    for _ in range(50):
        if not [p for p in psutil.Process().children(recursive=True) if "ray" in p.name()]:
            break
        time.sleep(0.1)
    assert not [p for p in psutil.Process().children(recursive=True) if "ray" in p.name()]
    assert not [p for p in home.rglob("*") if p.is_file()]
