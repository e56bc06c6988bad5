"""Runs for the load test's checks: on virtual time, on real time, and made-up records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from shared.grading.expect import fail, plain
from support.virtual_time import Deadlock, VirtualTimeLoop, run_virtually


def open_loop(
    main: Callable[[VirtualTimeLoop], Coroutine[Any, Any, Any]],
    *,
    raises: type[Exception] | None = None,
) -> list[dict[str, Any]]:
    """Run ``main(loop)``, which calls `run_open_loop`, on virtual time; its records as dicts.

    `raises`: an exception of `send` that must not come through.
    """
    try:
        records = plain(run_virtually(main))
    except Deadlock:
        fail(
            observed="run_open_loop waits for something that never comes",
            expected="a record for each arrival",
            why="A load test that hangs is ended by hand, and its records are lost.",
            hint="open-loop",
        )
    except BaseException as error:
        if raises is None or not _holds(error, raises):
            raise
        fail(
            observed=f"{type(error).__name__} out of run_open_loop, because one request failed",
            expected="a record for each arrival, also for the one that failed",
            why="Failures are what a load test looks for. One that stops at the first reports on "
            "the good days only.",
            hint="failures-are-data",
        )
    return _checked(records)


def run_slowly(coroutine: Coroutine[Any, Any, Any], *, seconds: float = 15.0) -> Any:
    """Run on an ordinary event loop; a failed check when that does not end."""

    async def limited() -> Any:
        return await asyncio.wait_for(coroutine, seconds)

    try:
        return asyncio.run(limited())
    except TimeoutError:
        fail(
            observed=f"run_open_loop did not come back within {seconds:.0f} s",
            expected="records, soon after the last answer",
            why="A load test that hangs is ended by hand, and its records are lost.",
            hint="open-loop",
        )


def record(
    due: float,
    *,
    latency: float,
    ttft: float | None = None,
    status: int = 200,
    finish_reason: str | None = "stop",
    error: str | None = None,
    sent_late: float = 0.0,
    output_tokens: int = 10,
) -> Any:
    """A `RequestRecord`; latency and ttft count from when it was due."""
    from records import RequestRecord

    return RequestRecord(
        scheduled_s=due,
        sent_s=due + sent_late,
        finished_s=due + latency,
        status=status,
        first_token_s=None if ttft is None else due + ttft,
        prompt_tokens=20,
        output_tokens=output_tokens if status == 200 else 0,
        finish_reason=finish_reason,
        error=error,
    )


def records_of_a_run(rng: Any) -> list[Any]:
    """200 answered requests with a long tail, sent late by a busy client, in no order."""
    due = rng.uniform(0, 20, size=200)
    ttft = rng.lognormal(-0.5, 1.0, size=200)
    rest = rng.lognormal(0.5, 1.0, size=200)
    return [
        record(
            float(d),
            ttft=float(t),
            latency=float(t + r),
            sent_late=float(0.4 * t),
            output_tokens=int(n),
        )
        for d, t, r, n in zip(due, ttft, rest, rng.integers(1, 60, size=200), strict=True)
    ]


def made_summary(
    learner: Any, rate: float, attained: float, *, throughput: float, answered: bool = True
) -> Any:
    """A `LoadSummary` with these numbers; the others are plausible."""
    wait = 0.3 + rate / 10 if answered else None
    names = [f"{kind}_p{q}_s" for kind in ("ttft", "latency") for q in (50, 95, 99)]
    return learner.LoadSummary(
        offered_rps=rate,
        requests=100,
        ok=100 if answered else 0,
        duration_s=100 / rate,
        throughput_rps=throughput,
        output_tokens_per_s=throughput * 12,
        goodput_rps=throughput * attained,
        slo_attainment=attained,
        **{name: None if wait is None else wait * (i + 1) for i, name in enumerate(names)},
    )


def _checked(records: Any) -> list[dict[str, Any]]:
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        fail(
            observed=f"run_open_loop gave {str(records)[:200]}",
            expected="a list of RequestRecord",
            why="Every figure of the load test is computed from these records.",
            hint="record-fields",
        )
    return records


def _holds(error: BaseException, kind: type[Exception]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_holds(inner, kind) for inner in error.exceptions)
    return isinstance(error, kind)
