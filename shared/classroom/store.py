"""Keep what was collected: a folder for each learner, put in place whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from shared.classroom.tree import FileError, kind_of_mode, open_folder, open_regular
from shared.errors import UserError

Files = dict[int, dict[str, bytes]]
"""Number of a lab to the files that are taken of it: name and content."""


_LEFTOVER = re.compile(r"\.[0-9a-f]{32}\.(new|old)\.tmp")


class CollectError(UserError):
    """The submissions cannot be collected; the message says what to do."""


class Store:
    """Learners' folders, below one that is ours.

    Args:
        folder: made if it is not there; what a killed run was about to put in place is removed.

    Raises:
        CollectError: it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.iterdir():
                if _LEFTOVER.fullmatch(path.name):
                    _remove(path)
        except OSError as error:
            raise self._trouble(error) from error

    def put(self, learner: str, files: Files) -> dict[int, Path]:
        """Write a learner's files, in place of those of an earlier run; the same are left alone.

        Returns:
            Number of a lab to its folder.

        Raises:
            CollectError: they cannot be written, or something that is not ours is in their place.
        """
        place = self._folder / learner
        new = self._folder / f".{uuid.uuid4().hex}.new.tmp"
        old = self._folder / f".{uuid.uuid4().hex}.old.tmp"
        try:
            new.mkdir()
            for number, contents in sorted(files.items()):
                (new / f"lab_{number}").mkdir()
                for name, content in sorted(contents.items()):
                    with (new / f"lab_{number}" / name).open("xb") as file:
                        file.write(content)
            if os.path.lexists(place) and not _is_ours(place):
                raise CollectError(
                    f"{place} is in the way: it does not stem from collecting submissions, so it "
                    f"is left alone. Give another OUT, or move it."
                )
            if not _holds_the_same(place, new):
                with suppress(FileNotFoundError):
                    place.rename(old)
                if files:
                    new.rename(place)
        except OSError as error:
            raise self._trouble(error) from error
        finally:
            _remove(new)
            _remove(old)
        return {number: place / f"lab_{number}" for number in sorted(files)}

    def _trouble(self, error: OSError) -> CollectError:
        return CollectError(
            f"{self._folder} cannot be written to: {error.strerror}. Make room or give another "
            f"OUT, and run the same command again: it goes on."
        )


def fingerprint(folder: Path) -> str:
    """SHA-256 of all that a folder holds: the same for the same names and contents, whenever.

    Raises:
        OSError: it is no folder, or cannot be read.
    """
    whole = hashlib.sha256()

    def add(kind: str, path: str, content: bytes) -> None:
        for part in (kind.encode(), os.fsencode(path), content):
            whole.update(len(part).to_bytes(8, "big") + part)

    def walk(at: int, above: str) -> None:
        for name in sorted(os.listdir(at)):
            path = f"{above}{name}"
            kind = kind_of_mode(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
            if kind == "folder":
                add(kind, path, b"")
                below = open_folder(name, at)
                try:
                    walk(below, f"{path}/")
                finally:
                    os.close(below)
            elif kind == "file":
                with os.fdopen(open_regular(name, at), "rb") as file:
                    add(kind, path, hashlib.file_digest(file, "sha256").digest())
            else:
                add(kind, path, b"")

    at = open_folder(str(folder))
    try:
        walk(at, "")
    finally:
        os.close(at)
    return whole.hexdigest()


def _is_ours(place: Path) -> bool:
    """Whether a folder holds nothing but what is written here, so that it may be replaced."""
    if place.is_symlink() or not place.is_dir():
        return False
    labs = list(place.iterdir())
    if any(not re.fullmatch(r"lab_\d+", lab.name) or not lab.is_dir() for lab in labs):
        return False
    return all(file.suffix == ".py" for lab in labs for file in lab.iterdir())


def _holds_the_same(place: Path, new: Path) -> bool:
    try:
        return fingerprint(place) == fingerprint(new)
    except (OSError, FileError):
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
