"""The wall: a bubblewrap sandbox that holds nothing but what grading a lab needs.

Inside are the system's and Python's own files, this checkout's `shared/`, and of each lab that is
graded its `lab.toml` and checks, all read-only. There is no network, no environment but the named
variables, no solution, variant or draft, no other submission, and nothing of the host to write to.

What checks read, the code that they check can read too: held-out data in `shared/` among it. It
has no way to send them anywhere but into its own verdict, where an instructor sees what was
printed before the learner does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from shared.classroom.limits import Limits
from shared.errors import UserError
from shared.grading.lab import Lab
from shared.paths import ROOT, STATE
from shared.wheels import cache_home

Kind = Literal["warm", "cold"]
_NEEDED = ("SYS_ADMIN", "NET_ADMIN", "SETPCAP", "SETFCAP", "SYS_PTRACE", "KILL")
_SYSTEM_LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives", "/etc/ssl/certs")
_SMALL_FILES = {
    "passwd": "root:x:0:0:root:/:/usr/sbin/nologin\nlearner:x:1000:1000::/scratch/home:/bin/sh\n",
    "group": "root:x:0:\nlearner:x:1000:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
HOW_TO_GET_IT = (
    "Grading runs other people's code, so it needs bubblewrap (Linux; Debian and Ubuntu: apt "
    "install bubblewrap; Fedora: dnf install bubblewrap) and user namespaces that are allowed. "
    "On macOS or Windows, grade in a Linux virtual machine. If you trust every line of every "
    "submission, SANDBOX=off grades without walls: whatever a submission does, it does as you."
)


class NoSandbox(UserError):
    """There is no wall to be had here; the message says why, and how to get one."""


@dataclass(frozen=True)
class Wall:
    """How submissions are held.

    Attributes:
        kind: ``"warm"``: one sandbox for many runs, each with namespaces of its own inside it;
            ``"cold"``: a sandbox for each run, where those are forbidden.
        bwrap: the program.
        limits: what each run may use.
    """

    kind: Kind
    bwrap: str
    limits: Limits = field(default_factory=Limits)

    @property
    def label(self) -> str:
        """What to call it in results."""
        return "bubblewrap, warm" if self.kind == "warm" else "bubblewrap"


def find_wall(limits: Limits | None = None) -> Wall:
    """The best wall that this machine gives.

    Raises:
        NoSandbox: it gives none.
    """
    limits = limits or Limits()
    if sys.platform != "linux":
        raise NoSandbox(f"There is no sandbox on this system ({sys.platform}). {HOW_TO_GET_IT}")
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise NoSandbox(f"bubblewrap (the program bwrap) is not installed. {HOW_TO_GET_IT}")
    cold = Wall("cold", bwrap, limits)
    trouble = _try(cold)
    if trouble:
        raise NoSandbox(f"bubblewrap cannot make a sandbox here: {trouble}. {HOW_TO_GET_IT}")
    warm = Wall("warm", bwrap, limits)
    return cold if _try(warm) else warm


def _try(wall: Wall) -> str:
    """Why this wall is not to be had; empty if it is."""
    with small_files() as files:
        work = ["-c", "pass"] if wall.kind == "cold" else ["-m", "shared.classroom.inside", "probe"]
        command = [*command_line(wall, [], files), *_python(), *work]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    said = (done.stderr or "").strip().splitlines()
    return "" if done.returncode == 0 else (said[-1] if said else f"status {done.returncode}")


@contextmanager
def small_files() -> Iterator[Path]:
    """A folder with the few files that a system is expected to have in /etc."""
    with tempfile.TemporaryDirectory(prefix="labs-wall-") as name:
        folder = Path(name)
        for file, text in _SMALL_FILES.items():
            (folder / file).write_text(text, encoding="ascii")
            (folder / file).chmod(0o644)
        yield folder


def writable_folders(labs: Sequence[Lab]) -> list[str]:
    """The folders that a run can write to, all in memory and its own."""
    folders = ["/scratch", "/dev/shm", str(STATE), *(str(starter_of(lab)) for lab in labs)]
    inside = [*_read_only(labs, engine=True).values(), ROOT]
    if not any(Path(path).is_relative_to("/tmp") for path in [*inside, *map(Path, folders)]):
        folders.append("/tmp")
    return folders


def starter_of(lab: Lab) -> Path:
    """Where a submission's files of a lab are for the checks: where the learner had them."""
    return lab.folder / "starter"


def command_line(
    wall: Wall,
    labs: Sequence[Lab],
    etc: Path,
    *,
    relay: Path | None = None,
    threads: int = 1,
    engine: bool = False,
) -> list[str]:
    """bubblewrap's command up to the program to run inside.

    Args:
        etc: the folder of `small_files`.
        relay: a folder with the socket that leads to the model server.
        threads: how many threads numerical libraries may take.
        engine: whether the vLLM server's environment is to be there too.
    """
    words = [wall.bwrap, "--unshare-user", "--unshare-all", "--hostname", "lab"]
    words += ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    if wall.kind == "warm":
        words += ["--uid", "0", "--gid", "0"]
        for capability in _NEEDED:
            words += ["--cap-add", f"CAP_{capability}"]
    else:
        words += ["--uid", "1000", "--gid", "1000", "--as-pid-1"]
        words += ["--disable-userns"] if "--disable-userns" in _help(wall.bwrap) else []
    for name, value in environment(threads).items():
        words += ["--setenv", name, value]
    words += ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]
    for path in map(Path, _SYSTEM_LINKS):
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    for name in _SYSTEM_FILES:
        words += ["--ro-bind-try", name, name]
    for name in _SMALL_FILES:
        words += ["--ro-bind", str(etc / name), f"/etc/{name}"]
    words += ["--ro-bind-try", "/sys/devices/system/cpu", "/sys/devices/system/cpu"]
    for source, place in _read_only(labs, engine=engine).items():
        words += ["--ro-bind", str(source), str(place)]
    for source, place in _prepared().items():
        words += ["--ro-bind", str(source), str(place)]
    if relay is not None:
        words += ["--ro-bind", str(relay), "/relay"]
    for folder in writable_folders(labs):
        size = ["--size", str(wall.limits.disk)] if "--size" in _help(wall.bwrap) else []
        words += [*size, "--tmpfs", folder]
    # Else the superuser's own sandbox could set the kernel's settings there, capabilities or not.
    # Where runs are divided, each mounts a `/proc` of its own and makes that read-only.
    words += ["--remount-ro", "/proc"] if wall.kind == "cold" else []
    return [*words, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(ROOT), "--"]


def environment(threads: int) -> dict[str, str]:
    """All the environment that there is inside."""
    return {
        "PATH": f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin",
        "HOME": "/scratch/home",
        "USER": "learner",
        "LOGNAME": "learner",
        "LANG": "C.UTF-8",
        "TMPDIR": "/scratch/tmp",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "MLOPS_LABS_HOME": str(cache_home()),
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def _python() -> list[str]:
    return [sys.executable]


def _read_only(labs: Sequence[Lab], *, engine: bool) -> dict[Path, Path]:
    """What of the host is there to be read: where it is, and where it is seen."""
    found = {}
    base, prefix = Path(sys.base_prefix), Path(sys.prefix)
    if not base.resolve().is_relative_to("/usr"):
        found[base.resolve()] = base
    if prefix != base:
        found[prefix.resolve()] = prefix
    found[ROOT / "shared"] = ROOT / "shared"
    found[ROOT / "LICENSE"] = ROOT / "LICENSE"  # a bundle of Lab 5 has it in it
    for lab in labs:
        for part in (lab.folder / "lab.toml", lab.folder / "checks"):
            if part.exists():
                found[part] = part
    if cache_home().is_dir():
        found[cache_home().resolve()] = cache_home()
    vllm = ROOT / ".venv-engine"
    if engine and vllm.is_dir():
        found[vllm.resolve()] = vllm
    return found


def _prepared() -> dict[Path, Path]:
    """What earlier, trusted runs of this checkout have computed and every run may use."""
    found = {}
    for path in sorted((STATE / "cache").glob("mlflow-*-empty.db")):
        found[path] = Path("/seed/cache") / path.name
    if (STATE / "vectors").is_dir():
        found[STATE / "vectors"] = Path("/seed/vectors")
    return found


@cache
def _help(bwrap: str) -> str:
    done = subprocess.run([bwrap, "--help"], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def worker_command(wall: Wall, control: int) -> list[str]:
    """The program to run inside, with the descriptor of its control socket."""
    what = "serve" if wall.kind == "warm" else "serve_one"
    return [*_python(), "-m", "shared.classroom.inside", what, str(control)]


def environment_of_bwrap() -> dict[str, str]:
    """bubblewrap itself needs no more than this."""
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}
