"""`make clean`: remove what set-up and runs can make again. The learner's work is kept.

Standard library only, so that it works when the environments are broken.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REMADE = (
    ".venv-engine",
    ".labs/scratch",
    ".labs/bench",
    ".labs/cache",
    ".labs/engine",
    ".ruff_cache",
)
REMADE_LAST = ".venv"


def main() -> None:
    """Stop the model servers, then remove environments, caches and scratch files."""
    python = ROOT / ".venv" / "bin" / "python"
    if python.exists():
        subprocess.run([python, "-m", "shared.cli", "engine", "down"], cwd=ROOT, check=False)
    for name in (*REMADE, REMADE_LAST):
        _remove(ROOT / name)
    for folder in ("shared", "labs", "tests", "notebooks"):
        for cache in (ROOT / folder).rglob("__pycache__"):
            _remove(cache)
    print("Kept: your files in labs/*/starter, and .labs (results, history, backups, runs).")


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path, ignore_errors=True)
        print(f"removed {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
