"""Checks of task 1.7: the learner's rule is tried on servers that it has not seen.

The servers are simulated (see `support/server_population.py`); the live check takes its records
from the real engine. Of each kind there are so many that the grade is no matter of luck: the
reference decides more than 99 of 100 servers of every kind rightly, and 9 of 10 are asked for.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from support.scripted_upstream import STREAM_HEADERS, Exchange, ScriptedUpstream
from support.server_population import Server, bad_server, good_server, unlucky_server

from shared.engine import EngineError
from shared.grading.expect import expect, expect_equal, fail, plain

GOOD, BAD_OF_EACH, SHORT = 60, 24, 30
VERDICTS = ("release", "block", "need_more_data")


def test_a_decision_is_a_verdict_with_its_reasons(learner, rng):
    promise = learner.Promise(slo=given().SLO(ttft_s=1.0, latency_s=10.0))
    fine = [record(i) for i in range(12_000)]
    lost = [record(i, status=503, finish_reason=None, output_tokens=0) for i in range(12_000)]
    for records, verdict, case in (
        ([], "need_more_data", "a run without a single request"),
        (fine, "release", "12,000 requests, all answered whole and in time"),
        (lost, "block", "12,000 requests, all answered with 503"),
        (tuple(fine), "release", "the same as a tuple"),
    ):
        before = list(records)
        decision = learner.decide(records, promise)
        verdict_got, reasons = read(decision)
        expect_equal(
            verdict_got,
            verdict,
            what=f"verdict on {case}",
            why="A rule that misses the plain cases is no gate.",
            hint="plain-cases",
        )
        expect(
            verdict == "release" or any(r.strip() for r in reasons),
            observed=f"reasons {reasons!r} for {verdict!r} on {case}",
            expected="at least one sentence",
            why="Somebody has to act on it at night. 'Blocked' alone gets the gate switched off.",
            hint="reasons",
        )
        expect(
            list(records) == before,
            observed=f"other records after the call than before it, on {case}",
            expected="records left as they were",
            why="The same records go into the report next.",
        )


def test_too_few_requests_are_neither_released_nor_blocked(learner, rng, figure):
    judged = Judged(learner, [good_server(learner, rng, short=True) for _ in range(SHORT)])
    figure("asked for more on short runs", judged.share("need_more_data"), reference=1.0)
    expect_abstains(judged, "good servers whose runs are too short to tell", "too-few")
    judged = Judged(learner, [unlucky_server(learner, rng) for _ in range(SHORT)])
    expect_abstains(
        judged, "good servers with one late or failed request in a short run", "one-of-few"
    )

    for kind in ("errors", "a terrible tail", "error bursts"):
        shorts = [bad_server(learner, rng, kind, short=True) for _ in range(SHORT // 3)]
        judged = Judged(learner, shorts)
        expect(
            judged.counts["release"] == 0,
            observed=f"{judged.counts['release']} of {len(shorts)} servers with {kind} released "
            f"after a short run, such as {judged.example('release')}",
            expected="'need_more_data', or 'block' where the breach is plain",
            why="A run that cannot show the promise kept must not release anything.",
            hint="too-few",
        )


def test_good_servers_are_released(learner, rng, figure):
    judged = Judged(learner, [good_server(learner, rng) for _ in range(GOOD)])
    figure("good servers blocked", judged.share("block"), reference=0.0)
    figure("good servers released", judged.share("release"), reference=1.0)
    expect(
        judged.share("block") <= 0.05,
        observed=f"{judged.counts['block']} of {GOOD} good servers blocked, such as "
        f"{judged.example('block')}",
        expected=f"at most {int(0.05 * GOOD)}",
        why="A gate that stops good releases is soon gone around, and then it stops nothing.",
        hint="false-blocks",
    )
    expect(
        judged.share("release") >= 0.9,
        observed=f"{judged.counts['need_more_data']} of {GOOD} good servers with long runs sent "
        f"back for more data, such as {judged.example('need_more_data')}",
        expected=f"at least {math.ceil(0.9 * GOOD)} released",
        why="Every load test costs hours. A gate that always asks for another one never opens.",
        hint="enough",
    )


def test_servers_with_slow_first_tokens_are_blocked(learner, rng, figure):
    expect_blocked(
        learner,
        rng,
        figure,
        "slow first tokens",
        why="Users judge by the first token. A fast total does not help who has left by then.",
        hint="first-token",
    )


def test_servers_with_a_terrible_tail_are_blocked(learner, rng, figure):
    expect_blocked(
        learner,
        rng,
        figure,
        "a terrible tail",
        why="A mean hides it. A user with twenty requests a day meets a 4 % tail nearly daily.",
        hint="tail",
    )


def test_servers_that_fail_too_often_are_blocked(learner, rng, figure):
    expect_blocked(
        learner,
        rng,
        figure,
        "errors",
        why="Failed requests are fast. They improve every latency figure they are counted in.",
        hint="failures",
    )


def test_servers_whose_answers_are_not_whole_are_blocked(learner, rng, figure):
    expect_blocked(
        learner,
        rng,
        figure,
        "truncated answers",
        why="Status 200 and half a contract clause: the caller does not notice, the customer does.",
        hint="whole",
    )
    expect_blocked(
        learner,
        rng,
        figure,
        "broken streams",
        why="A stream that broke off said 200 when it began. Only its end tells the truth.",
        hint="whole",
    )
    expect_blocked(
        learner,
        rng,
        figure,
        "empty answers",
        why="An empty answer is the fastest there is, and worth nothing.",
        hint="empty",
    )


def test_servers_whose_requests_time_out_are_blocked(learner, rng, figure):
    expect_blocked(
        learner,
        rng,
        figure,
        "time-outs",
        why="Those who waited longest have no answer to time. Leave them out and the slowest "
        "server looks fast.",
        hint="survivors",
    )


def test_servers_with_an_outage_inside_a_fine_average_are_blocked(learner, rng, figure):
    expect_blocked(
        learner,
        rng,
        figure,
        "error bursts",
        why="Ten failures in a row are an outage for whoever was there. Averaged over a day they "
        "are a rounding error.",
        hint="burst",
    )


def test_servers_that_get_slower_are_blocked(learner, rng, figure):
    expect_blocked(
        learner,
        rng,
        figure,
        "getting slower",
        why="Production goes on from where the run ended. What has slowed down by then gets worse.",
        hint="slower",
    )


@pytest.mark.limit(240)
def test_the_real_engine_passes_and_a_spoilt_one_does_not(learner, rng, engine, figure):
    straight = asyncio.run(load(engine, engine.root_url))
    firsts = [r.ttft_s for r in straight if r.ok and r.ttft_s is not None]
    if len(firsts) < 0.95 * len(straight):
        raise EngineError(
            f"The engine answered only {len(firsts)} of {len(straight)} short chats. Is this "
            "machine busy with something else?"
        )
    # A promise that this very run keeps, however busy the machine is.
    slo = given().SLO(
        ttft_s=1.25 * max(firsts),
        latency_s=4 * max(r.latency_s for r in straight),
    )
    promise = learner.Promise(slo, ttft_share=0.65, latency_share=0.65, whole_share=0.65)

    async def spoilt(spoil: Callable[[Exchange, int], Any]) -> list[Any]:
        counted = [0]

        async def relay(exchange: Exchange) -> None:
            counted[0] += 1
            await spoil(exchange, counted[0])

        with ScriptedUpstream(relay) as proxy:
            return await load(engine, proxy.url, at_once=44)

    async def pass_on(exchange: Exchange, *, last_event: bool = True) -> None:
        async with (
            httpx.AsyncClient(trust_env=False, timeout=100.0) as client,
            client.stream(
                "POST",
                engine.root_url + exchange.request.target,
                content=exchange.request.body,
                headers={"content-type": "application/json"},
            ) as response,
        ):
            await exchange.head(response.status_code, STREAM_HEADERS)
            async for line in response.aiter_lines():
                if not last_event and '"finish_reason":' in line.replace(" ", "").replace(
                    '"finish_reason":null', ""
                ):
                    await exchange.drop()
                if line:
                    await exchange.chunk(line.encode() + b"\n\n")
            await exchange.chunk(b"")

    async def delays(exchange: Exchange, number: int) -> None:
        if number % 8:
            await asyncio.sleep(slo.ttft_s * 1.05)
        await pass_on(exchange)

    async def fails(exchange: Exchange, number: int) -> None:
        if number % 8:
            await exchange.whole(503, b'{"error": {"message": "no capacity left"}}')
        else:
            await pass_on(exchange)

    async def breaks_off(exchange: Exchange, number: int) -> None:
        await pass_on(exchange, last_event=number % 8 == 0)

    expect_verdict(
        learner, straight, promise, "release", "the real engine, against a promise that it kept"
    )
    cases = {
        "the real engine behind a proxy that delays seven first tokens of eight": delays,
        "the real engine behind a proxy that answers seven requests of eight with 503": fails,
        "the real engine behind a proxy that breaks off seven streams of eight": breaks_off,
    }

    async def all_spoilt() -> list[list[Any]]:
        return await asyncio.gather(*(spoilt(spoil) for spoil in cases.values()))

    for what, records in zip(cases, asyncio.run(all_spoilt()), strict=True):
        expect_verdict(learner, records, promise, "block", what)


def given() -> Any:
    """The given module `records`, as the learner's file sees it."""
    return importlib.import_module("records")


def record(number: int, **changes: Any) -> Any:
    """A good request, due half a second after the one before, with changes."""
    due = number * 0.5
    values: dict[str, Any] = {
        "scheduled_s": due,
        "sent_s": due,
        "finished_s": due + 2.0,
        "status": 200,
        "first_token_s": due + 0.3 if changes.get("status", 200) == 200 else None,
        "prompt_tokens": 50,
        "output_tokens": 40,
        "finish_reason": "stop",
    }
    return given().RequestRecord(**values | changes)


def read(decision: Any) -> tuple[str, list[str]]:
    """A decision's verdict and reasons as plain values."""
    values = plain(decision)
    if not isinstance(values, dict) or not {"verdict", "reasons"} <= set(values):
        fail(
            observed=f"{type(decision).__name__} from decide()",
            expected="a Decision",
            why="The pipeline reads its verdict and shows its reasons.",
            hint="plain-cases",
        )
    verdict_got, reasons = values["verdict"], values["reasons"]
    if verdict_got not in VERDICTS:
        fail(
            observed=f"the verdict {verdict_got!r}",
            expected=f"one of {VERDICTS}",
            why="The pipeline knows three ways to go on, and no fourth.",
            hint="plain-cases",
        )
    if not isinstance(reasons, list) or any(type(r) is not str for r in reasons):
        fail(
            observed=f"reasons {reasons!r}",
            expected="a tuple of strings, one sentence each",
            why="They are shown as a list. A single string is shown letter by letter.",
            hint="reasons",
        )
    return verdict_got, reasons


class Judged:
    """What the learner's rule says of some servers.

    Attributes:
        counts: how many got each verdict.
    """

    def __init__(self, learner: Any, servers: list[Server]) -> None:
        self._all = [(s, *read(learner.decide(s.records, s.promise))) for s in servers]
        self.counts = Counter(verdict for _, verdict, _ in self._all)

    def share(self, verdict: str) -> float:
        """The share of servers that got this verdict."""
        return self.counts[verdict] / len(self._all)

    def example(self, *verdicts: str) -> str:
        """The first server with one of these verdicts, its promise, and the rule's reasons."""
        found = [case for case in self._all if case[1] in verdicts]
        if not found:
            return "none"
        server, verdict, reasons = found[0]
        p = server.promise
        return (
            f"this one, with {verdict!r}: {server.story} (promised shares: first token "
            f"{p.ttft_share:g}, latency {p.latency_share:g}, whole {p.whole_share:g}; at most "
            f"{p.outage_failures} failures in {p.outage_window}; whole means "
            f"{' or '.join(p.slo.finish_reasons)}). Your reasons: "
            f"{' '.join(reasons)[:300] or 'none'}"
        )


def expect_abstains(judged: Judged, what: str, hint: str) -> None:
    """Fail unless nearly all verdicts ask for more data."""
    expect(
        judged.share("need_more_data") >= 0.9,
        observed=f"{judged.counts['release']} released and {judged.counts['block']} blocked, of "
        f"{judged.counts.total()} {what}, such as {judged.example('release', 'block')}",
        expected=f"'need_more_data' for at least {math.ceil(0.9 * judged.counts.total())}",
        why="Thirty requests without a failure look the same at 0 % and at 5 % failures. A verdict "
        "on them is a coin toss that somebody will believe.",
        hint=hint,
    )


def expect_blocked(
    learner: Any, rng: np.random.Generator, figure: Any, kind: str, *, why: str, hint: str
) -> None:
    """Fail unless nine of ten servers of that bad kind are blocked."""
    judged = Judged(learner, [bad_server(learner, rng, kind) for _ in range(BAD_OF_EACH)])
    figure(f"blocked: {kind}", judged.share("block"), reference=1.0)
    expect(
        judged.share("block") >= 0.9,
        observed=f"{judged.counts['block']} of {BAD_OF_EACH} servers with {kind} blocked. Missed "
        f"was, for one, {judged.example('release', 'need_more_data')}",
        expected=f"at least {math.ceil(0.9 * BAD_OF_EACH)} blocked",
        why=why,
        hint=hint,
    )


def expect_verdict(learner: Any, records: list[Any], promise: Any, wanted: str, what: str) -> None:
    """Fail unless the rule says that of records from a live run."""
    got, reasons = read(learner.decide(records, promise))
    failed = sum(not r.ok for r in records)
    slo = promise.slo
    late = sum(r.ttft_s is None or r.ttft_s > slo.ttft_s for r in records)
    expect(
        got == wanted,
        observed=f"{got!r} ({'; '.join(reasons)[:300]}) for {what}: {len(records)} requests, "
        f"{failed} failed, {late} without a first token in time",
        expected=f"{wanted!r} under a promise of {promise.ttft_share:.0%}; {len(records)} requests "
        "are more than 10 / a",
        why="What holds for simulated servers has to hold for the one you run.",
        hint="live",
    )


async def load(engine: Any, root_url: str, count: int = 44, at_once: int = 8) -> list[Any]:
    """Send `count` short chats, `at_once` at a time, and write down what came of them."""
    start = time.monotonic()
    limit = asyncio.Semaphore(at_once)

    async def one(client: httpx.AsyncClient, number: int) -> Any:
        async with limit:
            sent = time.monotonic() - start
            status, first, finish, tokens, error = 0, None, None, 0, None
            try:
                async with client.stream(
                    "POST",
                    f"{root_url}/v1/chat/completions",
                    json={
                        "model": engine.model,
                        "messages": [{"role": "user", "content": f"Say a word for {number}."}],
                        "max_tokens": 3,
                        "stream": True,
                        # No seed: vLLM 0.32 on a CPU dies of one when it prefills in parts.
                        "temperature": 0,
                    },
                ) as response:
                    status = response.status_code
                    async for line in response.aiter_lines():
                        if not line.startswith("data: {"):
                            continue
                        for choice in json.loads(line.removeprefix("data: ")).get("choices", []):
                            if choice.get("delta", {}).get("content"):
                                first = first or time.monotonic() - start
                                tokens += 1
                            finish = choice.get("finish_reason") or finish
            except httpx.HTTPError as problem:
                error = type(problem).__name__
            return given().RequestRecord(
                scheduled_s=sent,
                sent_s=sent,
                finished_s=time.monotonic() - start,
                status=status,
                first_token_s=first,
                output_tokens=tokens,
                finish_reason=finish,
                error=error if status in (0, 200) else f"HTTP {status}",
            )

    # A connection for each: llama.cpp closes some after a stream without saying so beforehand.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(trust_env=False, timeout=100.0, limits=limits) as client:
        return list(await asyncio.gather(*(one(client, i) for i in range(count))))
