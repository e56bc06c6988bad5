"""Draws a count and uniform moments, lets each task sleep for itself, leaves ranks to NumPy."""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from matplotlib.figure import Figure
from records import SLO, RequestRecord, write_records


@dataclass(frozen=True)
class Outcome:
    status: int
    ttft_s: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None
    attempts: int = 1


@dataclass(frozen=True)
class LoadSummary:
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
    held_rps: float | None
    broke_rps: float | None


def poisson_arrivals(rate_per_s: float, duration_s: float, rng: np.random.Generator) -> list[float]:
    if rate_per_s <= 0 or duration_s <= 0:
        raise ValueError("rate and duration must be positive")
    # Given their number, the moments of a Poisson process are independent and uniform.
    count = rng.poisson(rate_per_s * duration_s)
    return np.sort(rng.random(count) * duration_s).tolist()


async def run_open_loop(
    send: Callable[[int], Awaitable[Outcome]],
    arrivals: Sequence[float],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[RequestRecord]:
    zero = clock()

    async def user(index: int, due: float) -> RequestRecord:
        while (left := zero + due - clock()) > 1e-9:
            await asyncio.sleep(left)
        sent = clock() - zero
        first = None
        try:
            told = await send(index)
        except Exception as error:
            told = Outcome(0, error=str(error) or type(error).__name__)
        if told.ttft_s is not None:
            first = sent + told.ttft_s
        return RequestRecord(
            due,
            sent,
            clock() - zero,
            told.status,
            first,
            told.prompt_tokens,
            told.output_tokens,
            told.finish_reason,
            told.error,
            told.attempts,
        )

    return list(await asyncio.gather(*map(user, range(len(arrivals)), arrivals)))


def percentile(values: Iterable[float], q: float) -> float:
    array = np.asarray(list(values), dtype=float)
    if array.size == 0:
        raise ValueError("no values")
    return float(np.percentile(array, q, method="inverted_cdf"))


def summarize(records: Sequence[RequestRecord], slo: SLO, *, offered_rps: float) -> LoadSummary:
    if len(records) == 0:
        raise ValueError("no records")
    ends = ttfts = latencies = ()
    ok = good = tokens = 0
    for r in records:
        ends += (r.finished_s,)
        if r.status != 200 or r.error is not None or r.finish_reason is None:
            continue
        ok += 1
        tokens += r.output_tokens
        latencies += (r.finished_s - r.scheduled_s,)
        if r.first_token_s is None:
            continue
        ttfts += (r.first_token_s - r.scheduled_s,)
        in_time = ttfts[-1] <= slo.ttft_s and latencies[-1] <= slo.latency_s
        good += in_time and r.finish_reason in slo.finish_reasons
    length = max(ends)
    tail = [percentile(v, q) if v else None for v in (ttfts, latencies) for q in (50, 95, 99)]
    return LoadSummary(
        offered_rps,
        len(records),
        ok,
        length,
        ok / length,
        tokens / length,
        good / length,
        good / len(records),
        *tail,
    )


def find_knee(summaries: Iterable[LoadSummary], *, share: float = 0.9) -> Knee:
    rates = {s.offered_rps: s.slo_attainment >= share for s in summaries}
    if not rates:
        raise ValueError("no summaries")
    broke = min((rate for rate, holds in rates.items() if not holds), default=None)
    below = [rate for rate in rates if broke is None or rate < broke]
    return Knee(max(below, default=None), broke)


def log_sweep(
    sweep: Sequence[tuple[LoadSummary, Sequence[RequestRecord]]],
    slo: SLO,
    *,
    tracking_uri: str,
    experiment: str,
    artifact_dir: str | Path,
    params: Mapping[str, Any],
) -> str:
    ordered = sorted(sweep, key=lambda pair: pair[0].offered_rps)
    knee = find_knee(summary for summary, _ in ordered)
    mlflow.set_tracking_uri(tracking_uri)
    if mlflow.get_experiment_by_name(experiment) is None:
        mlflow.create_experiment(experiment, Path(artifact_dir).absolute().as_uri())
    mlflow.set_experiment(experiment)
    with mlflow.start_run() as run, tempfile.TemporaryDirectory() as scratch:
        mlflow.log_params({**params, "slo_ttft_s": slo.ttft_s, "slo_latency_s": slo.latency_s})
        for step, (summary, records) in enumerate(ordered):
            numbers = {f.name: getattr(summary, f.name) for f in fields(summary)}
            mlflow.log_metrics({k: v for k, v in numbers.items() if v is not None}, step=step)
            path = Path(scratch) / f"step_{step}.jsonl"
            write_records(path, records)
            mlflow.log_artifact(str(path), "records")
        for name, rate in (("knee_held_rps", knee.held_rps), ("knee_broke_rps", knee.broke_rps)):
            if rate is not None:
                mlflow.log_metric(name, rate)
        plot = Path(scratch) / "sweep.png"
        plot_sweep([summary for summary, _ in ordered], slo, plot, knee=knee)
        mlflow.log_artifact(str(plot))
    return run.info.run_id


def plot_sweep(
    summaries: Iterable[LoadSummary], slo: SLO, path: str | Path, *, knee: Knee | None = None
) -> None:
    ordered = sorted(summaries, key=lambda summary: summary.offered_rps)
    offered = [summary.offered_rps for summary in ordered]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    rates, waits = figure.subplots(1, 2)
    rates.plot(offered, [s.throughput_rps for s in ordered], "o-", label="throughput")
    rates.plot(offered, [s.goodput_rps for s in ordered], "s-", label="goodput")
    heights = [math.nan if s.latency_p99_s is None else s.latency_p99_s for s in ordered]
    waits.plot(offered, heights, "s-", label="latency p99")
    waits.axhline(slo.latency_s, linestyle="--", color="grey")
    figure.savefig(path, dpi=110)
