"""What lies in a folder that somebody handed in, looked at without ever following a link.

Nothing here trusts a name twice: each folder on the way to a file is opened anew below the one
before it, without links, so that what is swapped while it is read leads nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol, Self

from shared.classroom.names import shown

Kind = Literal[
    "file",
    "folder",
    "symbolic link",
    "hard link",
    "FIFO",
    "device",
    "socket",
    "special file",
    "unsafe path",
    "unreadable",
]
Parts = tuple[str, ...]
PACK_LESS = "Labs are a few dozen small files: ask for these, without environments and data"

SKIPPED = frozenset(
    {
        *("__pycache__", "__macosx", "venv", "env", "node_modules", "site-packages"),
        *("wandb", "mlruns", "thumbs.db", "desktop.ini"),
    }
)
"""Folders and files that tools leave, besides all whose name begins with a dot; in lower case."""


@dataclass(frozen=True)
class Limits:
    """How much of a hand-in is looked at. Honest ones stay far below."""

    file_bytes: int = 2**20
    files_per_lab: int = 50
    lab_bytes: int = 8 * 2**20
    entries: int = 50_000
    depth: int = 10
    archives: int = 10
    """Archives in one learner's folder."""
    unpacked_bytes: int = 2**30
    ratio: int = 100
    """Bytes unpacked for each byte of the archive, once `ratio_from` bytes are unpacked."""
    ratio_from: int = 32 * 2**20


LIMITS = Limits()


class HandInError(Exception):
    """Why nothing of this hand-in can be read, as a sentence that begins with "it"."""


class FileError(Exception):
    """Why this one file cannot be read, in words; `kind` is what to call it in a note."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class Entry:
    """One thing in a hand-in.

    Attributes:
        parts: its path below the hand-in; never absolute, never with ``..``.
        kind: what it is; only a ``"file"`` is ever read.
        size: bytes, as its header or folder says; can be a lie.
        key: how its tree finds it again.
    """

    parts: Parts
    kind: Kind
    size: int = 0
    key: Any = None

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.parts[-1]


class Tree(Protocol):
    """Entries of a hand-in, and the content of those that are wanted.

    Attributes:
        bomb: it claims to hold far more than its size lets expect.
    """

    entries: list[Entry]
    bomb: bool

    def read(
        self, wanted: Iterable[Entry], limit: int
    ) -> Iterator[tuple[Entry, bytes | FileError]]:
        """The content of each of `wanted`, at most `limit` bytes, in any order.

        Raises:
            HandInError: nothing of the hand-in can be trusted to be whole.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def is_skipped(name: str) -> bool:
    """Whether a folder or file of that name is a tool's and not the learner's work."""
    return name.lower() in SKIPPED or (name.startswith(".") and name not in (".", ".."))


def kind_of_mode(mode: int) -> Kind:
    """What a file is, by the type bits of its mode."""
    kinds: dict[int, Kind] = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "folder",
        stat.S_IFLNK: "symbolic link",
        stat.S_IFIFO: "FIFO",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")


def open_folder(name: str, at: int | None = None) -> int:
    """Open a folder that is no link, below the open folder `at`.

    Raises:
        OSError: it is none, or cannot be read.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=at)


def open_regular(name: str, at: int | None = None) -> int:
    """Open a regular file that is no link, below the open folder `at`; never waits.

    Raises:
        FileError: it is no such file, or cannot be read.
    """
    # Without O_NONBLOCK, opening a FIFO that took the file's place would wait for ever.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        file = os.open(name, flags, dir_fd=at)
    except OSError as error:
        kind = "symbolic link" if error.errno == errno.ELOOP else "unreadable"
        raise FileError(kind, os.strerror(error.errno or 0)) from error
    kind = kind_of_mode(os.fstat(file).st_mode)
    if kind != "file":
        os.close(file)
        raise FileError(kind, f"it is a {kind}")
    return file


class FolderTree:
    """A folder that was handed in.

    Args:
        name: the folder.
        at: the open folder that it lies in.

    Raises:
        HandInError: it is no folder, cannot be read, or holds more than anybody's labs do.
    """

    bomb = False

    def __init__(self, name: str, at: int | None = None, limits: Limits = LIMITS) -> None:
        self.entries: list[Entry] = []
        self._limits = limits
        try:
            self._root = open_folder(name, at)
        except OSError as error:
            raise HandInError(f"it cannot be read: {os.strerror(error.errno or 0)}") from error
        try:
            self._walk(self._root, ())
        except BaseException:
            self.close()
            raise

    @classmethod
    def of_files(cls, files: dict[str, str], at: int, limits: Limits = LIMITS) -> Self:
        """Some files of the open folder `at`: what to call each, and its name there."""
        tree = cls.__new__(cls)
        tree._limits = limits
        tree._root = os.dup(at)
        tree.entries = [tree._entry(at, real, (name,), (real,)) for name, real in files.items()]
        return tree

    def _walk(self, folder: int, above: Parts) -> None:
        most = self._limits.entries - len(self.entries)
        try:
            with os.scandir(folder) as listing:
                names = sorted(e.name for e in islice(listing, most + 1))
        except OSError:
            self.entries.append(Entry(above or (".",), "unreadable"))
            return
        if len(names) > most:
            raise HandInError(f"it holds more than {self._limits.entries:,} files. {PACK_LESS}")
        for name in names:
            parts = (*above, name)
            entry = self._entry(folder, name, parts, parts)
            if is_skipped(name) and entry.kind in ("folder", "symbolic link"):
                continue
            self.entries.append(entry)
            if entry.kind == "folder" and len(parts) < self._limits.depth:
                try:
                    below = open_folder(name, folder)
                except OSError:
                    self.entries.append(Entry(parts, "unreadable"))
                    continue
                try:
                    self._walk(below, parts)
                finally:
                    os.close(below)

    def _entry(self, folder: int, name: str, parts: Parts, key: Parts) -> Entry:
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            # Gone since the folder was listed, or not ours to see.
            return Entry(parts, "unreadable")
        return Entry(parts, kind_of_mode(status.st_mode), status.st_size, key)

    def read(
        self, wanted: Iterable[Entry], limit: int
    ) -> Iterator[tuple[Entry, bytes | FileError]]:
        """The content of each of `wanted`; a file that changes while it is read is read again."""
        for entry in wanted:
            try:
                yield entry, self._content(entry.key, limit)
            except FileError as error:
                yield entry, error

    def open(self, entry: Entry) -> int:
        """Open one of the entries that are regular files.

        Raises:
            FileError: it is none any more, or cannot be read.
        """
        *folders, name = entry.key
        at = os.dup(self._root)
        try:
            for folder in folders:
                below = open_folder(folder, at)
                os.close(at)
                at = below
            return open_regular(name, at)
        except OSError as error:
            raise FileError("unreadable", os.strerror(error.errno or 0)) from error
        finally:
            os.close(at)

    def _content(self, key: Parts, limit: int) -> bytes:
        for _ in range(3):
            with os.fdopen(self.open(Entry(key, "file", key=key)), "rb", buffering=0) as file:
                before = os.fstat(file.fileno())
                try:
                    content = _read_at_most(file.fileno(), limit + 1)
                except OSError as error:
                    raise FileError("unreadable", os.strerror(error.errno or 0)) from error
                after = os.fstat(file.fileno())
            if len(content) > limit:
                raise FileError("too large", f"it is larger than {limit:,} bytes")
            same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
            if same and len(content) == after.st_size:
                return content
        raise FileError("unreadable", f"{shown(key[-1])} keeps changing while it is read")

    def close(self) -> None:
        """Let go of the folder."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1


def _read_at_most(file: int, most: int) -> bytes:
    pieces = []
    while most > 0:
        piece = os.read(file, min(most, 2**16))
        if not piece:
            break
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)
