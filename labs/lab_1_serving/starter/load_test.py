"""An open-loop load test: offer requests at a rate, and find the rate at which users suffer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from records import SLO, RequestRecord, write_records


@dataclass(frozen=True)
class Outcome:
    """How one request went, as the code that sends it tells.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        ttft_s: seconds from sending to the first content token; None without one.
        prompt_tokens: tokens in, as the server counted them.
        output_tokens: tokens out, as the server counted them.
        finish_reason: as the server said; None when the answer did not come to its end.
        error: what went wrong, in words; None when nothing did.
        attempts: how often the request was sent.
    """

    status: int
    ttft_s: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None
    attempts: int = 1


@dataclass(frozen=True)
class LoadSummary:
    """A run at one rate, in numbers. Times are seconds, rates are per second.

    Attributes:
        offered_rps: requests per second that users wanted, whether or not the server kept up.
        requests: how many were due in the run.
        ok: how many were answered to their end (`RequestRecord.ok`).
        duration_s: from the run's start (0.0 on the records' clock) to the moment at which the
            last request finished.
        throughput_rps: ok requests over `duration_s`.
        output_tokens_per_s: output tokens of ok requests over `duration_s`.
        goodput_rps: requests that met the SLO over `duration_s`.
        slo_attainment: requests that met the SLO over all requests, 0.0 to 1.0.
        ttft_p50_s, ttft_p95_s, ttft_p99_s: percentiles of time to first token.
        latency_p50_s, latency_p95_s, latency_p99_s: percentiles of latency.
    """

    offered_rps: float
    requests: int
    ok: int
    duration_s: float
    throughput_rps: float
    output_tokens_per_s: float
    goodput_rps: float
    slo_attainment: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    ttft_p99_s: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None
    latency_p99_s: float | None


@dataclass(frozen=True)
class Knee:
    """Between which two offered rates a server stops to keep its promise.

    Attributes:
        held_rps: the highest rate up to which every measured rate held; None when not even the
            lowest did.
        broke_rps: the lowest measured rate that did not hold; None when all held, so that the
            knee lies above what was measured.
    """

    held_rps: float | None
    broke_rps: float | None


def poisson_arrivals(rate_per_s: float, duration_s: float, rng: np.random.Generator) -> list[float]:
    """Draw when users arrive: a Poisson process, as independent users make it.

    Args:
        rate_per_s: arrivals per second, on average.
        duration_s: length of the run in seconds.
        rng: where all chance comes from; a generator in the same state gives the same arrivals.

    Returns:
        Ascending offsets from the start in seconds, each at least 0 and below `duration_s`.
        Gaps are independent and exponential with mean ``1 / rate_per_s``, the first one (from
        0.0) too; so their number varies from run to run, and may be zero.

    Raises:
        ValueError: rate or duration is not above zero.
    """
    raise NotImplementedError("Task 1.4: write poisson_arrivals")


async def run_open_loop(
    send: Callable[[int], Awaitable[Outcome]],
    arrivals: Sequence[float],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[RequestRecord]:
    """Send each request when it is due, whatever became of the others, and wait for all answers.

    Users do not wait for one another: a request is sent at its time even if none before it has
    been answered, and any number may be on the way. When the client itself was held up, requests
    that are overdue are sent at once, and later ones at their own time: the schedule is not
    shifted.

    Args:
        send: sends one request and waits for its end. It gets the request's number, from 0, in
            the order of `arrivals`.
        arrivals: ascending offsets in seconds from the start of the run.
        clock: a monotonic clock in seconds; all times come from it.

    Returns:
        One record a request, in the order of `arrivals`. Times are seconds since the run's start:
        `scheduled_s` is the arrival as given, `sent_s` is when `send` was called, `first_token_s`
        is `sent_s` plus the outcome's `ttft_s` (None when that is None), `finished_s` is when
        `send` was done. The rest is as in the outcome. When `send` raises an exception, the
        record has status 0 and an `error` that holds the exception's message, and the run goes
        on.

    Source: Gil Tene, "How NOT to Measure Latency", on coordinated omission.
    """
    raise NotImplementedError("Task 1.4: write run_open_loop")


def percentile(values: Iterable[float], q: float) -> float:
    """The nearest-rank percentile: a value that really occurred.

    Args:
        values: at least one number, in any order.
        q: 0 to 100.

    Returns:
        The smallest of `values` such that at least `q` percent of them are less than or equal to
        it; for `q` = 0 the smallest of all. No interpolation (NumPy calls this
        ``method="inverted_cdf"``).

    Raises:
        ValueError: there are no values, or `q` is not within 0 to 100.
    """
    raise NotImplementedError("Task 1.4: write percentile")


def summarize(records: Sequence[RequestRecord], slo: SLO, *, offered_rps: float) -> LoadSummary:
    """Sum up one run.

    A request meets the SLO when it is ok, its `finish_reason` is one of `slo.finish_reasons`, it
    has a first token, and its `ttft_s` and `latency_s` are at most the SLO's. A request that
    failed, broke off, was cut or came late does not.

    Percentiles are `percentile`'s, of `ttft_s` and of `latency_s` (both count from when the
    request was due), over the requests that are ok: a refusal is quick, but nobody was served.
    They are None where there is no value to take them of.

    Args:
        records: all requests of the run, failed ones too.
        slo: what a request has to meet.
        offered_rps: the rate at which requests were offered.

    Raises:
        ValueError: there are no records.
    """
    raise NotImplementedError("Task 1.4: write summarize")


def find_knee(summaries: Iterable[LoadSummary], *, share: float = 0.9) -> Knee:
    """Find where goodput stops to follow the offered rate.

    A rate holds when its `slo_attainment` is at least `share`. `held_rps` is the highest rate
    that holds and below which every measured rate holds too; a rate that holds above one that
    did not is luck, not capacity. `broke_rps` is the lowest rate that does not hold.

    Args:
        summaries: one a rate, in any order.
        share: the share of requests that must meet the SLO.

    Raises:
        ValueError: there are no summaries.

    Source: Zhong et al., "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized
    Large Language Model Serving", OSDI 2024 (goodput at 90 % SLO attainment).
    """
    raise NotImplementedError("Task 1.4: write find_knee")


def log_sweep(
    sweep: Sequence[tuple[LoadSummary, Sequence[RequestRecord]]],
    slo: SLO,
    *,
    tracking_uri: str,
    experiment: str,
    artifact_dir: str | Path,
    params: Mapping[str, Any],
) -> str:
    """Log a sweep over rates to MLflow as one finished run, and return the run's id.

    The run holds:

    - parameters: all of `params`, and `slo_ttft_s` and `slo_latency_s`;
    - metrics: each numeric field of each summary under the field's name, with the rate's place
      in ascending order of `offered_rps` as step (0, 1, 2, ...). A field that is None is left
      out at that step. Besides, `knee_held_rps` and `knee_broke_rps`, where not None;
    - artifacts: ``records/step_0.jsonl``, ``records/step_1.jsonl``, ... as `write_records` writes
      them, and ``sweep.png`` as `plot_sweep` draws it.

    Args:
        sweep: a summary and its records for each rate, in any order.
        slo: the SLO that the summaries were made with.
        tracking_uri: the MLflow store, e.g. ``sqlite:///path/to/mlflow.db``.
        experiment: the experiment's name. It is created if it is not there.
        artifact_dir: folder under which a new experiment keeps its artifacts. (Without it, MLflow
            puts them under the current directory.)
        params: what was measured: model, engine, prompt, duration and so on.

    Raises:
        ValueError: the sweep is empty.
    """
    raise NotImplementedError("Task 1.4: write log_sweep")


def plot_sweep(
    summaries: Iterable[LoadSummary], slo: SLO, path: str | Path, *, knee: Knee | None = None
) -> None:
    """Draw throughput, goodput and latency against the offered rate, as a PNG. Given to you."""
    ordered = sorted(summaries, key=lambda summary: summary.offered_rps)
    offered = [summary.offered_rps for summary in ordered]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    rates, waits = figure.subplots(1, 2)
    rates.plot(offered, offered, ":", color="grey", label="offered")
    rates.plot(offered, [s.throughput_rps for s in ordered], "o-", label="throughput")
    rates.plot(offered, [s.goodput_rps for s in ordered], "s-", label="goodput")
    rates.set(xlabel="offered rate (requests/s)", ylabel="requests/s", title="What comes out")
    for name, style in (("latency_p50_s", "o-"), ("latency_p99_s", "s-"), ("ttft_p99_s", "^-")):
        heights = [math.nan if getattr(s, name) is None else getattr(s, name) for s in ordered]
        waits.plot(offered, heights, style, label=name.removesuffix("_s").replace("_", " "))
    waits.axhline(slo.latency_s, linestyle="--", color="grey", label="latency SLO")
    waits.set(xlabel="offered rate (requests/s)", ylabel="seconds", title="What users wait")
    waits.set_yscale("log")
    for axes in (rates, waits):
        if knee and knee.held_rps is not None:
            until = knee.broke_rps if knee.broke_rps is not None else knee.held_rps
            axes.axvspan(knee.held_rps, until, color="orange", alpha=0.25, label="knee")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)
