"""An ear for what a learner's code asks Python itself for: others' frames and objects.

Python tells its audit hooks when somebody asks. Libraries ask for their callers' frames all the
time (logging, warnings, namedtuple), so only what a learner's own file asks for counts, directly
or through `inspect`. Source: https://docs.python.org/3.11/library/audit_events.html
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import FrameType

_EVENTS = frozenset(
    {
        *("sys._getframe", "sys._current_frames", "sys._current_exceptions"),
        *("gc.get_objects", "gc.get_referrers", "gc.get_referents"),
    }
)
_ATTRIBUTES = frozenset({"tb_frame", "gi_frame", "cr_frame", "ag_frame"})
_MOST = 20


class Ear:
    """Hears from now on, to the end of the process.

    Args:
        owns: whether a file is the learner's.

    Attributes:
        heard: places in the learner's files, each with what was asked for there.
    """

    def __init__(self, owns: Callable[[str], bool]) -> None:
        self.heard: list[str] = []
        self._owns = owns
        self._known: dict[str, bool] = {}
        self._asking = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in _EVENTS:
            if event != "object.__getattr__" or arguments[1] not in _ATTRIBUTES:
                return
            event = str(arguments[1])
        if self._asking or len(self.heard) >= _MOST:
            return
        self._asking = True  # What follows raises such an event itself.
        try:
            self._note(sys._getframe(1), event)
        except Exception:
            return  # Nobody's code may fail because it was heard.
        finally:
            self._asking = False

    def _note(self, frame: FrameType | None, event: str) -> None:
        while frame is not None and _is_between(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None:
            return
        file = frame.f_code.co_filename
        if file not in self._known:
            self._known[file] = self._owns(file)
        if self._known[file]:
            place = f"{file.rpartition('/')[2]}, line {frame.f_lineno}: {event}"
            if place not in self.heard:
                self.heard.append(place)


def _is_between(file: str) -> bool:
    """Whether code of a file asks for somebody else: `inspect`, and texts that are run as code."""
    return file == inspect.__file__ or file.startswith("<")
