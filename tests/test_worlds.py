"""The tool worlds keep their books: state, ledger, keys and faults, in every domain."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import sqlite3
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.domains.worlds import (
    DOMAINS,
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

RISKY_WRITES = ("act_risky", "act_final")
WRITES_WITH_KEY = ("act_small", *RISKY_WRITES)


@pytest.fixture(params=DOMAINS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """A fresh world of each domain."""
    return open_world(request.param, tmp_path / "world.sqlite", seed=5)


@pytest.fixture
def rng() -> random.Random:
    """Fresh arguments, the same each run."""
    return random.Random(11)


def test_every_role_has_one_tool_with_the_flags_that_the_contract_gives_it(world: World) -> None:
    tools = {spec.role: spec for spec in world.tools()}
    assert list(tools) == list(ROLES)
    assert {r for r, t in tools.items() if t.reads} == {"lookup", "items", "search"}
    assert {r for r, t in tools.items() if t.risky} == set(RISKY_WRITES)
    assert {r for r, t in tools.items() if not t.idempotent} == {"notify"}
    assert world.tool("act_risky") is world.tool(world.roles["act_risky"])
    assert json.dumps([t.as_function() for t in world.tools()])


def test_the_same_seed_makes_the_same_world_and_another_seed_another(tmp_path: Path) -> None:
    one, same, other = (
        open_world("finance", tmp_path / f"{n}.sqlite", seed=seed)
        for n, seed in enumerate((1, 1, 2))
    )
    assert (one.customers(), one.documents(), one.scenarios()) == (
        same.customers(),
        same.documents(),
        same.scenarios(),
    )
    assert one.customers() != other.customers()


def test_writes_reach_state_and_ledger_and_reads_do_not(world: World, rng: random.Random) -> None:
    for role in ROLES:
        before = len(world.ledger())
        arguments = world.good_arguments(role, rng)
        answer = world.call(role, arguments, actor="tester")
        assert json.dumps(answer)
        ledger = world.ledger()
        assert len(ledger) == before + (not world.tool(role).reads)
        if not world.tool(role).reads:
            assert ledger[-1].arguments == arguments
            assert ledger[-1].outcome == answer
            assert (ledger[-1].actor, ledger[-1].action) == ("tester", world.roles[role])


def test_a_key_has_one_effect_and_one_meaning(world: World, rng: random.Random) -> None:
    for n, role in enumerate(WRITES_WITH_KEY):
        arguments = world.good_arguments(role, rng)
        first = world.call(role, arguments, idempotency_key=f"k{n}")
        assert world.call(role, arguments, idempotency_key=f"k{n}") == first
        assert [e.idempotency_key for e in world.ledger()].count(f"k{n}") == 1
        with pytest.raises(KeyReused):
            world.call(role, {**arguments, "reason": "another reason"}, idempotency_key=f"k{n}")
        assert len(world.ledger()) == n + 1
    with pytest.raises(TypeError):
        world.call("notify", world.good_arguments("notify", rng), idempotency_key="k")


def test_without_a_key_a_write_happens_each_time(world: World, rng: random.Random) -> None:
    for role in (*WRITES_WITH_KEY, "notify"):
        arguments = world.good_arguments(role, rng)
        before = len(world.ledger())
        world.call(role, arguments)
        world.call(role, arguments)
        assert len(world.ledger()) == before + 2


def test_good_arguments_pass_and_bad_ones_are_refused_before_anything(world: World) -> None:
    rng = random.Random(3)
    for role in ROLES:
        for _ in range(20):
            world.tool(role).arguments.model_validate(world.good_arguments(role, rng), strict=True)
            for bad in world.bad_arguments(role, rng):
                with pytest.raises(ValidationError) as caught:
                    world.call(role, bad.arguments)
                assert bad.field in str(caught.value)
    assert not world.calls()
    with pytest.raises(TypeError):
        world.tool("lookup").call({"customer_id": "C-1001"})  # type: ignore[arg-type]


def test_rules_of_the_business_hold(world: World, rng: random.Random) -> None:
    arguments = world.good_arguments("act_risky", rng)
    with pytest.raises(Refused):
        world.call("act_risky", {**arguments, "amount": 900_000})
    stranger = next(c.id for c in world.customers() if c.id != arguments["customer_id"])
    with pytest.raises(NotFound):
        world.call("act_risky", {**arguments, "customer_id": stranger})
    with pytest.raises(NotFound):
        world.call("lookup", {"customer_id": "C-9999"})
    assert not world.ledger()


def test_faults_come_before_or_after_the_effect_and_look_the_same(world: World) -> None:
    rng = random.Random(1)
    texts = set()
    for kind, effects in (("transient", 0), ("after_effect", 1)):
        world.faults.add("act_risky", kind)  # type: ignore[arg-type]
        before = len(world.ledger())
        with pytest.raises(TransientError) as caught:
            world.call("act_risky", world.good_arguments("act_risky", rng))
        texts.add(str(caught.value))
        assert len(world.ledger()) == before + effects
    assert len(texts) == 1
    world.faults.add("lookup", "permanent", times=2)
    for _ in range(2):
        with pytest.raises(PermanentError):
            world.call("lookup", {"customer_id": "C-1001"})
    world.call("lookup", {"customer_id": "C-1001"})
    results = [c.result for c in world.calls()]
    assert results == ["TransientError"] * 2 + ["PermanentError"] * 2 + ["ok"]


def test_a_slow_call_waits_on_the_worlds_clock_and_times_out_after_its_effect(
    world: World, rng: random.Random
) -> None:
    slept: list[float] = []
    world.sleep = slept.append
    world.faults.add("act_small", "slow", times=2, delay_s=30)
    arguments = world.good_arguments("act_small", rng)
    with pytest.raises(CallTimeout):
        world.call("act_small", arguments, idempotency_key="k", timeout_s=2)
    assert world.call("act_small", arguments, idempotency_key="k", timeout_s=60)
    assert slept == [2, 30]
    assert [c.result for c in world.calls()] == ["CallTimeout", "replayed"]
    assert len(world.ledger()) == 1


def test_the_ledger_only_grows(world: World, rng: random.Random) -> None:
    world.call("act_small", world.good_arguments("act_small", rng))
    with sqlite3.connect(world.path) as db:
        for statement in ("DELETE FROM ledger", "UPDATE ledger SET actor = 'nobody'"):
            with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                db.execute(statement)
    db.close()


def test_scenarios_can_be_done_and_have_the_effects_they_promise(world: World) -> None:
    planned = world.scenarios()
    for scenario in planned:
        before = len(world.effects())
        for step in scenario.steps:
            assert step.arguments.get("customer_id") == scenario.customer_id
            try:
                world.call(step.tool, step.arguments)
            except Refused:
                assert scenario.id == "too_much"
        assert world.effects()[before:] == list(scenario.expected_effects)
        risky = any(world.tool(step.tool).risky for step in scenario.steps)
        assert scenario.needs_approval == risky
    assert world.scenarios() == planned, "jobs must not change while the world is used"


def test_documents_and_notes_reach_the_model_through_tools(world: World) -> None:
    found = world.call("search", {"query": world.words["item"]})["documents"]
    assert found
    assert all("injected" not in d for d in found)
    assert sum(d.injected for d in world.documents()) >= 2
    item = world.items("C-1001")[0]["id"]
    world.set_note(item, "from outside")
    notes = {i["id"]: i["note"] for i in world.call("items", {"customer_id": "C-1001"})["items"]}
    assert notes[item] == "from outside"


def test_a_file_holds_one_domain(world: World) -> None:
    other = next(d for d in DOMAINS if d != world.domain)
    with pytest.raises(ValueError, match="holds the"):
        open_world(other, world.path)
    with pytest.raises(ValueError, match="no domain"):
        open_world("sports", world.path)


def _call_many(domain: str, path: str, worker: int) -> None:
    world = open_world(domain, path)
    arguments = world.scenario("small").steps[-1].arguments
    for n in range(10):
        world.call("act_small", arguments, idempotency_key=f"shared-{n}")
        world.call("act_small", arguments, idempotency_key=f"{worker}-{n}")


def _be_killed(domain: str, path: str) -> None:
    world = open_world(domain, path)
    step = world.scenario("risky").steps[-1]
    world.call(step.tool, step.arguments, idempotency_key="k")


def test_processes_share_a_world_and_a_kill_loses_nothing(world: World) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [
        spawn.Process(target=_call_many, args=(world.domain, str(world.path), n)) for n in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(world.ledger()) == 30

    for kind, effects in (("kill_before", 30), ("kill_after", 31)):
        world.faults.add("act_risky", kind)  # type: ignore[arg-type]
        worker = spawn.Process(target=_be_killed, args=(world.domain, str(world.path)))
        worker.start()
        worker.join(60)
        assert worker.exitcode == -signal.SIGKILL
        assert len(world.ledger()) == effects
        assert world.calls()[-1].result == ""
    _be_killed(world.domain, str(world.path))
    assert len(world.ledger()) == 31


def test_the_scripted_model_follows_a_scenario_and_counts(world: World) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

    from shared.agents.scripted import ScriptedChatModel, follow

    scenario = world.scenario("risky_and_tell")
    model = ScriptedChatModel(replies=follow(scenario))
    agent = model.bind_tools(world.tools())
    messages: list[BaseMessage] = [HumanMessage(scenario.request)]
    while True:
        reply = agent.invoke(messages)
        assert isinstance(reply, AIMessage)
        messages.append(reply)
        if not reply.tool_calls:
            break
        for call in reply.tool_calls:
            answer = world.call(call["name"], call["args"])
            messages.append(ToolMessage(str(answer), name=call["name"], tool_call_id=call["id"]))
    assert reply.content == scenario.answer
    assert world.effects() == list(scenario.expected_effects)
    assert model.calls == len(scenario.steps) + 1
    used = [m.usage_metadata for m in messages if isinstance(m, AIMessage)]
    assert model.tokens == sum(u["total_tokens"] for u in used if u)
    assert model.tools_bound[0] == list(world.roles.values())


def test_the_scripted_model_ends_repeats_raises_and_reads_json() -> None:
    pytest.importorskip("langchain_core")
    from pydantic import BaseModel

    from shared.agents.scripted import ScriptedChatModel, ScriptExhausted, calls, says

    class Verdict(BaseModel):
        ok: bool

    model = ScriptedChatModel(
        replies=[says("hello", input_tokens=40, output_tokens=2), TimeoutError("no answer")]
    )
    assert model.invoke("hi").usage_metadata == {
        "input_tokens": 40,
        "output_tokens": 2,
        "total_tokens": 42,
    }
    with pytest.raises(TimeoutError):
        model.invoke("hi")
    with pytest.raises(ScriptExhausted):
        model.invoke("hi")
    assert (model.calls, model.tokens) == (3, 42)

    loop = ScriptedChatModel(replies=[calls("get_customer", {})], on_end="repeat")
    ids = {loop.invoke("hi").tool_calls[0]["id"] for _ in range(3)}
    assert len(ids) == 3
    streamed = list(loop.stream("hi"))
    assert streamed[0].tool_calls[0]["name"] == "get_customer"

    judge = ScriptedChatModel(replies=['{"ok": true}', '{"ok": 3.5}'])
    assert judge.with_structured_output(Verdict).invoke("?") == Verdict(ok=True)
    raw = judge.with_structured_output(Verdict, include_raw=True).invoke("?")
    assert raw["parsed"] is None
    assert raw["parsing_error"] is not None
