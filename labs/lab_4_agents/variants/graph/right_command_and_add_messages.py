"""Solves it with one node for all tools of a reply, LangGraph's own reducer, and Command."""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolCall, ToolMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command

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
    return list(add_messages(list(old), new))  # type: ignore[arg-type]


def merge_counts(old: dict[str, int], new: dict[str, int]) -> dict[str, int]:
    """Reducer of `calls`: the counts of both, added up for each key. Changes neither."""
    return {key: old.get(key, 0) + new.get(key, 0) for key in [*old, *new]}


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
    found = [m for m in messages if isinstance(m, ToolMessage) and m.status == "success"]
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

    def end(state: AgentState, outcome: Outcome) -> Command[str]:
        said = state["messages"][-1]
        update: dict[str, Any] = {"outcome": outcome, "answer": f"{said.text}"}
        if outcome != "answered":
            update["answer"] = partial_answer(state["messages"], outcome)
            update["messages"] = [
                ToolMessage("not done", name=c["name"], tool_call_id=c["id"], status="error")
                for c in open_calls(state["messages"])
            ]
        return Command(goto=END, update=update)

    def think(state: AgentState) -> Command[str]:
        if outcome := why_stop(state, budget):
            return end(state, outcome)
        reply = bound.invoke(state["messages"])
        usage = reply.usage_metadata or {"total_tokens": 0}
        return Command(
            goto="act", update={"messages": reply, "steps": 1, "tokens": usage["total_tokens"]}
        )

    def act(state: AgentState) -> Command[str]:
        if outcome := why_stop(state, budget):
            return end(state, outcome)
        update: dict[str, Any] = {"messages": [], "calls": {}}
        for call in open_calls(state["messages"]):
            update["messages"].append(answer_call(tools, call))
            key = call_key(call)
            update["calls"][key] = update["calls"].get(key, 0) + 1
        return Command(goto="think", update=update)

    graph = StateGraph(AgentState)
    graph.add_node("think", think, destinations=("act", END))
    graph.add_node("act", act, destinations=("think", END))
    graph.add_edge(START, "think")
    return graph.compile().with_config(recursion_limit=10 + 3 * abs(budget.steps))


_REASONS: dict[str, str] = {
    "out_of_steps": "I have used up the steps that I may take",
    "out_of_tokens": "I have used up the tokens that I may use",
    "repeating": "I began to repeat the same call",
    "no_answer": "I have no answer",
}
