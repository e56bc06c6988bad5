"""Run a learner's graph, and say in words what went wrong with it."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.errors import GraphRecursionError, InvalidUpdateError

from shared.grading.expect import fail, plain, show
from shared.grading.plugin import learner_frames


def run(graph: Any, request: str, *, doing: str) -> dict[str, Any]:
    """The final state of ``graph.invoke`` with one request.

    Errors of the learner's own code go through. What LangGraph says about the graph becomes a
    failure of the check.
    """
    try:
        state = graph.invoke({"messages": [HumanMessage(request)]})
    except NotImplementedError:
        raise
    except GraphRecursionError:
        fail(
            observed=f"GraphRecursionError while {doing}",
            expected="a final state with an outcome and an answer",
            why="An exception tells the customer nothing, and throws away all that was found out "
            "and paid for.",
            hint="own-limit",
        )
    except InvalidUpdateError as error:
        fail(
            observed=f"InvalidUpdateError while {doing}: {first_line(error)}",
            expected="nodes whose updates the state's reducers can put together",
            why="Branches that run at once write to the same keys.",
            hint="one-update",
        )
    except Exception as error:
        if learner_frames(error):
            raise
        fail(
            observed=f"{type(error).__name__} while {doing}: {first_line(error)}",
            expected="a final state with an outcome and an answer",
            why="An agent that breaks in the middle leaves a job half done.",
            hint="draw-it",
        )
    if not isinstance(state, dict):
        fail(
            observed=f"graph.invoke returned a {type(state).__name__}",
            expected="the final state, a dict with the keys of AgentState",
            why="Callers read answer and outcome from it.",
            hint="draw-it",
        )
    for key in ("messages", "outcome", "answer"):
        if key not in state:
            fail(
                observed=f"no {key} in the final state, which has {sorted(state)}",
                expected=f"{key}, set by the end of every run (while {doing})",
                why="Callers read answer and outcome, however the run ended.",
                hint="draw-it",
            )
    return state


def answer_of(state: dict[str, Any]) -> str:
    """The final answer; a text of LangChain's own str class is as good as any."""
    answer = state["answer"]
    return str(answer) if isinstance(answer, str) else show(plain(answer))


def tool_calls(messages: list[BaseMessage]) -> list[dict[str, Any]]:
    """All tool calls of the model, oldest first."""
    return [dict(c) for m in messages if isinstance(m, AIMessage) for c in m.tool_calls]


def unanswered(messages: list[BaseMessage]) -> list[str]:
    """Ids of tool calls that are not answered exactly once."""
    answers = [m.tool_call_id for m in messages if isinstance(m, ToolMessage)]
    return [c["id"] for c in tool_calls(messages) if answers.count(c["id"]) != 1]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, cut to 200 characters."""
    return str(error).strip().split("\n")[0][:200]
