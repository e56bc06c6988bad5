"""Measure a running engine: time to first token and throughput at a given concurrency."""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared.engine.errors import EngineError
from shared.engine.server import Engine
from shared.models.serve import served_model
from shared.models.store import engine_python

MAX_TOKENS = 64

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
    engine: Engine, concurrency: int, asked: Sequence[str], *, max_tokens: int = MAX_TOKENS
) -> Measured:
    """Send a chat for each of the prompts `asked`, `concurrency` at a time.

    Each answer has exactly `max_tokens` tokens.

    A closed loop: right for the throughput of a full engine, wrong for latency under a given
    arrival rate (Lab 1, task 1.4).

    Raises:
        OSError: the engine does not answer, or answers with an error.
    """
    started = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        answers = list(pool.map(lambda prompt: chat(engine, prompt, max_tokens), asked))
    seconds = time.perf_counter() - started
    generated = sum(a.generated_tokens for a in answers)
    gaps = [
        (a.seconds - a.ttft_s) / (a.generated_tokens - 1) for a in answers if a.generated_tokens > 1
    ]
    return Measured(
        concurrency=concurrency,
        requests=len(asked),
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


def prompts(count: int) -> list[str]:
    """Prompts unlike those of earlier calls, so that no prefix cache answers."""
    run = time.time_ns() // 1000 % 1_000_000_000
    return [f"Story {run + n}: write about {_TOPICS[n % len(_TOPICS)]}." for n in range(count)]


def measure_transformers(
    asked: Sequence[str], *, one_by_one: int, batches: Sequence[int], max_tokens: int = MAX_TOKENS
) -> dict[str, Any]:
    """Tokens a second of the plain `generate` of transformers, on the weights that vLLM serves.

    Runs in the engine's environment, on all cores (or the GPU), greedy, after a warm-up.

    Returns:
        ``one_by_one`` (tokens/s), ``batches`` (size to tokens/s of one static batch), ``threads``
        and ``device``.

    Raises:
        EngineError: the environment or the model is not there, or the run failed.
    """
    python = engine_python()
    if not python.is_file():
        raise EngineError("transformers is in the engine's environment: run `make setup-engine`.")
    order = {
        "prompts": list(asked),
        "max_tokens": max_tokens,
        "one_by_one": one_by_one,
        "batches": list(batches),
    }
    script = Path(__file__).with_name("bench_transformers.py")
    done = subprocess.run(
        [str(python), "-P", str(script), str(served_model("vllm").path)],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise EngineError(f"transformers could not be measured: {last[0]}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures
