"""Task 4.1: a graph with reducers and budgets that always ends in an answer."""

from __future__ import annotations

import operator
import random
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.graph import END, START, StateGraph
from support.agent_runs import answer_of, run, tool_calls, unanswered

from shared.agents.live import live_agent_model
from shared.agents.scripted import ScriptedChatModel, calls, calls_all, follow, says
from shared.domains.worlds import Step, World, open_world
from shared.grading.expect import expect, expect_equal, plain, show

PLENTY = 1_000_000


@pytest.fixture
def world(domain: str, tmp_path: Path, seed: int) -> World:
    """A fresh world, another one each run."""
    return open_world(domain, tmp_path / "world.sqlite", seed=seed)


@pytest.fixture
def pick(seed: int) -> random.Random:
    """A generator of the kind that the worlds take."""
    return random.Random(seed)


def test_new_messages_come_after_the_old_ones_and_replace_those_with_the_same_id(learner, pick):
    old = [HumanMessage(f"request {pick.random()}", id="m1"), AIMessage("first try", id="m2")]
    before = list(old)
    merged = _merged(learner, old, [ToolMessage("a result", tool_call_id="c1", id="m3")])
    expect_equal(
        merged,
        [*_texts(before), "a result"],
        what="the texts after a node added one message to two",
        why="A reducer that returns only the new side makes the model forget what it was asked.",
        hint="reducer-adds",
    )
    merged = _merged(learner, old, AIMessage("one more", id="m4"))
    expect_equal(
        merged,
        [*_texts(before), "one more"],
        what="the texts after a node returned one message, not in a list",
        why="Nodes may return a message or a list of them.",
        hint="reducer-adds",
    )
    merged = _merged(learner, old, [AIMessage("later", id="m5"), AIMessage("second try", id="m2")])
    expect_equal(
        merged,
        [str(before[0].text), "second try", "later"],
        what="the texts after a message with the id of the second one came",
        why="An edited message that is added again makes the model read both versions.",
        hint="same-id",
    )
    result = learner.merge_messages(old, [AIMessage("without an id"), AIMessage("another")])
    ids = [m.id for m in result]
    expect(
        all(isinstance(i, str) and i != "" for i in ids) and len(set(ids)) == len(ids),
        observed=f"ids {show(ids)}",
        expected="an id of its own for each message",
        why="Without an id a message can never be replaced, nor named in an audit.",
        hint="ids-are-given",
    )
    expect(
        old == before,
        observed=f"the list that was handed in now holds {show(_texts(old))}",
        expected=f"a new list, and the old one with {show(_texts(before))}",
        why="LangGraph keeps old states for checkpoints and time travel; a reducer that changes "
        "them rewrites history.",
        hint="leave-inputs",
    )


def test_branches_that_run_at_once_lose_nothing(learner, pick):
    names = [f"branch-{n}" for n in range(pick.randint(3, 6))]
    same = learner.call_key({"name": "tool", "args": {"b": 1, "a": 2}})

    keys = {
        "messages": Annotated[list[AnyMessage], learner.merge_messages],
        "calls": Annotated[dict[str, int], learner.merge_counts],
        "steps": Annotated[int, operator.add],
    }
    graph = StateGraph(TypedDict("Shared", keys))  # type: ignore[operator]
    for name in names:

        def branch(_: Any, name: str = name) -> dict[str, Any]:
            update = {same: 1, name: 1}
            return {"messages": [AIMessage(name, id=name)], "calls": update, "steps": 1}

        graph.add_node(name, branch)
        graph.add_edge(START, name)
        graph.add_edge(name, END)
    state = graph.compile().invoke({"messages": [HumanMessage("go", id="go")]})
    expect_equal(
        sorted(_texts(state["messages"])),
        sorted(["go", *names]),
        what=f"the messages after {len(names)} nodes that ran at once",
        why="Tool calls of one reply run at the same time. What a reducer drops, the model "
        "never learns.",
        hint="reducer-adds",
    )
    expect_equal(
        state["calls"],
        {same: len(names), **dict.fromkeys(names, 1)},
        what="the counts after each of them counted the same call and one of its own",
        why="A count that is overwritten stays at 1, and a loop is never noticed.",
        hint="counts-add",
    )
    left, right = {"a": 1}, {"a": 2, "b": 1}
    learner.merge_counts(left, right)
    expect(
        left == {"a": 1} and right == {"a": 2, "b": 1},
        observed=f"the counts handed in are now {show(left)} and {show(right)}",
        expected="both as they were",
        why="A reducer that changes its input changes a checkpoint that was already written.",
        hint="leave-inputs",
    )


def test_why_stop_names_the_first_reason_that_holds(learner, pick):
    tool = calls("some_tool", {"n": pick.randint(1, 99)}, id="c")
    key = learner.call_key(tool.tool_calls[0])
    ask = HumanMessage("please")
    result = ToolMessage("{}", name="some_tool", tool_call_id="c", status="success")
    steps, tokens = pick.randint(2, 30), pick.randint(100, 9000)
    budget = learner.Budget(steps=steps, tokens=tokens, same_call=2)
    spent = {"steps": steps, "tokens": tokens, "calls": {}}
    fine = {"steps": steps - 1, "tokens": tokens - 1, "calls": {key: 1}}

    def outcome(messages: list[Any], state: dict[str, Any]) -> Any:
        return plain(learner.why_stop({"messages": messages, **state}, budget))

    cases = [
        ([ask, AIMessage("Done.")], fine, "answered", "a reply with text", "end-of-work"),
        (
            [ask, AIMessage("I'll look.", tool_calls=tool.tool_calls)],
            fine,
            None,
            "a reply with text and a tool call",
            "end-of-work",
        ),
        (
            [ask, AIMessage("Done.")],
            spent,
            "answered",
            "a reply with text when the budget is used up",
            "answer-is-an-end",
        ),
        ([ask, AIMessage("   \n")], fine, "no_answer", "a reply of white space", "blank-answer"),
        ([ask, AIMessage("")], spent, "no_answer", "an empty reply", "blank-answer"),
        ([ask], {}, None, "a request to a fresh graph", "no-budget"),
        ([ask, tool, result], fine, None, "a tool's result, with budget left", "draw-it"),
        (
            [ask, tool, result],
            {**fine, "steps": steps},
            "out_of_steps",
            "a tool's result, after the last step",
            "count-calls-of-model",
        ),
        (
            [ask, tool, result],
            {**fine, "tokens": tokens},
            "out_of_tokens",
            "a tool's result, with all tokens used",
            "tokens-in-total",
        ),
        (
            [ask, tool],
            {**fine, "tokens": tokens + 5},
            "out_of_tokens",
            "a tool call, with more than all tokens used",
            "ask-before-tool",
        ),
        (
            [ask, tool],
            {**fine, "steps": steps},
            "out_of_steps",
            "a tool call, after the last step",
            "ask-before-tool",
        ),
        (
            [ask, tool],
            {**spent, "calls": {key: 2}},
            "repeating",
            "a call for the third time, with no budget left either",
            "loop-by-count",
        ),
        (
            [ask, tool],
            {**fine, "calls": {key: 1, "another_tool {}": 7}},
            None,
            "a call for the second time",
            "what-is-the-same",
        ),
        (
            [ask, calls_all([Step("some_tool", tool.tool_calls[0]["args"])] * 2, ids=["x", "y"])],
            fine,
            "repeating",
            "a call made once before and twice in this reply",
            "count-this-reply",
        ),
    ]
    for messages, state, expected, what, hint in cases:
        expect_equal(
            outcome(messages, state),
            expected,
            what=f"why_stop for {what}",
            why="Each edge of the graph asks this question. A wrong answer stops a good run or "
            "lets a bad one go on.",
            hint=hint,
        )


def test_a_job_within_budget_is_done_and_answered(learner, world):
    for scenario in world.scenarios():
        before = len(world.effects())
        model = ScriptedChatModel(replies=follow(scenario))
        graph = learner.build_graph(model, world.tools(), learner.Budget(steps=20, tokens=PLENTY))
        state = run(graph, scenario.request, doing=f"doing the job {scenario.id!r}")
        if model.calls > 1:
            _knows_what_was_said(model, scenario.request)
        expect_equal(
            {"outcome": state["outcome"], "answer": answer_of(state)},
            {"outcome": "answered", "answer": scenario.answer},
            what=f"how the job {scenario.id!r} ended",
            why="The model's own last words are the answer when it finished in time.",
            hint="end-of-work",
        )
        expect_equal(
            [(e.tool, e.arguments) for e in world.effects()[before:]],
            [(e.tool, e.arguments) for e in scenario.expected_effects],
            what=f"side effects of the job {scenario.id!r}",
            why="What the ledger says is what has happened, whatever the answer claims.",
            hint="all-calls",
        )
        expect_equal(
            {"steps": state.get("steps"), "tokens": state.get("tokens")},
            {"steps": model.calls, "tokens": model.tokens},
            what=f"what the job {scenario.id!r} cost",
            why="Costs are billed, limited and compared by these counts.",
            hint=_cost_hint(state, model),
        )
    expect_equal(
        sorted(model.tools_bound[-1]),
        sorted(t.name for t in world.tools()),
        what="tools that the model was told of",
        why="A model that is told of no tools makes up the facts.",
        hint="bind-tools",
    )


def test_several_calls_of_one_reply_are_all_made_and_a_failed_one_goes_back_to_the_model(
    learner, world, pick
):
    customer = pick.choice(world.customers()).id
    wanted = [
        Step(world.roles["lookup"], {"customer_id": customer}),
        Step(world.roles["items"], {"customer_id": customer}),
        Step(world.roles["lookup"], {"customer_id": "C-9999"}),
        Step("no_such_tool", {}),
    ]
    pick.shuffle(wanted)
    model = ScriptedChatModel(replies=[calls_all(wanted), says("Here you are.")])
    graph = learner.build_graph(model, world.tools(), learner.Budget(steps=5, tokens=PLENTY))
    state = run(graph, "Tell me all.", doing="making four calls at once, two of which fail")
    read = [m for m in model.asked[-1] if isinstance(m, ToolMessage)]
    expect_equal(
        sorted((str(m.name), m.status) for m in read),
        sorted(
            (w.tool, "success" if w in wanted and _works(w, customer) else "error") for w in wanted
        ),
        what="tool results that the model read",
        why="A reply may ask for several tools. A failure is something the model can act on.",
        hint="all-calls" if len(read) < len(wanted) else "tool-errors-go-back",
    )
    expect_equal(
        state["outcome"],
        "answered",
        what="the outcome",
        why="A failed tool is a fact for the model, not the end of the run.",
        hint="tool-errors-go-back",
    )


def test_the_model_is_never_called_more_often_than_the_budget_says(learner, world, pick):
    for steps in (1, 2, pick.randint(3, 9), pick.randint(30, 60)):
        model = _wanderer(world)
        graph = learner.build_graph(model, world.tools(), learner.Budget(steps, PLENTY))
        state = run(graph, "Go on for ever.", doing=f"working with a budget of {steps} step(s)")
        expect(
            model.calls <= steps,
            observed=f"{model.calls} calls of the model",
            expected=f"at most {steps}, the budget's steps",
            why="A budget that leaks by one leaks in every run, and a loop never ends.",
            hint="count-calls-of-model",
        )
        expect_equal(
            {"outcome": state["outcome"], "steps": state.get("steps"), "calls": model.calls},
            {"outcome": "out_of_steps", "steps": steps, "calls": steps},
            what=f"the end of a run with a budget of {steps} step(s)",
            why="The model may use what it was given, and the report must say why it stopped.",
            hint="count-calls-of-model",
        )


def test_tokens_are_counted_over_the_whole_run(learner, world, pick):
    each = pick.randint(50, 500)
    allowed = pick.randint(3, 12)
    budget = learner.Budget(steps=100, tokens=each * allowed - pick.randint(0, each - 1))
    model = _wanderer(world, tokens=each)
    state = run(
        learner.build_graph(model, world.tools(), budget),
        "Go on for ever.",
        doing=f"working with a budget of {budget.tokens} tokens at {each} tokens a reply",
    )
    expect(
        model.calls <= allowed,
        observed=f"{model.calls} replies of {each} tokens each, {model.calls * each} in all",
        expected=f"no call once {budget.tokens} tokens are used: {allowed} calls",
        why="Every step reads the whole conversation again. Costs grow with the square of the "
        "steps, and no single reply looks expensive.",
        hint="tokens-in-total",
    )
    expect_equal(
        {"outcome": state["outcome"], "tokens": state.get("tokens"), "calls": model.calls},
        {"outcome": "out_of_tokens", "tokens": each * allowed, "calls": allowed},
        what=f"the end of a run with a budget of {budget.tokens} tokens",
        why="The bill counts what was read as well as what was written.",
        hint="input-tokens-too",
    )


def test_a_used_up_budget_ends_in_a_useful_answer(learner, world, pick):
    customer = pick.choice(world.customers())
    look = [Step(world.roles[r], {"customer_id": customer.id}) for r in ("lookup", "items")]
    last = world.roles["act_small"]
    replies = [
        calls(look[0].tool, look[0].arguments),
        calls(look[1].tool, look[1].arguments),
        calls(last, world.good_arguments("act_small", pick, customer.id)),
    ]
    model = ScriptedChatModel(replies=replies, on_end="repeat")
    graph = learner.build_graph(model, world.tools(), learner.Budget(steps=3, tokens=PLENTY))
    state = run(graph, "Please look into it.", doing="running out of steps in the middle of a job")
    answer = answer_of(state)
    expect(
        answer.strip() != "",
        observed=f"the answer {show(answer)}",
        expected="a text for the customer",
        why="An empty answer looks like a broken product. The customer asks again, and pays again.",
        hint="say-what-is-known",
    )
    expect_equal(
        state["outcome"],
        "out_of_steps",
        what="the outcome",
        why="Whoever tunes the budget counts these.",
        hint="draw-it",
    )
    item = world.items(customer.id)[0]["id"]
    for text, meaning in (
        ("steps", "why it stopped"),
        (look[0].tool, "which tool found something"),
        (customer.phone, "what that tool found"),
        (look[1].tool, "which tool found something"),
        (item, "what that tool found"),
        (last, "what was not done"),
    ):
        expect(
            text in answer,
            observed=f"an answer without {text!r}: {show(answer, 500)}",
            expected=f"{text!r}, which tells {meaning}",
            why="Half a job is worth something only if the customer learns which half.",
            hint="say-what-is-known",
        )
    for outcome, word in (
        ("out_of_tokens", "tokens"),
        ("repeating", "repeat"),
        ("no_answer", "no answer"),
    ):
        said = plain(learner.partial_answer([HumanMessage("please")], outcome))
        expect(
            isinstance(said, str) and word in said,
            observed=f"partial_answer for {outcome!r} with no results: {show(said)}",
            expected=f"a text that contains {word!r}",
            why="With nothing found there is still a reason to give.",
            hint="say-what-is-known",
        )
    told = ["f" * 150 + "-here", "f" * 250 + "-cut off", "TransientError: not found"]
    results = [
        ToolMessage(text, name=look[0].tool, tool_call_id=f"call-{n}", status=status)
        for n, (text, status) in enumerate(zip(told, ("success", "success", "error"), strict=True))
    ]
    said = plain(learner.partial_answer([HumanMessage("please"), *results], "out_of_steps"))
    expect(
        told[0] in said and told[1][:200] in said,
        observed=f"results of {len(told[0])} and {len(told[1])} characters told as {show(said)}",
        expected="the first 200 characters of each",
        why="Half a job is worth something only if the customer learns which half.",
        hint="say-what-is-known",
    )
    expect(
        "cut off" not in said and "TransientError" not in said,
        observed=f"an answer that tells {show(said, 600)}",
        expected="the first 200 characters of what was found, and nothing of failed calls",
        why="A customer can use what is known; a page of data or an error text is noise to them.",
        hint="say-what-is-known",
    )


def test_nothing_is_done_that_nobody_will_read(learner, world, pick):
    for outcome, spend in (("out_of_steps", 10), ("out_of_tokens", 5000)):
        customer = pick.choice(world.customers()).id
        before = len(world.calls())
        replies = [
            calls(world.roles["lookup"], {"customer_id": customer}, input_tokens=10),
            calls(
                world.roles["act_small"],
                world.good_arguments("act_small", pick, customer),
                input_tokens=spend,
            ),
            says("Done.", input_tokens=10),
        ]
        model = ScriptedChatModel(replies=replies)
        budget = learner.Budget(steps=2 if outcome == "out_of_steps" else 9, tokens=1000)
        state = run(
            learner.build_graph(model, world.tools(), budget),
            "Do it.",
            doing="using up the budget with a reply that asks for a tool",
        )
        made = [c.tool for c in world.calls()[before:]]
        expect_equal(
            made,
            [world.roles["lookup"]],
            what=f"tools called in a run that is {outcome.replace('_', ' ')}",
            why="An act whose result nobody reads is an act that the answer cannot mention.",
            hint="ask-before-tool",
        )
        expect_equal(
            {"outcome": state["outcome"], "calls of the model": model.calls},
            {"outcome": outcome, "calls of the model": 2},
            what="the end of the run",
            why="The reply that used the budget up was the last one that was paid for.",
            hint="ask-before-tool",
        )


def test_without_a_budget_the_model_is_not_called_and_there_is_an_answer(learner, world):
    for budget in (learner.Budget(0, PLENTY), learner.Budget(5, 0)):
        model = _wanderer(world)
        state = run(
            learner.build_graph(model, world.tools(), budget),
            "Hello?",
            doing=f"running with a budget of {budget.steps} steps and {budget.tokens} tokens",
        )
        expect(
            model.calls == 0 and bool(answer_of(state).strip()),
            observed=f"{model.calls} calls of the model and the answer {show(state['answer'])}",
            expected="no call, and an answer that says why",
            why="A customer whose quota is used up must cost nothing more, and must be told.",
            hint="no-budget",
        )


def test_a_loop_is_stopped_however_it_is_disguised(learner, world, pick):
    customers = [c.id for c in world.customers()]
    one = pick.choice(customers)
    look, items = world.roles["lookup"], world.roles["items"]
    a, b = (look, {"customer_id": one}), (items, {"customer_id": one})
    for label, cycle, allowed in (("A, A, A", [a], 2), ("A, B, A, B", [a, b], 4)):
        made: list[AIMessage] = []

        def looping(_: Any, cycle: Any = cycle, made: Any = made) -> AIMessage:
            made.append(calls(*cycle[len(made) % len(cycle)], id=f"call-{len(made)}"))
            return made[-1]

        model = ScriptedChatModel(replies=looping)
        before = len(world.calls())
        graph = learner.build_graph(model, world.tools(), learner.Budget(steps=30, tokens=PLENTY))
        state = run(graph, "Hello?", doing=f"asking for the same calls for ever ({label})")
        expect_equal(
            {"outcome": state["outcome"], "calls": len(world.calls()) - before},
            {"outcome": "repeating", "calls": allowed},
            what=f"a run in which the model asks for {label}, ... with same_call=2",
            why="A model that asks the same again learns nothing new; the budget would be burnt "
            "for nothing.",
            hint="loop-by-count",
        )
    spread = [calls(look, {"customer_id": c}, id=f"call-{n}") for n, c in enumerate(customers)]
    model = ScriptedChatModel(replies=[*spread, says("I have seen them all.")])
    graph = learner.build_graph(model, world.tools(), learner.Budget(steps=30, tokens=PLENTY))
    state = run(graph, "Hello?", doing="calling one tool with different arguments")
    expect_equal(
        state["outcome"],
        "answered",
        what=f"the outcome after {len(customers)} calls of one tool, each for another customer",
        why="The same tool with other arguments is work, not a loop.",
        hint="what-is-the-same",
    )


def test_every_tool_call_is_answered_however_the_run_ends(learner, world, pick):
    customer = pick.choice(world.customers()).id
    pair = [
        Step(world.roles["lookup"], {"customer_id": customer}),
        Step(world.roles["items"], {"customer_id": customer}),
    ]
    for label, budget in (
        ("out of steps", learner.Budget(steps=2, tokens=PLENTY)),
        ("out of tokens", learner.Budget(steps=50, tokens=150)),
        ("repeating", learner.Budget(steps=50, tokens=PLENTY)),
    ):
        made: list[AIMessage] = []

        def asking(_: Any, made: Any = made) -> AIMessage:
            ids = [f"call-{len(made)}-{n}" for n in range(2)]
            made.append(calls_all(pair, ids=ids, input_tokens=100))
            return made[-1]

        model = ScriptedChatModel(replies=asking)
        state = run(
            learner.build_graph(model, world.tools(), budget), "Go.", doing=f"ending {label}"
        )
        messages = state["messages"]
        left = unanswered(messages)
        expect(
            not left and bool(tool_calls(messages)),
            observed=f"a history that ends {label} with {len(left)} of "
            f"{len(tool_calls(messages))} tool calls not answered exactly once",
            expected="one tool message for each tool call",
            why="Chat APIs refuse such a history, so the next message on this thread fails.",
            hint="every-call-answered",
        )


def test_a_live_model_is_kept_within_its_budget(learner, world, engine, figure):
    scenario = world.scenario("question")
    reads = [t for t in world.tools() if t.reads]
    model = live_agent_model(engine, max_tokens=80)
    budget = learner.Budget(steps=3, tokens=6000)
    graph = learner.build_graph(model, reads, budget)
    state = run(graph, scenario.request, doing="working with the running model")
    replies = [m for m in state["messages"] if isinstance(m, AIMessage)]
    used = sum(m.usage_metadata["total_tokens"] for m in replies if m.usage_metadata)
    figure("model calls", len(replies), unit="calls")
    figure("tokens", used, unit="tokens")
    expect(
        len(replies) <= budget.steps
        and state.get("steps") == len(replies)
        and state.get("tokens") == used,
        observed=f"{len(replies)} replies and {used} tokens by the model's own count, "
        f"{state.get('steps')} and {state.get('tokens')} in the state",
        expected=f"the same counts, and at most {budget.steps} replies",
        why="A real model does what no script foresees; the budget must hold for it too.",
        hint="count-calls-of-model",
    )
    expect(
        bool(answer_of(state).strip()) and not unanswered(state["messages"]),
        observed=f"outcome {show(state['outcome'])}, answer {show(plain(state['answer']))}, "
        f"unanswered calls {unanswered(state['messages'])}",
        expected="an answer, and a history that a chat API accepts",
        why="Whatever the model does, the customer gets an answer.",
        hint="say-what-is-known",
    )
    expect_equal(
        len(world.ledger()),
        0,
        what="side effects of a run with tools that only read",
        why="A model can do only what it is given tools for.",
        hint="bind-tools",
    )


def _texts(messages: list[AnyMessage]) -> list[str]:
    return [str(m.text) for m in messages]  # `text` is a str of a class of its own


def _merged(learner: Any, old: list[AnyMessage], new: Any) -> list[str]:
    return _texts(list(learner.merge_messages(list(old), new)))


def _works(step: Step, customer: str) -> bool:
    return step.arguments.get("customer_id") == customer


def _cost_hint(state: dict[str, Any], model: ScriptedChatModel) -> str:
    if state.get("steps") != model.calls:
        return "one-update"
    last = next(m for m in reversed(state["messages"]) if isinstance(m, AIMessage))
    if last.usage_metadata and state.get("tokens") == last.usage_metadata["total_tokens"]:
        return "tokens-in-total"
    return "input-tokens-too"


def _wanderer(world: World, tokens: int = 10) -> ScriptedChatModel:
    """A model that never ends: always another call, none like one before."""
    made: list[int] = []

    def reply(_: Any) -> AIMessage:
        made.append(1)
        query = {"query": f"policy number {len(made)}"}
        given = tokens * 4 // 5
        return calls(
            world.roles["search"],
            query,
            id=f"call-{len(made)}",
            input_tokens=given,
            output_tokens=tokens - given,
        )

    return ScriptedChatModel(replies=reply)


def _knows_what_was_said(model: ScriptedChatModel, request: str) -> None:
    for n, messages in enumerate(model.asked):
        seen = [m.text for m in messages if isinstance(m, HumanMessage)]
        made = sum(isinstance(m, AIMessage) for m in messages)
        expect(
            seen == [request] and made == n,
            observed=f"call {n + 1} of the model saw {made} of its {n} replies and "
            f"{'the' if request in seen else 'no'} request",
            expected="the whole conversation so far",
            why="A model that does not see what it was asked, or what it did, starts again.",
            hint="reducer-adds",
        )
