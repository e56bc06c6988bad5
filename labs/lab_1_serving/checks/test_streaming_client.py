"""Task 1.3: server-sent events, time to first token, retries, cancellation."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import pytest
from support.faulty_proxy import RECORDED, FaultyProxy, Plan, content_of, recorded, upstream
from support.streaming import (
    ON_THE_WAY,
    Seen,
    call_on_a_clock,
    call_through_proxy,
    cancel_when_streaming,
    client,
    data_of,
    events,
    recording_sleep,
    run,
    soon,
)
from support.timed_transport import Answer, Clock

from shared.grading.expect import expect, expect_equal, number, plain, show

RECORDINGS = sorted(path.stem for path in RECORDED.glob("*.sse"))
PAYLOAD = {
    "model": "smollm2-135m-instruct",
    "messages": [{"role": "user", "content": "Where is my parcel?"}],
    "max_tokens": 32,
    "temperature": 0,
}


# Server-sent events


def test_sse_data_finds_every_event_however_the_network_cuts_the_stream(learner, rng):
    for name in RECORDINGS:
        # Cut between characters here; the next check cuts inside them.
        text = (RECORDED / f"{name}.sse").read_text(encoding="utf-8")
        want = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
        cuts = {
            "one piece an event": [f"{event}\n\n" for event in text.split("\n\n") if event],
            "one piece for all": [text],
            "one character a piece": list(text),
            "random pieces": _random_pieces(text, rng),
        }
        for how, pieces in cuts.items():
            got = events(learner, [piece.encode() for piece in pieces], hint="packets")
            expect_equal(
                [_short(g) for g in got],
                [_short(w) for w in want],
                what=f"events of a recorded answer that came as {how}",
                why="TCP delivers bytes, not events. Code that takes one packet for one event "
                "works on your laptop and loses tokens on the first busy network.",
                hint="packets",
            )


def test_sse_data_keeps_characters_that_are_split_between_packets(learner, rng):
    words = ["Zürich", "東京", "crème brûlée", "5 €", "🚲", "naïve", "Łódź"]
    text = " ".join(words[i] for i in rng.permutation(len(words)))
    stream = f"data: {text}\n\n".encode()
    for size in (1, 2, 3, 5):
        expect_equal(
            events(learner, list(_packets(stream, size)), hint="characters"),
            [text],
            what=f"data that came in pieces of {size} bytes",
            why="A packet may end inside a character. Decoding packet by packet turns names "
            "and amounts into question marks, or raises, for some users on some days.",
            hint="characters",
        )


def test_sse_data_reads_fields_as_the_specification_says(learner):
    cases = {
        "a comment": (b": keep-alive\n\ndata: a\n\n:\n\ndata: b\n\n", ["a", "b"]),
        "no space after the colon": (b"data:a\n\n", ["a"]),
        "two spaces after the colon": (b"data:  a\n\n", [" a"]),
        "a colon in the value": (b"data: a: b\n\n", ["a: b"]),
        "other fields": (b"event: message\nid: 7\nretry: 100\ndata: a\n\n", ["a"]),
        "a field whose name begins with data": (b"database: x\ndata: a\n\n", ["a"]),
        "two data lines in one event": (b"data: a\ndata: b\n\n", ["a\nb"]),
        "a body that ends inside an event": (b"data: a\n\ndata: lost\n", ["a"]),
    }
    for case, (stream, want) in cases.items():
        for pieces in ([stream], list(_packets(stream, 1))):
            expect_equal(
                events(learner, pieces, hint="sse-spec"),
                want,
                what=f"events of {show(stream)} ({case})",
                why="Gateways and engines use all that the specification allows: comments keep "
                "idle connections open, and not every server puts a space after the colon.",
                hint="sse-spec",
            )


def test_sse_data_takes_crlf_and_cr_for_line_ends_too(learner):
    cases = {
        b"data: a\r\n\r\ndata: b\r\n\r\n": ["a", "b"],
        b"data: a\r\ndata: b\r\n\r\n": ["a\nb"],
        b"data: a\r\rdata: b\r\r": ["a", "b"],
    }
    for stream, want in cases.items():
        for size in (len(stream), 1):
            expect_equal(
                events(learner, list(_packets(stream, size)), hint="line-ends"),
                want,
                what=f"events of {show(stream)} in pieces of {size} bytes",
                why="A proxy in front of the engine may rewrite line ends, and a CRLF may fall "
                "between two packets. A client that hangs on it shows an empty answer.",
                hint="line-ends",
            )


def test_sse_data_breaks_lines_at_cr_and_lf_only(learner):
    for character in ("\u2028", "\u2029", "\x85", "\x0b", "\x0c"):
        text = f"first{character}second"
        expect_equal(
            events(learner, [f"data: {text}\n\n".encode()], hint="only-cr-and-lf"),
            [text],
            what=f"data with the character U+{ord(character):04X} in it",
            why="JSON may carry these characters as they are. Python's splitlines, and httpx's "
            "aiter_lines with it, breaks the line there, and the event is no JSON any more.",
            hint="only-cr-and-lf",
        )


def test_sse_data_hands_an_event_on_before_it_reads_further(learner):
    for line_end in ("\n", "\r\n"):
        expect_equal(
            run(_pieces_read_at_each_event(learner, line_end), hint="as-it-comes"),
            [1, 2, 3, 4],
            what="pieces read when each of four events came out",
            why="A client that holds events back has streaming's costs without its use: the "
            "user sees the first token when the last one is there.",
            hint="as-it-comes",
        )


# Waiting


def test_retry_after_is_read_as_seconds_and_as_a_date(learner, rng):
    now = datetime(2026, 3, int(rng.integers(1, 28)), 23, 59, 30, tzinfo=UTC)
    seconds = int(rng.integers(1, 3000))
    date = format_datetime(now + timedelta(seconds=seconds), usegmt=True)
    past = format_datetime(now - timedelta(seconds=seconds), usegmt=True)
    cases: list[tuple[str | None, float | None]] = [
        (str(seconds), float(seconds)),
        ("0", 0.0),
        (date, float(seconds)),
        (past, 0.0),
        (None, None),
        ("soon", None),
        ("", None),
        ("-5", None),
    ]
    for header, want in cases:
        expect_equal(
            learner.retry_after_s(header, now),
            want,
            what=f"wait for Retry-After: {header} at {format_datetime(now, usegmt=True)}",
            why="Both forms are in use. A date taken for garbage sends the client back at "
            "once, to a server that has just asked for peace; one that has passed is no wait.",
            hint="retry-after",
            abs_=0.001,
        )


def test_backoff_doubles_to_its_cap_and_spreads_over_the_whole_range(learner, rng, seed):
    policy = learner.RetryPolicy(
        max_attempts=9,
        base_s=float(rng.integers(1, 9)) / 8,
        cap_s=float(rng.integers(10, 30)),
    )
    source = random.Random(seed)
    for failures in (1, 2, 3, 5, 12):
        ceiling = min(policy.cap_s, policy.base_s * 2 ** (failures - 1))
        waits = [
            number(learner.backoff_s(failures, policy, source), what="a wait", hint="jitter")
            for _ in range(1000)
        ]
        what = (
            f"waits from {min(waits):.3g} to {max(waits):.3g} s after {failures} failures, with "
            f"base_s={policy.base_s} and cap_s={policy.cap_s}"
        )
        expect(
            max(waits) <= ceiling * 1.000001 and min(waits) >= 0.0,
            observed=what,
            expected=f"waits between 0 and {ceiling:.4g} s",
            why="Without a cap the tenth attempt comes after many minutes, and the user has left.",
            hint="cap",
        )
        expect(
            min(waits) < 0.1 * ceiling
            and max(waits) > 0.9 * ceiling
            and abs(sum(waits) / len(waits) / ceiling - 0.5) < 0.1,
            observed=f"{what}, {sum(waits) / len(waits):.3g} s on average",
            expected=f"waits spread evenly over 0 to {ceiling:.4g} s",
            why="All clients of a server that fell over fail at the same moment. Without jitter "
            "they come back at the same moment too, and it falls over again.",
            hint="jitter",
        )


# One answer


def test_stream_chat_brings_the_whole_answer_and_the_servers_own_token_counts(learner, rng):
    for name in RECORDINGS:
        before = json.dumps(PAYLOAD)
        seen = _stream(learner, [Plan(packet=int(rng.integers(1, 60)))], name=name)
        told = seen.exchanges[0].json_events()
        usage = next(e["usage"] for e in reversed(told) if e.get("usage"))
        reasons = [c["finish_reason"] for e in told for c in e["choices"] if c["finish_reason"]]
        got = seen.answer(after="an answer without faults", hint="whole-answer")
        for key, want in {
            "text": seen.exchanges[0].content(),
            "finish_reason": reasons[-1],
            "attempts": 1,
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
        }.items():
            expect_equal(
                got.get(key),
                want,
                what=f"{key} of a recorded answer",
                why="Billing, budgets and throughput are computed from these. Counting events "
                "instead of reading the server's usage is wrong as soon as one carries two tokens.",
                hint="whole-answer",
            )
        sent = seen.exchanges[0]
        want_sent = {**PAYLOAD, "stream": True, "stream_options": {"include_usage": True}}
        expect_equal(
            {"path": sent.path, "body": sent.payload},
            {"path": "/v1/chat/completions", "body": want_sent},
            what="the request",
            why="Without stream there is no first token to see; without include_usage the server "
            "does not count for you.",
            hint="whole-answer",
        )
        expect(
            json.dumps(PAYLOAD) == before,
            observed="the caller's payload was changed",
            expected="the caller's payload as it was",
            why="The caller may send it again, without streaming, or log it.",
            hint="whole-answer",
        )


def test_time_to_first_token_is_that_of_the_first_content(learner, rng):
    for name in RECORDINGS:
        events = _with_empty_content(_recorded_events(name))
        gaps = [float(g) / 8 for g in rng.integers(1, 40, size=len(events))]
        head = float(rng.integers(1, 40)) / 8
        clock = Clock(now=1000.0)
        answer = Answer(headers_after=head, pieces=list(zip(gaps, events, strict=True)))
        got = call_on_a_clock(learner, clock, [answer], PAYLOAD).answer(
            after="a recorded answer", hint="first-content"
        )
        moments = [head + sum(gaps[: i + 1]) for i, e in enumerate(events) if content_of(e)]
        expect_equal(
            got.get("ttft_s"),
            moments[0],
            what=f"ttft_s, where the headers came after {head} s, the event that only names the "
            f"role after {head + gaps[0]} s and the first text after {moments[0]} s",
            why="Headers and the role event come as soon as the request is accepted, before the "
            "model has read the prompt. Measured there, an overloaded server looks fast.",
            hint="first-content",
            rel=1e-9,
        )
        expect_equal(
            got.get("itl_s"),
            [later - earlier for earlier, later in pairwise(moments)],
            what="itl_s",
            why="The gaps between tokens are what a reader sees as stutter. One that is missing "
            "or doubled moves the average and hides the worst.",
            hint="gaps",
            rel=1e-9,
        )


def test_time_to_first_token_counts_failed_attempts_and_waits(learner, rng):
    events = _recorded_events(RECORDINGS[0])
    gaps = [float(g) / 8 for g in rng.integers(1, 40, size=len(events))]
    timed = list(zip(gaps, events, strict=True))
    first = next(i for i, e in enumerate(events) if content_of(e))
    clock = Clock(now=500.0)
    answers = [
        Answer(headers_after=2.0, pieces=[(0.0, b"{}")], status=503),
        Answer(headers_after=1.0, pieces=timed[: first + 3], broken=True),
        Answer(headers_after=4.0, pieces=timed),
    ]
    got = call_on_a_clock(learner, clock, answers, PAYLOAD).answer(
        after="two failed attempts", hint="try-again"
    )
    broken = 1.0 + sum(gaps[: first + 3])
    expect_equal(
        got.get("ttft_s"),
        2.0 + broken + 4.0 + sum(gaps[: first + 1]) + sum(clock.slept),
        what="ttft_s of an answer that came at the third attempt",
        why="The user's clock starts with the first attempt and does not stop between them. "
        "Text of an attempt that broke is thrown away, so it is no first token either.",
        hint="users-clock",
        rel=1e-9,
    )
    expect_equal(
        len(got.get("itl_s") or []),
        sum(1 for e in events if content_of(e)) - 1,
        what="number of gaps in itl_s of an answer that came at the third attempt",
        why="Gaps of a broken attempt, or the pause between two attempts, are no inter-token "
        "latency.",
        hint="start-again",
    )


# Faults


def test_a_request_that_can_never_succeed_is_sent_once(learner, rng):
    for status in (400, 401, 404, 422, 500):
        words = f"parameter number {rng.integers(1000)} is not known"
        body = json.dumps({"error": {"message": words, "code": status}}).encode()
        seen = _stream(learner, [Plan(status=status, body=body)] * 3)
        expect_equal(
            len(seen.exchanges),
            1,
            what=f"times that a request answered with {status} was sent",
            why="It fails the same way each time. Retrying a bad request or a wrong key only "
            "adds load, and may lock the key out.",
            hint="which-statuses",
        )
        error = seen.error(learner.RequestRejected, after=f"status {status}", hint="which-statuses")
        _expect_words(error, words)
        _expect_facts(error, attempts=1, status=status)


def test_a_busy_server_is_tried_again_after_growing_waits(learner, rng):
    policy = learner.RetryPolicy(
        max_attempts=int(rng.integers(4, 7)), base_s=float(rng.integers(1, 5)) / 4, cap_s=3.0
    )
    for status in (429, 503):
        words = f"queue {rng.integers(1000)} is full"
        body = json.dumps({"error": {"message": words}}).encode()
        busy = Plan(status=status, body=body)
        seen = _stream(learner, [busy] * (policy.max_attempts - 1), policy=policy)
        got = seen.answer(after=f"{policy.max_attempts - 1} answers with {status}")
        expect_equal(
            got.get("attempts"),
            policy.max_attempts,
            what="attempts",
            why="The number of attempts tells you how close to giving up your users are.",
            hint="try-again",
        )
        ceilings = [min(3.0, policy.base_s * 2**i) for i in range(policy.max_attempts - 1)]
        expect(
            len(seen.slept) == len(ceilings)
            and all(0.0 <= s <= c * 1.000001 for s, c in zip(seen.slept, ceilings, strict=False)),
            observed=f"calls of sleep: {_seconds(seen.slept)}",
            expected=f"one wait before each new attempt, at most {_seconds(ceilings)}",
            why="Clients that come back at once keep a busy server busy.",
            hint="waits",
        )
        seen = _stream(learner, [busy] * 12, policy=policy)
        expect_equal(
            len(seen.exchanges),
            policy.max_attempts,
            what=f"times that a request was sent to a server that always answers {status}, with "
            f"max_attempts={policy.max_attempts}",
            why="Every client that never gives up is load that never ends.",
            hint="give-up",
        )
        error = seen.error(learner.GaveUp, after=f"nothing but {status}", hint="give-up")
        _expect_words(error, words)
        _expect_facts(error, attempts=policy.max_attempts, status=status)


def test_retry_after_is_waited_for_and_a_long_one_is_not(learner, rng):
    policy = learner.RetryPolicy(base_s=0.25, cap_s=1.0, max_retry_after_s=90.0)
    seconds = int(rng.integers(30, 60))
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
    for status, value, least in (
        (429, str(seconds), float(seconds)),
        (503, str(seconds), float(seconds)),
        # A date has whole seconds and the clock moves on; half of the wait is margin enough.
        (429, date, seconds / 2),
    ):
        seen = _stream(learner, [_busy(status, value)], policy=policy)
        seen.answer(after=f"one {status} with Retry-After: {value}")
        expect(
            len(seen.slept) == 1 and least <= seen.slept[0] <= seconds + 0.25 + 0.001,
            observed=f"calls of sleep: {_seconds(seen.slept)}",
            expected=f"one wait of {seconds} s, or up to 0.25 s of back-off more, for "
            f"Retry-After: {value}",
            why="The server knows when it will have room. A client that comes earlier is turned "
            "away again, and some servers extend the ban.",
            hint="retry-after",
        )
    seen = _stream(learner, [_busy(429, "3600")] * 3, policy=policy)
    error = seen.error(learner.GaveUp, after="Retry-After: 3600", hint="too-long")
    expect_equal(
        {
            "waits": seen.slept,
            "requests": len(seen.exchanges),
            "retry_after_s": plain(getattr(error, "retry_after_s", None)),
        },
        {"waits": [], "requests": 1, "retry_after_s": 3600.0},
        what="after Retry-After: 3600, where the policy waits 90 s at most,",
        why="A user does not wait an hour. Give up at once, and pass on when to come back.",
        hint="too-long",
    )


def test_a_stream_that_ends_early_is_no_answer(learner, rng):
    for name in RECORDINGS:
        contents = sum(1 for e in _recorded_events(name) if content_of(e))
        kept = int(rng.integers(3, contents))
        cases: dict[str, Plan] = {
            "just ended": Plan(events=kept, then="cut"),
            "lost its connection": Plan(events=kept, then="drop"),
            "lost its connection before the first event": Plan(events=0, then="drop"),
            "said [DONE] without a finish reason": Plan(events=kept, inject=b"data: [DONE]\n\n"),
        }
        for case, plan in cases.items():
            seen = _stream(learner, [plan] * 9, name=name)
            error = seen.error(
                learner.GaveUp,
                after=f"streams that each {case} after {plan.events} events",
                hint="truncated",
            )
            _expect_facts(error, attempts=learner.RetryPolicy().max_attempts, status=None)


def test_a_connection_that_fails_or_stalls_is_tried_again(learner):
    # Bound but not listening: whoever connects is refused, and nobody else gets the port.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        slept: list[float] = []
        refused = run(_fail_to_connect(learner, url, slept), hint="which-errors")
    attempts = learner.RetryPolicy().max_attempts
    error = refused.error(learner.GaveUp, after="refused connections", hint="which-errors")
    _expect_facts(error, attempts=attempts, status=None)
    stalled = _stream(learner, [Plan(events=3, then="hold")] * 9, read_timeout_s=0.2)
    error = stalled.error(
        learner.GaveUp, after="streams that stall beyond the client's limit", hint="which-errors"
    )
    _expect_facts(error, attempts=attempts, status=None)


def test_text_of_a_broken_attempt_is_thrown_away(learner, rng):
    for name in RECORDINGS:
        contents = sum(1 for e in _recorded_events(name) if content_of(e))
        cuts = [int(c) for c in rng.integers(3, contents, size=2)]
        plans = [Plan(events=cuts[0], then="cut"), Plan(events=cuts[1], then="drop")]
        seen = _stream(learner, plans, name=name)
        got = seen.answer(after="two broken streams", hint="truncated")
        expect_equal(
            got.get("text"),
            seen.exchanges[-1].content(),
            what="text of an answer whose first two attempts broke off",
            why="The model starts anew at each attempt, perhaps with other words. Joined, the "
            "pieces are a sentence that nobody wrote.",
            hint="start-again",
        )
        expect_equal(
            got.get("attempts"), 3, what="attempts", why="Each one was paid for.", hint="try-again"
        )


def test_an_error_event_inside_the_stream_is_an_error(learner, rng):
    words = f"worker {rng.integers(1000)} ran out of memory"

    def event(**error: Any) -> bytes:
        return f"data: {json.dumps({'error': {'message': words, **error}})}\n\n".encode()

    done = b"data: [DONE]\n\n"
    kept = int(rng.integers(3, 6))
    final = _stream(learner, [Plan(events=kept, inject=event(code=400) + done)] * 9)
    error = final.error(
        learner.RequestRejected, after="an error event with code 400", hint="error-event"
    )
    _expect_words(error, words)
    _expect_facts(error, attempts=1, status=400)
    for code in ({"code": 503}, {"code": None}, {}):
        plan = Plan(events=kept, inject=event(**code) + done)
        seen = _stream(learner, [plan])
        got = seen.answer(after=f"a first attempt with an error event ({code})", hint="error-event")
        expect_equal(
            {"text": got.get("text"), "attempts": got.get("attempts")},
            {"text": seen.exchanges[-1].content(), "attempts": 2},
            what=f"an answer whose first attempt had an error event with {code or 'no code'}",
            why="The status line said 200 long before the failure. Only the stream itself can "
            "still tell, and a client that does not listen shows half an answer as a whole one.",
            hint="error-event",
        )


def test_every_attempt_gives_its_connection_back(learner, rng):
    kept = int(rng.integers(3, 6))
    done = b"data: [DONE]\n\n"
    error = b'data: {"error": {"message": "out of memory"}}\n\n'
    plans = [
        Plan(status=503),
        Plan(events=kept, inject=error + done, then="hold"),
        Plan(events=kept, inject=done),
    ]
    policy = learner.RetryPolicy(max_attempts=len(plans) + 1)
    seen = _stream(learner, plans, policy=policy, connections=1, calls=2)
    closed = len(seen.exchanges) > 1 and seen.exchanges[1].client_left.is_set()
    expect(
        closed and seen.failure is None,
        observed=f"{seen.outcome()} from two calls with an HTTP client that may hold one "
        f"connection; an attempt given up in mid-stream closed its own: {closed}",
        expected="two answers: each attempt closes its response before the next one begins",
        why="Connections that are not given back fill the pool. The client then hangs for "
        "minutes, and restarting it helps until the next bad day.",
        hint="connections",
    )


def test_cancelling_closes_the_connection_and_is_not_retried(learner, rng):
    kept = int(rng.integers(3, 6))
    plan = Plan(events=kept, then="hold")

    async def cancel() -> tuple[str, bool, int]:
        async with (
            FaultyProxy(recorded(RECORDINGS[0]), [plan] * 9) as proxy,
            client() as http,
        ):
            task = asyncio.create_task(
                learner.stream_chat(http, proxy.base_url, PAYLOAD, sleep=recording_sleep([]))
            )
            ended = await cancel_when_streaming(task, proxy)
            # The HTTP client stays open: nobody else closes the connection.
            closed = await soon(proxy.exchanges[0].client_left)
            return ended, closed, len(proxy.exchanges)

    ended, closed, requests = run(cancel(), hint="cancel")
    expect(
        ended == "cancelled" and requests == 1,
        observed=f"a cancelled stream_chat ended as: {ended}; requests sent: {requests}",
        expected="asyncio.CancelledError passed on, and one request",
        why="A user who pressed Stop must not be answered, nor paid for, once more.",
        hint="cancel",
    )
    expect(
        closed,
        observed="5 s after the cancellation the connection was still open",
        expected="the connection closed as part of the cancellation",
        why="The server learns from nothing else that nobody reads any more. It goes on "
        "generating, and the slot is taken until the last token.",
        hint="cancel",
    )


# The running engine


@pytest.mark.limit(180)
def test_live_an_answer_of_the_engine_survives_faults_on_the_way(learner, engine, figure):
    payload = {**PAYLOAD, "model": engine.model, "max_tokens": 8}
    plans = [_busy(429, "1"), Plan(events=4, then="drop"), Plan(events=3, then="cut")]
    seen = call_through_proxy(
        learner, upstream(engine.root_url), plans, payload, read_timeout_s=100.0, hang_s=170.0
    )
    got = seen.answer(after="a 429, a dropped connection and a cut stream", hint="try-again")
    last = seen.exchanges[-1]
    expect_equal(
        {k: got.get(k) for k in ("text", "attempts")},
        {"text": last.content(), "attempts": 4},
        what="the engine's answer at the fourth attempt",
        why="This is a real stream through a real fault; what you return is what your user sees.",
        hint="start-again",
    )
    usage = [u for e in last.json_events() if (u := e.get("usage"))]
    expect_equal(
        got.get("completion_tokens"),
        usage[-1]["completion_tokens"],
        what="completion_tokens of the engine's answer",
        why="The engine's count is what you are billed for and what its metrics show.",
        hint="whole-answer",
    )
    figure(
        "TTFT with three failed attempts",
        number(got.get("ttft_s"), what="ttft_s of the engine's answer", hint="first-content"),
        unit="s",
    )


@pytest.mark.limit(180)
def test_live_cancelling_frees_the_engine(learner, engine, figure):
    tokens = min(600, engine.max_model_len // 2)
    payload = {**PAYLOAD, "model": engine.model, "max_tokens": tokens, "ignore_eos": True}

    async def cancel() -> tuple[str, bool, bool, float]:
        before = engine.counters().generated_tokens
        async with FaultyProxy(upstream(engine.root_url)) as proxy, client() as http:
            task = asyncio.create_task(learner.stream_chat(http, proxy.base_url, payload))
            ended = await cancel_when_streaming(task, proxy, events=5)
            closed = await soon(proxy.exchanges[0].client_left)
            for _ in range(600):
                if idle := engine.counters().running == 0:
                    break
                await asyncio.sleep(0.1)
        return ended, closed, idle, engine.counters().generated_tokens - before

    ended, closed, idle, generated = run(cancel(), hint="cancel", hang_s=170.0)
    expect(
        ended == "cancelled" and closed and idle and generated < tokens,
        observed=f"stream_chat ended as: {ended}; connection closed: {closed}; engine idle within "
        f"60 s: {idle}; tokens generated: {generated:.0f} of {tokens}",
        expected="cancelled, closed, idle, and generation stopped before its end",
        why="An engine that goes on for a user who has left serves the ones who wait later.",
        hint="cancel",
    )
    figure("tokens generated for a cancelled request", generated, reference=float(tokens))


def _stream(learner: Any, plans: Sequence[Plan], *, name: str = "", **how: Any) -> Seen:
    """Call `stream_chat` through the proxy, in front of a recorded answer."""
    return call_through_proxy(learner, recorded(name or RECORDINGS[0]), plans, PAYLOAD, **how)


async def _fail_to_connect(learner: Any, url: str, slept: list[float]) -> Seen:
    async with client() as http:
        try:
            result = await learner.stream_chat(http, url, PAYLOAD, sleep=recording_sleep(slept))
        except (*ON_THE_WAY, learner.StreamError) as error:
            return Seen(None, error, [], slept)
    return Seen(result, None, [], slept)


async def _pieces_read_at_each_event(learner: Any, line_end: str) -> list[int]:
    read = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(4):
            read += 1
            yield f"data: {read}{line_end}{line_end}".encode()

    return [read async for _ in data_of(learner, pieces())]


def _expect_words(error: BaseException, words: str) -> None:
    expect(
        words in str(error),
        observed=f"{type(error).__name__}: {str(error)[:300]}",
        expected=f"a message that carries the server's own words, {words!r}",
        why="'HTTP 400' sends a person to the logs; the server's sentence sends them to the line.",
        hint="server-words",
    )


def _expect_facts(error: BaseException, *, attempts: int, status: int | None) -> None:
    expect_equal(
        {"attempts": getattr(error, "attempts", None), "status": getattr(error, "status", None)},
        {"attempts": attempts, "status": status},
        what=f"attributes of {type(error).__name__}",
        why="Callers decide and dashboards count by these, not by the message.",
        hint="server-words",
    )


def _busy(status: int, retry_after: str) -> Plan:
    return Plan(status=status, headers=(("retry-after", retry_after),))


def _recorded_events(name: str) -> list[bytes]:
    stream = (RECORDED / f"{name}.sse").read_bytes()
    return [event + b"\n\n" for event in stream.split(b"\n\n") if event]


def _with_empty_content(events: list[bytes]) -> list[bytes]:
    """Some engines send an empty string along with the role, others null: have both."""
    empty = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    return [events[0], empty, *events[1:]]


def _packets(stream: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(stream), size):
        yield stream[start : start + size]


def _random_pieces(text: str, rng: Any) -> list[str]:
    cuts = sorted({0, len(text), *(int(c) for c in rng.integers(0, len(text), size=60))})
    return [text[a:b] for a, b in pairwise(cuts)]


def _short(data: Any) -> Any:
    """An event's data, cut so that a list of them can be shown."""
    if not isinstance(data, str) or not data.startswith("{"):
        return data
    try:
        event = json.loads(data)
    except ValueError:
        return data
    return {"choices": event.get("choices"), "usage": event.get("usage")}


def _seconds(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.3f} s" for v in values) or "none"
