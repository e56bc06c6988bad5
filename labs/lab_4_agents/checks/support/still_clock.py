"""A clock that stands still but for what is slept on it."""

from __future__ import annotations


class StillClock:
    """Give it as `clock`, its `pause` as `sleep`, and its `wait` to a world's slow calls.

    Attributes:
        now: seconds since it was made.
        pauses: what `pause` was called with.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        """The caller's own sleep."""
        self.pauses.append(seconds)
        self.wait(seconds)

    def wait(self, seconds: float) -> None:
        """Time that somebody else takes."""
        self.now += max(0.0, seconds)
