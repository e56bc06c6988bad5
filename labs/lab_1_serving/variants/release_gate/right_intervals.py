"""Wilson intervals around each observed share, vectorised with numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
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
    """Block where an interval lies beyond the promise, release where all lie within."""
    if not records:
        return Decision("need_more_data", ("The run holds no requests.",))
    run = np.array(sorted(records, key=lambda record: record.scheduled_s), dtype=object)
    slo = promise.slo
    late_first = np.array([r.ttft_s is None or r.ttft_s > slo.ttft_s for r in run])
    failed = np.array(
        [not r.ok or r.finish_reason not in slo.finish_reasons or not r.output_tokens for r in run]
    )
    late = failed | np.array([r.latency_s > slo.latency_s for r in run])
    parts = {
        "late first tokens": (late_first, promise.ttft_share),
        "late first tokens in the last quarter": (late_first[-len(run) // 4 :], promise.ttft_share),
        "late or failed answers": (late, promise.latency_share),
        "failed answers": (failed, promise.whole_share),
    }
    broken, unclear = [], []
    for what, (bad, share) in parts.items():
        low, high = _wilson(int(bad.sum()), len(bad))
        text = (
            f"{what}: {bad.mean():.2%}, between {low:.2%} and {high:.2%}; allowed {1 - share:.2%}"
        )
        if low > 1 - share:
            broken.append(text)
        elif high > 1 - share:
            unclear.append(text)
    ends = np.convolve(failed, np.ones(promise.outage_window, dtype=int))
    if ends.max() > promise.outage_failures:
        broken.append(f"an outage with {ends.max()} failures")
    if broken:
        return Decision("block", tuple(broken))
    if unclear:
        return Decision("need_more_data", tuple(unclear))
    return Decision("release")


def _wilson(bad: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a share."""
    share = bad / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), centre + half
