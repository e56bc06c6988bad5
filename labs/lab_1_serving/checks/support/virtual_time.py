"""A real asyncio event loop on a clock of its own.

Where an ordinary loop would sleep until the next timer, this one moves its clock there. Code
under it runs as it would, in no time, and all its timings are exact on any machine.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class Deadlock(Exception):
    """Every task waits for another; no timer is left that would wake one."""


class _Skip(selectors.SelectSelector):
    """Never waits; notes how long it would have waited."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Deadlock
            self.now += max(0.0, timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time` stands still while code runs, and skips while all wait."""

    def __init__(self) -> None:
        self._skip = _Skip()
        super().__init__(self._skip)

    def time(self) -> float:
        return self._skip.now

    def block(self, seconds: float) -> None:
        """Let time pass as if code had kept the loop busy, as parsing a large answer does."""
        self._skip.now += seconds


def run_virtually(main: Callable[[VirtualTimeLoop], Coroutine[Any, Any, Any]]) -> Any:
    """Run ``main(loop)`` to its end.

    Raises:
        Deadlock: nothing can happen any more.
    """
    loop = VirtualTimeLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main(loop))
