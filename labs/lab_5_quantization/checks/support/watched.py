"""Watch what code does to a folder, stop it in the middle of it, or interfere at its first write.

Python tells each file operation to its audit hooks before it does it. A hook cannot be taken away
again, so there is one, and it is told what to watch. It is not told of `os.fsync`, for which
`syncing` stands, and not of what is written to a file that is open. So what is written between two
moments counts as lost until it has been handed to `os.fsync`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
    "os.utime",
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Watch:
    """What happened below some folders.

    Attributes:
        then: called at each moment, before it happens, with its number from 1 on and what it is.
        moments: each change, and each ``os.fsync`` of something that was not yet on the disk.
        contents: files that were opened to be written, and are not yet on the disk for good.
        names: what got its name, while the folder that keeps it is not yet on the disk for good.
    """

    roots: tuple[str, ...]
    then: Callable[[int, str], None] | None = None
    moments: list[str] = field(default_factory=list)
    contents: set[Path] = field(default_factory=set)
    names: set[Path] = field(default_factory=set)

    @property
    def changes(self) -> list[str]:
        """The moments at which something is created, written, renamed or removed."""
        return [m for m in self.moments if not m.startswith("os.fsync")]

    def files_not_on_disk(self, below: Path) -> list[Path]:
        """The files at or below a path that the system may not have written yet."""
        place = _real(below)
        return sorted(p for p in self.contents if p.is_file() and _at_or_below(p, place))

    def name_on_disk(self, path: Path) -> bool:
        """Whether the system has written the folder since this got its name in it."""
        return _real(path) not in self.names


_watch: Watch | None = None
_hooked = False


@contextmanager
def watched(*roots: Path, then: Callable[[int, str], None] | None = None) -> Iterator[Watch]:
    """Record each moment below `roots` while this lasts; what happens comes after `then`."""
    global _watch, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    mine = Watch(tuple({str(p) for root in roots for p in (root, root.resolve())}), then)
    _watch = mine
    try:
        yield mine
    finally:
        _watch = None


class PowerFailure(BaseException):
    """From now on nothing is written any more, by whatever tidies up either."""


def killed_at(step: int, root: Path, work: Callable[[], Any]) -> bool:
    """Do `work` until its `step`-th moment below `root`; that one and all later ones fail.

    Of each file that is not on the disk by then the second half is lost.

    Returns:
        Whether it came so far; else it ended by itself.
    """

    def fail(number: int, change: str) -> None:
        if number >= step:
            raise PowerFailure(change)

    with watched(root, then=fail) as watch, suppress(PowerFailure):
        work()
    for path in watch.files_not_on_disk(root):
        os.truncate(path, path.stat().st_size // 2)
    return len(watch.moments) >= step


def syncing(file: Any) -> None:
    """Stands for `os.fsync` and `os.fdatasync`: notes what is on the disk, and waits for nothing.

    Here a power failure is the end of a process, after which the system still has everything. So
    nothing needs to wait for the real disk, which takes a minute for a thousand small files.
    """
    if _watch is not None:
        stat = os.fstat(file if isinstance(file, int) else file.fileno())
        for path in _watch.contents | {p.parent for p in _watch.names}:
            if path.exists() and os.path.samestat(stat, path.stat()):
                _synced(_watch, path)
                return


def syncing_all() -> None:
    """Stands for `os.sync`."""
    if _watch is not None:
        for path in _watch.contents | {p.parent for p in _watch.names}:
            _synced(_watch, path)


def _synced(watch: Watch, path: Path) -> None:
    _moment(watch, f"os.fsync {path}")
    watch.contents.discard(path)
    watch.names -= {p for p in watch.names if p.parent == path}


def _hook(event: str, args: tuple[Any, ...]) -> None:
    watch = _watch
    if watch is None or (event != "open" and event not in _CHANGES):
        return
    if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITES):
        return
    in_open_folder = event != "open" and isinstance(args[-1], int) and args[-1] > 2
    touched = next((p for p in args[:2] if _below(p, watch.roots, in_open_folder)), None)
    if touched is None:
        return
    _moment(watch, f"{event} {os.fsdecode(touched)}")
    if event == "os.rename":
        _renamed(watch, os.fsdecode(args[0]), os.fsdecode(args[1]))
    elif event in ("open", "os.mkdir"):
        _made(watch, _real(os.fsdecode(touched)), args[2] if event == "open" else None)


def _moment(watch: Watch, what: str) -> None:
    global _watch
    watch.moments.append(what)
    if watch.then is not None:
        _watch = None  # what `then` does is not watched
        try:
            watch.then(len(watch.moments), what)
        finally:
            _watch = watch


def _made(watch: Watch, path: Path, flags: int | None) -> None:
    """Something is made, or a file is opened with these flags to be written."""
    there = path.exists()
    if not there:
        watch.names.add(path)
    if flags is not None and not (there and flags & os.O_EXCL):  # that one fails
        watch.contents.add(path)


def _renamed(watch: Watch, source: str, target: str) -> None:
    old, new = _real(source), _real(target)
    watch.contents = {p for p in watch.contents if not _at_or_below(p, new)}
    for paths in (watch.contents, watch.names):
        moved = {p for p in paths if _at_or_below(p, old)}
        paths -= moved
        paths |= {new / p.relative_to(old) for p in moved}
    watch.names.add(new)


def _at_or_below(path: Path, place: Path) -> bool:
    return path == place or place in path.parents


def _real(path: str | Path) -> Path:
    """A path as one name for one place; a link itself stays a link."""
    folder, name = os.path.split(os.path.abspath(path))
    return Path(os.path.realpath(folder)) / name


def _below(path: object, roots: tuple[str, ...], in_open_folder: bool) -> bool:
    if not isinstance(path, (str, bytes)):
        return False
    text = os.fsdecode(path)
    if in_open_folder and not os.path.isabs(text):
        return True  # relative to a folder that is open, as shutil.rmtree removes
    absolute = os.path.abspath(text)
    return any(absolute == r or absolute.startswith(r + os.sep) for r in roots)
