"""Reads in a task of its own, which nobody leaves behind."""

from __future__ import annotations

import asyncio
import codecs
import json
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any

import httpx


@dataclass(frozen=True)
class RetryPolicy:
    max_attempts: int = 4
    base_s: float = 0.5
    cap_s: float = 8.0
    max_retry_after_s: float = 30.0
    retry_statuses: frozenset[int] = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class StreamResult:
    text: str
    ttft_s: float | None
    itl_s: list[float]
    finish_reason: str
    attempts: int
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class StreamError(Exception):
    def __init__(self, message: str, *, attempts: int, status: int | None = None) -> None:
        super().__init__(message)
        self.attempts = attempts
        self.status = status


class RequestRejected(StreamError):
    pass


class GaveUp(StreamError):
    def __init__(
        self,
        message: str,
        *,
        attempts: int,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, attempts=attempts, status=status)
        self.retry_after_s = retry_after_s


async def sse_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    line_so_far = ""
    after_cr = False
    data: list[str] = []
    async for chunk in chunks:
        text = decoder.decode(chunk)
        if not text:
            continue
        if after_cr:  # the second half of a CRLF whose first half has ended the line
            text = text.removeprefix("\n")
        after_cr = text.endswith("\r")
        *lines, line_so_far = _LINE_END.split(line_so_far + text)
        for line in lines:
            name, _, value = line.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
            elif not line and data:
                yield "\n".join(data)
                data.clear()


_LINE_END = re.compile("\r\n|\n|\r")


def retry_after_s(header: str | None, now: datetime) -> float | None:
    value = (header or "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())


def backoff_s(failures: int, policy: RetryPolicy, rng: random.Random) -> float:
    doublings = min(failures - 1, 64)  # far beyond any cap, and no overflow
    return rng.uniform(0.0, min(policy.cap_s, policy.base_s * 2.0**doublings))


async def stream_chat(
    http: httpx.AsyncClient,
    base_url: str,
    payload: Mapping[str, Any],
    *,
    policy: RetryPolicy | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    rng: random.Random | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> StreamResult:
    policy = policy or RetryPolicy()
    rng = rng or random.Random()
    called = clock()
    url = f"{base_url.rstrip('/')}/chat/completions"
    options = {**(payload.get("stream_options") or {}), "include_usage": True}
    request = {**payload, "stream": True, "stream_options": options}
    attempt = 1
    while True:
        try:
            answer = await _attempt(http, url, request, clock)
        except _Failure as failure:
            await _wait_or_raise(failure, attempt, policy, sleep, rng)
            attempt += 1
            continue
        times = answer.content_times
        return StreamResult(
            text="".join(answer.pieces),
            ttft_s=times[0] - called if times else None,
            itl_s=[later - earlier for earlier, later in pairwise(times)],
            finish_reason=answer.finish_reason or "",
            attempts=attempt,
            prompt_tokens=answer.usage.get("prompt_tokens"),
            completion_tokens=answer.usage.get("completion_tokens"),
        )


@dataclass
class _Answer:
    pieces: list[str] = field(default_factory=list)
    content_times: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)


class _Failure(Exception):
    def __init__(
        self, what: str, *, status: int | None = None, retry_after: str | None = None
    ) -> None:
        super().__init__(what)
        self.status = status
        self.retry_after = retry_after


async def _attempt(
    http: httpx.AsyncClient, url: str, request: dict[str, Any], clock: Callable[[], float]
) -> _Answer:
    answer = _Answer()

    async def read() -> None:
        try:
            async with http.stream("POST", url, json=request) as response:
                if response.status_code != 200:
                    body = await response.aread()
                    raise _Failure(
                        f"HTTP {response.status_code}: {_server_words(body)}",
                        status=response.status_code,
                        retry_after=response.headers.get("retry-after"),
                    )
                async with aclosing(sse_data(response.aiter_bytes())) as events:
                    async for data in events:
                        if data == "[DONE]":
                            return
                        _take(answer, data, clock())
        except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.TimeoutException) as error:
            raise _Failure(f"{type(error).__name__}: {error}") from error

    # Nobody but the caller's own cancellation may cut it short: cancelled while it gives its
    # connection back, it would keep it.
    reader = asyncio.create_task(read())
    try:
        await reader
    finally:
        reader.cancel()
        await asyncio.wait({reader})
    if answer.finish_reason is None:
        raise _Failure("the stream ended before the answer did")
    return answer


def _take(answer: _Answer, data: str, now: float) -> None:
    try:
        event = json.loads(data)
    except ValueError as error:
        raise _Failure(f"an event is no JSON: {data[:100]!r}") from error
    if not isinstance(event, dict):
        raise _Failure(f"an event is no JSON object: {data[:100]!r}")
    if error := event.get("error"):
        code = error.get("code") if isinstance(error, dict) else None
        raise _Failure(
            f"the server failed in the middle of its answer: {_server_words(data.encode())}",
            status=code if type(code) is int else None,
        )
    answer.usage = event.get("usage") or answer.usage
    for choice in (event.get("choices") or [])[:1]:
        if content := (choice.get("delta") or {}).get("content"):
            answer.pieces.append(content)
            answer.content_times.append(now)
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason


async def _wait_or_raise(
    failure: _Failure,
    attempt: int,
    policy: RetryPolicy,
    sleep: Callable[[float], Awaitable[None]],
    rng: random.Random,
) -> None:
    if failure.status is not None and failure.status not in policy.retry_statuses:
        raise RequestRejected(
            f"{failure}. Sending it again will not help: correct the request, the key or the "
            f"address, or look into the server's log.",
            attempts=attempt,
            status=failure.status,
        ) from failure
    asked = retry_after_s(failure.retry_after, datetime.now(UTC))
    if attempt >= policy.max_attempts:
        then = f"in {asked:.0f} s" if asked else "later"
        raise GaveUp(
            f"No answer after {attempt} attempts. The last one: {failure}. Try again {then}, "
            f"or look at the server's health and load.",
            attempts=attempt,
            status=failure.status,
            retry_after_s=asked,
        ) from failure
    if asked is not None and asked > policy.max_retry_after_s:
        raise GaveUp(
            f"{failure}. The server asks to wait {asked:.0f} s, longer than the "
            f"{policy.max_retry_after_s:.0f} s that the policy allows. Try again after that.",
            attempts=attempt,
            status=failure.status,
            retry_after_s=asked,
        ) from failure
    await sleep((asked or 0.0) + backoff_s(attempt, policy, rng))


def _server_words(body: bytes) -> str:
    text = body.decode("utf-8", errors="replace")
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return text[:300] or "(empty body)"
