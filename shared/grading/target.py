"""What is graded: the learner's folder, the solution, or one file in place of the solution's."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from shared.edition import PRISTINE
from shared.errors import UserError
from shared.paths import ROOT

ENV_TARGET = "LABS_TARGET"
ENV_LAB = "LABS_LAB_FOLDER"


class TargetError(UserError):
    """What was asked to be graded does not exist; the message says what would do."""


@dataclass(frozen=True)
class Target:
    """Files under grading.

    Attributes:
        label: what to call it in reports.
        folder: where its files are.
        replaced: file names that come from elsewhere, with that place.
        seen_at: where the checks see `folder`, if they run in a sandbox that shows it elsewhere.
    """

    label: str
    folder: Path
    replaced: tuple[tuple[str, Path], ...] = ()
    seen_at: Path | None = None

    @property
    def import_path(self) -> tuple[Path, ...]:
        """Folders from which the learner's files may import one another."""
        return (self.folder,)

    def path(self, file: str) -> Path:
        """Where `file` (a name from `lab.toml`) lies in this target."""
        return dict(self.replaced).get(file, self.folder / file)

    def owns(self, path: Path) -> bool:
        """Whether a traceback's file is the learner's."""
        if ".." in path.parts:  # the name may come from the code under grading
            return False
        folder = self.seen_at or self.folder
        return path.is_relative_to(folder) or any(path == p for _, p in self.replaced)

    def on_host(self, path: Path) -> Path:
        """Where a file that the checks saw at `path` lies outside a sandbox."""
        if self.seen_at is not None and path.is_relative_to(self.seen_at):
            return self.folder / path.relative_to(self.seen_at)
        return path

    def display(self, path: Path) -> str:
        """`path` as a person would name it."""
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name

    def hashes(self, files: list[str]) -> dict[str, str | None]:
        """SHA-256 of each of `files`; None for one that is missing."""
        return {f: _sha256(self.path(f)) for f in files}


def resolve_target(wanted: str, lab_folder: Path) -> Target:
    """Find what ``TARGET=`` names.

    Args:
        wanted: ``"starter"``, ``"solution"``, or a path: a folder of files, a lab folder or
            checkout that contains one, or one Python file that takes the place of the solution's.
        lab_folder: the lab's own folder.

    Raises:
        TargetError: nothing of the kind is there.
    """
    if wanted in ("", "starter"):
        return Target("starter", lab_folder / "starter")
    if wanted == "solution":
        folder = lab_folder / "solution"
        if not folder.is_dir():
            raise TargetError("This edition of the labs has no solutions. Try TARGET=starter.")
        return Target("solution", folder)
    path = Path(wanted).expanduser()
    path = (path if path.is_absolute() else Path.cwd() / path).resolve()
    if path.is_file():
        return _single_file(path, lab_folder)
    for folder in (path / "labs" / lab_folder.name / "starter", path / "starter", path):
        if folder.is_dir():
            return Target(str(_short(folder)), folder)
    raise TargetError(
        f"TARGET={wanted}: no such file or folder. Give starter, solution, or a path to a folder "
        f"that holds the lab's files."
    )


def _single_file(path: Path, lab_folder: Path) -> Target:
    pristine = lab_folder / PRISTINE
    others = pristine if pristine.is_dir() else lab_folder / "solution"
    names = {p.name for p in others.glob("*.py")}
    for name in (path.name, f"{path.parent.name}.py"):
        if name in names:
            return Target(str(_short(path)), others, ((name, path),))
    raise TargetError(
        f"{path.name} stands for none of the lab's files. Name it like one of them "
        f"({', '.join(sorted(names))}) or put it in a folder named like one without .py."
    )


@cache
def target_from_environment() -> Target:
    """The target that the runner (or a lab author) put into the environment."""
    wanted = os.environ.get(ENV_TARGET, "starter")
    lab = os.environ.get(ENV_LAB)
    path = Path(wanted).resolve()
    if lab:
        return resolve_target(wanted, Path(lab))
    lab_folder = next((p for p in (path, *path.parents) if (p / "lab.toml").is_file()), None)
    if lab_folder is None:
        raise TargetError(f"Set {ENV_TARGET} to a file or folder inside a lab, or set {ENV_LAB}.")
    return resolve_target(str(path), lab_folder)


def _short(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
