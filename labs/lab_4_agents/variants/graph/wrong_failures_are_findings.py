"""Lists failed calls among what was found.

caught-by: test_a_used_up_budget_ends_in_a_useful_answer
hint: say-what-is-known
"""

from __future__ import annotations

import json
import operator
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolCall, ToolMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send

from shared.agents.toolbox import answer_call
from shared.domains.worlds import ToolSpec

Outcome = Literal["answered", "no_answer", "out_of_steps", "out_of_tokens", "repeating"]


@dataclass(frozen=True)
class Budget:
    """What a run may use.

    Attributes:
        steps: calls of the model.
        tokens: input and output tokens of all model calls together.
        same_call: how often one and the same tool call may be made.
    """

    steps: int
    tokens: int
    same_call: int = 2


def call_key(call: Mapping[str, Any]) -> str:
    """What makes two tool calls the same: tool and arguments, in whatever order they come."""
    return f"{call['name']} {json.dumps(call['args'], sort_keys=True)}"


def merge_messages(
    old: list[AnyMessage], new: AnyMessage | Sequence[AnyMessage]
) -> list[AnyMessage]:
    """Reducer of `messages`: what the state holds after a node returned `new`.

    Adds the new messages, one or several, after the old ones. A new message with the id of one
    that is there takes that one's place. A message without an id gets one (any unique text).
    Returns a new list; the lists `old` and `new` stay as they are.
    """
    merged = list(old)
    place = {message.id: n for n, message in enumerate(merged)}
    for message in [new] if isinstance(new, BaseMessage) else new:
        if message.id is None:
            message = message.model_copy(update={"id": str(uuid.uuid4())})
        if message.id in place:
            merged[place[message.id]] = message
        else:
            place[message.id] = len(merged)
            merged.append(message)
    return merged


def merge_counts(old: dict[str, int], new: dict[str, int]) -> dict[str, int]:
    """Reducer of `calls`: the counts of both, added up for each key. Changes neither."""
    return dict(Counter(old) + Counter(new))


class AgentState(TypedDict):
    """What the graph's nodes share. A node returns what it adds; the reducers put it together.

    Attributes:
        messages: the conversation, oldest first.
        steps: calls of the model so far.
        tokens: tokens of all model calls so far.
        calls: how often each tool call was made, by `call_key`.
        outcome: how the run ended; set by the last node.
        answer: what the customer gets; set by the last node.
    """

    messages: Annotated[list[AnyMessage], merge_messages]
    steps: Annotated[int, operator.add]
    tokens: Annotated[int, operator.add]
    calls: Annotated[dict[str, int], merge_counts]
    outcome: Outcome
    answer: str


def open_calls(messages: Sequence[BaseMessage]) -> list[ToolCall]:
    """The tool calls of the last message, when it is a model's reply; they await an answer."""
    last = messages[-1] if messages else None
    return list(last.tool_calls) if isinstance(last, AIMessage) else []


def why_stop(state: AgentState, budget: Budget) -> Outcome | None:
    """Why the run must end here; None when it may go on. The first of these that holds:

    - ``"answered"``: the last message is a model's reply with text and no tool calls.
      ``"no_answer"``: a model's reply with neither tool calls nor text other than white space.
    - ``"repeating"``: the last message asks for a call that would then have been made more than
      `budget.same_call` times, counting those made before (`state["calls"]`) and each one that
      this message asks for.
    - ``"out_of_steps"``: the model has been called `budget.steps` times.
    - ``"out_of_tokens"``: `budget.tokens` tokens are used up.

    A tool call is made only if the model can still be called to read what came of it: budgets
    count before a tool as they do before the model.

    Args:
        state: `messages` holds at least the request. `steps`, `tokens` and `calls` are absent
            until a node has written them.
    """
    last = state["messages"][-1]
    wanted = open_calls(state["messages"])
    if isinstance(last, AIMessage) and not wanted:
        return "answered" if last.text.strip() else "no_answer"
    made = merge_counts(state.get("calls", {}), dict(Counter(map(call_key, wanted))))
    if any(made[call_key(call)] > budget.same_call for call in wanted):
        return "repeating"
    if state.get("steps", 0) >= budget.steps:
        return "out_of_steps"
    if state.get("tokens", 0) >= budget.tokens:
        return "out_of_tokens"
    return None


def partial_answer(messages: Sequence[BaseMessage], outcome: Outcome) -> str:
    """What to tell the customer when the model gave no answer. Never empty; asks no model.

    It says, in any wording:

    - why the work stopped: it contains ``"steps"``, ``"tokens"``, ``"repeat"`` or
      ``"no answer"``, whichever `outcome` stands for;
    - what was found: for each tool message with status ``"success"`` the tool's name and the
      first 200 characters of its content;
    - what was not done: for each tool call of the last message the tool's name, and that it was
      not done.
    """
    lines = [f"I had to stop before I was done: {_REASONS[outcome]}."]
    found = [m for m in messages if isinstance(m, ToolMessage)]
    if found:
        lines.append("What I found out:")
        lines += [f"- {m.name}: {m.text[:200]}" for m in found]
    left = open_calls(messages)
    if left:
        lines.append("Not done: " + ", ".join(call["name"] for call in left) + ".")
    lines.append("Please ask again, or let a person take over.")
    return "\n".join(lines)


def build_graph(
    model: BaseChatModel, tools: Sequence[ToolSpec], budget: Budget
) -> CompiledStateGraph[AgentState, None, AgentState, AgentState]:
    """The agent, compiled: ``graph.invoke({"messages": [HumanMessage(request)]})``.

    The model, with the tools bound to it (as `ToolSpec.as_function` dicts), is called with the
    state's messages; `shared.agents.toolbox.answer_call` makes each tool call that it asks for;
    and so on until `why_stop` gives an outcome. No exception tells that a budget is used up.

    Returns:
        a graph whose final state holds, besides what `AgentState` says:

        - `outcome`, and `answer`: the text of the model's last reply when the outcome is
          ``"answered"``, otherwise `partial_answer`. It is never empty.
        - `steps` and `tokens`: never more model calls than the budget allows, none once the
          tokens are used up (the call that uses them up may go over). A reply without usage
          metadata counts 0 tokens. With a budget of 0 steps or tokens the model isn't called.
        - `messages`: each tool call is answered by exactly one tool message with its id. A call
          that was not made because the run ended is answered by one of status ``"error"``.
    """
    bound = model.bind_tools([tool.as_function() for tool in tools])

    def ask_model(state: AgentState) -> dict[str, Any]:
        reply = bound.invoke(state["messages"])
        used = reply.usage_metadata
        return {
            "messages": [reply],
            "steps": 1,
            "tokens": used["total_tokens"] if used is not None else 0,
        }

    def make_call(call: ToolCall) -> dict[str, Any]:
        return {"messages": [answer_call(tools, call)], "calls": {call_key(call): 1}}

    def finish(state: AgentState) -> dict[str, Any]:
        outcome = why_stop(state, budget)
        assert outcome is not None
        if outcome == "answered":
            return {"outcome": outcome, "answer": str(state["messages"][-1].text)}
        return {
            "outcome": outcome,
            "answer": partial_answer(state["messages"], outcome),
            # A chat API refuses a history in which a tool call has no answer.
            "messages": [_not_made(call, outcome) for call in open_calls(state["messages"])],
        }

    def before_model(state: AgentState) -> str:
        return "finish" if why_stop(state, budget) else "model"

    def after_model(state: AgentState) -> str | list[Send]:
        if why_stop(state, budget):
            return "finish"
        return [Send("tool", call) for call in open_calls(state["messages"])]

    graph = StateGraph(AgentState)
    graph.add_node("model", ask_model)
    graph.add_node("tool", make_call)
    graph.add_node("finish", finish)
    graph.add_conditional_edges(START, before_model, ["model", "finish"])
    graph.add_conditional_edges("model", after_model, ["tool", "finish"])
    graph.add_conditional_edges("tool", before_model, ["model", "finish"])
    graph.add_edge("finish", END)
    # Our own budget ends the run; LangGraph's limit only has to be out of its way.
    return graph.compile().with_config(recursion_limit=2 * max(budget.steps, 0) + 10)


_REASONS: dict[str, str] = {
    "out_of_steps": "I have used up the steps that I may take",
    "out_of_tokens": "I have used up the tokens that I may use",
    "repeating": "I began to repeat the same call",
    "no_answer": "I have no answer",
}


def _not_made(call: ToolCall, outcome: Outcome) -> ToolMessage:
    return ToolMessage(
        f"not done: {_REASONS[outcome]}",
        name=call["name"],
        tool_call_id=call["id"] or "",
        status="error",
    )
