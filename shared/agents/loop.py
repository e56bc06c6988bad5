"""An agent's loop in its plainest form: ask the model, make its tool calls, ask again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from shared.agents.toolbox import answer_call
from shared.domains.worlds import ToolSpec


@dataclass(frozen=True)
class LoopResult:
    """How a run ended.

    Attributes:
        answer: the model's last text.
        outcome: ``"answered"``, or ``"out_of_steps"`` when it still asked for tools at the end.
        steps: calls of the model.
    """

    answer: str
    outcome: Literal["answered", "out_of_steps"]
    steps: int


def run_loop(
    ask: Callable[[list[BaseMessage]], AIMessage],
    tools: Sequence[ToolSpec],
    request: str,
    *,
    max_steps: int = 8,
) -> LoopResult:
    """Work on a request until the model asks for no more tools, or `max_steps` model calls.

    The tool calls of one reply are made at the same time, each in a thread of a pool. Context
    variables of the thread that calls `run_loop` do not reach those threads.

    Args:
        ask: one call of the model, with the conversation so far.
    """
    messages: list[BaseMessage] = [HumanMessage(request)]
    reply = AIMessage("")
    for step in range(1, max_steps + 1):
        reply = ask(messages)
        messages.append(reply)
        if not reply.tool_calls:
            return LoopResult(str(reply.text), "answered", step)
        with ThreadPoolExecutor(len(reply.tool_calls), thread_name_prefix="tool") as pool:
            messages += pool.map(lambda call: answer_call(tools, call), reply.tool_calls)
    return LoopResult(str(reply.text), "out_of_steps", max_steps)
