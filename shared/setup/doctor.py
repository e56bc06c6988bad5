"""`make doctor`: what is there, what is missing, and what that costs you.

Standard library only: it must speak when nothing else works.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shared.setup.bootstrap import (  # noqa: E402
    NEED_GIB,
    NEWEST,
    OLDEST,
    SetupError,
    engine_kind,
    has_nvidia_gpu,
)


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        level: "ok", "note" (works, but something is not had) or "bad" (must be mended).
    """

    level: str
    what: str
    says: str


def findings() -> list[Finding]:
    """Look at everything; nothing is changed."""
    return [
        _system(),
        _python(),
        _memory(),
        _disk(),
        _gpu(),
        *_environments(),
        *_caches(),
        _ports(),
        _network(),
        _engines(),
    ]


def _system() -> Finding:
    name = f"{platform.system()} {platform.release()} on {platform.machine()}"
    if sys.platform == "linux":
        return Finding("ok", "system", f"{name}, {os.cpu_count()} cores")
    if sys.platform == "darwin":
        return Finding("note", "system", f"{name}: vLLM has no build; labs use llama.cpp instead")
    return Finding("bad", "system", f"{name}: run this inside WSL2 (Ubuntu)")


def _python() -> Finding:
    version = platform.python_version()
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return Finding("ok", "Python", f"{version} at {sys.executable}")
    wanted = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    return Finding("bad", "Python", f"{version}; {wanted} is needed: make setup PYTHON=<path>")


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return Finding("note", "memory", "cannot be read")
    if total < 6:
        return Finding(
            "note", "memory", f"{total:.1f} GiB: vLLM needs about 6; use ENGINE=portable"
        )
    return Finding("ok", "memory", f"{total:.1f} GiB")


def _disk() -> Finding:
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < NEED_GIB["labs"]:
        return Finding("bad", "disk", f"{free:.1f} GiB free; set-up needs {NEED_GIB['labs']}")
    if free < NEED_GIB["labs"] + NEED_GIB["engine-cpu"]:
        return Finding("note", "disk", f"{free:.1f} GiB free: enough, but not for vLLM as well")
    return Finding("ok", "disk", f"{free:.0f} GiB free")


def _gpu() -> Finding:
    if has_nvidia_gpu():
        return Finding("ok", "GPU", "an NVIDIA GPU answers; vLLM will use it")
    return Finding("note", "GPU", "none: everything runs on the CPU; GPU figures are not proven")


def _environments() -> list[Finding]:
    found = []
    try:
        kind = engine_kind()
    except SetupError as error:
        kind = ""
        found.append(Finding("note", "vLLM", str(error)))
    for name, target, needed in (
        (".venv", "make setup", "everything"),
        (".venv-engine", "make setup-engine", "vLLM"),
    ):
        if name == ".venv-engine" and not kind:
            continue
        if (ROOT / name / ".ready").is_file():
            found.append(Finding("ok", name, "ready"))
        elif (ROOT / name).exists():
            found.append(Finding("note", name, f"half-made; `{target}` finishes it"))
        else:
            found.append(Finding("note", name, f"not there; {needed} needs it: `{target}`"))
    if (ROOT / ".venv" / ".ready-compress").is_file():
        found.append(Finding("ok", "Lab 5", "its compression tools are in .venv"))
    else:
        found.append(
            Finding("note", "Lab 5", "`make check-lab-5` adds its tools to .venv (1.3 GB)")
        )
    return found


def _caches() -> list[Finding]:
    """Verify the models and data, by their hashes, if the environment is there to do it."""
    python = ROOT / ".venv" / "bin" / "python"
    if not python.exists():
        return [Finding("note", "models", "not looked at before `make setup`")]
    done = subprocess.run(
        [str(python), "-m", "shared.models", "verify"], cwd=ROOT, capture_output=True, text=True
    )
    lines = (done.stdout + done.stderr).strip().splitlines() or ["no answer"]
    level = "ok" if done.returncode == 0 else "bad"
    return [Finding(level, "models", line) for line in lines[-6:]]


def _ports() -> Finding:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError as error:
            return Finding("bad", "ports", f"no loopback port can be had: {error}")
    fixed = os.environ.get("ENGINE_PORT")
    if fixed and fixed.isdigit():
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(fixed))) == 0:
                return Finding("note", "ports", f"ENGINE_PORT={fixed} is in use")
    return Finding("ok", "ports", "loopback ports can be had")


def _network() -> Finding:
    stamps = (".venv/.ready", ".venv/.ready-compress", ".venv-engine/.ready")
    ready = all((ROOT / stamp).is_file() for stamp in stamps)
    return Finding(
        "ok" if ready else "note",
        "offline",
        "everything is here; no command needs the network"
        if ready
        else "set-up still needs the package index for what is not there; checks never do",
    )


def _engines() -> Finding:
    running = []
    for path in sorted((ROOT / ".labs" / "engine").glob("*.json")):
        try:
            running.append(str(json.loads(path.read_text()).get("kind", path.stem)))
        except (OSError, ValueError, AttributeError):
            continue
    text = f"recorded as running: {', '.join(running)}" if running else "none runs"
    return Finding("ok", "model server", text)


def main() -> int:
    """Print the findings; 1 when one must be mended."""
    marks = {"ok": "✔", "note": "•", "bad": "✘"}
    found = findings()
    for level, what, says in found:
        print(f" {marks[level]} {what:<14} {says}")
    bad = [f for f in found if f.level == "bad"]
    print()
    print(f"{len(bad)} to mend, marked ✘." if bad else "Nothing stands in the way.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
