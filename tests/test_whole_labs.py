"""Whole labs as a person grades them: on the portable engine without a network, and on vLLM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.grading.lab import Lab, all_labs, load_lab
from shared.paths import ROOT
from shared.wheels import cache_home
from tests.test_commands import make

LABS = all_labs()
# An empty network namespace; as an ordinary user where the system allows user namespaces.
UNSHARE = ["unshare", "--map-root-user", "--net"]
each_lab = pytest.mark.parametrize("lab", LABS, ids=lambda lab: f"lab {lab.number}")


def graded(path: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads(path.read_text())
    return record


@pytest.mark.vllm
@pytest.mark.timeout(1500)  # it may have to install vLLM first
@pytest.mark.usefixtures("vllm_environment")
def test_lab_1_s_solution_has_full_marks_on_vllm(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    done = make("check-lab-1", "TARGET=solution", f"JSON={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    record = graded(path)
    assert record["score"] == load_lab(1).max_score
    assert str(record["engine"]).startswith("vllm-")
    assert record["not_proven"] == []


@each_lab
def test_the_solution_has_full_marks_without_a_network_and_leaves_the_home_alone(
    lab: Lab, tmp_path: Path
) -> None:
    path, home = tmp_path / "result.json", tmp_path / "home"
    home.mkdir()
    make("engine-down")  # one outside the namespace cannot be reached from inside
    walled = _can_unshare()
    words = f"check-lab-{lab.number} TARGET=solution ENGINE=portable JSON={path}"
    loopback = "ip link set lo up && " if walled else ""
    script = f"{loopback}make {words}; status=$?; make engine-down; exit $status"
    done = subprocess.run(
        [*(UNSHARE if walled else []), "sh", "-c", script],
        cwd=ROOT,
        env=os.environ | {"HOME": str(home), "MLOPS_LABS_HOME": str(cache_home())},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert graded(path)["score"] == lab.max_score
    assert ("not proven: vLLM" in done.stdout) == (lab.engine == "vllm")
    assert not [p for p in home.rglob("*") if p.is_file()]
    if not walled:
        pytest.skip("full marks, but this system gives this user no network namespace to try in")


def _can_unshare() -> bool:
    if sys.platform != "linux" or not shutil.which("unshare") or not shutil.which("ip"):
        return False
    tried = subprocess.run([*UNSHARE, "ip", "link", "set", "lo", "up"], capture_output=True)
    return tried.returncode == 0
