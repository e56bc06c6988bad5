"""`make lock`: resolve requirements/*.in into pinned sets (for authors; needs the index).

`compress` comes first and holds all of `labs`, so that Lab 5's tools are added to an environment
without changing it.
"""

from __future__ import annotations

import subprocess
import sys

from rich.console import Console

from shared.errors import UserError
from shared.paths import ROOT
from shared.setup.bootstrap import uv_settings

_FOLDER = ROOT / "requirements"
_OPTIONS = {
    "compress": ["--universal", "--override", str(_FOLDER / "cpu-overrides.txt")],
    # What Lab 5 adds must not move what is there.
    "labs": ["--universal", "--constraint", str(_FOLDER / "compress.txt")],
    "classroom": ["--universal", "--constraint", str(_FOLDER / "compress.txt")],
    "engine-cpu": ["--override", str(_FOLDER / "engine-overrides.txt")],
    "engine-gpu": [],
}


def lock_all(console: Console) -> None:
    """Resolve every set anew and say which changed."""
    for name, options in _OPTIONS.items():
        locked = _FOLDER / f"{name}.txt"
        before = locked.read_text(encoding="utf-8") if locked.is_file() else ""
        command = [sys.executable, "-m", "uv", "pip", "compile", str(_FOLDER / f"{name}.in")]
        command += [
            "--python-version",
            "3.11",
            "--no-header",
            "--no-emit-index-url",
            "-q",
        ]
        command += ["--no-annotate", *options, "-o", str(locked)]
        done = subprocess.run(command, check=False, env=uv_settings(), cwd=ROOT)
        if done.returncode:
            raise UserError(f"requirements/{name}.in could not be resolved (see above).")
        changed = locked.read_text(encoding="utf-8") != before
        console.print(f"{name}: {'changed' if changed else 'as it was'}", markup=False)
