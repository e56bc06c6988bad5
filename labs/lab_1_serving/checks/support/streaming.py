"""Calling a learner's streaming client: through the faulty proxy, or on a clock moved by hand."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from shared.grading.expect import fail, number, plain, show
from support.faulty_proxy import Exchange, FaultyProxy, Plan, Source
from support.timed_transport import Answer, Clock, TimedTransport

HANG_S = 15.0

# What may go wrong on the way is turned into feedback about the contract. Anything else that the
# learner's code raises is shown with its line.
ON_THE_WAY = (httpx.HTTPError, httpx.StreamError, ValueError)


@dataclass
class Seen:
    """How a call of `stream_chat` ended, and what the proxy and `sleep` saw of it."""

    result: Any
    failure: BaseException | None
    exchanges: list[Exchange]
    slept: list[float]

    def outcome(self) -> str:
        """In words, for a message."""
        if self.failure is not None:
            return f"{type(self.failure).__name__}: {str(self.failure)[:300]}"
        return f"an answer, {show(plain(self.result), 120)}"

    def answer(self, *, after: str, hint: str = "try-again") -> dict[str, Any]:
        """The result as a dict; a failed check when there was none."""
        got = None if self.failure else plain(self.result)
        if not isinstance(got, dict):
            fail(
                observed=f"{self.outcome()} after {after}",
                expected="a StreamResult",
                why="Most faults on the way to a model pass. A client that can't get past them "
                "turns each one into a user's error page.",
                hint=hint,
            )
        return got

    def error(self, kind: type[BaseException], *, after: str, hint: str) -> BaseException:
        """The error, when it is a `kind`; else a failed check."""
        if not isinstance(self.failure, kind):
            fail(
                observed=f"{self.outcome()} after {after}",
                expected=kind.__name__,
                why="The caller must be able to tell a whole answer from none, and a request to "
                "correct from a server to wait for.",
                hint=hint,
            )
        return self.failure


def call_through_proxy(
    learner: Any,
    source: Source,
    plans: Sequence[Plan],
    payload: Mapping[str, Any],
    *,
    policy: Any = None,
    connections: int = 10,
    calls: int = 1,
    read_timeout_s: float = 60.0,
    hang_s: float = HANG_S,
) -> Seen:
    """Call `stream_chat` through the proxy; with more than one call, all share a client."""
    slept: list[float] = []

    async def call() -> Seen:
        result, failure = None, None
        async with (
            FaultyProxy(source, plans) as proxy,
            client(connections=connections, read_timeout_s=read_timeout_s) as http,
        ):
            try:
                for _ in range(calls):
                    result = await learner.stream_chat(
                        http,
                        proxy.base_url,
                        payload,
                        policy=policy or learner.RetryPolicy(),
                        sleep=recording_sleep(slept),
                        rng=random.Random(1),
                    )
            except (*ON_THE_WAY, learner.StreamError) as error:
                failure = error
        return Seen(result, failure, proxy.exchanges, slept)

    return run(call(), hint=None, hang_s=hang_s)


def call_on_a_clock(
    learner: Any, clock: Clock, answers: Sequence[Answer], payload: Mapping[str, Any]
) -> Seen:
    """Call `stream_chat` against recorded answers; only `clock` tells the time."""

    async def call() -> Seen:
        transport = TimedTransport(clock, answers)
        async with httpx.AsyncClient(transport=transport) as http:
            try:
                result = await learner.stream_chat(
                    http, "http://engine.test/v1", payload, sleep=clock.sleep, clock=clock
                )
            except (*ON_THE_WAY, learner.StreamError) as error:
                return Seen(None, error, [], clock.slept)
        return Seen(result, None, [], clock.slept)

    return run(call(), hint=None)


def run(coroutine: Coroutine[Any, Any, Any], *, hint: str | None, hang_s: float = HANG_S) -> Any:
    """Run to the end, or fail the check because there is none."""

    async def limited() -> Any:
        return await asyncio.wait_for(coroutine, hang_s)

    try:
        return asyncio.run(limited())
    except TimeoutError:
        fail(
            observed=f"the call did not come back within {hang_s:.0f} s",
            expected="a result or an error; nothing in this check takes that long",
            why="A client that hangs holds its user, its connection and its memory.",
            hint=hint,
        )


def events(learner: Any, pieces: Sequence[bytes], *, hint: str) -> list[Any]:
    """What `sse_data` makes of a body that comes in these pieces."""

    async def source() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def collect() -> list[Any]:
        return [plain(data) async for data in data_of(learner, source())]

    try:
        return run(collect(), hint=hint)
    except ValueError as error:
        fail(
            observed=f"{type(error).__name__}: {error}, for pieces such as {show(pieces[:3], 120)}",
            expected="the data of each event",
            why="An exception in the middle of a stream is a half answer on the user's screen.",
            hint=hint,
        )


async def data_of(learner: Any, chunks: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    """What `sse_data` yields; without a yield in it, it is a coroutine and yields nothing."""
    stream = learner.sse_data(chunks)
    if inspect.iscoroutine(stream):
        stream = await stream
    if not hasattr(stream, "__aiter__"):
        fail(
            observed=f"sse_data gave a {type(stream).__name__}",
            expected="an asynchronous iterator: an async def with yield in it",
            why="The caller takes events one by one, while the answer is still being written.",
            hint="as-it-comes",
        )
    async for data in stream:
        yield data


async def cancel_when_streaming(
    task: asyncio.Task[Any], proxy: FaultyProxy, *, events: int = 10**9
) -> str:
    """Cancel `task` once its stream is under way; say how it ended.

    Under way: all that the plan lets through, or `events` events, have been sent.
    """
    for _ in range(6000):
        first = proxy.exchanges[0] if proxy.exchanges else None
        if task.done() or (first and (first.started.is_set() or len(first.events) >= events)):
            break
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=5.0)
    if not done:
        return "still running after 5 s"
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    if error is None:
        return "an answer"
    if not isinstance(error, ON_THE_WAY):
        raise error
    return f"{type(error).__name__}: {error}"


async def soon(event: asyncio.Event) -> bool:
    """Whether `event` is set within 5 s."""
    try:
        await asyncio.wait_for(event.wait(), 5.0)
    except TimeoutError:
        return False
    return True


def client(*, connections: int = 10, read_timeout_s: float = 60.0) -> httpx.AsyncClient:
    """An HTTP client that asks no proxy of the environment."""
    return httpx.AsyncClient(
        trust_env=False,
        timeout=httpx.Timeout(read_timeout_s, pool=2.0),
        limits=httpx.Limits(max_connections=connections),
    )


def recording_sleep(slept: list[float]) -> Callable[[float], Coroutine[Any, Any, None]]:
    """A stand-in for `asyncio.sleep` that notes the seconds and does not wait."""

    async def sleep(seconds: float) -> None:
        slept.append(number(seconds, what="seconds given to sleep", hint="waits"))
        await asyncio.sleep(0)

    return sleep
