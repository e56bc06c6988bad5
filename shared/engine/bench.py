"""Measure a running engine: time to first token and throughput at a given concurrency."""

from __future__ import annotations

import http.client
import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from shared.engine.server import Engine

_TOPICS = ("the sea", "a lighthouse", "winter", "a long train", "two friends", "an old map")


@dataclass(frozen=True)
class Answer:
    """One streamed chat: seconds to its first token, to its end, and what it held."""

    ttft_s: float
    seconds: float
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True)
class Measured:
    """What a burst of requests showed. Times are of this machine, at this load."""

    concurrency: int
    requests: int
    seconds: float
    prompt_tokens: int
    generated_tokens: int
    tokens_per_second: float
    """Generated tokens of all requests, over the whole burst."""
    ttft_p50_s: float
    ttft_max_s: float
    itl_mean_s: float
    """Mean time between two tokens of one answer."""


def measure_engine(
    engine: Engine, concurrency: int, requests: int, *, max_tokens: int = 64
) -> Measured:
    """Send `requests` chats, `concurrency` at a time, each of exactly `max_tokens` tokens.

    A closed loop: right for the throughput of a full engine, wrong for latency under a given
    arrival rate (Lab 1, task 1.4).

    Raises:
        OSError: the engine does not answer, or answers with an error.
    """
    started = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        answers = list(pool.map(lambda i: chat(engine, _prompt(i), max_tokens), range(requests)))
    seconds = time.perf_counter() - started
    generated = sum(a.generated_tokens for a in answers)
    gaps = [
        (a.seconds - a.ttft_s) / (a.generated_tokens - 1) for a in answers if a.generated_tokens > 1
    ]
    return Measured(
        concurrency=concurrency,
        requests=requests,
        seconds=seconds,
        prompt_tokens=sum(a.prompt_tokens for a in answers),
        generated_tokens=generated,
        tokens_per_second=generated / seconds,
        ttft_p50_s=statistics.median(a.ttft_s for a in answers),
        ttft_max_s=max(a.ttft_s for a in answers),
        itl_mean_s=statistics.fmean(gaps) if gaps else 0.0,
    )


def chat(engine: Engine, prompt: str, max_tokens: int) -> Answer:
    """Stream one chat of exactly `max_tokens` tokens."""
    body = {
        "model": engine.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    parts = urlsplit(engine.base_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=300)
    started = time.perf_counter()
    try:
        connection.request(
            "POST",
            f"{parts.path}/chat/completions",
            json.dumps(body),
            {"Content-Type": "application/json"},
        )
        response = connection.getresponse()
        if response.status != 200:
            raise ConnectionError(f"status {response.status}: {response.read(300)!r}")
        first: float | None = None
        usage = {"prompt_tokens": 0, "completion_tokens": 0}
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            choices = event.get("choices") or [{}]
            if first is None and choices[0].get("delta", {}).get("content"):
                first = time.perf_counter()
            usage = event.get("usage") or usage
        ended = time.perf_counter()
    except http.client.HTTPException as error:
        raise ConnectionError(f"the answer was cut off: {error!r}") from error
    finally:
        connection.close()
    return Answer(
        ttft_s=(first or ended) - started,
        seconds=ended - started,
        prompt_tokens=usage["prompt_tokens"],
        generated_tokens=usage["completion_tokens"],
    )


_burst = time.time_ns()
_counter = threading.Lock()


def _prompt(number: int) -> str:
    """A prompt unlike those of earlier bursts, so that no prefix cache answers."""
    global _burst
    with _counter:
        _burst += 1
        return f"Story {_burst % 1_000_000}: write about {_TOPICS[number % len(_TOPICS)]}."
