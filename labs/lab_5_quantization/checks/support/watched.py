"""Watch what code does to a folder, stop it in the middle of it, or interfere at its first write.

Python tells each file operation to its audit hooks before it does it. A hook cannot be taken away
again, so there is one, and it is told what to watch.
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
        then: called before each change, with its number from 1 on and what it is.
    """

    roots: tuple[str, ...]
    then: Callable[[int, str], None] | None = None
    changes: list[str] = field(default_factory=list)


_watch: Watch | None = None
_hooked = False


@contextmanager
def watched(*roots: Path, then: Callable[[int, str], None] | None = None) -> Iterator[Watch]:
    """Record each change below `roots` while this lasts; the change comes after `then`."""
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
    """Do `work` until its `step`-th change below `root`; that one and all later ones fail.

    Returns:
        Whether it came so far; else it ended by itself.
    """

    def fail(number: int, change: str) -> None:
        if number >= step:
            raise PowerFailure(change)

    with watched(root, then=fail) as watch, suppress(PowerFailure):
        work()
    return len(watch.changes) >= step


def _hook(event: str, args: tuple[Any, ...]) -> None:
    global _watch
    watch = _watch
    if watch is None or (event != "open" and event not in _CHANGES):
        return
    if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITES):
        return
    in_open_folder = event != "open" and isinstance(args[-1], int) and args[-1] > 2
    touched = next((p for p in args[:2] if _below(p, watch.roots, in_open_folder)), None)
    if touched is None:
        return
    watch.changes.append(f"{event} {os.fsdecode(touched)}")
    if watch.then is not None:
        _watch = None  # what `then` does is not watched
        try:
            watch.then(len(watch.changes), watch.changes[-1])
        finally:
            _watch = watch


def _below(path: object, roots: tuple[str, ...], in_open_folder: bool) -> bool:
    if not isinstance(path, (str, bytes)):
        return False
    text = os.fsdecode(path)
    if in_open_folder and not os.path.isabs(text):
        return True  # relative to a folder that is open, as shutil.rmtree removes
    absolute = os.path.abspath(text)
    return any(absolute == r or absolute.startswith(r + os.sep) for r in roots)
