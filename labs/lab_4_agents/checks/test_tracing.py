"""Task 4.5: traces that tell what a run did, and nobody's personal data."""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from mlflow.entities import Span, SpanType
from support.traces import (
    Traces,
    attribute,
    children,
    failed,
    root_of,
    scratch_store,
    spans_text,
    written,
)

from shared.agents.live import live_agent_model
from shared.agents.scripted import ScriptedChatModel, calls, calls_all, follow, says
from shared.domains.worlds import Step, ToolSpec, TransientError, World, open_world
from shared.grading.expect import expect, expect_equal, expect_raises, fail, plain, show

# A new MLflow store takes seconds to make, on a busy machine many.
pytestmark = pytest.mark.limit(90)

USAGE = ("input_tokens", "output_tokens", "total_tokens")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One store for all checks of this module."""
    with scratch_store(tmp_path_factory.mktemp("store")) as uri:
        yield uri


@pytest.fixture
def traces(artifacts: str, request: pytest.FixtureRequest) -> Traces:
    """The traces of this check."""
    return Traces(request.node.name, artifacts)


@pytest.fixture
def world(domain: str, tmp_path: Path, seed: int) -> World:
    """A fresh world, another one each run."""
    return open_world(domain, tmp_path / "world.sqlite", seed=seed)


@pytest.fixture
def pick(seed: int) -> random.Random:
    """A generator of the kind that the worlds take."""
    return random.Random(seed)


@pytest.fixture
def personal(world: World) -> list[str]:
    """What must not be in a trace: everybody's data."""
    return [text for customer in world.customers() for text in customer.personal]


def test_personal_data_are_redacted_wherever_they_are(learner, world, personal, pick):
    one, two = pick.sample(world.customers(), 2)
    item = world.items(one.id)[0]["id"]
    mark = learner.REDACTED

    def redacted(value: Any, known: list[str] | None = None) -> Any:
        return plain(learner.redact(value, personal if known is None else known))

    for text, expected, hint, why in (
        (f"Dear {one.name}!", f"Dear {mark}!", "deep", "Who can read traces is not who may know."),
        (
            f"{one.email.upper()} / {two.name.lower()}",
            f"{mark} / {mark}",
            "any-case",
            "An address in capitals is still an address.",
        ),
        (
            f"call {two.phone}, {one.reference}",
            f"call {mark}, {mark}",
            "special-characters",
            "Numbers tell who somebody is as well as names do.",
        ),
        (
            "write to someone.else+news@mail.example.org.",
            f"write to {mark}.",
            "patterns-too",
            "Who is on no list is a person too.",
        ),
        (
            "ring +44 20-7946 0958 or +15550100200",
            f"ring {mark} or {mark}",
            "patterns-too",
            "Who is on no list is a person too.",
        ),
        (
            f"{one.id}: {item}, 12345678 of 99.50, +500 on 2026-11-23",
            f"{one.id}: {item}, 12345678 of 99.50, +500 on 2026-11-23",
            "keep-ids",
            "A trace without ids and amounts explains nothing. Nobody finds the case again.",
        ),
    ):
        expect_equal(redacted(text), expected, what=f"redact of {text!r}", why=why, hint=hint)

    expect_equal(
        redacted("Ash Alder and Ash", ["Ash", "Ash Alder"]),
        f"{mark} and {mark}",
        what="redact of 'Ash Alder and Ash' with both 'Ash' and 'Ash Alder' personal",
        why="Half a name left over is a name.",
        hint="longer-first",
    )
    expect_equal(
        redacted("r.moss and rxmoss", ["r.moss"]),
        f"{mark} and rxmoss",
        what="redact of 'r.moss and rxmoss' with 'r.moss' personal",
        why="A dot in a name is a dot.",
        hint="special-characters",
    )
    expect_equal(
        redacted("nobody to hide", []),
        "nobody to hide",
        what="redact with no personal texts",
        why="A run may have no known customer.",
        hint="special-characters",
    )
    nested = {
        "customer": {"name": one.name, "contact": [one.phone, (two.email, 7)]},
        one.email: None,
        "amounts": [1, 2.5, True],
    }
    before = copy.deepcopy(nested)
    expect_equal(
        redacted(nested),
        {
            "customer": {"name": mark, "contact": [mark, [mark, 7]]},
            mark: None,
            "amounts": [1, 2.5, True],
        },
        what="redact of a dict with lists, tuples and dicts in it",
        why="Tools answer in nested data. What is looked at only on the surface leaks from below.",
        hint="deep",
    )
    expect(
        nested == before,
        observed="the value that was handed in has changed",
        expected="a new value; the agent still works with the old one",
        why="A refund for '[redacted]' cannot be paid.",
        hint="leave-it-alone",
    )
    expect_equal(
        redacted(ValueError(f"no mailbox {one.email}")),
        f"no mailbox {mark}",
        what="redact of an exception",
        why="Whatever is put into a trace is turned into text in the end.",
        hint="deep",
    )


def test_texts_are_redacted_before_they_are_cut(learner, personal, pick):
    longest = learner.LONGEST
    text = "x" * pick.randint(longest + 1, 4 * longest)
    expect_equal(
        {k: len(v) for k, v in learner.for_trace({"a": text, "b": ["short"]}, personal).items()},
        {"a": longest, "b": 1},
        what=f"lengths after for_trace of a text of {len(text)} characters and a list",
        why="A document in every span makes traces too large to keep and too slow to open.",
        hint="redact-then-cut",
    )
    for name in pick.sample(personal, 6):
        split = pick.randint(2, len(name) - 2)
        text = "x" * (longest - split) + name + "y" * 50
        out = plain(learner.for_trace(text, personal))
        expect(
            name[:split].lower() not in str(out).lower(),
            observed=f"a text that ends in {str(out)[-30:]!r}, where {name!r} began at character "
            f"{longest - split}",
            expected="no part of it",
            why="Half an address and the other half from the next line are an address.",
            hint="redact-then-cut",
        )


def test_a_tool_call_is_a_span_of_its_run_in_whatever_thread_it_is_made(
    learner, world, personal, traces, pick
):
    root = mlflow.start_span_no_context("check", span_type=SpanType.AGENT)
    times: list[tuple[int, int]] = []
    seen: list[tuple[Any, dict[str, Any]]] = []
    customer = pick.choice(world.customers()).id
    plan = [(r, world.good_arguments(r, pick, customer)) for r in ("lookup", "items", "act_small")]

    def watched(spec: ToolSpec) -> ToolSpec:
        def call(arguments: Any, **how: Any) -> dict[str, Any]:
            began = time.time_ns()
            seen.append((arguments, how))
            time.sleep(0.02)
            answer = spec.call(arguments, **how)
            times.append((began, time.time_ns()))
            return answer

        return replace(spec, call=call)

    answers = []
    for role, arguments in plan:
        spec = watched(world.tool(role))
        traced = learner.traced_tool(spec, root, personal)
        expect(
            (traced.name, traced.role, traced.arguments, traced.risky, traced.idempotent)
            == (spec.name, spec.role, spec.arguments, spec.risky, spec.idempotent),
            observed=f"a tool {show(plain(traced.name))} that differs from {spec.name!r} in more "
            "than its call",
            expected="the same tool but for `call`",
            why="Approval and retries are decided by the tool's flags.",
            hint="pass-through",
        )
        how = {"actor": "agent-7", "timeout_s": 5.0}
        if role == "act_small":
            how["idempotency_key"] = "key-1"
        given = spec.arguments.model_validate(arguments)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(lambda t=traced, g=given, h=how: t.call(g, **h)).result()
        answers.append(plain(answer))
        expect(
            seen[-1] == (given, how),
            observed=f"the tool got {show(plain(seen[-1][0]))} and {show(seen[-1][1])}",
            expected=f"{show(plain(given))} and {show(how)}, as it was called",
            why="A traced tool must do what the tool does, with the same key and timeout.",
            hint="pass-through",
        )
        if role == "lookup":
            expect(
                answers[-1].get("phone") == world.customer(customer).phone,
                observed=f"the caller got {show(answers[-1])}",
                expected="the tool's own answer, with nothing taken out",
                why="Redaction is for the trace. The agent needs the customer's address.",
                hint="leave-it-alone",
            )
    root.end()
    trace = traces.one(doing="three tool calls under one root, each made in a thread of a pool")
    spans = children(trace, "TOOL")
    expect_equal(
        [s.name for s in spans],
        [world.roles[r] for r, _ in plan],
        what="TOOL spans, by name",
        why="Traces are searched by type and name.",
        hint="inputs-and-outputs",
    )
    for span, (role, arguments), answer, (began, ended) in zip(
        spans, plan, answers, times, strict=True
    ):
        _is_under(span, root_of(trace))
        _begins_and_ends(span, began, ended, world.roles[role])
        expect_equal(
            {"inputs": span.inputs, "outputs": span.outputs},
            {
                "inputs": learner.for_trace(arguments, personal),
                "outputs": learner.for_trace(answer, personal),
            },
            what=f"inputs and outputs of the span {span.name!r}",
            why="What was it asked, what did it say: the first two questions after an incident.",
            hint="inputs-and-outputs",
        )
        expect_equal(
            {"outcome": attribute(span, "outcome"), "failed": failed(span)},
            {"outcome": "ok", "failed": False},
            what=f"how the span {span.name!r} says that it ended",
            why="Error rates by tool are counted from these.",
            hint="outcome",
        )


def test_a_failed_tool_is_a_failed_span_and_its_error_goes_through(
    learner, world, personal, traces, pick
):
    customer = pick.choice(world.customers())
    role = pick.choice(["lookup", "items"])
    text = f"mailbox {customer.email} of {customer.name} is full, ring +44 20 7946 0991"
    raised = pick.choice([TransientError, KeyError])(text)

    def broken(*_: Any, **__: Any) -> dict[str, Any]:
        raise raised

    root = mlflow.start_span_no_context("check", span_type=SpanType.AGENT)
    spec = replace(world.tool(role), call=broken)
    traced = learner.traced_tool(spec, root, personal)
    given = spec.arguments(customer_id=customer.id)
    error = expect_raises(
        type(raised),
        lambda: traced.call(given),
        doing=f"a tool that raises {type(raised).__name__}",
        why="Whoever calls the tool decides about retries. It must see the error.",
        hint="pass-through",
    )
    expect(
        error is raised,
        observed=f"another {type(error).__name__} than the tool's: {show(str(error))}",
        expected="the tool's own exception",
        why="Wrapped or rewritten errors hide what callers decide by.",
        hint="pass-through",
    )
    root.end()
    trace = traces.one(doing="one failed tool call under one root")
    spans = children(trace, "TOOL")
    expect(
        len(spans) == 1 and failed(spans[0]),
        observed=f"TOOL spans with the status {[str(s.status.status_code.value) for s in spans]}",
        expected="one, with the status ERROR",
        why="A failure that looks like success is found by customers, not by you.",
        hint="failed-is-failed",
    )
    span = spans[0]
    expect(
        type(raised).__name__ in (span.status.description or ""),
        observed=f"the status' description {show(span.status.description)}",
        expected=f"the class name {type(raised).__name__} and the redacted text",
        why="'It failed' starts a search; 'TransientError: mailbox is full' ends one.",
        hint="failed-is-failed",
    )
    expect_equal(
        attribute(span, "outcome"),
        type(raised).__name__,
        what="the failed span's outcome",
        why="Timeouts and refusals need different answers; the counts must tell them apart.",
        hint="outcome",
    )
    _is_under(span, root_of(trace))
    _leaks_nothing(
        spans_text(trace), [*personal, "7946 0991"], "a failed tool's span", "errors-talk"
    )


def test_a_model_call_tells_which_model_and_how_many_tokens(learner, world, personal, traces, pick):
    used = (pick.randint(100, 900), pick.randint(5, 90))
    asks = calls_all(
        [Step(world.roles["lookup"], {"customer_id": "C-1001"}), Step("other", {"n": 1})],
        ids=["a", "b"],
        input_tokens=used[0],
        output_tokens=used[1],
    )
    times: list[tuple[int, int]] = []
    replies = [asks, says("Done.", input_tokens=7, output_tokens=2), RuntimeError("model is down")]

    def reply(_: Any) -> Any:
        began = time.time_ns()
        time.sleep(0.02)
        times.append((began, time.time_ns()))
        return replies[len(times) - 1]

    name = f"model-{pick.randint(1, 99)}"
    model = ScriptedChatModel(replies=reply, name_=name)
    root = mlflow.start_span_no_context("check", span_type=SpanType.AGENT)
    ask = learner.traced_model(model, root, personal)
    talk: list[BaseMessage] = [HumanMessage("first request"), AIMessage("what else?")]
    talk.append(HumanMessage("second request"))
    first = ask(list(talk))
    expect(
        isinstance(first, AIMessage) and len(first.tool_calls) == 2,
        observed=f"traced_model's function returned {show(str(first))}",
        expected="the model's own reply",
        why="The loop goes on with it.",
        hint="pass-through",
    )
    ask([*talk, first])
    expect_raises(
        RuntimeError,
        lambda: ask(list(talk)),
        doing="a model that raises RuntimeError",
        why="The loop must learn that the model is down.",
        hint="pass-through",
    )
    root.end()
    trace = traces.one(doing="three model calls under one root")
    spans = children(trace, "CHAT_MODEL")
    expect_equal(
        [s.name for s in spans],
        ["model"] * 3,
        what="CHAT_MODEL spans, by name",
        why="Traces are searched by type and name.",
        hint="inputs-and-outputs",
    )
    for span, (began, ended) in zip(spans, times, strict=True):
        _is_under(span, root_of(trace))
        _begins_and_ends(span, began, ended, "the model")
    expect_equal(
        [attribute(s, learner.MODEL) for s in spans],
        [name, name, None],
        what=f"the attribute {learner.MODEL!r} of the three spans, the third of which failed",
        why="After a change of model, the first question is which one said it.",
        hint="which-model",
    )
    expect_equal(
        [attribute(s, learner.USAGE) for s in spans],
        [
            dict(zip(USAGE, (*used, sum(used)), strict=True)),
            dict(zip(USAGE, (7, 2, 9), strict=True)),
            None,
        ],
        what=f"the attribute {learner.USAGE!r} of the three spans, the third of which failed",
        why="Costs are added up from these, by run, by model and by customer.",
        hint="usage",
    )
    expect_equal(
        trace.info.token_usage,
        dict(zip(USAGE, (used[0] + 7, used[1] + 2, sum(used) + 9), strict=True)),
        what="tokens of the whole trace, as MLflow adds them up",
        why="MLflow adds up only what is where it looks for it.",
        hint="usage",
    )
    expect_equal(
        {"inputs": spans[0].inputs, "outputs": spans[0].outputs},
        {
            "inputs": {"messages": 3, "last": "second request"},
            "outputs": {
                "text": "",
                "tool_calls": [{"name": c["name"], "args": c["args"]} for c in asks.tool_calls],
            },
        },
        what="inputs and outputs of the first model span",
        why="What was new to the model, and what it wanted: enough to follow a run step by step.",
        hint="only-what-is-new",
    )
    expect_equal(
        [(attribute(s, "outcome"), failed(s)) for s in spans],
        [("ok", False), ("ok", False), ("RuntimeError", True)],
        what="outcome and failure of the three spans",
        why="A model that is down must be seen to be down.",
        hint="outcome",
    )


def test_a_run_is_one_tree(learner, world, personal, traces, pick):
    scenario = world.scenario(pick.choice(["risky", "risky_and_tell", "final"]))
    customer = scenario.customer_id
    both = [Step(world.roles[r], {"customer_id": customer}) for r in ("lookup", "items")]
    opening = calls_all(both, ids=["open-0", "open-1"], input_tokens=50, output_tokens=9)
    script = follow(scenario)

    def reply(messages: list[BaseMessage]) -> Any:
        # Two tools at once first, then the scenario's own steps.
        return opening if len(messages) == 1 else script([messages[0], *messages[4:]])

    model = ScriptedChatModel(replies=reply)
    thread = f"thread-{pick.getrandbits(32)}"
    result = learner.run_traced(
        model, world.tools(), scenario.request, thread_id=thread, personal=personal
    )
    expect_equal(
        {"answer": result.answer, "outcome": result.outcome, "steps": result.steps},
        {"answer": scenario.answer, "outcome": "answered", "steps": model.calls},
        what="the result of run_traced",
        why="A traced run must do what the run does.",
        hint="pass-through",
    )
    expect_equal(
        sorted(model.tools_bound[-1]),
        sorted(t.name for t in world.tools()),
        what="tools that the model was told of",
        why="A model that is told of no tools makes up the facts.",
        hint="pass-through",
    )
    trace = traces.one(doing="one run")
    root = root_of(trace)
    expect_equal(
        {"name": root.name, "type": root.span_type, "failed": failed(root)},
        {"name": "agent run", "type": "AGENT", "failed": False},
        what="the root",
        why="Dashboards count runs by it.",
        hint="one-tree",
    )
    tools = [s.tool for s in both] + [s.tool for s in scenario.steps]
    expect_equal(
        {
            "models": len(children(trace, "CHAT_MODEL")),
            "tools": sorted(s.name for s in children(trace, "TOOL")),
            "all spans": len(trace.data.spans),
        },
        {
            "models": model.calls,
            "tools": sorted(tools),
            "all spans": 1 + model.calls + len(tools),
        },
        what=f"spans of a run of {model.calls} model calls and {len(tools)} tool calls",
        why="A call without a span did not happen, as far as anyone can tell later.",
        hint="one-tree",
    )
    for span in trace.data.spans:
        if span is not root:
            _is_under(span, root)
    expect_equal(
        {"inputs": root.inputs, "outputs": root.outputs},
        {
            "inputs": learner.for_trace({"request": scenario.request}, personal),
            "outputs": learner.for_trace({"answer": scenario.answer}, personal),
        },
        what="inputs and outputs of the root",
        why="They are what the list of traces shows.",
        hint="inputs-and-outputs",
    )
    expect_equal(
        {
            "thread_id": attribute(root, "thread_id"),
            "outcome": attribute(root, "outcome"),
            learner.SESSION: trace.info.trace_metadata.get(learner.SESSION),
        },
        {"thread_id": thread, "outcome": "answered", learner.SESSION: thread},
        what="thread and outcome, on the root and in the trace's metadata",
        why="A customer who complains has a conversation, not a trace id.",
        hint="session",
    )
    expect_equal(
        (trace.info.token_usage or {}).get("total_tokens"),
        model.tokens,
        what="tokens of the whole run",
        why="The bill is by run.",
        hint="usage",
    )


def test_nobodys_personal_data_reach_the_store(learner, world, personal, traces, pick):
    one, two = pick.sample(world.customers(), 2)
    stranger = ("pat.quill@post.example.net", "+49 30 901820")
    items = world.items(one.id)
    note = f"ask {stranger[0]} or {two.name}"
    world.set_note(items[0]["id"], note)

    def broken(*_: Any, **__: Any) -> dict[str, Any]:
        raise TransientError(f"no answer from {two.email}, last seen by {one.name}")

    tools = [replace(t, call=broken) if t.role == "search" else t for t in world.tools()]
    replies = [
        calls_all(
            [
                Step(world.roles["lookup"], {"customer_id": one.id}),
                Step(world.roles["items"], {"customer_id": one.id}),
                Step(world.roles["search"], {"query": f"letters of {two.name}"}),
            ]
        ),
        calls(
            world.roles["notify"],
            {"customer_id": one.id, "text": f"Dear {one.name}, we will ring {one.phone}."},
        ),
        says(f"I have told {one.name} ({one.email.upper()}) and {stranger[1]}."),
    ]
    model = ScriptedChatModel(replies=replies)
    request = f"I am {one.name}, {one.reference}, {one.phone}. {two.name} knows. {stranger[0]}"
    learner.run_traced(model, tools, request, thread_id="t-1", personal=personal)
    known = str([m.text for m in model.asked[-1]])
    expect(
        one.phone in known and one.name in known and request in known,
        observed="a model that was not told the customer's own data",
        expected="the real request and the tools' real answers",
        why="Redaction is for the trace. The agent must be able to do its work.",
        hint="leave-it-alone",
    )
    expect_equal(
        [to for to, _ in world.messages()],
        [one.id],
        what="messages sent",
        why="A traced run must do what the run does.",
        hint="pass-through",
    )
    trace = traces.one(doing="one run")
    expect(
        all(item["id"] in spans_text(trace) for item in items),
        observed=f"a trace without the ids {[i['id'] for i in items]}",
        expected="the ids, which are nobody's personal data",
        why="Without ids nobody finds the case again.",
        hint="keep-ids",
    )
    for name, span in ((s.name, s) for s in trace.data.spans):
        hint = "errors-talk" if failed(span) else "one-door"
        _leaks_nothing(str(span.to_dict()), [*personal, *stranger], f"the span {name!r}", hint)
    _leaks_nothing(written(trace), [*personal, *stranger], "the trace", "one-door")


def test_a_span_holds_what_is_new_not_the_whole_conversation(
    learner, world, personal, traces, pick
):
    steps = pick.randint(8, 12)
    marks = [f"mark{pick.getrandbits(48):012x}" for _ in range(steps)]
    answers = iter(marks)
    spec = world.tool("search")
    long = "long text " * 400

    def call(*_: Any, **__: Any) -> dict[str, Any]:
        return {"found": next(answers), "text": long}

    spec = replace(spec, call=call)
    asked = [calls(spec.name, {"query": f"number {n}"}, id=f"c{n}") for n in range(steps)]
    model = ScriptedChatModel(replies=[*asked, says("Done.")])
    first = f"mark{pick.getrandbits(48):012x}"
    learner.run_traced(
        model,
        [spec],
        f"Please look up {first}.",
        thread_id="t-1",
        personal=personal,
        max_steps=steps + 1,
    )
    trace = traces.one(doing="one run")
    text = spans_text(trace)
    for mark, what in ((first, "the request"), *((m, "a tool's answer") for m in marks)):
        expect(
            1 <= text.count(mark) <= 2,
            observed=f"{what} is in the trace {text.count(mark)} times after {steps} steps",
            expected="once or twice: where it came from, and where the model first read it",
            why="Logging the conversation at each step makes a trace grow with the square of the "
            "steps, and copies personal data to every span.",
            hint="only-what-is-new",
        )
    limit = (3 * learner.LONGEST + 2000) * len(trace.data.spans)
    expect(
        len(text) <= limit,
        observed=f"{len(text)} characters for {len(trace.data.spans)} spans of a run whose tool "
        f"answers have {len(long)} characters",
        expected=f"at most {limit}: each text cut to {learner.LONGEST}",
        why="A store full of documents is slow to search and dear to keep.",
        hint="redact-then-cut",
    )


def test_runs_at_the_same_time_do_not_mix(learner, world, personal, traces):
    customers = world.customers()
    start = threading.Barrier(len(customers), timeout=30)

    def slowly(spec: ToolSpec) -> ToolSpec:
        def call(arguments: Any, **how: Any) -> dict[str, Any]:
            time.sleep(0.05)
            return spec.call(arguments, **how)

        return replace(spec, call=call)

    tools = [slowly(t) for t in world.tools()]

    def work(customer: str) -> None:
        steps = [Step(world.roles[r], {"customer_id": customer}) for r in ("lookup", "items")]
        model = ScriptedChatModel(
            replies=[calls_all(steps), calls_all(steps[:1], ids=["again"]), says(f"Bye {customer}")]
        )
        start.wait()
        learner.run_traced(
            model, tools, f"I am {customer}", thread_id=f"of-{customer}", personal=personal
        )

    with ThreadPoolExecutor(len(customers)) as pool:
        for done in [pool.submit(work, c.id) for c in customers]:
            done.result()
    found = traces.all()
    by_thread = {t.info.trace_metadata.get(learner.SESSION): t for t in found}
    expect_equal(
        sorted(map(str, by_thread)) if len(found) == len(by_thread) else f"{len(found)} traces",
        sorted(f"of-{c.id}" for c in customers),
        what=f"threads of the traces of {len(customers)} runs at once",
        why="A server runs many conversations at once. Each must be found by its own thread.",
        hint="no-globals",
    )
    for customer in customers:
        trace = by_thread[f"of-{customer.id}"]
        root = root_of(trace)
        expect_equal(
            {
                "request": (root.inputs or {}).get("request"),
                "spans": sorted(s.span_type for s in trace.data.spans),
                "customers": sorted(
                    {(s.inputs or {}).get("customer_id") for s in children(trace, "TOOL")}, key=str
                ),
            },
            {
                "request": f"I am {customer.id}",
                "spans": sorted(["AGENT", *["CHAT_MODEL"] * 3, *["TOOL"] * 3]),
                "customers": [customer.id],
            },
            what=f"the trace of the run for {customer.id}",
            why="One customer's data in another one's trace is a leak, and an alibi.",
            hint="no-globals",
        )


def test_a_run_that_breaks_is_a_failed_trace_and_still_breaks(
    learner, world, personal, traces, pick
):
    one = pick.choice(world.customers())
    raised = ConnectionError(f"model is down, mail {one.email}")
    replies = [calls(world.roles["lookup"], {"customer_id": one.id}), raised]
    model = ScriptedChatModel(replies=replies)
    error = expect_raises(
        ConnectionError,
        lambda: learner.run_traced(
            model, world.tools(), "Hello", thread_id="t-9", personal=personal
        ),
        doing="a run whose model raises ConnectionError",
        why="Who started the run must learn that there is no answer.",
        hint="pass-through",
    )
    expect(
        error is raised,
        observed=f"another {type(error).__name__} than the model's",
        expected="the model's own exception",
        why="Wrapped errors hide what callers decide by.",
        hint="pass-through",
    )
    trace = traces.one(doing="a run that broke")
    root = root_of(trace)
    expect_equal(
        {
            "root failed": failed(root),
            "outcome": attribute(root, "outcome"),
            "session": trace.info.trace_metadata.get(learner.SESSION),
            "failed spans under it": [
                s.name for s in trace.data.spans if s is not root and failed(s)
            ],
            "tools": [s.name for s in children(trace, "TOOL")],
        },
        {
            "root failed": True,
            "outcome": "ConnectionError",
            "session": "t-9",
            "failed spans under it": ["model"],
            "tools": [world.roles["lookup"]],
        },
        what="the trace of a run whose model went down after the first step",
        why="The runs that break are those that somebody will want to read.",
        hint="failed-is-failed",
    )
    _leaks_nothing(written(trace), personal, "the trace of a failed run", "errors-talk")


def test_a_live_run_is_traced(learner, world, personal, traces, engine, figure):
    scenario = world.scenario("question")
    reads = [t for t in world.tools() if t.reads]
    model = live_agent_model(engine, max_tokens=80)
    counted: list[AIMessage] = []
    who = world.customer(scenario.customer_id)
    request = f"{scenario.request} I am {who.name}, customer {who.id}."
    result = learner.run_traced(
        _Counting(model, counted), reads, request, thread_id="live", personal=personal, max_steps=2
    )
    trace = traces.one(doing="one run with the running model")
    spans = children(trace, "CHAT_MODEL")
    used = sum(m.usage_metadata["total_tokens"] for m in counted if m.usage_metadata)
    figure("spans", len(trace.data.spans), unit="spans")
    figure("tokens", used, unit="tokens")
    expect_equal(
        {
            "model spans": len(spans),
            "tokens": (trace.info.token_usage or {}).get("total_tokens"),
            "models": sorted({str(attribute(s, learner.MODEL)) for s in spans}),
            "outcome": attribute(root_of(trace), "outcome"),
        },
        {
            "model spans": len(counted),
            "tokens": used,
            "models": sorted({m.response_metadata["model_name"] for m in counted}),
            "outcome": result.outcome,
        },
        what="the trace of a run with the running model",
        why="What the engine counted and what the trace says must agree.",
        hint="usage",
    )
    _leaks_nothing(written(trace), personal, "the trace of a live run", "one-door")


class _Counting:
    """A chat model that keeps its replies."""

    def __init__(self, model: Any, kept: list[AIMessage]) -> None:
        self._model = model
        self._kept = kept

    def bind_tools(self, tools: Any, **how: Any) -> _Counting:
        return _Counting(self._model.bind_tools(tools, **how), self._kept)

    def invoke(self, messages: Any, *args: Any, **how: Any) -> AIMessage:
        reply: AIMessage = self._model.invoke(messages, *args, **how)
        self._kept.append(reply)
        return reply


def _is_under(span: Span, root: Span) -> None:
    expect(
        span.parent_id == root.span_id,
        observed=f"the span {span.name!r} hangs under {show(span.parent_id)}",
        expected=f"under the run's own span, {root.span_id!r}",
        why="A flat list of calls does not tell which run they belong to.",
        hint="parent-by-hand",
    )


def _begins_and_ends(span: Span, began: int, ended: int, name: str) -> None:
    expect(
        span.start_time_ns <= began and (span.end_time_ns or 0) >= ended,
        observed=f"a span of {((span.end_time_ns or 0) - span.start_time_ns) / 1e6:.1f} ms around "
        f"a call of {name} that took {(ended - began) / 1e6:.1f} ms",
        expected="a span that begins before the call and ends after it",
        why="Its duration is the latency that you will look for.",
        hint="begin-before",
    )


def _leaks_nothing(text: str, personal: list[str], where: str, hint: str) -> None:
    low = text.lower()
    for known in personal:
        at = low.find(known.lower())
        if at >= 0:
            fail(
                observed=f"{known!r} in {where}: …{text[max(0, at - 60) : at + len(known) + 20]}…",
                expected="no personal data",
                why="Traces are kept long, copied to other systems, and read by people who must "
                "not know it.",
                hint=hint,
            )
