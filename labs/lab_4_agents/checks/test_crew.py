"""Task 4.8: the same job as a CrewAI flow, with the same gate and the same ledger, offline."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shared.agents.quiet_crewai  # noqa: F401  isort: skip  (before crewai)
from crewai import Agent, BaseLLM
from crewai.flow.flow import Flow
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.tools import BaseTool
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from support.crew_jobs import JOB, work, work_guarded
from support.guard import BROKE_OUT, stay_here
from support.nursery import Ended, Nursery

from shared.agents.live import live_agent_model
from shared.agents.loop import run_loop
from shared.agents.scripted import ScriptedChatModel, calls, calls_all, follow, says
from shared.domains.worlds import ROLES, Step, World, open_world
from shared.grading.expect import (
    CheckFailed,
    expect,
    expect_equal,
    expect_raises,
    fail,
    plain,
    show,
)
from shared.grading.target import target_from_environment

SCENARIOS = (
    "question",
    "small",
    "risky",
    "risky_and_tell",
    "final",
    "too_much",
    "other_customer",
)
READS = ("lookup", "items", "search")
KEYED = ("act_small", "act_risky", "act_final")
SUPPORT = Path(__file__).with_name("support")


@pytest.fixture(scope="session", autouse=True)
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever a learner's flow turns on: it finds no network, and the home folder is another.

    So is the folder for temporary files, where CrewAI leaves a lock for each store.
    """
    stay_here()
    folder = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", folder)
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def nursery(at_home: None) -> Iterator[Nursery]:
    """Where processes come from. Made before the first flow starts threads in this one."""
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def world(domain: str, tmp_path: Path, seed: int) -> World:
    """A fresh world, another one each run."""
    return open_world(domain, tmp_path / "world.sqlite", seed=seed)


@pytest.fixture
def pick(seed: int) -> random.Random:
    """A generator of the kind that the worlds take."""
    return random.Random(seed)


class Desk:
    """A learner's jobs on one world, one store and one model, with every turn looked at."""

    def __init__(self, learner: Any, world: World, store: Path, model: Any) -> None:
        self.learner, self.world, self.store, self.model = learner, world, store, model
        self.specs = world.tools()

    def start(self, request: str, job_id: str = JOB) -> Any:
        """`start_job`."""
        return self._turn(self.learner.start_job(request, **self._how(job_id)), "start_job")

    def resume(self, decisions: Mapping[str, Any], job_id: str = JOB) -> Any:
        """`resume_job`."""
        turn = self.learner.resume_job(dict(decisions), **self._how(job_id))
        return self._turn(turn, "resume_job")

    def decide(self, turn: Any, kind: str = "approve", **more: Any) -> dict[str, Any]:
        """The same decision for all calls that wait."""
        made = self.learner.Decision(kind=kind, **more)
        return {str(w.call_id): made for w in turn.waiting}

    def read(self) -> list[str]:
        """What the tools answered, as the model saw it when it was asked last."""
        return [str(m.content) for m in self.model.asked[-1] if isinstance(m, ToolMessage)]

    def _how(self, job_id: str) -> dict[str, Any]:
        return {
            "job_id": job_id,
            "model": self.model,
            "tools": self.specs,
            "store": self.store,
        }

    def _turn(self, turn: Any, name: str) -> Any:
        if type(turn).__name__ != "Turn" or not all(
            type(w).__name__ == "Waiting" for w in turn.waiting
        ):
            fail(
                observed=f"{name} returned {show(turn)}",
                expected="a Turn, with a Waiting for each call that waits",
                why="Whoever called it has to know whether a person is needed.",
                hint="one-state",
            )
        return turn


@pytest.fixture
def desk(learner: Any, world: World, tmp_path: Path) -> Callable[..., Desk]:
    """`desk(replies)`: jobs with a model of these replies."""

    def made(replies: Any, **more: Any) -> Desk:
        model = ScriptedChatModel(replies=replies, **more)
        return Desk(learner, world, tmp_path / "flows.sqlite", model)

    return made


def test_a_tool_of_the_world_is_a_tool_of_crewai_and_answers_in_json(learner, world, pick):
    for role in ROLES:
        spec = world.tool(role)
        tool = _tool(learner, spec)
        shown = {"name": tool.name, "description": tool.description}
        expect(
            shown == {"name": spec.name, "description": spec.description}
            and set(tool.args_schema.model_fields) == set(spec.arguments.model_fields),
            observed=f"{show(shown)}, with arguments {sorted(tool.args_schema.model_fields)}",
            expected=f"name, description and arguments of {spec.name}",
            why="The model chooses a tool by these words, and fills in these fields.",
            hint="tool-fields",
        )
        answers: list[dict[str, Any]] = []
        tool = _tool(learner, _noting(spec, answers))
        text = _text(tool.run(**world.good_arguments(role, pick)), spec.name)
        expect_equal(
            _json(text),
            answers[0] if answers else "the tool's answer",
            what=f"what the model reads of {spec.name}, as JSON",
            why="The text is all that the model has. Python's own notation of a dict is not JSON: "
            "None and single quotes make a reader fail.",
            hint="json-text",
        )


def test_arguments_reach_the_tool_exactly_as_given_or_not_at_all(learner, world, pick):
    for role in ROLES:
        spec = world.tool(role)
        for bad in world.bad_arguments(role, pick):
            before = len(world.calls())
            text = _run(learner, spec, bad.arguments, f"arguments in which {bad.problem}")
            expect(
                len(world.calls()) == before,
                observed=f"{spec.name} was called with {show(bad.arguments)}, in which "
                f"{bad.problem}",
                expected="no call",
                why="CrewAI's tools validate leniently: '500' becomes 500, True becomes 1. What "
                "is quietly converted is not what the model meant.",
                hint="crewai-converts",
            )
            _is_error(learner, text, [bad.field], f"{spec.name}, where {bad.problem}")


def test_what_goes_wrong_is_a_text_that_the_model_can_act_on(learner, world, pick):
    for role in ROLES:
        spec = world.tool(role)
        for kind, name, text in (
            ("transient", "TransientError", "connection lost"),
            ("permanent", "PermanentError", "switched off"),
        ):
            world.faults.add(role, kind)
            said = _run(learner, spec, world.good_arguments(role, pick), f"a {name}")
            world.faults.clear()
            _is_error(learner, said, [name, text], f"{spec.name} after a {name}")
            doubt = kind == "transient" and role not in READS
            expect(
                ("do not repeat" in said.lower()) is doubt,
                observed=f"{show(said)} after a {name} of {spec.name}",
                expected="a text with 'do not repeat'" if doubt else "none with 'do not repeat'",
                why="After a broken write nobody knows whether it happened, and the model's next "
                "call comes with a new key. After anything else it may well try again.",
                hint="in-doubt",
            )
    arguments = {**world.good_arguments("act_risky", pick), "amount": 900_000}
    said = _run(learner, world.tool("act_risky"), arguments, "too large an amount")
    _is_error(learner, said, ["Refused", "900000"], "an amount above the limit")
    for error in (KeyError("balance"), ZeroDivisionError("division by zero")):

        def broken(*_: Any, error: Exception = error, **__: Any) -> dict[str, Any]:
            raise error

        tool = _tool(learner, replace(world.tool("items"), call=broken))
        try:
            said = tool.run(**world.good_arguments("items", pick))
        except type(error):
            continue
        fail(
            observed=f"{show(said)} when the tool raised {error!r}",
            expected=f"the {type(error).__name__} itself",
            why="A model apologises for a bug, and no developer ever hears of it.",
            hint="bugs-go-through",
        )


def test_a_key_goes_to_the_tools_that_take_one_and_no_answer_comes_from_a_cache(
    learner, world, pick
):
    for role in ROLES:
        key = f"key-{pick.getrandbits(40)}"
        spec = world.tool(role)
        arguments = world.good_arguments(role, pick)
        before, effects = len(world.calls()), len(world.ledger())
        for _ in range(2):
            # Two tools of one key: a process that died, and the one that goes on.
            _run(learner, spec, arguments, f"a call with the key {key!r}", key=key)
        made = world.calls()[before:]
        expect_equal(
            [c.idempotency_key for c in made],
            [key if role in KEYED else None] * 2,
            what=f"the keys that {spec.name} got when it was called twice with key={key!r}",
            why="Without its key a repeated call has its effect twice. A tool that takes none "
            "refuses the call.",
            hint="key-goes-along",
        )
        _run(learner, spec, arguments, "a call without a key")
        expect_equal(
            len(world.ledger()) - effects,
            0 if role in READS else 3 if role == "notify" else 2,
            what=f"effects of {spec.name}, called twice with one key and once without",
            why="A second call that is meant is a second call.",
            hint="key-goes-along",
        )
        tool = _tool(learner, spec)
        expect(
            not tool.cache_function(arguments, "a result"),
            observed=f"cache_function of {spec.name} allows CrewAI to keep its results",
            expected="a cache_function that says no",
            why="CrewAI's agents answer an equal call from their cache: a balance from before the "
            "refund, and a second message that was never sent.",
            hint="no-cache",
        )


def test_what_crewai_says_reaches_the_chat_model_and_its_calls_come_back(learner, world, pick):
    role, other = pick.sample(ROLES, 2)
    arguments, second = world.good_arguments(role, pick), world.good_arguments(other, pick)
    first_id, second_id, word = (f"{n}-{pick.getrandbits(40)}" for n in ("call", "call", "word"))
    asked = calls_all(
        [Step(world.roles[role], arguments), Step(world.roles[other], second)],
        ids=[first_id, second_id],
    )
    model = ScriptedChatModel(replies=[asked, says(f"Done, {word}."), says("Hello.")])
    llm = learner.ChatLLM(model)
    expect(
        isinstance(llm, BaseLLM) and llm.supports_function_calling() is True,
        observed=f"a {type(llm).__name__} that "
        f"{'supports' if llm.supports_function_calling() else 'does not support'} function calling",
        expected="a BaseLLM that supports function calling",
        why="CrewAI's agents otherwise describe the tools in the prompt and parse the text.",
        hint="both-directions",
    )
    tools = [spec.as_function() for spec in world.tools()]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": f"Be brief, {word}."},
        {"role": "user", "content": f"Please help, {word}.", "files": {}, "cache_breakpoint": True},
    ]
    made: list[str] = []
    functions = {spec.name: lambda **_: made.append("called") for spec in world.tools()}
    reply = plain(llm.call(messages, tools=tools, available_functions=functions))
    expect(
        not made and not world.calls(),
        observed="call made the tool calls itself",
        expected="the calls, for the caller to make",
        why="What calls tools from inside the model passes no gate.",
        hint="no-calls-inside",
    )
    _is_calls(reply, asked)
    expect_equal(
        model.tools_bound[-1],
        [spec.name for spec in world.tools()],
        what="the tools that the chat model was offered",
        why="A model that isn't told of its tools makes up an answer.",
        hint="both-directions",
    )
    messages += [
        {"role": "assistant", "content": None, "tool_calls": reply},
        {"role": "tool", "name": world.roles[role], "tool_call_id": first_id, "content": "one"},
        {"role": "tool", "name": world.roles[other], "tool_call_id": second_id, "content": "two"},
    ]
    text = plain(llm.call(messages, tools=tools))
    expect_equal(
        text,
        f"Done, {word}.",
        what="the reply of a model that asks for no tool",
        why="CrewAI takes a text for the answer and a list for calls.",
        hint="both-directions",
    )
    expect_equal(
        [_shown(m) for m in model.asked[-1]],
        [
            _shown(SystemMessage(f"Be brief, {word}.")),
            _shown(HumanMessage(f"Please help, {word}.")),
            _shown(asked),
            _shown(ToolMessage("one", name=world.roles[role], tool_call_id=first_id)),
            _shown(ToolMessage("two", name=world.roles[other], tool_call_id=second_id)),
        ],
        what="the messages that reached the chat model",
        why="A model that doesn't see which calls it made and what came of each makes them again.",
        hint="both-directions",
    )
    llm.call(f"Only this, {word}.")
    expect_equal(
        {"messages": [_shown(m) for m in model.asked[-1]], "tools": model.tools_bound[-1]},
        {"messages": [_shown(HumanMessage(f"Only this, {word}."))], "tools": []},
        what="what reached the chat model when call got one text and no tools",
        why="CrewAI's own helpers ask in this way.",
        hint="both-directions",
    )


def test_an_agent_of_crewais_own_can_work_with_the_model_and_the_tools(learner, world, pick):
    who = pick.choice(world.customers()).id
    look = {"customer_id": who}
    steps = [("items", look), ("notify", {"customer_id": who, "text": "Hello."}), ("items", look)]

    def script(messages: list[BaseMessage]) -> Any:
        done = sum(isinstance(m, ToolMessage) for m in messages)
        if done == len(steps):
            return says(f"All done for {who}.")
        return calls(world.roles[steps[done][0]], steps[done][1], id=f"call-{done}")

    agent = Agent(
        role="Support",
        goal="Help the customer",
        backstory="You work with tools.",
        llm=learner.ChatLLM(ScriptedChatModel(replies=script)),
        tools=[_tool(learner, world.tool(role)) for role in ("items", "notify")],
        verbose=False,
    )
    try:
        result = agent.kickoff(f"Look, tell, look again, for {who}.")
    except NotImplementedError:
        raise
    except Exception as error:
        fail(
            observed=f"{type(error).__name__} in CrewAI's agent: {str(error)[:200]}",
            expected="an agent that looks, sends a message, looks again and answers",
            why="A model or a tool that only works with your own loop is no part of CrewAI.",
            hint="both-directions",
        )
    expect_equal(
        {"calls": [c.tool for c in world.calls()], "answer": str(result.raw)},
        {"calls": [world.roles[r] for r, _ in steps], "answer": f"All done for {who}."},
        what="the tools called by an agent of CrewAI's, and its answer",
        why="The second look must see what the message has changed.",
        hint="no-cache",
    )


def test_each_job_ends_with_the_ledger_that_the_plain_loop_leaves(
    learner, domain, tmp_path, seed, desk, world
):
    for scenario in world.scenarios():
        twin = open_world(domain, tmp_path / f"{scenario.id}-twin.sqlite", seed=seed)
        model = ScriptedChatModel(replies=follow(scenario)).bind_tools(twin.tools())
        run_loop(model.invoke, twin.tools(), scenario.request)
        job = desk(follow(scenario))
        before = len(world.ledger())
        with _flows(learner) as seen:
            job.specs = [_inside(spec, seen) for spec in world.tools()]
            turn = job.start(scenario.request, scenario.id)
            asked_for = [(w.tool, plain(w.arguments)) for w in turn.waiting]
            risky = [s for s in scenario.steps if world.tool(s.tool).risky]
            expect_equal(
                asked_for,
                [(s.tool, s.arguments) for s in risky],
                what=f"the calls that wait for a person in the job {scenario.id!r}",
                why="People who are asked about everything approve anything; people who are not "
                "asked can stop nothing.",
                hint="who-waits",
            )
            expect(
                not any(world.tool(e.action).risky for e in world.ledger()[before:]),
                observed=f"a risky call of the job {scenario.id!r} was made before it was decided",
                expected="none, until a person approves it",
                why="This is what the gate is for.",
                hint="who-waits",
            )
            if risky:
                _is_stored(job, scenario.id)
                turn = job.resume(job.decide(turn), scenario.id)
                expect(
                    not turn.waiting,
                    observed=f"the job {scenario.id!r} waits again, for "
                    f"{', '.join(w.tool for w in turn.waiting)}, when all was approved",
                    expected="a job that goes on from where it waited",
                    why="A job that begins anew after each pause never comes to its end.",
                    hint="from-the-start",
                )
        effects = [(e.action, e.arguments) for e in world.ledger()[before:]]
        expect_equal(
            effects,
            [(s.tool, s.arguments) for s in twin.effects()],
            what=f"the ledger after the job {scenario.id!r}, everything approved",
            why="Another framework is no reason for another outcome.",
            hint="one-state",
        )
        expect_equal(
            {"answer": turn.answer, "waiting": len(turn.waiting)},
            {"answer": scenario.answer, "waiting": 0},
            what=f"how the job {scenario.id!r} ended",
            why="The customer waits for this text.",
            hint="one-state",
        )
        _is_stored(job, scenario.id)
        expect(
            bool(seen.begun) and not seen.outside,
            observed=f"{len(seen.begun)} runs of an AgentFlow, and tool calls outside of one: "
            f"{seen.outside or 'none'}",
            expected="every tool call made by an AgentFlow",
            why="What runs beside the flow has no state, no events and no traces in CrewAI.",
            hint="one-state",
        )


def test_a_reply_waits_as_a_whole_and_its_calls_are_made_in_order(world, desk, pick):
    customers = pick.sample(world.customers(), 2)
    steps = []
    for role in ("lookup", "act_risky", "notify", "act_final", "act_small"):
        who = pick.choice(customers).id
        steps.append(Step(world.roles[role], world.good_arguments(role, pick, who)))
    ids = [f"call_{n}" for n in range(len(steps))]
    job = desk([calls_all(steps, ids=ids), says("Done.")])
    turn = job.start("Please do all this.")
    waits = [(w.tool, plain(w.arguments)) for w in turn.waiting]
    expect_equal(
        waits,
        [(s.tool, s.arguments) for s in steps if world.tool(s.tool).risky],
        what="what waits of a reply with five calls, two of them risky",
        why="Whoever decides must see at once all that the reply wants.",
        hint="whole-reply",
    )
    decisions = job.decide(turn)
    _nothing_made(world, "before anything was decided")
    first = turn.waiting[pick.randrange(2)].call_id
    turn = job.resume({first: decisions[first]})
    expect_equal(
        [w.call_id for w in turn.waiting],
        [c for c in decisions if c != first],
        what="what still waits after one of two calls was decided",
        why="Two people may share the work; a decision for one call is none for the other.",
        hint="whole-reply",
    )
    _nothing_made(world, "when one of two risky calls was decided")
    turn = job.resume({c: d for c, d in decisions.items() if c != first})
    expect_equal(
        [(c.tool, c.arguments) for c in world.calls()],
        [(s.tool, s.arguments) for s in steps],
        what="the calls that were made once all was decided",
        why="The model asked for them in this order: the message comes after the act.",
        hint="whole-reply",
    )
    _answered_once(job, ids)
    expect_equal(turn.answer, "Done.", what="the answer", why="It is done.", hint="one-state")


def test_an_edited_call_is_made_as_edited_and_a_rejected_one_not_at_all(world, desk, pick):
    who = pick.choice(world.customers()).id
    wanted = world.good_arguments("act_risky", pick, who)
    edited = {**wanted, "amount": wanted["amount"] + 1, "reason": f"edited {pick.getrandbits(30)}"}
    risky = world.roles["act_risky"]
    job = desk([calls(risky, wanted), says("Done."), calls(risky, wanted), says("Well.")])
    turn = job.resume(job.decide(job.start("Please."), "edit", arguments=edited))
    expect_equal(
        [(e.action, e.arguments) for e in world.ledger()],
        [(risky, edited)],
        what="the ledger after the arguments were edited",
        why="The person changed them for a reason.",
        hint="edit-counts",
    )
    read = job.read()[-1]
    expect(
        str(edited["amount"]) in read and edited["reason"] in read,
        observed=f"the model reads {show(read)}",
        expected=f"a text that also holds the arguments it was made with: {show(edited)}",
        why="Otherwise it tells the customer of an amount that was never paid.",
        hint="edit-counts",
    )
    note = f"not today {pick.getrandbits(30)}"
    turn = job.resume(job.decide(job.start("Again.", "job-2"), "reject", note=note), "job-2")
    expect_equal(
        {"effects": len(world.ledger()) - 1, "answer": turn.answer},
        {"effects": 0, "answer": "Well."},
        what="effects of a rejected call, and the answer",
        why="A rejection that only delays is none.",
        hint="reject-counts",
    )
    read = job.read()[-1]
    expect(
        note in read,
        observed=f"the model reads {show(read)}",
        expected=f"a text with the person's note {note!r}",
        why="A model that isn't told why tries the same again.",
        hint="reject-counts",
    )


def test_a_wrong_decision_changes_nothing(learner, world, desk, pick):
    who = pick.choice(world.customers()).id
    steps = [Step(world.roles[r], world.good_arguments(r, pick, who)) for r in KEYED[1:]]
    job = desk([calls_all(steps), says("Done.")])
    turn = job.start("Please.")
    risky, final = (str(w.call_id) for w in turn.waiting)
    approve, wanted = learner.Decision(kind="approve"), steps[0].arguments
    cases = [
        ({risky: approve, "no-such-call": approve}, "a decision about a call that isn't waiting"),
        ({"no-such-call": approve}, "a decision about an unknown call"),
    ]
    for changed in ({"amount": str(wanted["amount"])}, {"amount": 0}, {"urgent": True}):
        edit = learner.Decision(kind="edit", arguments={**wanted, **changed})
        cases.append(({final: approve, risky: edit}, f"an edit with {changed}"))
    cases.append(({risky: learner.Decision(kind="edit")}, "an edit without arguments"))
    for decisions, what in cases:
        expect_raises(
            ValueError,
            lambda decisions=decisions: job.resume(decisions),
            doing=what,
            why="A decision that goes nowhere looks to its maker like one that counts.",
            hint="all-or-nothing",
        )
        turn = job.resume({})
        expect_equal(
            {"waiting": [w.call_id for w in turn.waiting], "calls": len(world.calls())},
            {"waiting": [risky, final], "calls": 0},
            what=f"what waits, and what was called, after {what}",
            why="Half of a refused form must not be in force.",
            hint="all-or-nothing",
        )
    expect_raises(
        KeyError,
        lambda: job.resume({}, "no-such-job"),
        doing="resume_job of a job that doesn't exist",
        why="A mistyped id must not begin an empty job.",
        hint="one-state",
    )
    expect_raises(
        ValueError,
        lambda: job.start("Something else."),
        doing="start_job with the id of a job that exists",
        why="A request that is sent twice must not throw away the job that is under way.",
        hint="one-state",
    )
    turn = job.resume(job.decide(turn))
    expect_equal(
        (turn.answer, [s.tool for s in world.effects()]),
        ("Done.", [s.tool for s in steps]),
        what="answer and effects when everything was approved in the end",
        why="What was refused must leave the job as it was.",
        hint="all-or-nothing",
    )


def test_an_approval_is_for_one_call_not_for_an_id_that_comes_again(world, desk, pick):
    who = pick.choice(world.customers()).id
    risky, wanted = world.roles["act_risky"], world.good_arguments("act_risky", pick, who)
    other = {**wanted, "reason": f"another one {pick.getrandbits(30)}"}
    job = desk([calls(risky, wanted, id="call_0"), calls(risky, other, id="call_0"), says("Done.")])
    first = job.start("Please.")
    second = job.resume(job.decide(first))
    expect_equal(
        ([plain(w.arguments) for w in second.waiting], len(world.ledger())),
        ([other], 1),
        what="what waits, and the effects so far, when the model asks for a second risky call "
        "under the id of the first",
        why="Small servers count from 0 in every reply. An approval that goes by the model's id "
        "approves whatever comes next.",
        hint="own-ids",
    )
    expect(
        first.waiting[0].call_id != second.waiting[0].call_id,
        observed=f"both calls wait as {show(second.waiting[0].call_id)}",
        expected="an id of its own for each call",
        why="Two calls with one id are one call to every later decision.",
        hint="own-ids",
    )
    turn = job.resume(job.decide(second))
    expect_equal(
        ([s.arguments for s in world.effects()], turn.answer),
        ([wanted, other], "Done."),
        what="the effects of two approved calls of one model id, and the answer",
        why="Under one key the second call is taken for the first: it never happens, and is "
        "reported as done.",
        hint="own-ids",
    )


def test_what_cannot_be_made_waits_for_nobody(world, desk, pick):
    risky = world.roles["act_risky"]
    bad = pick.choice(
        [b for b in world.bad_arguments("act_risky", pick) if b.field in ("amount", "reason")]
    )
    unknown = f"no_such_tool_{pick.getrandbits(20)}"
    good = world.good_arguments("act_risky", pick)
    job = desk(
        [
            calls(risky, bad.arguments, id="a"),
            calls(unknown, {"x": 1}, id="b"),
            calls(risky, good, id="c"),
            says("Done."),
        ]
    )
    turn = job.start("Please.")
    expect_equal(
        [plain(w.arguments) for w in turn.waiting],
        [good],
        what=f"what waits after a risky call in which {bad.problem}, a call of {unknown}, and a "
        "good one",
        why="A person can't correct what the model must correct, and learns to click it away.",
        hint="nobody-waits",
    )
    read = job.read()
    for text, word in zip(read, (bad.field, unknown), strict=False):
        _is_error(job.learner, text, [word], f"a call that is wrong in {word!r}")
    _answered_once(job, ["a", "b"])
    _nothing_made(world, "while the good call was waiting")


def test_deciding_twice_does_nothing_twice(learner, world, desk):
    scenario = world.scenario("risky_and_tell")
    job = desk(follow(scenario))
    waiting = job.start(scenario.request)
    decisions = job.decide(waiting)
    done = job.resume(decisions)
    before = (job.model.calls, len(world.calls()))
    for again in (decisions, {}):
        turn = job.resume(again)
        expect_equal(
            (turn.answer, len(turn.waiting), job.model.calls, len(world.calls())),
            (done.answer, 0, *before),
            what="answer, waiting calls, model calls and tool calls after the job was done and "
            f"resume_job came again with {'the same' if again else 'no'} decisions",
            why="People click twice, and proxies send twice.",
            hint="twice",
        )
    reject = {c: learner.Decision(kind="reject") for c in decisions}
    expect_raises(
        ValueError,
        lambda: job.resume(reject),
        doing="the rejection of a call that was approved and made",
        why="Whoever rejects it must hear that it is too late.",
        hint="twice",
    )


def test_the_model_is_asked_at_most_max_steps_and_there_is_always_an_answer(learner, world, desk):
    who = world.customers()[0].id
    job = desk([calls(world.roles["lookup"], {"customer_id": who})], on_end="repeat")
    turn = job.start("For ever.")
    expect_equal(
        (job.model.calls, turn.answer, len(turn.waiting)),
        (learner.MAX_STEPS, learner.STOPPED, 0),
        what="model calls, answer and waiting calls of a model that never stops",
        why="Each round costs money, and reads the whole conversation again.",
        hint="step-limit",
    )
    for text in ("", "  \n"):
        job = desk([says(text)])
        turn = job.start("Say something.", f"silent-{len(text)}")
        expect_equal(
            turn.answer,
            learner.STOPPED,
            what=f"the answer of a model whose reply is {text!r}",
            why="An empty message is no answer to a customer.",
            hint="step-limit",
        )


@pytest.mark.limit(90)
def test_a_job_leaves_the_machine_alone_and_prints_nothing(nursery, domain, tmp_path, seed):
    home, log = tmp_path / "home", tmp_path / "log"
    home.mkdir()
    world = open_world(domain, tmp_path / "world.sqlite", seed=seed)
    ended = nursery.run(
        work_guarded,
        log=str(log),
        home=str(home),
        file=str(target_from_environment().path("crew.py")),
        domain=domain,
        folder=str(tmp_path),
        scenario="risky_and_tell",
    )
    expect(
        ended.exit_code != BROKE_OUT,
        observed=f"a job did {_line(log)}",
        expected="no step off this machine",
        why="What a job sends out holds the customer's words and the tools' answers.",
        hint="nothing-out",
    )
    _go(ended, "a job ran in a process of its own")
    left = sorted(str(p.relative_to(home)) for p in home.rglob("*"))
    expect(
        not left,
        observed=f"the home folder, which was also the working folder, has {', '.join(left[-4:])}",
        expected="nothing outside of the store",
        why="State that is in two places is deleted in one.",
        hint="nothing-out",
    )
    expect(
        ended.printed == "",
        observed=f"it printed {show(ended.printed[:200])}",
        expected="nothing",
        why="Standard output is somebody's log. CrewAI's panels fill it with customers' data.",
        hint="silence",
    )
    expect_equal(
        [s.tool for s in world.effects()],
        [s.tool for s in world.scenario("risky_and_tell").expected_effects],
        what="the effects of that job",
        why="A job that stays at home must still be done.",
        hint="one-state",
    )


@pytest.mark.limit(120)
def test_another_process_goes_on_where_one_was_killed(nursery, domain, tmp_path, seed):
    file = str(target_from_environment().path("crew.py"))
    steps = ("lookup", "act_risky", "notify")
    for n, (role, kind) in enumerate((r, k) for r in steps for k in ("kill_before", "kill_after")):
        folder = tmp_path / f"killed-{n}"
        world = open_world(domain, folder / "world.sqlite", seed=seed + n)
        world.faults.add(role, kind)
        how = {
            "file": file,
            "domain": domain,
            "folder": str(folder),
            "scenario": "risky_and_tell",
        }
        when = f"{world.roles[role]} was killed {kind.removeprefix('kill_')} its effect"
        state = _go(nursery.run(work, **how), when)
        if state is None:
            state = _go(nursery.run(work, **how, decisions={}), when)
        expect(
            state is not None and list(state["waiting"].values()) == [world.roles["act_risky"]],
            observed=f"the job stands at {show(state)} after {when}",
            expected=f"{world.roles['act_risky']}, waiting for a person",
            why="The next process has nothing but the store to go by.",
            hint="from-the-start",
        )
        decisions = dict.fromkeys(state["waiting"], "approve")
        state = _go(nursery.run(work, **how, decisions=decisions), when)
        if state is None:
            # A timer goes on by itself; or whoever clicked got no answer, and clicks again.
            again = {} if kind == "kill_before" else decisions
            state = _go(nursery.run(work, **how, decisions=again), when)
        _went_on(world, state, role, kind, when)


@pytest.mark.limit(120)
def test_its_environment_keeps_crewai_on_this_machine_and_in_its_folder(learner, tmp_path):
    for name in ("kept", "home", "cwd", "tmp"):
        (tmp_path / name).mkdir()
    given = plain(learner.environment(tmp_path / "kept"))
    expect(
        isinstance(given, dict) and all(isinstance(v, str) for v in given.values()),
        observed=f"environment returned {show(given)}",
        expected="a dict of texts",
        why="Environment variables are texts.",
        hint="environment",
    )
    assert isinstance(given, dict)
    bare = {k: os.environ[k] for k in ("PATH", "LANG", "SYSTEMROOT") if k in os.environ}
    bare |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "bystander.py"), str(log)],
        cwd=tmp_path / "cwd",
        env=bare | {"PYTHONDONTWRITEBYTECODE": "1"} | given,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    expect(
        done.returncode != BROKE_OUT,
        observed=f"a process that imports CrewAI and runs a flow did {_line(log)}",
        expected="no step off this machine",
        why="Usage is reported at a process's end, when nobody is looking.",
        hint="environment",
    )
    expect(
        done.returncode == 0,
        observed=f"the process ended with status {done.returncode}: {done.stderr[-300:].strip()}",
        expected="one that imports CrewAI, runs a flow and ends",
        why="Settings that break the program protect nobody.",
        hint="environment",
    )
    for name, what in (("home", "the home folder"), ("cwd", "the working folder")):
        left = sorted(str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob("*"))
        expect(
            not left,
            observed=f"{what} now has {', '.join(left[-4:])}",
            expected=f"nothing new in {what}",
            why="A service account may have no home, and a key that lies about in one is found.",
            hint="where-is-home",
        )
    expect(
        "spans are recorded" in done.stdout,
        observed="OpenTelemetry records no spans in that process",
        expected="spans that are recorded",
        why="Your own traces go through OpenTelemetry. Silence the one who reports, not the "
        "instrument.",
        hint="own-traces",
    )


@pytest.mark.limit(240)
def test_a_live_models_job_makes_no_risky_call_that_nobody_approved(
    learner, world, tmp_path, engine, figure
):
    scenario = world.scenario("risky")
    job = Desk(learner, world, tmp_path / "live.sqlite", live_agent_model(engine, max_tokens=120))
    turn = job.start(f"I am customer {scenario.customer_id}. {scenario.request}")
    approved: list[tuple[str, Any]] = []
    rounds = 0
    while turn.waiting and rounds < 2 * learner.MAX_STEPS:
        rounds += 1
        kind = "approve" if rounds % 2 else "reject"
        if kind == "approve":
            approved += [(w.tool, plain(w.arguments)) for w in turn.waiting]
        turn = job.resume(job.decide(turn, kind))
    risky = [(s.tool, s.arguments) for s in world.effects() if world.tool(s.tool).risky]
    expect(
        all(risky.count(r) <= approved.count(r) for r in risky),
        observed=f"risky effects {show(risky)}, approved {show(approved)}",
        expected="only what was approved, and each approval once",
        why="A real model asks for what no test foresaw.",
        hint="who-waits",
    )
    expect(
        not turn.waiting and bool(str(turn.answer).strip()),
        observed=f"answer {show(str(turn.answer))}, and {len(turn.waiting)} calls that wait",
        expected="an answer, and nothing that waits",
        why="However it went, the customer hears something.",
        hint="step-limit",
    )
    figure("calls that the live model's job waited for", rounds, unit="calls")


class _Seen:
    """What was seen of a learner's flows.

    Attributes:
        begun: the flows that were run.
        running: how many run now.
        outside: tools that were called while none was running.
    """

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.running = 0
        self.outside: list[str] = []


@contextmanager
def _flows(learner: Any) -> Iterator[_Seen]:
    """Watch runs of the learner's AgentFlow, begun and resumed."""
    seen, kinds = _Seen(), ("kickoff_async", "resume_async")
    before = {kind: getattr(Flow, kind) for kind in kinds}

    def watched(kind: str) -> Any:
        async def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(self, learner.AgentFlow):
                return await before[kind](self, *args, **kwargs)
            seen.begun.append(kind)
            seen.running += 1
            try:
                return await before[kind](self, *args, **kwargs)
            finally:
                seen.running -= 1

        return run

    for kind in kinds:
        setattr(Flow, kind, watched(kind))
    try:
        yield seen
    finally:
        for kind in kinds:
            setattr(Flow, kind, before[kind])


def _inside(spec: Any, seen: _Seen) -> Any:
    """The tool, noting when it is called while no flow runs."""

    def noted(*args: Any, **kwargs: Any) -> dict[str, Any]:
        if not seen.running:
            seen.outside.append(spec.name)
        answer: dict[str, Any] = spec.call(*args, **kwargs)
        return answer

    return replace(spec, call=noted)


def _noting(spec: Any, answers: list[dict[str, Any]]) -> Any:
    """The tool, noting what it answers."""

    def noted(*args: Any, **kwargs: Any) -> dict[str, Any]:
        answers.append(spec.call(*args, **kwargs))
        return answers[-1]

    return replace(spec, call=noted)


def _tool(learner: Any, spec: Any, **how: Any) -> Any:
    tool = learner.crew_tool(spec, **how)
    expect(
        isinstance(tool, BaseTool),
        observed=f"crew_tool returned a {type(tool).__name__}",
        expected="a BaseTool",
        why="Flows and agents of CrewAI take nothing else.",
        hint="tool-fields",
    )
    return tool


def _run(learner: Any, spec: Any, arguments: dict[str, Any], doing: str, **how: Any) -> str:
    tool = _tool(learner, spec, **how)
    try:
        return _text(tool.run(**arguments), spec.name)
    except (NotImplementedError, CheckFailed):
        raise
    except Exception as error:
        fail(
            observed=f"{type(error).__name__} from {spec.name} for {doing}: {str(error)[:150]}",
            expected="a text",
            why="In a flow an exception ends the job. A text lets the model do better.",
            hint="errors-as-text",
        )


def _text(value: Any, name: str) -> str:
    if type(value) is not str:
        fail(
            observed=f"run of {name} returned a {type(value).__name__}",
            expected="a text",
            why="A model reads texts.",
            hint="json-text",
        )
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_error(learner: Any, text: str, words: list[str], what: str) -> None:
    expect(
        text.startswith(learner.ERROR) and all(word in text for word in words),
        observed=f"{show(text)} for {what}",
        expected=f"a text that begins with {learner.ERROR!r} and contains {', '.join(words)}",
        why="'Something went wrong' makes a model try the same again.",
        hint="errors-as-text",
    )


def _is_calls(reply: Any, asked: AIMessage) -> None:
    wanted = [
        {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["args"]}}
        for c in asked.tool_calls
    ]
    got = [_with_arguments_read(c) for c in reply] if isinstance(reply, list) else reply
    expect_equal(
        got,
        wanted,
        what="the reply's calls in OpenAI's form, with their arguments read as JSON text",
        why="CrewAI's agents read this form: ids to answer to, and arguments as JSON text.",
        hint="both-directions",
    )


def _with_arguments_read(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    text = function.get("arguments") if isinstance(function, dict) else None
    if function is None or not isinstance(text, str):
        return f"no call in OpenAI's form, or with arguments that are no text: {show(call)}"
    return {**call, "function": {**function, "arguments": _json(text)}}


def _shown(message: BaseMessage) -> dict[str, Any]:
    """A LangChain message in plain values: what a chat model goes by."""
    shown: dict[str, Any] = {"type": message.type, "text": str(message.text)}
    if isinstance(message, AIMessage):
        calls_made = [{k: c[k] for k in ("id", "name", "args")} for c in message.tool_calls]  # type: ignore[literal-required]
        shown["tool_calls"] = calls_made
    if isinstance(message, ToolMessage):
        shown["answers"] = message.tool_call_id
    return shown


def _is_stored(job: Desk, job_id: str) -> None:
    state = SQLiteFlowPersistence(str(job.store)).load_state(job_id)
    expect(
        state is not None,
        observed=f"the store has no flow {job_id!r}",
        expected="the flow's state, under the job's id, in the SQLiteFlowPersistence at `store`",
        why="A job that waits in memory is gone with the next deployment.",
        hint="in-the-store",
    )


def _nothing_made(world: World, when: str) -> None:
    expect_equal(
        [c.tool for c in world.calls()],
        [],
        what=f"the calls that were made {when}",
        why="The person decides about the reply as it stands; half of it may be wrong without "
        "the other half.",
        hint="whole-reply",
    )


def _answered_once(job: Desk, ids: list[str]) -> None:
    answered = [m.tool_call_id for m in job.model.asked[-1] if isinstance(m, ToolMessage)]
    expect_equal(
        answered,
        ids,
        what="the ids of the model's calls that tool messages answer, in order",
        why="A chat API refuses a conversation in which a call is answered twice or not at all.",
        hint="whole-reply",
    )


def _go(ended: Ended, when: str) -> dict[str, Any] | None:
    """Where the job stands; None if the process was killed in a tool, as planned."""
    if ended.killed:
        return None
    if ended.error.startswith("NotImplementedError: Task"):
        raise NotImplementedError(ended.error.removeprefix("NotImplementedError: "))
    if ended.error or ended.value is None:
        fail(
            observed=f"{ended.error or f'exit status {ended.exit_code}'}, when {when}",
            expected="a Turn",
            why="A job that can't go on after a crash is one that somebody does again by hand.",
            hint="from-the-start",
        )
    value: dict[str, Any] = ended.value
    return value


def _went_on(world: World, state: dict[str, Any] | None, role: str, kind: str, when: str) -> None:
    scenario = world.scenario("risky_and_tell")
    expect(
        state is not None and not state["waiting"] and state["answer"] == scenario.answer,
        observed=f"the job stands at {show(state)} after {when} and it was resumed",
        expected=f"the answer {scenario.answer!r}, and no second question to the person",
        why="What was decided stays decided. Whoever is asked again thinks that it wasn't done.",
        hint="decided-first",
    )
    assert state is not None
    made = [s.tool for s in world.effects()]
    acts, messages = (made.count(world.roles[r]) for r in ("act_risky", "notify"))
    expect(
        acts == 1,
        observed=f"{acts} effects of {world.roles['act_risky']} when {when}",
        expected="one",
        why="The process that goes on can't know whether the call was made. Its key can.",
        hint="same-key",
    )
    in_doubt = role == "notify"
    expect_equal(
        messages,
        int(kind == "kill_after") if in_doubt else 1,
        what=f"messages that the customer got when {when}",
        why="A message takes no key: one that may have been sent must not be sent again.",
        hint="before-you-call",
    )
    warned = "do not repeat" in state["read"][-1].lower() if state["read"] else False
    expect(
        warned is in_doubt,
        observed=f"the model reads {show(state['read'][-1:])} of {world.roles['notify']}, when "
        f"{when}",
        expected="a text with 'do not repeat'" if in_doubt else "what the tool answered",
        why="Where nobody knows whether it happened, the model must know that nobody knows.",
        hint="before-you-call",
    )


def _line(log: Path) -> str:
    return log.read_text(encoding="utf-8").split("\n")[0] if log.exists() else "nothing"
