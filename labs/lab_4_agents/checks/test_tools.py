"""Task 4.2: tool calls that are checked, bounded in time, and repeated only where that is safe."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from pydantic import BaseModel
from support.still_clock import StillClock

from shared.agents.live import live_agent_model
from shared.domains.worlds import (
    ROLES,
    CallTimeout,
    KeyReused,
    NotFound,
    PermanentError,
    Refused,
    TransientError,
    World,
    open_world,
)
from shared.grading.expect import (
    CheckFailed,
    expect,
    expect_equal,
    expect_raises,
    fail,
    plain,
    show,
)
from shared.paths import ROOT

Call = Callable[..., Any]

KEYED = ("act_small", "act_risky", "act_final")
READS = ("lookup", "items", "search")
STATUSES = ("ok", "invalid", "refused", "unavailable", "unknown")


@pytest.fixture
def clock() -> StillClock:
    """Time that passes only when somebody sleeps."""
    return StillClock()


@pytest.fixture
def world(domain: str, tmp_path: Path, seed: int, clock: StillClock) -> World:
    """A fresh world, another one each run; its slow calls sleep on the check's clock."""
    made = open_world(domain, tmp_path / "world.sqlite", seed=seed)
    made.sleep = clock.wait
    return made


@pytest.fixture
def pick(seed: int) -> random.Random:
    """A generator of the kind that the worlds take."""
    return random.Random(seed)


@pytest.fixture
def call(learner: Any, world: World, clock: StillClock, pick: random.Random) -> Call:
    """`call_tool` on the check's clock, with a fresh call id unless one is given."""

    def made(role: str, arguments: Mapping[str, Any], **how: Any) -> Any:
        spec = how.pop("spec", None) or world.tool(role)
        how = {"thread_id": "thread-1", "call_id": f"call-{pick.random()}"} | how
        result = learner.call_tool(spec, arguments, clock=clock, sleep=clock.pause, **how)
        if type(result).__name__ != "ToolResult" or plain(result.status) not in STATUSES:
            fail(
                observed=f"call_tool returned {show(plain(result))}",
                expected=f"a ToolResult whose status is one of {', '.join(STATUSES)}",
                why="What comes next depends on the status.",
                hint="one-attempt-first",
            )
        return result

    return made


def test_arguments_are_taken_exactly_as_given_or_refused_by_field(learner, world, pick):
    for role in ROLES:
        spec = world.tool(role)
        for _ in range(3):
            good = world.good_arguments(role, pick)
            made = learner.check_arguments(spec, dict(good))
            expect(
                isinstance(made, spec.arguments) and made.model_dump() == good,
                observed=f"{show(plain(made) if isinstance(made, BaseModel) else made)} "
                f"({type(made).__name__})",
                expected=f"{spec.arguments.__name__} with {show(good)}",
                why="The tool must do what was asked for, to the letter.",
                hint="as-given",
            )
        for bad in world.bad_arguments(role, pick):
            _refused_by_field(learner, spec, bad)
    both = world.good_arguments("act_risky", pick) | {"amount": "12", "reason": ""}
    error = _raised(learner, world.tool("act_risky"), both, "a text as amount and no reason")
    expect_equal(
        sorted(plain(error.problems)),
        ["amount", "reason"],
        what="the fields named when two are wrong",
        why="One correction at a time costs one model call each.",
        hint="name-the-field",
    )


def test_the_key_is_the_same_in_every_process_and_of_each_call_its_own(learner, pick):
    thread, one, two = (f"{name}-{pick.getrandbits(40)}" for name in ("thread", "a", "b"))
    key = plain(learner.idempotency_key(thread, one))
    expect(
        isinstance(key, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key) is not None,
        observed=f"the key {show(key)}",
        expected="a text of 1 to 64 letters, digits, - and _",
        why="Keys travel in headers and are stored in columns of limited width.",
        hint="key-tells-nothing",
    )
    expect(
        thread not in key and one not in key,
        observed=f"the key {show(key)} for thread {thread!r} and call {one!r}",
        expected="a key that tells neither id",
        why="Keys end up in the logs of every system on the way.",
        hint="key-tells-nothing",
    )
    for hash_seed in ("1", "2"):
        expect_equal(
            _key_elsewhere(learner.idempotency_key, thread, one, hash_seed),
            key,
            what="the key that another process makes for the same call",
            why="After a crash another process repeats the call. With another key the customer "
            "is refunded twice.",
            hint="same-everywhere",
        )
    others = [learner.idempotency_key(*ids) for ids in ((thread, two), (two, one), (one, thread))]
    expect(
        len({key, *map(plain, others)}) == 4,
        observed=f"keys {show([key, *map(plain, others)])} for four different pairs of ids",
        expected="four different keys",
        why="Two calls with one key: the second never happens, and is reported as done.",
        hint="what-is-one-call",
    )
    for separator in ("", ":", "-", "_", "/", "|", ",", ".", " ", "\n", "\x00", '", "'):
        pair = ((f"a{separator}b", "c"), ("a", f"b{separator}c"))
        left, right = (plain(learner.idempotency_key(*ids)) for ids in pair)
        expect(
            left != right,
            observed=f"one key for the ids {pair[0]} and {pair[1]}",
            expected="two keys",
            why="Ids are any text. Two calls with one key: the second never happens.",
            hint="two-parts",
        )


def test_only_what_may_work_and_can_do_no_harm_is_repeated(learner, world):
    errors = (
        (TransientError("connection lost"), True),
        (CallTimeout("no answer"), True),
        (PermanentError("switched off"), False),
        (NotFound("no such item"), False),
        (Refused("too much"), False),
        (KeyReused("used before"), False),
        (ValueError("a bug"), False),
    )
    for role in ROLES:
        spec = world.tool(role)
        for error, can_work in errors:
            wanted = can_work and spec.idempotent
            hint = "permanent" if not can_work else "safe-to-repeat"
            expect_equal(
                learner.may_repeat(spec, error),
                wanted,
                what=f"may_repeat for {spec.name} (idempotent={spec.idempotent}) after "
                f"{type(error).__name__}",
                why="One attempt too many doubles a payment; one too few fails at every hiccup "
                "of the network.",
                hint="not-idempotent" if can_work and not spec.idempotent else hint,
            )


def test_invalid_arguments_are_not_sent_and_come_back_by_field(call, world, pick):
    for role in ROLES:
        bad = pick.choice(world.bad_arguments(role, pick))
        result = call(role, bad.arguments)
        expect_equal(
            {"status": result.status, "calls of the tool": len(world.calls())},
            {"status": "invalid", "calls of the tool": 0},
            what=f"a call of {world.roles[role]} where {bad.problem}",
            why="A tool that gets what it was not made for does something nobody meant.",
            hint="before-the-call",
        )
        content = _to_act_on(result, world.roles[role], "")
        fields = content.get("fields")
        expect(
            isinstance(fields, dict)
            and list(fields) == [bad.field]
            and isinstance(fields[bad.field], str)
            and fields[bad.field] != "",
            observed=f"fields = {show(fields)} where {bad.problem}",
            expected=f"the problem of {bad.field!r}, and of no other field",
            why="A model corrects what it is told; 'invalid arguments' makes it guess.",
            hint="name-the-field",
        )


def test_a_call_that_works_gives_the_tools_answer_and_one_effect(call, world, pick):
    for role in ROLES:
        before = len(world.ledger())
        arguments = world.good_arguments(role, pick)
        result = call(role, arguments, actor="agent-7")
        made = world.calls()[-1]
        expect_equal(
            {"status": result.status, "attempts": result.attempts, "actor": made.actor},
            {"status": "ok", "attempts": 1, "actor": "agent-7"},
            what=f"a call of {world.roles[role]} that works",
            why="Who did it, and whether it worked, is what an audit asks first.",
            hint="pass-it-on",
        )
        expect(
            (made.idempotency_key is not None) is (role in KEYED),
            observed=f"{world.roles[role]} called with the key {show(made.idempotency_key)}",
            expected="a key for writes that take one, none for other tools",
            why="Without a key a write cannot be repeated safely.",
            hint="who-takes-a-key",
        )
        ledger = world.ledger()
        if not world.tool(role).reads:
            expect_equal(
                {"effects": len(ledger) - before, "content": result.content},
                {"effects": 1, "content": ledger[-1].outcome},
                what=f"effects and answer of {world.roles[role]}",
                why="The model must read what the tool said, not a summary of it.",
                hint="one-attempt-first",
            )


def test_a_write_whose_answer_was_lost_is_repeated_under_the_same_key(call, world, pick):
    for role in KEYED:
        before, calls_before = len(world.ledger()), len(world.calls())
        lost = pick.randint(1, 2)
        world.faults.add(role, "after_effect", times=lost)
        result = call(role, world.good_arguments(role, pick))
        keys = [c.idempotency_key for c in world.calls()[calls_before:]]
        expect(
            len(set(keys)) == 1 and keys[0] is not None,
            observed=f"attempts of one call with the keys {show(keys)}",
            expected="one key for all of them",
            why="The first attempt did have its effect; only its answer was lost. A new key makes "
            "it happen again.",
            hint="key-per-call",
        )
        expect_equal(
            {
                "status": result.status,
                "attempts": result.attempts,
                "effects": len(world.ledger()) - before,
            },
            {"status": "ok", "attempts": lost + 1, "effects": 1},
            what=f"{world.roles[role]} after {lost} lost answer(s)",
            why="A network that hiccups must neither fail the customer nor pay twice.",
            hint="safe-to-repeat" if result.attempts == 1 else "key-per-call",
        )


def test_two_calls_that_look_alike_are_two_and_one_made_again_is_one(call, world, pick):
    arguments = world.good_arguments("act_small", pick)
    for ids in (("t1", "c1"), ("t1", "c2"), ("t2", "c1"), ("t1", "c1")):
        result = call("act_small", arguments, thread_id=ids[0], call_id=ids[1])
        expect_equal(
            result.status,
            "ok",
            what="the status of a call that works",
            why="The customer asked for it.",
            hint="one-attempt-first",
        )
    expect_equal(
        len(world.ledger()),
        3,
        what="effects of three calls with the same arguments, the first of them made once more "
        "with its own ids",
        why="A key made of the arguments swallows what a customer asked for twice; a random one "
        "doubles what is resumed after a crash.",
        hint="what-is-one-call",
    )


def test_a_message_is_sent_at_most_once_and_doubt_is_reported(call, world, pick):
    for kind, sent in (("after_effect", 1), ("transient", 0)):
        before, calls_before = len(world.messages()), len(world.calls())
        world.faults.add("notify", kind)
        result = call("notify", world.good_arguments("notify", pick))
        world.faults.clear()
        expect_equal(
            {
                "attempts": len(world.calls()) - calls_before,
                "messages": len(world.messages()) - before,
            },
            {"attempts": 1, "messages": sent},
            what=f"{world.roles['notify']} after a broken connection",
            why="Nothing in the error says whether the message went out. Who tries again sends "
            "it twice.",
            hint="not-idempotent",
        )
        expect_equal(
            result.status,
            "unknown",
            what="the status of a write that may have happened",
            why="'failed' makes the model repeat it, 'ok' makes it claim what may not be.",
            hint="unknown-is-a-result",
        )
        content = _to_act_on(result, world.roles["notify"], "")
        expect(
            "do not repeat" in content["advice"].lower(),
            observed=f"the advice {show(content['advice'])}",
            expected="one that contains 'do not repeat'",
            why="The model is the next that would repeat it.",
            hint="to-act-on",
        )


def test_what_is_refused_is_not_tried_again(call, world, pick):
    for role in ROLES:
        before = len(world.calls())
        world.faults.add(role, "permanent", times=10)
        result = call(role, world.good_arguments(role, pick))
        world.faults.clear()
        _is_refused(result, world, before, role, "switched off")
    before = len(world.calls())
    too_much = {**world.good_arguments("act_risky", pick), "amount": 900_000}
    result = call("act_risky", too_much)
    _is_refused(result, world, before, "act_risky", "900000")
    before = len(world.calls())
    result = call("items", {"customer_id": "C-9999"})
    _is_refused(result, world, before, "items", "C-9999")


def test_a_read_that_never_works_is_unavailable_and_a_write_unknown(learner, call, world, pick):
    for role in (*READS, *KEYED):
        attempts = pick.randint(1, 4)
        policy = learner.Policy(deadline_s=900, attempts=attempts)
        before = len(world.calls())
        world.faults.add(role, "transient", times=10)
        result = call(role, world.good_arguments(role, pick), policy=policy)
        world.faults.clear()
        expect_equal(
            {"attempts": result.attempts, "calls": len(world.calls()) - before},
            {"attempts": attempts, "calls": attempts},
            what=f"attempts of {world.roles[role]} when none works, {attempts} allowed",
            why="Too few give up at a hiccup; too many load a system that is already down.",
            hint="safe-to-repeat",
        )
        expect_equal(
            result.status,
            "unavailable" if role in READS else "unknown",
            what=f"the status of {world.roles[role]} after the last attempt failed",
            why="Of a read it is certain that nothing changed. Of a write it is not.",
            hint="unknown-is-a-result",
        )
        content = _to_act_on(result, world.roles[role], "connection lost")
        if role not in READS:
            expect(
                "do not repeat" in content["advice"].lower(),
                observed=f"the advice {show(content['advice'])}",
                expected="one that contains 'do not repeat'",
                why="The model's next call would come with a new id, and so with a new key.",
                hint="to-act-on",
            )


def test_the_pauses_double(learner, call, world, clock, pick):
    pause_s = pick.choice([0.25, 0.5, 1.0])
    policy = learner.Policy(deadline_s=900, attempts=5, pause_s=pause_s)
    world.faults.add("lookup", "transient", times=4)
    result = call("lookup", world.good_arguments("lookup", pick), policy=policy)
    expect_equal(
        {"pauses": clock.pauses, "status": result.status},
        {"pauses": [pause_s * 2**n for n in range(4)], "status": "ok"},
        what=f"the pauses before attempts 2 to 5 with pause_s = {pause_s}",
        why="A system that is coming up again needs time; hammering keeps it down.",
        hint="pauses",
        rel=1e-9,
    )


def test_no_tool_can_take_longer_than_the_deadline(learner, call, world, clock, pick):
    for n, role in enumerate((*READS, *KEYED, "notify")):
        deadline = pick.choice([6.0, 9.5, 17.0, 40.0])
        policy = learner.Policy(
            deadline_s=deadline,
            attempt_timeout_s=(60.0, 5.0, 2.0)[n % 3],
            attempts=pick.randint(2, 9),
            pause_s=pick.choice([0.5, 2.0]),
        )
        world.faults.add(role, "slow", times=20, delay_s=3600)
        before, began = len(world.calls()), clock.now
        starts: list[float] = []
        spec = _noting(world.tool(role), starts, clock)
        call(role, world.good_arguments(role, pick), policy=policy, spec=spec)
        world.faults.clear()
        took = clock.now - began
        expect(
            took <= deadline + 1e-6,
            observed=f"{world.roles[role]} took {took:g} s when no answer came",
            expected=f"at most {deadline:g} s, the deadline for the whole call",
            why="The customer, and every lock and connection behind, waits for all of it.",
            hint="deadline",
        )
        for start, made in zip(starts, world.calls()[before:], strict=True):
            left = began + deadline - start
            wanted = min(policy.attempt_timeout_s, left)
            given = made.timeout_s
            expect(
                given is not None and abs(given - wanted) < 1e-6,
                observed=f"an attempt that waits {show(given)} s with {left:g} s left",
                expected=f"{wanted:g} s: the smaller of attempt_timeout_s and what is left",
                why="An attempt without a limit of its own uses up the time of those after it.",
                hint="what-is-left",
            )
        if role != "notify":
            _kept_trying(policy, len(starts), clock.now - began, world.roles[role])
    clock.now = 64.0  # so that the sums below are exact
    policy = learner.Policy(deadline_s=6.0, attempt_timeout_s=5.0, attempts=3, pause_s=1.0)
    world.faults.add("lookup", "slow", times=3, delay_s=3600)
    before = len(world.calls())
    call("lookup", world.good_arguments("lookup", pick), policy=policy)
    world.faults.clear()
    expect(
        len(world.calls()) == before + 1,
        observed=f"{len(world.calls()) - before} attempts of 5 s, with pauses of 1 s",
        expected="one attempt: the pause after it would reach the deadline of 6 s",
        why="An attempt that begins at the deadline has no time, and its answer comes too late.",
        hint="what-is-left",
    )


def test_a_bug_is_not_an_answer(call, world, pick):
    for error in (KeyError("balance"), ZeroDivisionError("division by zero"), TypeError("None")):

        def broken(*_: Any, error: Exception = error, **__: Any) -> dict[str, Any]:
            raise error

        role = pick.choice(ROLES)
        spec = replace(world.tool(role), call=broken)
        arguments = world.good_arguments(role, pick)
        try:
            result = call(role, arguments, spec=spec)
        except type(error):
            continue
        except CheckFailed:
            raise
        fail(
            observed=f"a result of status {result.status!r} when the tool raised {error!r}",
            expected=f"the {type(error).__name__} itself",
            why="A model apologises for a bug, and no developer ever hears of it.",
            hint="bugs-go-through",
        )


def test_a_refusal_after_a_broken_attempt_leaves_a_write_in_doubt(call, world, pick):
    for role in (*KEYED, *READS):
        for kind in ("after_effect", "transient"):
            world.faults.add(role, kind)
            world.faults.add(role, "permanent")
            result = call(role, world.good_arguments(role, pick))
            world.faults.clear()
            expect_equal(
                result.status,
                "refused" if role in READS else "unknown",
                what=f"the status of {world.roles[role]} that broke once and was then refused",
                why="The refusal is of the second attempt. The first one may have gone through, "
                "and 'refused' makes somebody do it again by another way.",
                hint="earlier-attempts",
            )


def test_no_sequence_of_faults_doubles_an_effect(learner, call, world, pick):
    kinds = ("transient", "after_effect", "slow", "permanent")
    for n in range(25):
        role = pick.choice((*KEYED, "notify"))
        faults = [pick.choice(kinds) for _ in range(pick.randint(0, 5))]
        for kind in faults:
            world.faults.add(role, kind, delay_s=pick.choice([1, 3600]))
        before = len(world.ledger())
        customer = pick.choice(world.customers()).id
        policy = learner.Policy(attempts=pick.randint(1, 5))
        result = call(role, world.good_arguments(role, pick, customer), policy=policy)
        world.faults.clear()
        effects = len(world.ledger()) - before
        fits = {"ok": effects == 1, "unknown": True, "refused": effects == 0}.get(
            result.status, False
        )
        expect(
            effects <= 1 and fits,
            observed=f"{effects} effects and status {result.status!r} of one {world.roles[role]} "
            f"that met {faults or 'no faults'} (call {n + 1})",
            expected="one effect when it is ok, none when it is refused, none or one when it is "
            "unknown, never two",
            why="The status is all that the agent has to go by. When it says that nothing "
            "happened, somebody does it again.",
            hint=_doubt_hint(plain(result.status), effects),
        )


def test_a_live_models_calls_are_all_dealt_with(learner, world, engine, figure):
    scenario = world.scenario("risky_and_tell")
    customer = scenario.customer_id
    # Whatever it asks for, each tool first breaks after its effect.
    for spec in world.tools():
        world.faults.add(spec.name, "after_effect")
    model = live_agent_model(engine, max_tokens=120).bind_tools(world.tools(), tool_choice="any")
    told = SystemMessage(f"You work for customer {customer}. Use the tools.")
    made = 0
    for n, request in enumerate((scenario.request, f"Send {customer} a message: done.")):
        reply = model.invoke([told, HumanMessage(request)])
        for wanted in reply.tool_calls:
            made += 1
            before = len(world.ledger())
            spec = world.tool(wanted["name"])
            policy = learner.Policy(pause_s=0.01)
            result = learner.call_tool(
                spec, wanted["args"], thread_id="live", call_id=f"{n}-{wanted['id']}", policy=policy
            )
            effects = len(world.ledger()) - before
            expect(
                plain(result.status) in STATUSES and effects <= 1,
                observed=f"status {show(plain(result.status))} and {effects} effects of "
                f"{spec.name}({show(wanted['args'])})",
                expected=f"one of {', '.join(STATUSES)}, and at most one effect",
                why="A real model asks for what no test foresaw.",
                hint="table-of-errors",
            )
    figure("tool calls of the live model", made, unit="calls")


def _refused_by_field(learner: Any, spec: Any, bad: Any) -> None:
    error = _raised(learner, spec, bad.arguments, bad.problem)
    problems = plain(error.problems)
    expect(
        isinstance(problems, dict) and list(problems) == [bad.field] and bool(problems[bad.field]),
        observed=f"problems {show(problems)} where {bad.problem}",
        expected=f"what is wrong with {bad.field!r}, and with no other field",
        why="A model corrects the field that it is told of.",
        hint="name-the-field",
    )


def _raised(learner: Any, spec: Any, arguments: dict[str, Any], problem: str) -> Any:
    return expect_raises(
        learner.InvalidArguments,
        lambda: learner.check_arguments(spec, arguments),
        doing=f"arguments of {spec.name} in which {problem}",
        why="What is quietly converted or dropped is not what the model meant, and nobody will "
        "know.",
        hint="as-given",
    )


def _key_elsewhere(function: Any, thread: str, call: str, hash_seed: str) -> str:
    """The key as another Python process makes it."""
    file = sys.modules[function.__wrapped__.__module__].__file__
    code = (
        "import importlib.util, sys; "
        "spec = importlib.util.spec_from_file_location('tools', sys.argv[1]); "
        "module = importlib.util.module_from_spec(spec); sys.modules['tools'] = module; "
        "spec.loader.exec_module(module); print(module.idempotency_key(*sys.argv[2:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file), thread, call],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=18,
        check=False,
    )
    if done.returncode:
        fail(
            observed=f"idempotency_key fails in another process: {done.stderr.strip()[-300:]}",
            expected="the same key in every process",
            why="After a crash another process repeats the call.",
            hint="same-everywhere",
        )
    return done.stdout.strip()


def _is_refused(result: Any, world: World, before: int, role: str, text: str) -> None:
    expect_equal(
        result.status,
        "refused",
        what=f"the status of {world.roles[role]} after a PermanentError",
        why="A model that reads 'ok' tells the customer that it is done.",
        hint="errors-are-not-ok" if plain(result.status) == "ok" else "permanent",
    )
    expect_equal(
        len(world.calls()) - before,
        1,
        what=f"attempts of {world.roles[role]} when the first one was refused",
        why="The same call will never work. Repeating it only makes the customer wait.",
        hint="permanent",
    )
    _to_act_on(result, world.roles[role], text)


def _to_act_on(result: Any, tool: str, text: str) -> dict[str, Any]:
    """The content, once it is known to be of use to a model."""
    content = plain(result.content)
    good = isinstance(content, dict) and all(
        isinstance(content.get(key), str) and content[key].strip() for key in ("error", "advice")
    )
    expect(
        good and json.dumps(content) != "",
        observed=f"content {show(content)} of a result {result.status!r}",
        expected="a dict with texts under 'error' and 'advice'",
        why="The model reads nothing else. 'Something went wrong' makes it try the same again.",
        hint="to-act-on",
    )
    assert isinstance(content, dict)
    expect(
        tool in content["error"] and text in content["error"],
        observed=f"error = {show(content['error'])}",
        expected=f"the tool's name, {tool!r}" + (f", and the error's text ({text!r})" * bool(text)),
        why="Of several calls made at once the model must know which one failed, and why.",
        hint="to-act-on",
    )
    return content


def _doubt_hint(status: Any, effects: int) -> str:
    if effects > 1:
        return "key-per-call"
    return "earlier-attempts" if status == "refused" else "errors-are-not-ok"


def _noting(spec: Any, starts: list[float], clock: StillClock) -> Any:
    """The tool, noting when each attempt began."""

    def noted(*args: Any, **kwargs: Any) -> dict[str, Any]:
        starts.append(clock.now)
        answer: dict[str, Any] = spec.call(*args, **kwargs)
        return answer

    return replace(spec, call=noted)


def _kept_trying(policy: Any, attempts: int, took: float, name: str) -> None:
    """Fail when it gave up although there was time for another attempt."""
    pause = policy.pause_s * 2 ** (attempts - 1)
    expect(
        attempts >= policy.attempts or took + pause >= policy.deadline_s - 1e-6,
        observed=f"{name} given up after {attempts} of {policy.attempts} attempts and {took:g} s",
        expected=f"another attempt: the next pause is {pause:g} s, the deadline "
        f"{policy.deadline_s:g} s",
        why="A call that is given up too early is a customer who is sent away for nothing.",
        hint="what-is-left",
    )
