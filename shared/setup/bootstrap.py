"""Build `.venv` (labs) and `.venv-engine` (vLLM), with nothing but the Python that is there.

Run by `make` before everything else, so it uses the standard library only and does nothing, in
well under a second, when the environments are as the pinned requirements say. A set-up that
was cut off is finished by the next run: the stamp is written last.

    python3 shared/setup/bootstrap.py labs
    python3 shared/setup/bootstrap.py engine
    python3 shared/setup/bootstrap.py compress    # what Lab 5 adds to .venv
    python3 shared/setup/bootstrap.py classroom   # what CLUSTER=ray adds to .venv
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UV = "uv==0.13.9"  # resolves and installs several times faster than pip
OLDEST, NEWEST = (3, 11), (3, 13)
TORCH_CPU = "torch==2.13.0" + ("+cpu" if sys.platform == "linux" else "")
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NEED_GIB = {"labs": 5, "compress": 2, "classroom": 1, "engine-cpu": 6, "engine-gpu": 20}


class SetupError(Exception):
    """Set-up cannot go on; the message says why, and what to do."""


def main() -> int:
    """Build what the argument names; 0 when it is there."""
    what = sys.argv[1] if len(sys.argv) > 1 else "labs"
    try:
        if what == "labs":
            build_labs()
        elif what == "engine":
            build_engine()
        elif what == "compress":
            build_compress()
        elif what == "classroom":
            build_classroom()
        else:
            raise SetupError(
                f"Nothing to set up is called {what!r}. "
                "There are: labs, engine, compress, classroom."
            )
    except SetupError as error:
        print(f"\nset-up stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up was interrupted; the next make goes on from here.", file=sys.stderr)
        return 130
    return 0


def build_labs() -> None:
    """Make `.venv`, then fetch the small models and data that the labs use."""
    folder, requirements = ROOT / ".venv", ROOT / "requirements" / "labs.txt"
    fetched = ["shared/models/catalog.py", "shared/domains/recipes.py"]
    stamp = _Stamp(folder, [requirements, *(ROOT / name for name in fetched)])
    if stamp.holds():
        return
    with _locked(folder):
        if stamp.holds():
            return
        started = time.monotonic()
        _require_space("labs")
        _say("setting up .venv for the labs (about 3 GB; some minutes, once)")
        python = _environment(folder)
        _install(python, ["-r", str(requirements)])
        _put_on_path(folder)
        _prepare(python, "shared.models", "the small models")
        _prepare(python, "shared.domains", "the labs' data")
        stamp.write()
        _say(f"ready after {time.monotonic() - started:.0f} s")


def build_compress() -> None:
    """Add PyTorch and the compression tools to `.venv`, then make the model that they work on."""
    with _adding("compress", "PyTorch and the compression tools (about 1.3 GB, once)") as python:
        if python is not None:
            _install_torch_cpu(python)
            _install_more(python, "compress")
            _prepare(python, "shared.models", "the model in PyTorch's format")


def build_classroom() -> None:
    """Add to `.venv` what grading over several machines needs."""
    with _adding("classroom", "Ray (about 0.3 GB, once)") as python:
        if python is not None:
            _install_more(python, "classroom")


@contextlib.contextmanager
def _adding(name: str, what: str):  # type: ignore[no-untyped-def]  # a generator; typing it needs 3.9+
    """While something is added to `.venv`: its Python, or None where there is nothing to do."""
    folder = ROOT / ".venv"
    stamp = _Stamp(folder, [ROOT / "requirements" / f"{name}.txt"], f".ready-{name}")
    if stamp.holds():
        yield None
        return
    with _locked(folder):
        if stamp.holds():
            yield None
            return
        started = time.monotonic()
        _require_space(name)
        _say(f"adding to .venv: {what}")
        yield folder / "bin" / "python"
        stamp.write()
        _say(f"ready after {time.monotonic() - started:.0f} s")


def _install_more(python: Path, name: str) -> None:
    # The set holds all that the labs' set holds, in the same versions.
    _install(python, ["--no-deps", "-r", str(ROOT / "requirements" / f"{name}.txt")])


def build_engine() -> None:
    """Make `.venv-engine` with vLLM for this machine's GPU or CPU."""
    kind = engine_kind()
    folder = ROOT / ".venv-engine"
    requirements = ROOT / "requirements" / f"{kind}.txt"
    stamp = _Stamp(folder, [requirements])
    if stamp.holds():
        return
    with _locked(folder):
        if stamp.holds():
            return
        started = time.monotonic()
        _require_space(kind)
        size = "about 4 GB" if kind == "engine-cpu" else "about 15 GB"
        _say(f"setting up .venv-engine: vLLM for the {kind.split('-')[1].upper()} ({size}, once)")
        python = _environment(folder)
        if kind == "engine-cpu":
            _install_torch_cpu(python)
        # The pinned set is complete; with dependencies, CUDA builds of packages that vLLM only
        # names would come along and break the CPU build of PyTorch.
        _install(python, ["--no-deps", "-r", str(requirements)])
        _put_on_path(folder)
        _prepare(ROOT / ".venv" / "bin" / "python", "shared.models", "the model in vLLM's format")
        stamp.write()
        _say(f"vLLM is installed after {time.monotonic() - started:.0f} s")


def engine_kind() -> str:
    """`engine-gpu` or `engine-cpu`: what `ENGINE_ENV=` says, or what the machine has.

    Raises:
        SetupError: vLLM has no build for this machine.
    """
    wanted = os.environ.get("ENGINE_ENV", "").lower()
    if wanted not in ("", "cpu", "gpu"):
        raise SetupError(f"ENGINE_ENV={wanted}: it takes cpu or gpu.")
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64", "arm64"):
        raise SetupError(
            f"vLLM has no build for {platform.system()} on {platform.machine()}. "
            f"Use the portable engine: add ENGINE=portable."
        )
    return "engine-" + (wanted or ("gpu" if has_nvidia_gpu() else "cpu"))


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver answers and lists a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU 0" in listed.stdout


class _Stamp:
    """Written last; holds when the environment was built whole from these requirements."""

    def __init__(self, folder: Path, inputs: list[Path], name: str = ".ready") -> None:
        digest = hashlib.sha256(str(folder).encode())
        for path in inputs:
            digest.update(path.read_bytes() if path.is_file() else b"")
        self._content = digest.hexdigest()
        self._path = folder / name

    def holds(self) -> bool:
        try:
            return self._path.read_text() == self._content
        except OSError:
            return False

    def write(self) -> None:
        self._path.write_text(self._content)


def _environment(folder: Path) -> Path:
    """A virtual environment with pip and uv; one left half-made is used or made anew."""
    (folder / ".ready").unlink(missing_ok=True)
    python = folder / "bin" / "python"
    if not _runs(python, "import pip"):
        if folder.exists():
            shutil.rmtree(folder)
        base = _find_python()
        made = subprocess.run([base, "-m", "venv", str(folder)], capture_output=True, text=True)
        if made.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            _environment_by_uv(folder, base, made.stdout + made.stderr)
    if not _runs(python, "import uv"):
        _call([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", UV])
    return python


def _environment_by_uv(folder: Path, base: str, reason: str) -> None:
    uv = shutil.which("uv")
    if uv is None:
        last = reason.strip().splitlines()[-1:] or ["no reason given"]
        raise SetupError(
            f"{base} cannot make a virtual environment ({last[0]}). On Debian and Ubuntu the "
            f"package python3-venv is missing. Without admin rights, install uv for your user "
            f"and run this again; it will be used instead."
        )
    _call([uv, "venv", "-q", "--seed", "--python", base, str(folder)])


def _find_python() -> str:
    """A Python in the supported range: the running one, or one on the PATH."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and _runs(Path(found), "import sys"):
            return found
    raise SetupError(
        f"This needs Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}; found "
        f"{platform.python_version()}. Without admin rights, uv or Miniforge can put one into "
        f"your home. Then run: make setup PYTHON=<that python>"
    )


def _install_torch_cpu(python: Path) -> None:
    """PyTorch's CPU build, from the configured sources if they have it, else its own index."""
    if _runs(python, "import torch, sys; sys.exit(torch.version.cuda is not None)"):
        return
    _say("installing PyTorch's CPU build")
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    tried = subprocess.run(
        [*map(str, pip), TORCH_CPU, "--retries", "1"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        _call([*pip, TORCH_CPU, "--index-url", TORCH_CPU_INDEX, "--retries", "2"])


def _install(python: Path, what: list[str]) -> None:
    quiet = [] if sys.stderr.isatty() else ["-q"]
    # Bytecode now: else first imports take two to three times as long.
    command = [python, "-m", "uv", "pip", "install", *quiet, "--compile-bytecode", *what]
    _call([*command, "--python", python], uv_settings(python))


def uv_settings(python: Path = Path(sys.executable)) -> dict[str, str]:
    """pip's own settings in uv's words, so that a company's mirror set for pip serves uv too."""
    words = {
        "find-links": "UV_FIND_LINKS",
        "index-url": "UV_DEFAULT_INDEX",
        "cert": "SSL_CERT_FILE",
    }
    environment = dict(os.environ)
    listed = subprocess.run(
        [str(python), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        name = words.get(key.split(".")[-1])
        if name and name not in os.environ:
            environment[name] = value.strip("'\" ")
    return environment


def _put_on_path(folder: Path) -> None:
    """Make `import shared` work from anywhere in this environment."""
    for packages in folder.glob("lib/python*/site-packages"):
        (packages / "mlops_labs.pth").write_text(f"{ROOT}\n")


def _prepare(python: Path, module: str, what: str) -> None:
    if (ROOT / module.replace(".", "/") / "__main__.py").is_file():
        _say(f"fetching {what}")
        _call([python, "-m", module])


def _require_space(kind: str) -> None:
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < NEED_GIB[kind]:
        raise SetupError(
            f"{free:.1f} GiB are free here and {NEED_GIB[kind]} are needed. Free some space "
            f"(`make clean` removes what this project can make again) and run this again."
        )


def _runs(python: Path, code: str) -> bool:
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _call(command: list[object], environment: dict[str, str] | None = None) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, cwd=ROOT, check=False)
    if done.returncode:
        raise SetupError(
            f"this command failed (see above for its reason): {' '.join(words)}\n"
            f"If the network was cut, run make again: it goes on from here."
        )


@contextlib.contextmanager
def _locked(folder: Path):  # type: ignore[no-untyped-def]  # a generator; typing it needs 3.9+
    """One set-up at a time; a second waits, then finds the work done."""
    import fcntl

    path = ROOT / ".labs" / f"setup{folder.name}.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _say("another set-up is running here; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(f"[set-up] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
