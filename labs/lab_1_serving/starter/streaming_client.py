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
    raise NotImplementedError("Task 1.3: write sse_data")


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
    raise NotImplementedError("Task 1.3: write retry_after_s")


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
    raise NotImplementedError("Task 1.3: write backoff_s")


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
    raise NotImplementedError("Task 1.3: write stream_chat")
