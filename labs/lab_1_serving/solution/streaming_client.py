"""Stream chat completions over HTTP, measure what the user waits for, and retry with manners."""

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
    """When to try again, and how long to wait before.

    Attributes:
        max_attempts: how often a request is sent at most, the first time included.
        base_s: ceiling of the wait after the first failed attempt, in seconds.
        cap_s: no ceiling is higher than this, in seconds.
        max_retry_after_s: the longest ``Retry-After`` to wait for, in seconds.
        retry_statuses: the HTTP statuses that may pass if one waits. All others are final.
    """

    max_attempts: int = 4
    base_s: float = 0.5
    cap_s: float = 8.0
    max_retry_after_s: float = 30.0
    retry_statuses: frozenset[int] = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class StreamResult:
    """A whole answer, and how long the user waited for it.

    Attributes:
        text: the content deltas of the attempt that succeeded, joined.
        ttft_s: seconds from the call of `stream_chat` to the first content of the attempt that
            succeeded. Failed attempts and the waits between them count: the user waited through
            them. None when the answer has no content.
        itl_s: seconds between one content delta and the next, of the attempt that succeeded:
            one fewer than there are content deltas.
        finish_reason: why the model stopped, as the server said (``"stop"``, ``"length"``, ...).
        attempts: how often the request was sent.
        prompt_tokens: tokens in, as the server counted them; None when it did not say.
        completion_tokens: tokens out, as the server counted them; None when it did not say.
    """

    text: str
    ttft_s: float | None
    itl_s: list[float]
    finish_reason: str
    attempts: int
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class StreamError(Exception):
    """No answer. The message says what happened, in the server's words too, and what to do.

    Attributes:
        attempts: how often the request was sent.
        status: the HTTP status of the last attempt; None when the connection or stream broke.
    """

    def __init__(self, message: str, *, attempts: int, status: int | None = None) -> None:
        super().__init__(message)
        self.attempts = attempts
        self.status = status


class RequestRejected(StreamError):
    """The server will not answer this request, however often it is sent."""


class GaveUp(StreamError):
    """The trouble may pass, but not within the policy.

    Attributes:
        retry_after_s: how long the server asked to be left alone, in its last answer; or None.
    """

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
    """Yield the data of each server-sent event in a response body, as soon as it is complete.

    Args:
        chunks: the body in the pieces in which the network delivered it. A piece may end
            anywhere: inside an event, inside a line, between CR and LF, inside a character.

    Yields:
        The data of one event, text. Events without data are passed over.

    The stream is UTF-8. A line ends with CRLF, LF or CR, and with nothing else. A line is
    ``field:value``; one space after the colon, if there is one, is not part of the value. The
    values of an event's ``data`` lines are joined with LF. An empty line ends the event. Lines
    that begin with a colon are comments; they and all other fields are passed over here. An
    event that the body's end leaves without its empty line is dropped.

    Source: HTML Living Standard, section 9.2.6, "Interpreting an event stream".
    """
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
    """Read a ``Retry-After`` header.

    Args:
        header: its value, a whole number of seconds (``"120"``) or an HTTP date
            (``"Sun, 06 Nov 1994 08:49:37 GMT"``); None when the answer has none.
        now: the present moment, with a time zone.

    Returns:
        Seconds to wait from `now`, 0.0 for a date that has passed; None when there is no
        header, or it is neither of the two.

    Source: RFC 9110, section 10.2.3.
    """
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
    """Draw the wait before the next attempt: capped exponential back-off with full jitter.

    Args:
        failures: failed attempts so far, 1 or more.
        policy: `base_s` is the ceiling after one failure; the ceiling doubles with each further
            one and stops at `cap_s`.
        rng: where chance comes from.

    Returns:
        Seconds, drawn evenly between 0 and the ceiling.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
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
    """Stream one chat completion to its end and return it with its timings.

    POSTs `payload` as JSON to ``{base_url}/chat/completions``, with ``"stream": true`` and
    ``"stream_options": {"include_usage": true}`` put in (`payload` itself stays as it is), and
    reads the answer as server-sent events. Each event's data is a JSON object, until one is
    ``[DONE]``; nothing is read after that. In the object:

    - ``choices[0].delta.content``: the next piece of text. It may be absent, null or empty, as
      in the first event, which only names the role; such an event is no content.
    - ``choices[0].finish_reason``: null until the model has stopped.
    - ``usage`` (``prompt_tokens``, ``completion_tokens``): in an event of its own near the end,
      whose ``choices`` is empty. Null or absent elsewhere.
    - ``error`` (an object with ``message`` and perhaps ``code``): the server failed in the
      middle. This counts as an answer whose HTTP status is ``code``, or, where that is no
      integer, as a broken stream.

    The answer is whole when a finish reason has come and then ``[DONE]`` or the regular end of
    the response. A stream that ends before, or carries data that is neither a JSON object nor
    ``[DONE]``, is broken.

    What is tried again, until `policy.max_attempts` is used up: a status in
    `policy.retry_statuses`, a broken stream, and a connection that cannot be made, drops or
    times out. Before each new attempt it waits once, by ``await sleep(seconds)``: for
    `backoff_s`; or, if the answer has a ``Retry-After`` that can be read, for at least that long,
    and longer by `backoff_s` at most. Each attempt starts from nothing: no text, no gaps and no
    usage of a failed one end up in the result.

    However it ends, by return, error or cancellation, no connection is left open in `http` for
    it, save a finished one kept for reuse. A cancellation is passed on, never retried.

    Args:
        http: the client to send with; its time limits apply. It is not closed here.
        base_url: the API's root, such as ``http://127.0.0.1:8000/v1``.
        payload: a chat completion request: ``model``, ``messages`` and so on.
        policy: ``RetryPolicy()`` when None.
        sleep: what to wait with.
        rng: the source of jitter; one of its own when None.
        clock: a monotonic clock in seconds; all timings come from it.

    Raises:
        RequestRejected: a status that is not to be retried (400, 401, 404, 500, ...), at once.
        GaveUp: the attempts are used up; or, at once and without waiting, the server asked for
            longer than `policy.max_retry_after_s`.
    """
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
    """What one attempt has brought so far."""

    pieces: list[str] = field(default_factory=list)
    content_times: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)


class _Failure(Exception):
    """One attempt failed. No status: the connection or the stream broke."""

    def __init__(
        self, what: str, *, status: int | None = None, retry_after: str | None = None
    ) -> None:
        super().__init__(what)
        self.status = status
        self.retry_after = retry_after


async def _attempt(
    http: httpx.AsyncClient, url: str, request: dict[str, Any], clock: Callable[[], float]
) -> _Answer:
    """Send the request once; return a whole answer or raise `_Failure`."""
    try:
        # Leaving the block closes the response, whatever the reason: the server notices and
        # stops generating.
        async with http.stream("POST", url, json=request) as response:
            if response.status_code != 200:
                body = await response.aread()
                raise _Failure(
                    f"HTTP {response.status_code}: {_server_words(body)}",
                    status=response.status_code,
                    retry_after=response.headers.get("retry-after"),
                )
            return await _read(response.aiter_bytes(), clock)
    except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.TimeoutException) as error:
        raise _Failure(f"{type(error).__name__}: {error}") from error


async def _read(chunks: AsyncIterator[bytes], clock: Callable[[], float]) -> _Answer:
    answer = _Answer()
    async with aclosing(sse_data(chunks)) as events:
        async for data in events:
            if data == "[DONE]":
                break
            _take(answer, data, clock())
    if answer.finish_reason is None:
        raise _Failure("the stream ended before the answer did")
    return answer


def _take(answer: _Answer, data: str, now: float) -> None:
    """Add one event to the answer."""
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
    """Wait before the next attempt, or say why there is none."""
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
    """The error message in an answer's body, or the beginning of the body."""
    text = body.decode("utf-8", errors="replace")
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return text[:300] or "(empty body)"
