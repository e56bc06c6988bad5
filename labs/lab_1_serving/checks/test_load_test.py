"""Task 1.4: open-loop arrivals, honest latencies, goodput, the knee, the log."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.engine_send import sender
from support.load_runs import (
    made_summary,
    open_loop,
    record,
    records_of_a_run,
    run_slowly,
)

from shared.grading.expect import (
    expect,
    expect_equal,
    expect_raises,
    fail,
    number,
    plain,
)
from shared.tracking import make_empty_store

QUANTILES = (50, 95, 99)


# Arrivals


def test_arrivals_come_at_the_asked_rate_within_the_run(learner, rng):
    rate, duration = float(rng.uniform(20, 60)), 100.0
    arrivals = plain(learner.poisson_arrivals(rate, duration, rng))
    expect(
        isinstance(arrivals, list)
        and all(isinstance(a, float) and 0 <= a < duration for a in arrivals)
        and arrivals == sorted(arrivals),
        observed=f"arrivals {str(arrivals)[:120]}",
        expected=f"ascending offsets in seconds, from 0 to below {duration}",
        why="The load test sends them in this order; an offset beyond the end makes the run "
        "longer than what you report.",
        hint="gaps-add-up",
    )
    want = rate * duration
    expect(
        abs(len(arrivals) - want) < 7 * math.sqrt(want),
        observed=f"{len(arrivals)} arrivals",
        expected=f"about {want:.0f}: {rate:.1f} per second for {duration:.0f} s",
        why="A load test that offers another rate than it says finds another knee.",
        hint="gaps-add-up",
    )


def test_gaps_between_arrivals_are_exponential(learner, rng):
    rate = float(rng.uniform(20, 60))
    gaps = np.diff(plain(learner.poisson_arrivals(rate, 100.0, rng)))
    spread = float(np.std(gaps) / np.mean(gaps))
    short = float(np.mean(gaps < 0.5 / rate))
    expect(
        0.85 < spread < 1.15 and abs(short - (1 - math.exp(-0.5))) < 0.07,
        observed=f"gaps whose standard deviation is {spread:.2f} times their mean; "
        f"{short:.0%} are shorter than half the mean",
        expected=f"as with independent users: 1.00 times, and {1 - math.exp(-0.5):.0%}",
        why="Real users come in clumps. Evenly spaced requests never queue below saturation, so "
        "the test shows a server that is fine until the very moment at which it is not.",
        hint="poisson",
    )


def test_the_first_arrival_is_drawn_like_the_others(learner, rng):
    runs = [plain(learner.poisson_arrivals(10.0, 2.0, rng)) for _ in range(400)]
    first = float(np.mean([run[0] for run in runs if run]))
    expect(
        0.65 < first * 10.0 < 1.35,
        observed=f"in 400 runs at 10 per s, a first arrival after {first:.3f} s on average",
        expected="about 0.1 s: the gap before the first one is a gap like any other",
        why="Every run that begins with a request at once offers one more than it says; short "
        "runs, of which a sweep has many, are then all too hard.",
        hint="poisson",
    )


def test_the_number_of_arrivals_varies_as_it_does_in_a_poisson_process(learner, rng):
    counts = [len(plain(learner.poisson_arrivals(10.0, 2.0, rng))) for _ in range(400)]
    ratio = float(np.var(counts) / np.mean(counts))
    expect(
        0.6 < ratio < 1.5,
        observed=f"in 400 runs, counts whose variance is {ratio:.2f} times their mean",
        expected="a variance that equals the mean, 1.00 times",
        why="Busy minutes are part of the load. Drawing a fixed number of requests takes them "
        "away.",
        hint="poisson",
    )


def test_the_same_generator_state_gives_the_same_arrivals(learner, seed):
    def draw() -> Any:
        return plain(learner.poisson_arrivals(25.0, 4.0, np.random.default_rng(seed)))

    expect_equal(
        draw(),
        draw(),
        what="arrivals drawn again from the same generator state",
        why="To compare two releases under the same load, you must be able to repeat the load.",
        hint="generator",
    )


def test_a_rate_or_duration_of_nothing_is_an_error(learner, rng):
    for rate, duration in ((0.0, 1.0), (-1.0, 1.0), (1.0, 0.0)):
        expect_raises(
            ValueError,
            lambda r=rate, d=duration: learner.poisson_arrivals(r, d, rng),
            doing=f"rate {rate} per s for {duration} s",
            why="A typo in a load test's settings should stop it, not hang it or offer nothing.",
            hint="generator",
        )


# The open loop


def test_an_arrival_never_waits_for_an_earlier_answer(learner, rng):
    arrivals = sorted(float(a) for a in rng.uniform(0, 3, size=60))
    in_flight = most = 0

    async def main(loop: Any) -> Any:
        nonlocal in_flight, most
        all_sent = asyncio.Event()

        async def send(index: int) -> Any:
            nonlocal in_flight, most
            in_flight += 1
            most = max(most, in_flight)
            if in_flight == len(arrivals):
                all_sent.set()
            # A server that answers nobody before it has heard all; or after an hour.
            with suppress(TimeoutError):
                await asyncio.wait_for(all_sent.wait(), 3600)
            in_flight -= 1
            return learner.Outcome(status=200, ttft_s=0.1, finish_reason="stop")

        return await learner.run_open_loop(send, arrivals, clock=loop.time)

    open_loop(main)
    expect(
        most == len(arrivals),
        observed=f"at most {most} of {len(arrivals)} requests on the way at the same time, though "
        "the server answered none",
        expected=f"all {len(arrivals)}: each sent when it was due",
        why="Users don't know that others are waiting. A test that holds requests back while the "
        "server stalls gives it a rest exactly when it needs none, and the outage leaves no trace.",
        hint="open-loop",
    )


def test_requests_are_sent_when_they_are_due(learner, rng):
    arrivals = sorted(float(a) for a in rng.uniform(0, 30, size=40))
    service = [float(s) for s in rng.uniform(0.1, 20, size=40)]

    async def main(loop: Any) -> Any:
        async def send(index: int) -> Any:
            await asyncio.sleep(service[index])
            return learner.Outcome(
                status=200,
                ttft_s=service[index] / 4,
                prompt_tokens=index,
                output_tokens=index + 1,
                finish_reason="stop",
                attempts=2,
            )

        return await learner.run_open_loop(send, arrivals, clock=loop.time)

    records = open_loop(main)
    want = [
        {
            "scheduled_s": due,
            "sent_s": due,
            "finished_s": due + takes,
            "status": 200,
            "first_token_s": due + takes / 4,
            "prompt_tokens": index,
            "output_tokens": index + 1,
            "finish_reason": "stop",
            "error": None,
            "attempts": 2,
        }
        for index, (due, takes) in enumerate(zip(arrivals, service, strict=True))
    ]
    for index, (got, expected) in enumerate(zip(records, want, strict=True)):
        expect_equal(
            got,
            expected,
            what=f"record {index} of a run on a client and server that are never late",
            why="Every figure of the load test is computed from these records.",
            hint="record-fields",
            abs_=1e-6,
        )


def test_latency_counts_from_when_a_request_was_due(learner, rng):
    arrivals, records, _ = _run_with_a_busy_client(learner, rng)
    late = [
        (due, r)
        for due, r in zip(arrivals, records, strict=True)
        if abs(r["scheduled_s"] - due) > 1e-6
    ]
    expect(
        not late,
        observed=f"{len(late)} of {len(records)} records whose scheduled_s is not their arrival; "
        + (f"one due at {late[0][0]:.3f} s says {late[0][1]['scheduled_s']:.3f} s" if late else ""),
        expected="scheduled_s equal to the arrival, also when the request could not be sent then",
        why="The user's wait begins when they want something. Counting from when the client got "
        "round to sending leaves out the wait itself: this is coordinated omission.",
        hint="due-not-sent",
    )


def test_the_schedule_is_kept_after_the_client_was_held_up(learner, rng):
    arrivals, records, (begin, end) = _run_with_a_busy_client(learner, rng)
    for due, got in zip(arrivals, records, strict=True):
        want = end if begin + 1e-6 < due < end else due
        expect_equal(
            number(got["sent_s"], what="sent_s"),
            want,
            what=f"sent_s of a request due at {due:.3f} s, where the client was busy from "
            f"{begin:.3f} s to {end:.3f} s,",
            why="A schedule that shifts by every delay offers less load the slower things get. "
            "Overdue requests go out at once, later ones at their own time.",
            hint="drift",
            abs_=1e-6,
        )


def test_a_failed_request_is_a_record_and_the_run_goes_on(learner, rng):
    arrivals = sorted(float(a) for a in rng.uniform(0, 5, size=12))
    broken = {int(i) for i in rng.choice(12, size=3, replace=False)}
    words = f"connection {rng.integers(1000)} refused"

    async def main(loop: Any) -> Any:
        async def send(index: int) -> Any:
            await asyncio.sleep(0.5)
            if index in broken:
                raise ConnectionError(words)
            return learner.Outcome(status=200, ttft_s=0.1, finish_reason="stop")

        return await learner.run_open_loop(send, arrivals, clock=loop.time)

    records = open_loop(main, raises=ConnectionError)
    got = {i for i, r in enumerate(records) if r["status"] == 0 and words in str(r["error"])}
    expect(
        len(records) == 12 and got == broken,
        observed=f"{len(records)} records; with status 0 and the error's words: {sorted(got)}",
        expected=f"12 records, and of these the failed ones: {sorted(broken)}",
        why="Failures are what a load test looks for. One that stops at the first, or drops it, "
        "reports on the good days only.",
        hint="failures-are-data",
    )


def test_a_stall_shows_in_the_latencies_of_all_who_waited(learner):
    stall, arrivals = 0.6, [i * 0.01 for i in range(120)]

    async def main() -> Any:
        turn = asyncio.Lock()

        async def send(index: int) -> Any:
            async with turn:
                await asyncio.sleep(stall if index == 30 else 0)
            return learner.Outcome(status=200, ttft_s=0.0, finish_reason="stop")

        return plain(await learner.run_open_loop(send, arrivals))

    records = run_slowly(main())
    waited = sum(r["finished_s"] - r["scheduled_s"] > stall / 6 for r in records)
    expect(
        waited >= 25,
        observed=f"{waited} of 120 requests waited longer than a sixth of the stall, on a real "
        f"event loop where the server stood still for {stall} s",
        expected="at least 25: all who arrived in the first five sixths of it",
        why="Every user who came during the stall waited. A test that counts one of them has a "
        "fine 99th percentile and an angry public.",
        hint="open-loop",
    )


# Numbers


def test_percentile_is_the_nearest_rank(learner, rng):
    for size in (1, 2, 3, 4, 10, 99, 100, 101, 250):
        values = [round(float(v), 3) for v in rng.lognormal(0, 1.2, size=size)]
        ordered = sorted(values)
        for q in (0, 1, 25, 50, 75, 90, 95, 99, 100):
            rank = max(1, math.ceil(Fraction(q) * size / 100))
            if not _no_rounding_at(q, size, ordered[rank - 1]):
                continue
            got = number(learner.percentile(values, q), what=f"percentile {q}", hint="nearest-rank")
            expect_equal(
                got,
                ordered[rank - 1],
                what=f"percentile {q} of {size} values",
                why="A mean, a value between two others or the neighbour's value is a latency "
                "that nobody had. In the tail, one place is the difference between pass and fail.",
                hint="nearest-rank",
            )


def test_a_percentile_of_nothing_is_an_error(learner):
    for values, q in (([], 50), ([1.0, 2.0], 101), ([1.0, 2.0], -1)):
        expect_raises(
            ValueError,
            lambda v=values, q=q: learner.percentile(v, q),
            doing=f"percentile({values}, {q})",
            why="A dashboard that shows 0 where there was no traffic shows a perfect service.",
            hint="no-values",
        )


def test_summary_has_percentiles_of_ttft_and_latency_not_means(learner, rng):
    records, slo = records_of_a_run(rng), _slo(rng)
    got = _summary(learner, records, slo)
    for name, values in _waits(records).items():
        for q, rank in zip(QUANTILES, (100, 190, 198), strict=True):
            expect_equal(
                got[f"{name}_p{q}_s"],
                sorted(values)[rank - 1],
                what=f"{name}_p{q}_s of 200 answered requests",
                why="Latencies have a long tail. The mean hides it, and counting from when a "
                "request was sent, not from when it was due, cuts it off.",
                hint="percentile-not-mean",
                rel=1e-9,
            )


def test_failed_requests_do_not_count_as_fast_ones(learner, rng):
    records, slo = records_of_a_run(rng), _slo(rng)
    failures = [
        record(float(at), latency=0.002, status=int(status), finish_reason=None, error="refused")
        for at, status in zip(rng.uniform(0, 20, 300), rng.choice([0, 429, 503], 300), strict=True)
    ]
    broken = [
        record(float(at), latency=0.05, ttft=0.01, finish_reason=None, error="stream broke off")
        for at in rng.uniform(0, 20, 100)
    ]
    mixed = [*records, *failures, *broken]
    rng.shuffle(mixed)
    before = _summary(learner, records, slo)
    after = _summary(learner, mixed, slo)
    names = [f"{kind}_p{q}_s" for kind in ("ttft", "latency") for q in QUANTILES]
    expect_equal(
        {name: after[name] for name in [*names, "ok"]},
        {name: before[name] for name in [*names, "ok"]},
        what="percentiles and ok, after 300 quick refusals and 100 broken streams were added",
        why="A refusal takes two milliseconds. Counted as a latency, it makes an outage look "
        "like the best hour of the week.",
        hint="failures-are-not-fast",
        rel=1e-9,
    )
    expect_equal(
        after["requests"],
        len(mixed),
        what="requests",
        why="The failed ones were asked for too.",
        hint="failures-are-not-fast",
    )


def test_rates_are_over_the_time_until_the_last_answer(learner, rng):
    records = records_of_a_run(rng)
    first = float(rng.uniform(1, 3))
    last = max(r.finished_s for r in records) + first + float(rng.uniform(10, 20))
    # A run that begins with a pause and ends with a backlog.
    records = [_moved(r, first) for r in records]
    slowest = max(records, key=lambda r: r.scheduled_s)
    records[records.index(slowest)] = _moved(slowest, 0, finished_s=last)
    got = _summary(learner, records, _slo(rng))
    want = {
        "duration_s": last,
        "throughput_rps": len(records) / last,
        "output_tokens_per_s": sum(r.output_tokens for r in records) / last,
    }
    arrivals = [r.scheduled_s for r in records]
    expect_equal(
        {name: got[name] for name in want},
        want,
        what=f"rates of a run whose arrivals span {min(arrivals):.2f} s to {max(arrivals):.2f} s "
        f"and whose last answer came at {last:.2f} s",
        why="A server with a backlog still has work when the last user has come. Dividing by the "
        "arrivals' time credits it with answers that it had not given yet.",
        hint="until-the-last-answer",
        rel=1e-9,
    )


def test_goodput_counts_only_what_met_the_slo(learner, rng):
    records = records_of_a_run(rng)
    whole = ("stop",)
    slo = _slo(rng, ttft_s=5.0, latency_s=10.0, finish_reasons=whole)
    good = [r for r in records if r.ttft_s <= 5.0 and r.latency_s <= 10.0]
    cases = {
        "refused": record(1.0, latency=0.01, status=503, finish_reason=None, error="no room"),
        "broken off": record(1.0, latency=1.0, ttft=0.5, finish_reason=None),
        "ended with an error": record(1.0, latency=1.0, ttft=0.5, error="decode failed"),
        "cut at its token limit": record(1.0, latency=1.0, ttft=0.5, finish_reason="length"),
        "late at its first token": record(1.0, latency=6.0, ttft=5.5),
        "late at its end": record(1.0, latency=11.0, ttft=0.5),
        "sent late": record(1.0, latency=11.0, ttft=5.5, sent_late=5.4),
        "without any content": record(1.0, latency=1.0, ttft=None),
    }
    for case, bad in cases.items():
        run = [*records, *[bad] * 50]
        duration = max(r.finished_s for r in run)
        got = _summary(learner, run, slo)
        expect_equal(
            {name: got[name] for name in ("slo_attainment", "goodput_rps")},
            {"slo_attainment": len(good) / len(run), "goodput_rps": len(good) / duration},
            what=f"goodput of {len(records)} requests, {len(good)} of them good, and 50 more that "
            f"were {case},",
            why="Goodput is what users got. A server that answers fast and badly has throughput.",
            hint="goodput",
            rel=1e-9,
        )
    run = [*records, *[cases["cut at its token limit"]] * 50]
    got = _summary(learner, run, _slo(rng, ttft_s=5.0, latency_s=10.0))
    expect_equal(
        got["slo_attainment"],
        (len(good) + 50) / len(run),
        what="slo_attainment with 50 answers cut at their limit, where the SLO allows 'length',",
        why="Whether a cut answer is of use is for the SLO to say, not for the code.",
        hint="goodput",
        rel=1e-9,
    )


def test_a_run_without_an_answer_has_no_percentiles(learner, rng):
    records = [
        record(float(at), latency=0.01, status=503, finish_reason=None, error="no room")
        for at in rng.uniform(0, 5, 20)
    ]
    got = _summary(learner, records, _slo(rng))
    names = [f"{kind}_p{q}_s" for kind in ("ttft", "latency") for q in QUANTILES]
    expect_equal(
        {name: got[name] for name in [*names, "ok", "slo_attainment", "throughput_rps"]},
        {**dict.fromkeys(names), "ok": 0, "slo_attainment": 0.0, "throughput_rps": 0.0},
        what="summary of 20 refusals",
        why="0 s would be the best latency ever measured. None says that there was none.",
        hint="no-values",
    )
    expect_raises(
        ValueError,
        lambda: learner.summarize([], _slo(rng), offered_rps=1.0),
        doing="no records",
        why="Nothing measured must not look like something measured.",
        hint="no-values",
    )


def test_the_knee_is_where_goodput_stops_to_follow(learner, rng):
    rates = [float(r) for r in np.cumsum(rng.uniform(1, 4, size=6))]
    # Throughput goes on growing while users already wait too long.
    shapes = {
        "goodput falls behind in the middle": ([1, 0.98, 0.93, 0.7, 0.4, 0.1], (2, 3), 0.9),
        "all rates hold": ([1, 1, 0.99, 0.98, 0.95, 0.92], (5, None), 0.9),
        "no rate holds": ([0.8, 0.7, 0.5, 0.2, 0.1, 0.0], (None, 0), 0.9),
        "one rate above the break holds by luck": ([1, 0.97, 0.6, 0.94, 0.3, 0.1], (1, 2), 0.9),
        "the bar is higher": ([1, 0.98, 0.93, 0.7, 0.4, 0.1], (0, 1), 0.99),
    }
    for case, (attained, (held, broke), share) in shapes.items():
        summaries = [
            made_summary(learner, rate, share_met, throughput=rate * (0.99 - 0.08 * i))
            for i, (rate, share_met) in enumerate(zip(rates, attained, strict=True))
        ]
        rng.shuffle(summaries)
        knee = plain(learner.find_knee(summaries, share=share))
        expect_equal(
            knee,
            {
                "held_rps": None if held is None else rates[held],
                "broke_rps": None if broke is None else rates[broke],
            },
            what=f"knee where {case} (share {share}, rates "
            f"{', '.join(f'{r:.1f}' for r in rates)}, attained {attained}), given in any order,",
            why="Beyond the knee a server still answers more per second, but too late. Who plans "
            "capacity by the highest throughput plans for an outage.",
            hint="knee",
            rel=1e-9,
        )
    expect_raises(
        ValueError,
        lambda: learner.find_knee([]),
        doing="no summaries",
        why="A sweep that measured nothing has no knee, and no lack of one.",
        hint="no-values",
    )


@pytest.mark.limit(60)
def test_a_sweep_is_logged_to_mlflow_with_its_records_and_plot(learner, rng, tmp_path):
    from mlflow import MlflowClient

    slo = _slo(rng)
    sweep = []
    for rate, attained in ((8.0, 0.6), (2.5, 0.97), (5.0, 0.93)):
        records = records_of_a_run(rng)[: int(rng.integers(20, 40))]
        sweep.append((made_summary(learner, rate, attained, throughput=rate), records))
    hollow = made_summary(learner, 11.0, 0.0, throughput=0.0, answered=False)
    sweep.insert(1, (hollow, [record(1.0, latency=0.1, status=503, finish_reason=None)]))
    here = sorted(os.listdir())
    uri, folder = make_empty_store(tmp_path / "mlflow.db"), tmp_path / "artifacts"
    params = {"model": "smollm2", "max_tokens": int(rng.integers(8, 64))}

    def log() -> Any:
        return learner.log_sweep(
            sweep,
            slo,
            tracking_uri=uri,
            experiment="load",
            artifact_dir=folder,
            params=params,
        )

    run_ids = [plain(log()), plain(log())]
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("load")
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    expect_equal(
        sorted(run.info.run_id for run in found),
        sorted(map(str, run_ids)),
        what="runs in the experiment 'load' after two calls, against the ids returned",
        why="A run that cannot be found by its id cannot be compared with the next release.",
        hint="mlflow-run",
    )
    run = client.get_run(run_ids[-1])
    expect_equal(
        run.info.status,
        "FINISHED",
        what="status of the run",
        why="A run that still says RUNNING cannot be told from one that crashed.",
        hint="mlflow-run",
    )
    want = {**params, "slo_ttft_s": slo.ttft_s, "slo_latency_s": slo.latency_s}
    expect_equal(
        dict(run.data.params),
        {name: str(value) for name, value in want.items()},
        what="parameters of the run",
        why="A number without its conditions can't be compared with anything.",
        hint="mlflow-params",
    )
    ordered = sorted(sweep, key=lambda pair: pair[0].offered_rps)
    for name in plain(ordered[0][0]):
        history = sorted(client.get_metric_history(run_ids[-1], name), key=lambda m: m.step)
        expect_equal(
            [[m.step, m.value] for m in history],
            [
                [step, float(value)]
                for step, (s, _) in enumerate(ordered)
                if (value := plain(s)[name]) is not None
            ],
            what=f"[step, value] of the metric {name}",
            why="One point a rate makes a curve that MLflow can draw. Without steps only the "
            "last one is left.",
            hint="mlflow-steps",
            rel=1e-9,
        )
    knee = {k: v for k, v in run.data.metrics.items() if k.startswith("knee_")}
    expect_equal(
        knee,
        {"knee_held_rps": 5.0, "knee_broke_rps": 8.0},
        what="metrics of the knee",
        why="The knee is the number that people will ask for.",
        hint="mlflow-steps",
    )
    names = {a.path for f in (None, "records") for a in client.list_artifacts(run_ids[-1], f)}
    wanted = {"sweep.png", "records", *(f"records/step_{i}.jsonl" for i in range(len(ordered)))}
    expect(
        wanted <= names,
        observed=f"artifacts {sorted(names)}",
        expected=f"artifacts {sorted(wanted)}",
        why="Percentiles can't be taken apart again. With the records, the next question can be "
        "answered without a new test.",
        hint="mlflow-artifacts",
    )
    _expect_artifacts(folder, ordered)
    expect(
        sorted(os.listdir()) == here,
        observed=f"new in the current directory: {sorted(set(os.listdir()) - set(here))}",
        expected=f"artifacts under {folder.name}/, and nothing in the current directory",
        why="Artifacts that land wherever the command was started are lost at the next clean-up.",
        hint="mlflow-artifacts",
    )


# The running engine


@pytest.mark.limit(240)
def test_live_records_agree_with_the_engines_own_counters(learner, engine, rng, figure, store):
    slo, sweep = _slo(rng, ttft_s=2.0, latency_s=6.0), []
    alone_s = _seconds_of_one_request(learner, engine)
    # As many requests on a slow machine as on a quick one: below what it can do, and above.
    for rate, wanted in ((0.5 / alone_s, 5), (3.0 / alone_s, 12)):
        arrivals = []
        while len(arrivals) < 3:
            arrivals = plain(learner.poisson_arrivals(rate, wanted / rate, rng))
        records, received, made = _offered(learner, engine, arrivals)
        seen = sum(r.output_tokens for r in records)
        expect_equal(
            seen,
            received,
            what=f"output tokens in the records of {len(records)} requests, against what send "
            "has returned,",
            why="A record that loses or doubles an answer makes throughput and cost wrong.",
            hint="engine-counters",
        )
        # Others may use the engine too, so it may have made more than these requests asked for.
        expect(
            made >= 0.98 * seen,
            observed=f"{seen} output tokens in the records of {len(records)} requests, and {made} "
            "made in that time by the engine's own count on its Prometheus page",
            expected="no more in the records than the engine has made, within 2 %",
            why="Two counts of one thing that differ mean that one of them is not to be trusted, "
            "mostly the client's.",
            hint="engine-counters",
        )
        figure(f"tokens by the engine's count at {rate:.2g} requests/s", made, reference=seen)
        sweep.append((learner.summarize(records, slo, offered_rps=rate), records))
        got = plain(sweep[-1][0])
        expect(
            got["ok"] == len(records) == len(arrivals),
            observed=f"{len(records)} records, {got['ok']} of them ok, of {len(arrivals)} arrivals",
            expected="all arrivals answered",
            why="The engine queues what it has no room for, so a few short requests all get "
            "their answer.",
            hint="failures-are-data",
        )
        figure(f"TTFT p50 at {rate:.2g} requests/s", got["ttft_p50_s"], unit="s")
        figure(f"tokens/s at {rate:.2g} requests/s", got["output_tokens_per_s"], unit="tokens/s")
    learner.log_sweep(
        sweep,
        slo,
        tracking_uri=store.uri,
        experiment="lab 1: load test",
        artifact_dir=store.artifacts,
        params={"model": engine.model, "engine": engine.kind},
    )


# What the checks above stand on


def _run_with_a_busy_client(
    learner: Any, rng: Any
) -> tuple[list[float], list[dict[str, Any]], tuple[float, float]]:
    """A run in which the client's event loop is kept busy once; when, and the records."""
    arrivals = sorted(float(a) for a in rng.uniform(0, 20, size=80))
    held_up_by, seconds = int(rng.integers(20, 40)), float(rng.uniform(3, 6))
    # The next request comes a little later, so that it is plain who was held up.
    arrivals[held_up_by + 1 :] = [a + 0.01 for a in arrivals[held_up_by + 1 :]]
    busy = (0.0, 0.0)

    async def main(loop: Any) -> Any:
        nonlocal busy

        async def send(index: int) -> Any:
            nonlocal busy
            if index == held_up_by:
                began = loop.time()
                loop.block(seconds)
                busy = (began, loop.time())
            await asyncio.sleep(0.05)
            return learner.Outcome(status=200, ttft_s=0.01, finish_reason="stop")

        return await learner.run_open_loop(send, arrivals, clock=loop.time)

    return arrivals, open_loop(main), busy


def _slo(rng: Any, **parts: Any) -> Any:
    from records import SLO

    defaults = {
        "ttft_s": float(rng.uniform(0.5, 2)),
        "latency_s": float(rng.uniform(3, 8)),
    }
    return SLO(**{**defaults, **parts})


def _summary(learner: Any, records: list[Any], slo: Any) -> dict[str, Any]:
    got = plain(learner.summarize(records, slo, offered_rps=10.0))
    if not isinstance(got, dict) or got.get("offered_rps") != 10.0:
        fail(
            observed=f"summarize gave {str(got)[:200]}",
            expected="a LoadSummary with offered_rps=10.0",
            why="The sweep is ordered and plotted by it.",
            hint="record-fields",
        )
    return got


def _waits(records: list[Any]) -> dict[str, list[float]]:
    return {
        "ttft": [r.first_token_s - r.scheduled_s for r in records],
        "latency": [r.finished_s - r.scheduled_s for r in records],
    }


def _moved(r: Any, seconds: float, finished_s: float | None = None) -> Any:
    return replace(
        r,
        scheduled_s=r.scheduled_s + seconds,
        sent_s=r.sent_s + seconds,
        first_token_s=r.first_token_s + seconds,
        finished_s=r.finished_s + seconds if finished_s is None else finished_s,
    )


def _no_rounding_at(q: int, size: int, value: float) -> bool:
    """Whether every sane way to compute the rank in floating point gives the same one."""
    rank = max(1, math.ceil(Fraction(q) * size / 100))
    ways = (q * size / 100, q / 100 * size, size * (q / 100))
    positions = np.arange(1, size + 1, dtype=float)
    numpys = float(np.percentile(positions, q, method="inverted_cdf"))
    return numpys == rank and all(max(1, math.ceil(way)) == rank for way in ways)


def _expect_artifacts(folder: Path, ordered: list[Any]) -> None:
    for step, (_, records) in enumerate(ordered):
        files = sorted(folder.rglob(f"step_{step}.jsonl"))
        lines = [len(f.read_text().splitlines()) for f in files]
        keys = sorted(json.loads(files[0].read_text().splitlines()[0])) if files else []
        expect(
            lines == [len(records)] * 2 and keys == sorted(plain(records[0])),
            observed=f"files step_{step}.jsonl under artifact_dir with {lines} lines",
            expected=f"one for each of the two runs, with {len(records)} records each",
            why="Records under another rate's name turn the next analysis upside down.",
            hint="mlflow-artifacts",
        )
    plots = [f.read_bytes() for f in folder.rglob("sweep.png")]
    expect(
        len(plots) == 2 and all(p.startswith(b"\x89PNG") and len(p) > 5000 for p in plots),
        observed=f"{len(plots)} plots, of {[len(p) for p in plots]} bytes",
        expected="a PNG for each of the two runs, as plot_sweep draws it",
        why="A curve is understood at a glance, a table of percentiles is not.",
        hint="mlflow-artifacts",
    )


def _offered(learner: Any, engine: Any, arrivals: list[float]) -> tuple[list[Any], int, int]:
    """A run against the engine: records, tokens that `send` has returned, tokens made."""
    received = 0

    async def main() -> Any:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(trust_env=False, timeout=90, limits=limits) as http:
            send = sender(http, engine, learner.Outcome, max_tokens=6)

            async def counted(index: int) -> Any:
                nonlocal received
                outcome = await send(index)
                received += outcome.output_tokens
                return outcome

            return await learner.run_open_loop(counted, arrivals)

    before = engine.counters().generated_tokens
    records = run_slowly(main(), seconds=100)
    # The engine's page may lag behind its answers a little.
    for _ in range(50):
        if (made := engine.counters().generated_tokens - before) >= received:
            break
        time.sleep(0.1)
    return records, received, made


def _seconds_of_one_request(learner: Any, engine: Any) -> float:
    """How long one takes on this machine now, within bounds that keep the check short."""
    for _ in range(2):  # the first one warms the engine up
        began = time.perf_counter()
        _offered(learner, engine, [0.0])
        took = time.perf_counter() - began
    return min(max(took, 0.1), 1.5)
