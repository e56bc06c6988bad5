"""Lets the first user arrive at once, as loops that draw the gap last do.

caught-by: test_the_first_arrival_is_drawn_like_the_others
hint: poisson
"""

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
    if not (rate_per_s > 0 and duration_s > 0):
        raise ValueError(
            f"rate and duration must be above zero, not {rate_per_s} per s and {duration_s} s"
        )
    arrivals, at = [], 0.0
    while at < duration_s:
        arrivals.append(at)
        at += float(rng.exponential(1 / rate_per_s))
    return arrivals


async def run_open_loop(
    send: Callable[[int], Awaitable[Outcome]],
    arrivals: Sequence[float],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[RequestRecord]:
    start = clock()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for index, due in enumerate(arrivals):
            await asyncio.sleep(max(0.0, due - (clock() - start)))
            tasks.append(group.create_task(_send_one(send, index, due, start, clock)))
    return [task.result() for task in tasks]


async def _send_one(
    send: Callable[[int], Awaitable[Outcome]],
    index: int,
    due: float,
    start: float,
    clock: Callable[[], float],
) -> RequestRecord:
    sent = clock() - start
    try:
        outcome = await send(index)
    except Exception as error:
        # A failed request is a measurement. One that ended the run would hide all others.
        outcome = Outcome(status=0, error=f"{type(error).__name__}: {error}")
    finished = clock() - start
    return RequestRecord(
        scheduled_s=due,
        sent_s=sent,
        finished_s=finished,
        status=outcome.status,
        first_token_s=None if outcome.ttft_s is None else sent + outcome.ttft_s,
        prompt_tokens=outcome.prompt_tokens,
        output_tokens=outcome.output_tokens,
        finish_reason=outcome.finish_reason,
        error=outcome.error,
        attempts=outcome.attempts,
    )


def percentile(values: Iterable[float], q: float) -> float:
    ordered = sorted(values)
    if not ordered:
        raise ValueError("a percentile of no values is not defined")
    if not 0 <= q <= 100:
        raise ValueError(f"q must be within 0 to 100, not {q}")
    rank = math.ceil(len(ordered) * q / 100)
    return ordered[max(rank, 1) - 1]


def summarize(records: Sequence[RequestRecord], slo: SLO, *, offered_rps: float) -> LoadSummary:
    if not records:
        raise ValueError("no records: nothing was offered, so nothing can be summed up")
    answered = [record for record in records if record.ok]
    good = [record for record in answered if _meets(record, slo)]
    duration_s = max(record.finished_s for record in records)
    ttfts = [record.ttft_s for record in answered if record.ttft_s is not None]
    latencies = [record.latency_s for record in answered]
    return LoadSummary(
        offered_rps=offered_rps,
        requests=len(records),
        ok=len(answered),
        duration_s=duration_s,
        throughput_rps=len(answered) / duration_s,
        output_tokens_per_s=sum(record.output_tokens for record in answered) / duration_s,
        goodput_rps=len(good) / duration_s,
        slo_attainment=len(good) / len(records),
        **{
            f"{name}_p{q}_s": percentile(values, q) if values else None
            for name, values in (("ttft", ttfts), ("latency", latencies))
            for q in (50, 95, 99)
        },
    )


def _meets(record: RequestRecord, slo: SLO) -> bool:
    return (
        record.finish_reason in slo.finish_reasons
        and record.ttft_s is not None
        and record.ttft_s <= slo.ttft_s
        and record.latency_s <= slo.latency_s
    )


def find_knee(summaries: Iterable[LoadSummary], *, share: float = 0.9) -> Knee:
    ordered = sorted(summaries, key=lambda summary: summary.offered_rps)
    if not ordered:
        raise ValueError("no summaries: measure at least one rate")
    held: float | None = None
    for summary in ordered:
        if summary.slo_attainment < share:
            return Knee(held_rps=held, broke_rps=summary.offered_rps)
        held = summary.offered_rps
    return Knee(held_rps=held, broke_rps=None)


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
    summaries = [summary for summary, _ in ordered]
    knee = find_knee(summaries)
    client = MlflowClient(tracking_uri=tracking_uri)
    run_id = client.create_run(_experiment_id(client, experiment, artifact_dir)).info.run_id
    try:
        client.log_batch(
            run_id,
            metrics=_metrics(summaries, knee),
            params=[
                Param(name, str(value))
                for name, value in {
                    **params,
                    "slo_ttft_s": slo.ttft_s,
                    "slo_latency_s": slo.latency_s,
                }.items()
            ],
        )
        with TemporaryDirectory() as folder:
            (Path(folder) / "records").mkdir()
            for step, (_, records) in enumerate(ordered):
                write_records(Path(folder) / "records" / f"step_{step}.jsonl", records)
            plot_sweep(summaries, slo, Path(folder) / "sweep.png", knee=knee)
            client.log_artifacts(run_id, folder)
    except BaseException:
        client.set_terminated(run_id, status="FAILED")
        raise
    client.set_terminated(run_id)
    return run_id


def _experiment_id(client: MlflowClient, name: str, artifact_dir: str | Path) -> str:
    known = client.get_experiment_by_name(name)
    if known is not None:
        return known.experiment_id
    return client.create_experiment(name, artifact_location=Path(artifact_dir).resolve().as_uri())


def _metrics(summaries: Sequence[LoadSummary], knee: Knee) -> list[Metric]:
    now = int(time.time() * 1000)
    values = [
        (name, value, step)
        for step, summary in enumerate(summaries)
        for name, value in asdict(summary).items()
    ]
    values += [("knee_held_rps", knee.held_rps, 0), ("knee_broke_rps", knee.broke_rps, 0)]
    return [Metric(name, value, now, step) for name, value, step in values if value is not None]


def plot_sweep(
    summaries: Iterable[LoadSummary], slo: SLO, path: str | Path, *, knee: Knee | None = None
) -> None:
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
