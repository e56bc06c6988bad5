"""Recorded answers played to an httpx client on a clock of their own.

Time passes only where the script says so, so timings can be compared exactly, on any machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import httpx


class Clock:
    """A clock that is moved by hand."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Stand in for `asyncio.sleep`: only this clock moves."""
        self.slept.append(float(seconds))
        self.now += max(0.0, float(seconds))


@dataclass(frozen=True)
class Answer:
    """One response: `headers_after` seconds to its head, then pieces, each after its seconds.

    `broken`: the connection drops after the last piece.
    """

    headers_after: float
    pieces: Sequence[tuple[float, bytes]]
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    broken: bool = False


class TimedTransport(httpx.AsyncBaseTransport):
    """Plays the next `Answer` to each request; the last one again when they are used up."""

    def __init__(self, clock: Clock, answers: Sequence[Answer]) -> None:
        self._clock = clock
        self._answers = list(answers)
        self.requests = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        await _settle()
        self._clock.now += answer.headers_after
        headers = [("content-type", "text/event-stream"), *answer.headers]
        return httpx.Response(answer.status, headers=headers, stream=_Body(self._clock, answer))


async def _settle() -> None:
    """Let every task deal with what has come before time moves on."""
    for _ in range(50):
        await asyncio.sleep(0)


class _Body(httpx.AsyncByteStream):
    def __init__(self, clock: Clock, answer: Answer) -> None:
        self._clock = clock
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for seconds, piece in self._answer.pieces:
            await _settle()
            self._clock.now += seconds
            yield piece
        if self._answer.broken:
            raise httpx.ReadError("connection reset by peer")

    async def aclose(self) -> None:
        pass
