"""The project's own code passes its linters and type checker, and names nothing it must not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shared.paths import ROOT

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_linters_and_type_checker_are_content(command: str) -> None:
    name, *arguments = command.split()
    done = subprocess.run(
        [BIN / name, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_in_git_is_larger_than_two_mebibytes() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    large = [f.name for f in files if f.is_file() and f.stat().st_size > 2 * 2**20]
    assert not large
