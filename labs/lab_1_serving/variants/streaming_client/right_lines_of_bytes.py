"""Parses lines of bytes, sends without a context manager, and has no private exceptions."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
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
    # CR and LF never occur inside a UTF-8 character, so bytes can be cut into lines first.
    line = bytearray()
    event: list[bytes] = []
    last = b""
    async for chunk in chunks:
        for value in chunk:
            byte = bytes((value,))
            if byte == b"\n" and last == b"\r":
                last = byte
                continue
            last = byte
            if byte not in (b"\r", b"\n"):
                line += byte
                continue
            if not line:
                if event:
                    yield b"\n".join(event).decode("utf-8", "replace")
                event = []
            elif line == b"data" or line.startswith(b"data:"):
                rest = bytes(line[5:])
                event.append(rest[1:] if rest[:1] == b" " else rest)
            line.clear()


def retry_after_s(header: str | None, now: datetime) -> float | None:
    if header is None:
        return None
    try:
        seconds = int(header)
    except ValueError:
        try:
            return max((parsedate_to_datetime(header) - now).total_seconds(), 0.0)
        except (ValueError, TypeError):
            return None
    return float(seconds) if seconds >= 0 else None


def backoff_s(failures: int, policy: RetryPolicy, rng: random.Random) -> float:
    ceiling = policy.base_s
    for _ in range(failures - 1):
        ceiling = min(ceiling * 2, policy.cap_s)
    return rng.random() * min(ceiling, policy.cap_s)


class Attempt:
    """One attempt and how it went: `done`, or a `problem` with perhaps a status."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.text = ""
        self.reason: str | None = None
        self.usage: Mapping[str, Any] = {}
        self.problem: str | None = None
        self.status: int | None = None
        self.retry_after: str | None = None

    async def run(
        self, http: httpx.AsyncClient, request: httpx.Request, clock: Callable[[], float]
    ) -> None:
        response = None
        try:
            response = await http.send(request, stream=True)
            if response.status_code == 200:
                await self._read(response, clock)
            else:
                self.status = response.status_code
                self.retry_after = response.headers.get("Retry-After")
                self.problem = f"status {self.status}: {(await response.aread()).decode()}"
        except httpx.TransportError as error:
            self.problem = repr(error)
        finally:
            if response is not None:
                await response.aclose()

    async def _read(self, response: httpx.Response, clock: Callable[[], float]) -> None:
        async for data in sse_data(response.aiter_raw()):
            if data == "[DONE]":
                break
            try:
                event = json.loads(data)
            except json.JSONDecodeError:
                self.problem = f"not JSON: {data}"
                return
            if "error" in event:
                self.problem = json.dumps(event["error"], ensure_ascii=False)
                code = event["error"].get("code")
                self.status = code if isinstance(code, int) else None
                return
            if event.get("usage"):
                self.usage = event["usage"]
            if not event.get("choices"):
                continue
            choice = event["choices"][0]
            piece = choice["delta"].get("content")
            if piece:
                self.times.append(clock())
                self.text += piece
            if choice.get("finish_reason"):
                self.reason = choice["finish_reason"]
        if self.reason is None:
            self.problem = "broken stream"


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
    start = clock()
    policy = policy if policy is not None else RetryPolicy()
    rng = rng if rng is not None else random.Random()
    body = dict(payload)
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}
    for number in range(1, policy.max_attempts + 1):
        request = http.build_request("POST", base_url + "/chat/completions", json=body)
        attempt = Attempt()
        await attempt.run(http, request, clock)
        if attempt.problem is None:
            times = attempt.times
            return StreamResult(
                attempt.text,
                times[0] - start if times else None,
                [times[i + 1] - times[i] for i in range(len(times) - 1)],
                attempt.reason or "",
                number,
                attempt.usage.get("prompt_tokens"),
                attempt.usage.get("completion_tokens"),
            )
        if attempt.status is not None and attempt.status not in policy.retry_statuses:
            raise RequestRejected(attempt.problem, attempts=number, status=attempt.status)
        asked = retry_after_s(attempt.retry_after, datetime.now(UTC))
        too_long = asked is not None and asked > policy.max_retry_after_s
        if number == policy.max_attempts or too_long:
            raise GaveUp(
                attempt.problem, attempts=number, status=attempt.status, retry_after_s=asked
            )
        await sleep(asked if asked is not None else backoff_s(number, policy, rng))
    raise AssertionError("unreachable")
