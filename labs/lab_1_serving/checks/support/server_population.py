"""Servers, good and bad, as a queue with so many slots, and the load tests run on them.

Requests arrive by a Poisson process, wait for a slot, are prefilled and decoded. Every server
differs: load, slots, speed, lengths, promise. Each bad kind breaks one part of its promise and
keeps the others, so that a rule that does not look at that part lets it through.
"""

from __future__ import annotations

import heapq
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Medians, and standard deviations of the logarithm, near those of 64 and 80 chats, eight at a time,
# with this lab's engines on two busy cores: first token 1.3 s (0.64) and 1.4 s (0.53), a token
# 0.08 s (0.30) and 0.10 s (0.20), llama.cpp and vLLM. A server's own values are spread around them.
PREFILL_S = 1.3
PREFILL_SPREAD = 0.55
TOKEN_S = 0.09
TOKEN_SPREAD = 0.25


@dataclass(frozen=True)
class Server:
    """A server's load test and what it promised.

    Attributes:
        kind: ``"good"`` or one of `BAD`.
        records: the learner's `RequestRecord`, in no particular order.
        promise: the learner's `Promise`.
        story: what is so about it, for the failure message.
    """

    kind: str
    records: list[Any]
    promise: Any
    story: str


@dataclass
class _Run:
    """A load test as arrays, in the order in which requests were due."""

    due: np.ndarray
    ttft: np.ndarray
    latency: np.ndarray
    tokens: np.ndarray
    prompt: np.ndarray
    status: np.ndarray
    finish: np.ndarray
    error: np.ndarray


@dataclass(frozen=True)
class _Terms:
    """A promise before its SLO's limits are known."""

    ttft_share: float
    latency_share: float
    whole_share: float
    window: int
    failures: int

    @property
    def smallest_allowance(self) -> float:
        return 1.0 - max(self.ttft_share, self.latency_share, self.whole_share)


def good_server(learner: Any, rng: np.random.Generator, *, short: bool = False) -> Server:
    """A server that keeps its promise with room to spare.

    Args:
        short: whether its run is too short to show that.
    """
    terms, run, slo = _healthy(rng, short=short)
    _sprinkle_failures(run, terms, rng)
    return _server(learner, rng, "good", run, terms, slo, f"a good server, {len(run.due)} requests")


def unlucky_server(learner: Any, rng: np.random.Generator) -> Server:
    """A good server whose short run holds one late or failed request."""
    terms, run, slo = _healthy(rng, short=True)
    run.ttft = np.minimum(run.ttft, slo["ttft_s"])
    run.latency = np.minimum(run.latency, slo["latency_s"])
    one = int(rng.integers(len(run.due)))
    if rng.random() < 0.5:
        _fail(run, np.array([one]), rng)
        what = "failed"
    else:
        run.latency[one] = slo["latency_s"] * rng.uniform(1.1, 3.0)
        what = "late"
    story = f"a good server of whose {len(run.due)} requests one was {what}"
    return _server(learner, rng, "good", run, terms, slo, story.replace("was failed", "failed"))


def bad_server(learner: Any, rng: np.random.Generator, kind: str, *, short: bool = False) -> Server:
    """A server of one of the `BAD` kinds; with `short`, one too short to release."""
    return BAD[kind](learner, rng, short)


def _slow_first_token(learner: Any, rng: np.random.Generator, short: bool) -> Server:
    terms, run, slo = _healthy(rng, short=short)
    late = _plainly_more(1 - terms.ttft_share, rng, most=0.25)
    factor = slo["ttft_s"] / np.quantile(run.ttft, 1 - late)
    slower = run.ttft * max(factor, 1.0)
    run.latency += slower - run.ttft
    run.ttft = slower
    slo["latency_s"] = max(slo["latency_s"], _limit(run.latency, 1 - terms.latency_share, rng))
    _sprinkle_failures(run, terms, rng)
    return _tell(
        learner, rng, "slow first tokens", run, terms, slo, f"{late:.0%} late first tokens"
    )


def _slow_at_the_end(learner: Any, rng: np.random.Generator, short: bool) -> Server:
    terms, run, slo = _healthy(rng, short=short, ttft_share=0.95)
    n = len(run.due)
    start = n - n // 4
    late = rng.uniform(2.6, 3.2) * (1 - terms.ttft_share)
    factor = slo["ttft_s"] / np.quantile(run.ttft[start:], 1 - late)
    slower = run.ttft.copy()
    slower[start:] *= max(factor, 1.0)
    run.latency += slower - run.ttft
    run.ttft = slower
    slo["latency_s"] = max(slo["latency_s"], _limit(run.latency, 1 - terms.latency_share, rng))
    _sprinkle_failures(run, terms, rng)
    story = f"{late:.0%} late first tokens in the last quarter, few before"
    return _tell(learner, rng, "getting slower", run, terms, slo, story)


def _long_tail(learner: Any, rng: np.random.Generator, short: bool) -> Server:
    terms, run, slo = _healthy(rng, short=short, latency_share=0.99)
    late = _plainly_more(1 - terms.latency_share, rng, most=0.04)
    chosen = _some(rng, len(run.due), late)
    run.latency[chosen] = slo["latency_s"] * rng.uniform(1.3, 5.0, len(chosen))
    _sprinkle_failures(run, terms, rng)
    return _tell(
        learner, rng, "a terrible tail", run, terms, slo, f"{late:.1%} answers far too late"
    )


def _timed_out(learner: Any, rng: np.random.Generator, short: bool) -> Server:
    terms, run, slo = _healthy(rng, short=short, latency_share=0.99, whole_share=0.95)
    share = rng.uniform(0.026, 0.036)
    chosen = _some(rng, len(run.due), share)
    run.status[chosen] = 0
    run.error[chosen] = "no answer before the client's time limit"
    run.finish[chosen] = None
    run.ttft[chosen] = np.nan
    run.tokens[chosen] = 0
    run.latency[chosen] = slo["latency_s"] * 3
    story = f"{share:.1%} requests that timed out, the others fast"
    return _tell(learner, rng, "time-outs", run, terms, slo, story)


def _errors(learner: Any, rng: np.random.Generator, short: bool) -> Server:
    # First tokens that never come are late too: the allowance for those is the larger one.
    whole_share = float(rng.choice([0.98, 0.99]))
    terms, run, slo = _healthy(rng, short=short, ttft_share=0.9, whole_share=whole_share)
    share = _plainly_more(1 - terms.whole_share, rng, most=0.08)
    _fail(run, _spread(rng, len(run.due), share, terms), rng)
    return _tell(learner, rng, "errors", run, terms, slo, f"{share:.1%} failed requests")


def _error_burst(learner: Any, rng: np.random.Generator, short: bool) -> Server:
    terms, run, slo = _healthy(rng, short=short)
    n = len(run.due)
    most = max(
        terms.failures + 3, int(0.65 * n * (1 - max(terms.latency_share, terms.whole_share)))
    )
    length = int(rng.integers(terms.failures + 2, min(most, terms.window - 2) + 1))
    start = int(rng.integers(0, n - length))
    _fail(run, np.arange(start, start + length), rng)
    story = f"{length} failed requests in a row, and hardly one elsewhere"
    return _tell(learner, rng, "error bursts", run, terms, slo, story)


def _cut_at_length(learner: Any, rng: np.random.Generator, short: bool) -> Server:
    terms, run, slo = _healthy(rng, short=short, finish_reasons=("stop",))
    share = _plainly_more(1 - terms.whole_share, rng, most=0.4)
    run.finish[_spread(rng, len(run.due), share, terms)] = "length"
    story = f"{share:.1%} answers with finish_reason 'length', where only 'stop' is whole"
    return _tell(learner, rng, "truncated answers", run, terms, slo, story)


def _broken_off(learner: Any, rng: np.random.Generator, short: bool) -> Server:
    terms, run, slo = _healthy(rng, short=short)
    share = _plainly_more(1 - terms.whole_share, rng, most=0.4)
    chosen = _spread(rng, len(run.due), share, terms)
    run.finish[chosen] = None
    run.tokens[chosen] = np.maximum(1, run.tokens[chosen] // 2)
    story = f"{share:.1%} answers with status 200 and no finish reason"
    return _tell(learner, rng, "broken streams", run, terms, slo, story)


def _empty(learner: Any, rng: np.random.Generator, short: bool) -> Server:
    # As with errors.
    terms, run, slo = _healthy(rng, short=short, ttft_share=0.9, whole_share=0.99)
    share = rng.uniform(0.03, 0.05)
    chosen = _some(rng, len(run.due), share)
    run.tokens[chosen] = 0
    run.ttft[chosen] = np.nan
    run.latency[chosen] = run.latency.min()
    story = f"{share:.1%} answers with status 200, 'stop' and no token"
    return _tell(learner, rng, "empty answers", run, terms, slo, story)


BAD: dict[str, Callable[[Any, np.random.Generator, bool], Server]] = {
    "slow first tokens": _slow_first_token,
    "a terrible tail": _long_tail,
    "time-outs": _timed_out,
    "errors": _errors,
    "error bursts": _error_burst,
    "truncated answers": _cut_at_length,
    "broken streams": _broken_off,
    "empty answers": _empty,
    "getting slower": _slow_at_the_end,
}


def _healthy(
    rng: np.random.Generator,
    *,
    short: bool,
    ttft_share: float | None = None,
    latency_share: float | None = None,
    whole_share: float | None = None,
    finish_reasons: tuple[str, ...] | None = None,
) -> tuple[_Terms, _Run, dict[str, Any]]:
    """A server's run without faults, and an SLO that it keeps with room to spare."""
    window = int(rng.integers(15, 31))
    terms = _Terms(
        ttft_share=ttft_share or float(rng.choice([0.9, 0.95])),
        latency_share=latency_share or float(rng.choice([0.98, 0.99])),
        whole_share=whole_share or float(rng.choice([0.95, 0.98, 0.99])),
        window=window,
        failures=int(rng.integers(4, 7)),
    )
    enough = 1.0 / terms.smallest_allowance
    n = int(rng.uniform(0.25, 0.8) * enough) if short else int(rng.uniform(15, 22) * enough)
    queue = _Queue.draw(rng)
    run = queue.serve(rng, n)
    known = queue.serve(rng, 3000)
    slo = {
        "ttft_s": _limit(known.ttft, 1 - terms.ttft_share, rng),
        "latency_s": _limit(known.latency, 1 - terms.latency_share, rng),
        "finish_reasons": finish_reasons
        or (("stop", "length") if rng.random() < 0.5 else ("stop",)),
    }
    if "length" in slo["finish_reasons"]:
        run.finish[_some(rng, n, rng.uniform(0.05, 0.3))] = "length"
    return terms, run, slo


@dataclass(frozen=True)
class _Queue:
    """Parameters of a server and its load."""

    slots: int
    busy: float
    prefill_s: float
    token_s: float
    tokens: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Queue:
        return cls(
            slots=int(rng.integers(8, 33)),
            busy=rng.uniform(0.2, 0.6),
            prefill_s=PREFILL_S * rng.lognormal(0, 0.5),
            token_s=TOKEN_S * rng.lognormal(0, 0.4),
            tokens=rng.uniform(20, 120),
        )

    def serve(self, rng: np.random.Generator, n: int) -> _Run:
        """Serve `n` requests."""
        prompt = rng.lognormal(4.0, 0.6, n).astype(int) + 5
        tokens = np.clip(rng.lognormal(np.log(self.tokens), 0.5, n).astype(int), 2, 512)
        prefill = self.prefill_s * (0.5 + prompt / 130) * rng.lognormal(0, PREFILL_SPREAD, n)
        decode = self.token_s * (tokens - 1) * rng.lognormal(0, TOKEN_SPREAD, n)
        service = prefill + decode
        rate = self.busy * self.slots / service.mean()
        due = np.cumsum(rng.exponential(1 / rate, n))
        free = [0.0] * self.slots
        wait = np.empty(n)
        for i, (at, takes) in enumerate(zip(due.tolist(), service.tolist(), strict=True)):
            begin = max(at, free[0])
            heapq.heapreplace(free, begin + takes)
            wait[i] = begin - at
        finish = np.full(n, "stop", dtype=object)
        return _Run(
            due=due,
            ttft=wait + prefill,
            latency=wait + service,
            tokens=tokens,
            prompt=prompt,
            status=np.full(n, 200),
            finish=finish,
            error=np.full(n, None, dtype=object),
        )


def _limit(values: np.ndarray, allowed: float, rng: np.random.Generator) -> float:
    """A limit that between a fiftieth and an eighth of what is allowed goes beyond."""
    return float(np.nanquantile(values, 1 - allowed * rng.uniform(0.02, 0.125)))


def _plainly_more(allowed: float, rng: np.random.Generator, *, most: float) -> float:
    return float(rng.uniform(2.6 * allowed, max(2.6 * allowed, min(6 * allowed, most))))


def _some(rng: np.random.Generator, n: int, share: float) -> np.ndarray:
    """Which of `n` requests: so large a share of them, at least one."""
    return rng.choice(n, size=max(1, round(share * n)), replace=False)


def _spread(rng: np.random.Generator, n: int, share: float, terms: _Terms) -> np.ndarray:
    """As `_some`, but at even distances, so that no stretch of the run is worse than others."""
    count = max(1, round(share * n))
    return np.unique(
        np.clip(((np.arange(count) + rng.uniform(0, 1, count)) * n / count).astype(int), 0, n - 1)
    )


def _fail(run: _Run, which: np.ndarray, rng: np.random.Generator) -> None:
    words = {500: "server error", 503: "no capacity left", 0: "connection reset", 429: "too many"}
    status = rng.choice(list(words), len(which))
    run.status[which] = status
    run.error[which] = [words[int(s)] for s in status]
    run.finish[which] = None
    run.ttft[which] = np.nan
    run.tokens[which] = 0
    run.latency[which] = rng.uniform(0.002, 0.02, len(which))


def _sprinkle_failures(run: _Run, terms: _Terms, rng: np.random.Generator) -> None:
    """The single failures that every long run has."""
    share = rng.uniform(0.02, 0.1) * terms.smallest_allowance
    _fail(run, np.flatnonzero(rng.random(len(run.due)) < share), rng)


def _tell(
    learner: Any,
    rng: np.random.Generator,
    kind: str,
    run: _Run,
    terms: _Terms,
    slo: dict[str, Any],
    what: str,
) -> Server:
    return _server(learner, rng, kind, run, terms, slo, f"{len(run.due)} requests, {what}")


def _server(
    learner: Any,
    rng: np.random.Generator,
    kind: str,
    run: _Run,
    terms: _Terms,
    slo: dict[str, Any],
    story: str,
) -> Server:
    given = importlib.import_module("records")
    promise = learner.Promise(
        slo=given.SLO(**slo),
        ttft_share=terms.ttft_share,
        latency_share=terms.latency_share,
        whole_share=terms.whole_share,
        outage_window=terms.window,
        outage_failures=terms.failures,
    )
    records = [
        given.RequestRecord(
            scheduled_s=due,
            sent_s=due,
            finished_s=due + latency,
            status=status,
            first_token_s=None if ttft != ttft else due + ttft,
            prompt_tokens=prompt,
            output_tokens=tokens,
            finish_reason=finish,
            error=error,
        )
        for due, ttft, latency, status, prompt, tokens, finish, error in zip(
            run.due.tolist(),
            run.ttft.tolist(),
            run.latency.tolist(),
            run.status.tolist(),
            run.prompt.tolist(),
            run.tokens.tolist(),
            run.finish.tolist(),
            run.error.tolist(),
            strict=True,
        )
    ]
    rng.shuffle(records)
    return Server(kind, records, promise, story)
