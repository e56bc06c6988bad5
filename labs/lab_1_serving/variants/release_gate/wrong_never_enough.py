"""Asks for ten thousand requests whatever was promised.

caught-by: test_good_servers_are_released
hint: enough
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from records import SLO, RequestRecord

Verdict = Literal["release", "block", "need_more_data"]


@dataclass(frozen=True, slots=True)
class Promise:
    """What a service promises about its requests, taken together."""

    slo: SLO
    ttft_share: float = 0.95
    latency_share: float = 0.99
    whole_share: float = 0.99
    outage_window: int = 20
    outage_failures: int = 5


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and what it rests on."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()


def decide(records: Sequence[RequestRecord], promise: Promise) -> Decision:
    """Ask for a minimum of requests, then hold the observed shares against the promise."""
    run = sorted(records, key=lambda record: record.scheduled_s)
    if len(run) < 10_000:
        return Decision("need_more_data", (f"{len(run)} requests are too few.",))
    slo = promise.slo
    reasons = []

    prompt = [r.ttft_s is not None and r.ttft_s <= slo.ttft_s for r in run]
    if _share(prompt) < promise.ttft_share:
        reasons.append(f"Only {_share(prompt):.2%} of the first tokens are in time.")
    if _share(prompt[-(len(run) // 4) :]) < promise.ttft_share:
        reasons.append("First tokens are late in the last quarter.")

    whole = [_whole(r, slo) for r in run]
    in_time = [w and r.latency_s <= slo.latency_s for w, r in zip(whole, run, strict=True)]
    if _share(in_time) < promise.latency_share:
        reasons.append(f"Only {_share(in_time):.2%} of the answers are in time.")
    if _share(whole) < promise.whole_share:
        reasons.append(f"Only {_share(whole):.2%} of the answers are whole.")

    for start in range(len(run)):
        if whole[start : start + promise.outage_window].count(False) > promise.outage_failures:
            reasons.append(f"An outage begins at request {start}.")
            break
    return Decision("block" if reasons else "release", tuple(reasons))


def _whole(record: RequestRecord, slo: SLO) -> bool:
    return record.ok and record.finish_reason in slo.finish_reasons and record.output_tokens > 0


def _share(kept: Sequence[bool]) -> float:
    return sum(kept) / len(kept)
