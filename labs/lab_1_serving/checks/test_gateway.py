"""Checks of task 1.6: the gateway keeps its contract, in front of good and of failing upstreams."""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import socket
import sys
from typing import Any

import httpx
import numpy as np
import pytest
from support.running_gateway import CHAT, Answer, RunningGateway, serving
from support.scripted_upstream import (
    PATIENCE_S,
    STREAM_HEADERS,
    Exchange,
    Gate,
    ScriptedUpstream,
    answer,
    break_off,
    complete,
    drop,
    half_an_event,
    hang,
    sse,
    stream_then,
    trickle,
)

from shared.engine import EngineError
from shared.grading.expect import expect, expect_equal, fail

QUESTION = {"model": "m", "messages": [{"role": "user", "content": "Capital of France?"}]}
STREAMED = QUESTION | {"stream": True}
SLOW_S = 300.0
"""A deadline that no check reaches."""
ENGINE_PATIENCE_S = 100.0
"""How long a check waits for the real engine, which may be busy with other work."""


def test_a_known_client_gets_the_upstreams_answer(learner, rng):
    keys = draw_keys(rng, 3)
    with serving(learner, complete, api_keys=keys) as (gateway, upstream):
        health = gateway.ask("GET", "/health")
        expect_equal(
            [health.status, health.json, len(upstream.received)],
            [200, {"status": "ok"}, 0],
            what="status and body of GET /health without a key, and requests the upstream saw",
            why="A load balancer asks every few seconds. It has no key and wants no tokens spent.",
        )
        body = json.dumps(QUESTION | {"seed": int(rng.integers(1000))}, indent=1).encode()
        for name, key in keys.items():
            got = gateway.ask(key=key, body=body, headers={"content-type": "application/json"})
            expect_status(got, 200, f"a good request of the client {name!r}")
            expect_equal(
                [
                    got.json and got.json["choices"][0]["message"]["content"],
                    upstream.received[-1].body,
                ],
                ["Paris.", body],
                what="the answer's text, and the body that the upstream got",
                why="A gateway that rewrites bodies breaks every field that it does not know.",
            )
        got = gateway.ask("GET", "/v1/models", key=keys[next(iter(keys))])
        expect_equal(
            [got.status, got.json and got.json["data"][0]["id"]],
            [200, "scripted"],
            what="status and first model of GET /v1/models",
            why="Client libraries ask for the models before anything else.",
        )
        got = gateway.ask(key=keys[next(iter(keys))], body=STREAMED)
        expect(
            got.status == 200 and got.text.count("data: ") == 4 and "data: [DONE]" in got.text,
            observed=f"for a streamed chat: {got}",
            expected="200 with the upstream's four events, data: [DONE] being the last",
            why="Chat interfaces stream; their parsers wait for [DONE].",
        )


def test_only_an_exact_key_opens_the_gateway(learner, rng):
    keys = draw_keys(rng, 3) | {"disabled": ""}
    key = keys[next(iter(keys))]
    other = list(keys.values())[1]
    cases: dict[str, bytes | None] = {
        "no Authorization header": None,
        "an empty Authorization header": b"",
        "an empty key (the client 'disabled' is configured with one)": b"Bearer",
        "the key without a scheme": key.encode(),
        "the right key under the scheme Basic": b"Basic " + key.encode(),
        "all but the last character of a key": b"Bearer " + key[:-1].encode(),
        "the first character of a key": b"Bearer " + key[:1].encode(),
        "a part out of a key's middle": b"Bearer " + key[3:-3].encode(),
        "a key with more behind it": b"Bearer " + key.encode() + b"x",
        "a key with more before it": b"Bearer x" + key.encode(),
        "two keys with a comma": f"Bearer {key},{other}".encode(),
        "a key in capitals": b"Bearer " + key.upper().encode(),
        "a client's name": b"Bearer " + next(iter(keys)).encode(),
        "a key with a letter beyond ASCII": b"Bearer " + key[:-1].encode() + b"\xe9",
    }
    with serving(learner, complete, api_keys=keys) as (gateway, upstream):
        for case, header in cases.items():
            named = {} if header is None else {"authorization": header}
            got = gateway.ask(body=QUESTION, headers=named)
            expect_refused(got, 401, case, "exact-key")
            expect_equal(
                [got.headers.get("www-authenticate"), len(upstream.received)],
                ["Bearer", 0],
                what=f"WWW-Authenticate, and requests that reached the upstream, for {case}",
                why="A refusal that still costs tokens is no refusal.",
                hint="exact-key",
            )
        for scheme in ("bearer", "BEARER"):
            got = gateway.ask(body=QUESTION, headers={"authorization": f"{scheme} {key}"})
            expect_status(got, 200, f"a right key under the scheme {scheme!r}")


def test_keys_are_compared_in_constant_time(learner, rng, monkeypatch):
    calls: list[int] = []
    real = hmac.compare_digest

    def recorded(a: Any, b: Any) -> bool:
        calls.append(1)
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", recorded)
    monkeypatch.setattr(secrets, "compare_digest", recorded)
    module = sys.modules[learner.create_app.__wrapped__.__module__]
    for name, value in list(vars(module).items()):
        if value is real:
            monkeypatch.setattr(module, name, recorded)

    keys = draw_keys(rng, 3)
    key = list(keys.values())[int(rng.integers(3))]
    with serving(learner, complete, api_keys=keys) as (gateway, _):
        for case, shown in (
            ("a right key", key),
            ("a key with a wrong last character", key[:-1] + ("0" if key[-1] != "0" else "1")),
            ("a key with a wrong first character", "z" + key[1:]),
        ):
            calls.clear()
            gateway.ask(key=shown, body=QUESTION)
            expect(
                bool(calls),
                observed=f"no call of hmac.compare_digest for {case}",
                expected="at least one, for right and wrong keys alike",
                why="`==` stops at the first byte that differs. Over enough requests the time "
                "spells the key out, byte by byte.",
                hint="constant-time",
            )


def test_a_refused_client_sends_no_body(learner, rng):
    keys = draw_keys(rng, 2)
    with serving(learner, complete, api_keys=keys, max_body_bytes=1 << 20) as (gateway, _):
        for case, headers in (
            ("without a key", []),
            ("with a wrong key", [f"Authorization: Bearer {next(iter(keys.values()))[:-1]}"]),
        ):
            gateway.taken = 0
            got = gateway.send_raw(
                raw_head("Content-Length: 600000", *headers) + b"x" * 300_000, patience_s=4.0
            )
            expect(
                got.status == 401 and gateway.taken == 0,
                observed=f"{got}, and {gateway.taken:,} bytes of its body read, for a client "
                f"{case} that has sent half of its body",
                expected="401 at once, and no byte of the body read",
                why="Whoever has no key could otherwise fill your memory, with a thousand slow "
                "uploads.",
                hint="before-body",
            )


def test_a_body_over_the_limit_is_refused_before_it_is_held(learner, rng):
    limit = int(rng.integers(20_000, 40_000))
    keys = draw_keys(rng, 1)
    key = next(iter(keys.values()))
    with serving(learner, complete, api_keys=keys, max_body_bytes=limit) as (gateway, upstream):
        exact = json.dumps(QUESTION).encode()
        exact += b" " * (limit - len(exact))
        expect_status(gateway.ask(key=key, body=exact), 200, f"a body of exactly {limit:,} bytes")
        expect_refused(
            gateway.ask(key=key, body=exact + b" "), 413, f"{limit + 1:,} bytes", "body-limit"
        )

        gateway.taken = 0
        auth = f"Authorization: Bearer {key}"
        got = gateway.send_raw(
            raw_head("Content-Length: 10000000000", auth) + b"{" * 5000, patience_s=4.0
        )
        expect(
            got.status == 413 and gateway.taken == 0,
            observed=f"{got}, and {gateway.taken:,} bytes read, for a request that declares ten "
            "gigabytes and has sent five kilobytes",
            expected="413 at once, and no byte read",
            why="The client has said that it will be too long. Reading on helps nobody.",
            hint="body-limit",
        )

        # A chunked body declares no length. This one goes over the limit and then pauses.
        gateway.taken = 0
        over = limit + 8_192
        chunked = raw_head("Transfer-Encoding: chunked", auth)
        got = gateway.send_raw(chunked + b"%x\r\n" % over + b"x" * over + b"\r\n", patience_s=4.0)
        expect(
            got.status == 413,
            observed=f"{got}, for a chunked body (no Content-Length) that has gone "
            f"{over - limit:,} bytes over the limit and not ended yet",
            expected="413 as soon as the limit is passed",
            why="A gateway that waits for the end holds whatever it is sent. An endless body "
            "needs no botnet.",
            hint="body-limit",
        )
        gateway.taken = 0
        piece = b"%x\r\n" % 65_536 + b"x" * 65_536 + b"\r\n"
        got = gateway.send_raw(chunked + piece * 256, patience_s=4.0)
        expect(
            gateway.taken < 4_000_000,
            observed=f"{gateway.taken:,} bytes taken of a chunked body of 16 MiB, with a limit of "
            f"{limit:,}",
            expected="no more than the server had ready when the limit was passed",
            why="Memory is bounded only if the gateway stops reading.",
            hint="body-limit",
        )
        expect_equal(
            len(upstream.received),
            1,
            what="requests that reached the upstream (one of them was within the limit)",
            why="What is too long must not be half-sent to the engine.",
            hint="body-limit",
        )


def test_a_body_that_is_no_json_object_is_a_400(learner, rng):
    keys = draw_keys(rng, 1)
    with serving(learner, complete, api_keys=keys) as (gateway, upstream):
        for body in (b"", b"{", b"[1, 2]", b'"stream"', b"null", b"17", b'{"a": "\xff\xfe"}'):
            got = gateway.ask(
                key=next(iter(keys.values())),
                body=body,
                headers={"content-type": "application/json"},
            )
            expect_refused(got, 400, f"the body {body!r}", "bad-json")
        expect_equal(
            len(upstream.received),
            0,
            what="requests that reached the upstream",
            why="What cannot be answered need not wait in the engine's queue.",
            hint="bad-json",
        )


def test_the_clients_key_and_headers_stay_out_of_the_upstream(learner, rng):
    keys = draw_keys(rng, 2)
    key = next(iter(keys.values()))
    ours = "upstream-" + secrets_token(rng)
    private = {"cookie": "session=" + secrets_token(rng), "x-forwarded-user": "ada@example.org"}
    for upstream_key in (ours, None):
        with serving(learner, complete, api_keys=keys, upstream_key=upstream_key) as pair:
            gateway, upstream = pair
            for method, path, body in (
                ("POST", CHAT + "?trace=ada", QUESTION),
                ("POST", CHAT, STREAMED),
                ("GET", "/v1/models", None),
            ):
                got = gateway.ask(method, path, key=key, body=body, headers=private)
                expect_status(got, 200, f"{method} {path}")
                sent = upstream.received[-1]
                expect_equal(
                    sent.headers.get("authorization"),
                    f"Bearer {ours}" if upstream_key else None,
                    what=f"Authorization that the upstream got for {method} {path}, with "
                    f"upstream_key {'set' if upstream_key else 'not set'}",
                    why="A client's key that travels on ends up in the engine's logs, and in those "
                    "of whoever runs it.",
                    hint="headers",
                )
                leaked = sorted(set(private) & set(sent.headers))
                expect(
                    not leaked and "?" not in sent.target,
                    observed=f"headers {leaked} and target {sent.target!r} at the upstream",
                    expected="Content-Type and Accept of the client's headers, and no query string",
                    why="Cookies and query strings carry sessions and names. The engine needs "
                    "neither.",
                    hint="headers",
                )


def test_the_upstreams_refusals_keep_status_body_and_retry_after(learner, rng):
    keys = draw_keys(rng, 1)
    key = next(iter(keys.values()))
    with serving(learner, complete, api_keys=keys) as (gateway, upstream):
        for status in (400, 404, 422, 429):
            wait = str(int(rng.integers(1, 60)))
            words = json.dumps({"error": {"message": f"refused {wait}", "code": status}})
            more = {"retry_after": wait} if status == 429 else {}
            upstream.script = answer(status, words, x_engine_host="gpu-7", set_cookie="a=b", **more)
            for streamed in (False, True):
                got = gateway.ask(key=key, body=STREAMED if streamed else QUESTION)
                how = f"the upstream's {status}" + (" to a streamed chat" if streamed else "")
                expect_status(got, status, how, hint="upstream-status")
                expect_equal(
                    [got.text, got.headers.get("retry-after")],
                    [words, more.get("retry_after")],
                    what=f"body and Retry-After after {how}",
                    why="A client that is told when to come back does; one that is not hammers on.",
                    hint="retry-after",
                )
                leaked = sorted({"x-engine-host", "set-cookie"} & set(got.headers))
                expect(
                    not leaked,
                    observed=f"the client got the upstream's headers {leaked}",
                    expected="only Content-Type and Retry-After of the upstream's headers",
                    why="Headers of the inside are a map for an attacker.",
                    hint="headers",
                )


def test_upstream_failures_are_502_or_503_and_tell_nothing_of_the_inside(learner, rng):
    keys = draw_keys(rng, 1)
    key = next(iter(keys.values()))
    secret = ["Traceback", "CUDA", f"gpu-{rng.integers(100)}.internal", "/srv/engine.py"]
    inside = " ".join(secret)
    wait = str(int(rng.integers(1, 60)))
    cases = {
        "an upstream that answers 500": (answer(500, inside), 502, None),
        "an upstream that answers 503": (answer(503, inside, retry_after=wait), 503, wait),
        "an upstream that answers 504": (answer(504, inside), 502, None),
        "an upstream that answers 401": (answer(401, inside), 502, None),
        "an upstream that answers 403": (answer(403, inside), 502, None),
        "an upstream that closes the connection without an answer": (drop, 502, None),
        "an answer that breaks off half-way": (break_off, 502, None),
        "an upstream that nothing listens for": (None, 502, None),
    }
    with serving(learner, complete, api_keys=keys) as (gateway, upstream):
        for case, (script, status, retry_after) in cases.items():
            if script is None:
                upstream.stop_listening()
            else:
                upstream.script = script
            for streamed in (False, True):
                if script is break_off and streamed:
                    continue
                got = gateway.ask(key=key, body=STREAMED if streamed else QUESTION)
                told = case + (", asked for a stream" if streamed else "")
                expect_status(got, status, told, hint="upstream-status")
                expect_equal(
                    got.headers.get("retry-after"),
                    retry_after,
                    what=f"Retry-After for {told}",
                    why="A client that is told when to come back does; one that is not hammers on.",
                    hint="retry-after",
                )
                leaks = [w for w in (str(upstream.port), *secret) if w in got.text]
                expect(
                    not leaks,
                    observed=f"the body {got.text[:300]!r} for {told}",
                    expected="words of the gateway's own, without exceptions, addresses or paths",
                    why="Error texts are the first thing an attacker collects.",
                    hint="leak",
                )
                expect_refused(got, status, told, "error-form")


def test_a_request_goes_upstream_once_over_a_kept_connection(learner, rng):
    keys = draw_keys(rng, 1)
    key = next(iter(keys.values()))
    with serving(learner, complete, api_keys=keys) as (gateway, upstream):
        for case, script in (
            ("a 500", answer(500, "{}")),
            ("a 503 with Retry-After: 0", answer(503, "{}", retry_after="0")),
            ("a 429 with Retry-After: 0", answer(429, "{}", retry_after="0")),
            ("a dropped connection", drop),
        ):
            upstream.script = script
            upstream.received.clear()
            gateway.ask(key=key, body=QUESTION)
            expect_equal(
                len(upstream.received),
                1,
                what=f"requests that the upstream got for one of the client's, after {case}",
                why="Clients retry already. A gateway that retries too multiplies the load, just "
                "when the engine can least bear it.",
                hint="retries",
            )
        upstream.script = complete
        before = upstream.connections
        for _ in range(12):
            expect_status(gateway.ask(key=key, body=QUESTION), 200, "a good request")
        opened = upstream.connections - before
        expect(
            opened <= 3,
            observed=f"{opened} connections to the upstream for 12 requests, one after the other",
            expected="a connection or two, kept and used again",
            why="Each new connection costs a handshake before the first token, and under load "
            "you run out of ports.",
            hint="one-client",
        )


@pytest.mark.limit(40)
def test_slow_answers_do_not_keep_others_waiting(learner, rng):
    keys = draw_keys(rng, 1)
    headers = {"authorization": f"Bearer {next(iter(keys.values()))}"}
    gate, many = Gate(), 100

    async def slow(exchange: Exchange) -> None:
        await gate.passed()
        await complete(exchange)

    async def clients(gateway: RunningGateway, upstream: ScriptedUpstream) -> list[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(trust_env=False, timeout=30.0, limits=limits) as client:
            asks = [
                asyncio.ensure_future(
                    client.post(gateway.url + CHAT, json=QUESTION, headers=headers)
                )
                for _ in range(many)
            ]
            all_answered = asyncio.gather(*asks, return_exceptions=True)
            try:
                all_there = await asyncio.to_thread(
                    upstream.wait_until, lambda: upstream.in_flight >= many
                )
                expect(
                    all_there,
                    observed=f"{upstream.most_in_flight} of {many} requests side by side upstream",
                    expected=f"all {many}, each waiting for its own answer",
                    why="An engine batches what it has. A gateway that hands over one at a time, "
                    "or a few, turns sixteen-fold throughput into a queue.",
                    hint="blocking",
                )
                try:
                    health = await client.get(gateway.url + "/health", timeout=PATIENCE_S)
                    status = health.status_code
                except httpx.HTTPError:
                    status = 0
                expect(
                    status == 200,
                    observed=f"no answer from /health while {many} requests wait for the upstream",
                    expected="200: nothing that waits keeps the event loop",
                    why="The load balancer takes a gateway out that does not answer /health, and "
                    "the next one gets its load.",
                    hint="blocking",
                )
                gate.open()
                answers = await all_answered
            finally:
                gate.open()
                all_answered.cancel()
            return [a.status_code if isinstance(a, httpx.Response) else 0 for a in answers]

    with serving(learner, slow, api_keys=keys, deadline_s=SLOW_S) as (gateway, upstream):
        statuses = asyncio.run(clients(gateway, upstream))
    expect_equal(
        {status: statuses.count(status) for status in set(statuses)},
        {200: many},
        what=f"answers to {many} requests at once, by status",
        why="Requests side by side must not break one another.",
        hint="blocking",
    )


def test_an_upstream_that_takes_too_long_is_a_504(learner, rng):
    keys = draw_keys(rng, 1)
    key = next(iter(keys.values()))
    with serving(learner, complete, api_keys=keys, deadline_s=0.4) as (gateway, upstream):
        for case, script, body in (
            ("an upstream that never answers", hang, QUESTION),
            ("an upstream that never begins its stream", hang, STREAMED),
            ("an upstream that sends a byte now and then and never ends", trickle, QUESTION),
        ):
            upstream.script = script
            got = gateway.ask(key=key, body=body)
            expect_status(got, 504, f"{case}, with a deadline of 0.4 s", hint="deadline")
            expect_refused(got, 504, case, "deadline")
            expect(
                upstream.wait_until(lambda: upstream.in_flight == 0),
                observed=f"the connection to the upstream still open after the 504 ({case})",
                expected="the upstream's request closed when the deadline has passed",
                why="The engine goes on generating for nobody, and the next request waits behind.",
                hint="client-leaves",
            )


def test_a_stream_is_passed_on_piece_by_piece(learner, rng):
    keys = draw_keys(rng, 1)
    gate = Gate()
    word = "w" + secrets_token(rng)

    async def held(exchange: Exchange) -> None:
        await exchange.head(200, STREAM_HEADERS)
        await exchange.chunk(sse(word))
        await gate.passed()
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.chunk(b"")

    with (
        serving(learner, held, api_keys=keys, deadline_s=SLOW_S) as (gateway, _),
        httpx.Client(trust_env=False, timeout=PATIENCE_S) as client,
    ):
        got = ""
        try:
            with client.stream(
                "POST",
                gateway.url + CHAT,
                json=STREAMED,
                headers={"authorization": f"Bearer {next(iter(keys.values()))}"},
            ) as response:
                kind = response.headers.get("content-type", "")
                for piece in response.iter_text():
                    got += piece
                    if word in got:
                        gate.open()
        except httpx.HTTPError as error:
            got += f" ({type(error).__name__})"
        finally:
            gate.open()
    expect(
        word in got,
        observed=f"{got!r} while the upstream held its stream open after the first event",
        expected="the first event, before the stream has ended",
        why="Users read along. A stream that is held back until its end has the first token where "
        "the last one should be.",
        hint="stream-buffered",
    )
    expect(
        got.endswith("data: [DONE]\n\n") and kind.startswith("text/event-stream"),
        observed=f"a stream that ended with {got[-60:]!r}, of type {kind!r}",
        expected="data: [DONE] at the end, and the upstream's type text/event-stream",
        why="Client libraries choose their parser by the type and stop at [DONE].",
    )


def test_a_stream_that_breaks_off_or_stalls_ends_with_an_error_event(learner, rng):
    keys = draw_keys(rng, 1)
    key = next(iter(keys.values()))
    word = "w" + secrets_token(rng)
    with serving(learner, complete, api_keys=keys, deadline_s=1.5) as (gateway, upstream):
        cases = (
            ("breaks off", drop),
            ("stalls", hang),
            ("breaks off within a third event", half_an_event(drop)),
        )
        for case, after in cases:
            upstream.script = stream_then(word, "half", then=after)
            got = gateway.ask(key=key, body=STREAMED)
            expect(
                got.status == 200 and word in got.text,
                observed=f"{got}, for a stream that {case}, after two events",
                expected="200 and the two events that came",
                why="What the user has read already is worth keeping.",
                hint="stream-end",
            )
            last = got.text.strip().split("\n\n")[-1].removeprefix("data:").strip()
            try:
                error = json.loads(last).get("error")
            except (ValueError, AttributeError):
                error = None
            expect(
                isinstance(error, dict) and "[DONE]" not in got.text,
                observed=f"the last event {last[:200]!r}, for a stream that {case}, after two",
                expected='data: {"error": {...}} as the last event, and no data: [DONE]',
                why="Half an answer that looks whole is stored, shown and acted upon.",
                hint="stream-end",
            )
            leaks = [w for w in (str(upstream.port), "Traceback", "httpx") if w in last]
            expect(
                not leaks,
                observed=f"the error event {last[:200]!r}",
                expected="words of the gateway's own, without exceptions or addresses",
                why="Error texts are the first thing an attacker collects.",
                hint="leak",
            )


@pytest.mark.limit(40)
def test_a_client_that_leaves_frees_the_upstream(learner, rng):
    keys = draw_keys(rng, 1)
    auth = f"Authorization: Bearer {next(iter(keys.values()))}"
    with serving(learner, hang, api_keys=keys, deadline_s=SLOW_S) as (gateway, upstream):
        for case, script, body in (
            ("in the middle of a stream", stream_then("Par", then=hang), STREAMED),
            ("before its answer", hang, QUESTION),
        ):
            upstream.script = script
            data = json.dumps(body).encode()
            seen = len(upstream.received)
            with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S) as sock:
                sock.sendall(raw_head(f"Content-Length: {len(data)}", auth) + data)
                arrived = upstream.wait_until(lambda seen=seen: len(upstream.received) > seen)
                if arrived and script is not hang:
                    try:
                        arrived = bool(sock.recv(65_536))
                    except OSError:
                        arrived = False
            expect(
                arrived,
                observed=f"nothing came of the request of a client that is to leave {case}",
                expected="the request at the upstream, and the stream's first event at the client",
                why="Without it the check cannot go on.",
                hint="stream-buffered",
            )
            expect(
                upstream.wait_until(lambda: upstream.in_flight == 0),
                observed=f"the upstream still at work {PATIENCE_S:g} s after a client left {case}",
                expected="its connection closed when the client's is",
                why="An engine generates for as long as the connection is open. Impatient users "
                "who reload the page then fill every slot with answers nobody reads.",
                hint="client-leaves",
            )


def test_logs_name_the_request_and_nothing_private(learner, rng):
    keys = draw_keys(rng, 2)
    name, key = next(iter(keys.items()))
    wrong = "sk-" + secrets_token(rng) + secrets_token(rng)
    ours = "up-" + secrets_token(rng) + secrets_token(rng)
    private = draw_private(rng)
    prompt = " ".join(private.values())
    chat = QUESTION | {
        "messages": [{"role": "user", "content": prompt}],
        "user": private["an e-mail address"],
    }
    echo = json.dumps({"error": {"message": f"cannot answer {prompt}"}})
    cut = json.dumps(chat).encode()[:-2]
    parts = {f"a part of {what}": value for what, value in key_parts(keys, wrong, ours).items()}
    cases = [
        ("a good request", complete, key, chat, 200),
        ("a good stream", complete, key, chat | {"stream": True}, 200),
        ("a wrong key", complete, wrong, chat, 401),
        ("a body cut short", complete, key, cut, 400),
        ("the upstream's 400, which repeats the prompt", answer(400, echo), key, chat, 400),
        ("the upstream's 500, which repeats the prompt", answer(500, echo), key, chat, 502),
        ("a dropped connection", drop, key, chat, 502),
        ("a stream that breaks off", stream_then(prompt, then=drop), key, STREAMED, 200),
    ]
    with serving(learner, complete, api_keys=keys, upstream_key=ours) as (gateway, upstream):
        for case, script, shown, body, status in cases:
            upstream.script = script
            path = f"{CHAT}?user={private['an e-mail address']}"
            got = gateway.ask(path=path, key=shown, body=body)
            expect_status(got, status, case)
            request_id = got.headers.get("x-request-id", "")
            wanted = [request_id, str(status)] + ([] if shown == wrong else [name])
            expect(
                bool(request_id),
                observed=f"headers without x-request-id, for {case}",
                expected="x-request-id in every answer",
                why="It is what a user can quote, and you can find.",
                hint="log-line",
            )
            upstream.wait_until(
                lambda wanted=wanted: any(is_request_line(r, wanted) for r in gateway.logs.records),
                limit_s=2.0,
            )
            leaks = [
                (what, line)
                for line in gateway.logs.lines()
                for what, text in (private | parts).items()
                if text in line
            ]
            if leaks:
                what, line = leaks[0]
                fail(
                    observed=f"{what} in the log, after {case}: {line[:300]!r}",
                    expected="no key and nothing out of a body or query string, at any log level",
                    why="Logs are copied, kept for years and read by many. What is in them has "
                    "leaked, and the law calls it a breach.",
                    hint="private-logs",
                )
            expect(
                any(is_request_line(r, wanted) for r in gateway.logs.records),
                observed=f"no line with {wanted} on the logger 'gateway' at INFO, after {case}",
                expected="one line with the request's id, the client's name and the status",
                why="Without it nobody can say who was refused, or why the bill doubled.",
                hint="log-line",
            )
        ids = [got.headers.get("x-request-id") for got in (gateway.ask(key=key) for _ in range(3))]
        expect_equal(
            len(set(ids)),
            3,
            what="different x-request-id values in three answers",
            why="An id that repeats finds the wrong request.",
            hint="log-line",
        )


def test_the_real_engine_answers_and_streams_through_the_gateway(learner, rng, engine):
    keys = draw_keys(rng, 1)
    key = next(iter(keys.values()))
    settings = learner.Settings(
        upstream_url=engine.root_url, api_keys=keys, deadline_s=2 * ENGINE_PATIENCE_S
    )
    chat = {
        "model": engine.model,
        "messages": [{"role": "user", "content": "Name three colours."}],
        "max_tokens": 12,
        "temperature": 0,
    }
    with RunningGateway(learner.create_app, settings) as gateway:
        models = gateway.ask("GET", "/v1/models", key=key, patience_s=ENGINE_PATIENCE_S)
        expect(
            models.status == 200 and engine.model in models.text,
            observed=f"{models} from GET /v1/models, in front of the real engine",
            expected=f"200 and the engine's model {engine.model!r}",
            why="Client libraries ask for the models before anything else.",
        )
        whole = gateway.ask(key=key, body=chat, patience_s=ENGINE_PATIENCE_S)
        expect_engine_answers(engine, whole.status, chat)
        expect_status(whole, 200, "a chat with the real engine")
        usage = whole.json.get("usage") if isinstance(whole.json, dict) else None
        expect(
            isinstance(usage, dict) and 0 < usage.get("completion_tokens", 0) <= 12,
            observed=f"usage {usage!r} in the answer to a chat with at most 12 tokens",
            expected="the engine's own count of tokens, between 1 and 12",
            why="Usage is what clients are billed by.",
        )
        refused = gateway.ask(
            key=key, body=chat | {"messages": "no list"}, patience_s=ENGINE_PATIENCE_S
        )
        straight = ask_straight(engine, chat | {"messages": "no list"})
        expected = straight if 400 <= straight < 500 else 502
        expect_status(
            refused,
            expected,
            f"a request that the engine itself answers with {straight}",
            hint="upstream-status",
        )
        # Last: llama.cpp may close a connection after a stream without announcing it.
        streamed = gateway.ask(key=key, body=chat | {"stream": True}, patience_s=ENGINE_PATIENCE_S)
        events = streamed.text.count("data: ")
        expect(
            streamed.status == 200
            and events >= 3
            and streamed.text.rstrip().endswith("data: [DONE]"),
            observed=f"{events} events, ending with {streamed.text[-80:]!r}",
            expected="several events and data: [DONE]",
            why="The engine's own stream is what users see.",
            hint="stream-buffered",
        )


def test_the_real_engine_is_let_go_when_a_client_leaves(learner, rng, engine):
    keys = draw_keys(rng, 1)
    headers = {"authorization": f"Bearer {next(iter(keys.values()))}"}
    wanted = min(1000, engine.max_model_len - 200)
    chat = {
        "model": engine.model,
        "messages": [{"role": "user", "content": "Tell a very long story."}],
        "max_tokens": wanted,
        "stream": True,
    }

    async def relay(exchange: Exchange) -> None:
        """Between gateway and engine, so that the check sees which of them hangs up first."""
        limits = httpx.Timeout(ENGINE_PATIENCE_S)
        async with (
            httpx.AsyncClient(trust_env=False, timeout=limits) as client,
            client.stream(
                "POST",
                engine.root_url + exchange.request.target,
                content=exchange.request.body,
                headers={"content-type": "application/json"},
            ) as response,
        ):
            await exchange.head(response.status_code, STREAM_HEADERS)
            async for piece in response.aiter_bytes():
                counted[0] += piece.count(b"data: ")
                await exchange.chunk(piece)
            await exchange.chunk(b"")

    counted = [0]
    with serving(learner, relay, api_keys=keys, deadline_s=2 * ENGINE_PATIENCE_S) as (
        gateway,
        upstream,
    ):
        got = b""
        with (
            httpx.Client(trust_env=False, timeout=ENGINE_PATIENCE_S) as client,
            client.stream("POST", gateway.url + CHAT, json=chat, headers=headers) as response,
        ):
            expect_engine_answers(engine, response.status_code, chat | {"max_tokens": 1})
            expect_equal(
                response.status_code,
                200,
                what="status of a long stream from the real engine",
                why="Without it the check cannot go on.",
            )
            for piece in response.iter_bytes():
                got += piece
                if got.count(b"data: ") >= 5:
                    break
        upstream.wait_until(lambda: upstream.in_flight == 0, limit_s=30.0)
        expect(
            upstream.abandoned == 1 and counted[0] < wanted * 3 // 4,
            observed=f"the engine had sent {counted[0]} events when its connection was closed "
            f"({'by the gateway' if upstream.abandoned else 'not by the gateway'}); "
            "the client had left after 5",
            expected=f"the gateway to hang up long before the {wanted} tokens asked for",
            why="An engine generates for as long as the connection is open.",
            hint="client-leaves",
        )


def draw_keys(rng: np.random.Generator, count: int) -> dict[str, str]:
    """Names and keys of so many clients."""
    names = rng.permutation(["checkout", "search", "mobile-app", "backoffice", "reports"])
    return {str(name): f"sk-{secrets_token(rng)}{secrets_token(rng)}" for name in names[:count]}


def secrets_token(rng: np.random.Generator) -> str:
    """Sixteen hexadecimal digits with a letter among them."""
    return "k" + rng.bytes(8).hex()[1:]


def key_parts(keys: dict[str, str], wrong: str, ours: str) -> dict[str, str]:
    """Pieces of keys long enough that they are in a log only if a key is."""
    named = {f"{n}'s key": k for n, k in keys.items()}
    named |= {"a wrong key": wrong, "the upstream's key": ours}
    return {
        f"{what} (from character {at + 1})": value[at : at + 8]
        for what, value in named.items()
        for at in range(3, len(value) - 7)
    }


def draw_private(rng: np.random.Generator) -> dict[str, str]:
    """What a prompt may hold and a log must not, each in a form that stands for itself."""

    def digits(n: int) -> str:
        return "".join(str(d) for d in rng.integers(0, 10, n))

    return {
        "an e-mail address": f"ada.{secrets_token(rng)}@example.org",
        "a phone number": f"+49 30 {digits(8)}",
        "a card number": f"4111 {digits(4)} {digits(4)} {digits(4)}",
        "text of the prompt": f"diagnosis{secrets_token(rng)}",
    }


def raw_head(*headers: str) -> bytes:
    """A request's head, to be sent by hand."""
    lines = [
        f"POST {CHAT} HTTP/1.1",
        "Host: gateway",
        "Content-Type: application/json",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def is_request_line(record: Any, wanted: list[str]) -> bool:
    """Whether a log record is the one that the contract asks for."""
    if record.name != "gateway" or record.levelname != "INFO":
        return False
    text = record.getMessage()
    return all(part and part in text for part in wanted)


def ask_straight(engine: Any, body: dict[str, Any]) -> int:
    """The status that the engine itself gives."""
    with httpx.Client(trust_env=False, timeout=ENGINE_PATIENCE_S) as client:
        return client.post(engine.root_url + CHAT, json=body).status_code


def expect_engine_answers(engine: Any, status: int, chat: dict[str, Any]) -> None:
    """Tell a gateway that fails from an engine that is gone.

    Raises:
        EngineError: the engine does not answer either.
    """
    if status == 200:
        return
    try:
        straight = ask_straight(engine, chat)
    except httpx.HTTPError as error:
        raise EngineError(f"The model server is gone ({type(error).__name__}).") from error
    if straight != 200:
        raise EngineError(f"The model server itself answers a chat with {straight}.")


def expect_status(got: Answer, status: int, case: str, hint: str | None = None) -> None:
    """Fail unless the answer has that status."""
    expect(
        got.status == status,
        observed=f"{got}, for {case}",
        expected=f"{status}",
        why="Clients, load balancers and alerts go by the status. A failure that says 200 is "
        "stored as an answer; a wrong refusal is retried, or not."
        if status != 200
        else "A gateway that turns good requests away is an outage of its own.",
        hint=hint,
    )


def expect_refused(got: Answer, status: int, case: str, hint: str) -> None:
    """Fail unless the answer is an error of that status in OpenAI's form."""
    expect_status(got, status, case, hint)
    error = got.json.get("error") if isinstance(got.json, dict) else None
    fields = sorted(error) if isinstance(error, dict) else []
    expect(
        {"message", "type", "code"} <= set(fields),
        observed=f"{got}, for {case}",
        expected='a body {"error": {"message": ..., "type": ..., "code": ...}}',
        why="Client libraries read errors in this form; anything else surfaces as a parse error.",
        hint="error-form",
    )
