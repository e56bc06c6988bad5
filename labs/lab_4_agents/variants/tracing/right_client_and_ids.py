"""Solves it with MLflow's client and ids in place of span objects, and redacts word by word."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import mlflow
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from mlflow import MlflowClient
from mlflow.entities import LiveSpan, SpanStatus, SpanStatusCode, SpanType
from pydantic import BaseModel

from shared.agents.loop import LoopResult, run_loop
from shared.domains.worlds import ToolSpec

REDACTED = "[redacted]"
LONGEST = 500
"""Characters of a text in a trace."""

MODEL = "mlflow.llm.model"
USAGE = "mlflow.chat.tokenUsage"
SESSION = "mlflow.trace.session"
"""The names under which MLflow itself looks for model, token usage (span) and session (trace)."""


def redact(value: Any, personal: Collection[str]) -> Any:
    """`value` with `REDACTED` in place of each piece of personal data. `value` is not changed.

    Personal data are, wherever they occur in a text:

    - the texts in `personal`, in upper or lower case; where one contains another, the longer one;
    - e-mail addresses;
    - telephone numbers in international form: a ``+`` and 7 to 15 digits, between which single
      spaces, dots or hyphens may stand.

    Other numbers, ids and amounts stay as they are. Texts in lists, tuples and dicts are treated
    as well, dict keys too, however deep; a tuple comes back as a list. None, numbers and bools
    are returned as they are, anything else as its redacted `str`.
    """
    if isinstance(value, dict):
        return {redact(k, personal): redact(v, personal) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(v, personal) for v in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    for known in sorted(filter(None, personal), key=len, reverse=True):
        text = _replace(text, known)
    for pattern in _PATTERNS:
        text = pattern.sub(REDACTED, text)
    return text


def for_trace(value: Any, personal: Collection[str]) -> Any:
    """`redact`, and then each text longer than `LONGEST` characters cut to its first `LONGEST`."""
    return _cut(redact(value, personal))


def traced_tool(spec: ToolSpec, parent: LiveSpan, personal: Collection[str]) -> ToolSpec:
    """The same tool; each call of it, in whatever thread, leaves a span under `parent`.

    The tool gets what it is called with, and its caller gets what it returns or raises, unchanged.
    The span begins before the call and ends after it. It has

    - the tool's name, the type TOOL, as inputs the arguments (a dict) and as outputs the answer,
      both `for_trace`;
    - the attribute ``outcome``: ``"ok"``, or the class name of the exception;
    - on an exception the status ERROR, whose description holds the class name and the
      exception's text, `for_trace`. Nothing that MLflow might record of the exception by itself
      (its text, its traceback) is in the span.
    """

    def call(arguments: BaseModel, **how: Any) -> dict[str, Any]:
        return _watched(
            spec.name,
            SpanType.TOOL,
            parent,
            personal,
            arguments.model_dump(),
            lambda: spec.call(arguments, **how),
            lambda answer: (answer, {}),
        )

    return replace(spec, call=call)


def traced_model(
    model: Any, parent: LiveSpan, personal: Collection[str]
) -> Callable[[list[BaseMessage]], AIMessage]:
    """A function that calls the model with a conversation and leaves a span under `parent`.

    Failures are treated as those of a tool. The span has

    - the name ``"model"`` and the type CHAT_MODEL;
    - as inputs a dict: ``messages``, the number of messages, and ``last``, the text of the last
      one. The rest of the conversation is in earlier spans already;
    - as outputs a dict: ``text`` and ``tool_calls``, a list of dicts with ``name`` and ``args``.
      Inputs and outputs are `for_trace`;
    - the attribute `MODEL`: ``model_name`` of the reply's response metadata (absent without one);
    - the attribute `USAGE`: a dict of the reply's ``input_tokens``, ``output_tokens`` and
      ``total_tokens`` (absent when the reply has no usage metadata);
    - the attribute ``outcome``, as a tool's span has it.

    Args:
        model: a chat model, with its tools bound.
    """

    def told(reply: AIMessage) -> tuple[Any, dict[str, Any]]:
        attributes: dict[str, Any] = {}
        if "model_name" in reply.response_metadata:
            attributes[MODEL] = reply.response_metadata["model_name"]
        usage = reply.usage_metadata
        if usage is not None:
            attributes[USAGE] = {
                "input_tokens": usage["input_tokens"],
                "output_tokens": usage["output_tokens"],
                "total_tokens": usage["total_tokens"],
            }
        wanted = [{"name": c["name"], "args": c["args"]} for c in reply.tool_calls]
        return {"text": str(reply.text), "tool_calls": wanted}, attributes

    def ask(messages: list[BaseMessage]) -> AIMessage:
        inputs = {"messages": len(messages), "last": str(messages[-1].text)}
        return _watched(
            "model",
            SpanType.CHAT_MODEL,
            parent,
            personal,
            inputs,
            lambda: model.invoke(messages),
            told,
        )

    return ask


def run_traced(
    model: BaseChatModel,
    tools: list[ToolSpec],
    request: str,
    *,
    thread_id: str,
    personal: Collection[str],
    max_steps: int = 8,
) -> LoopResult:
    """`shared.agents.loop.run_loop` with the tools bound to the model, as one trace in MLflow.

    The root span has the name ``"agent run"``, the type AGENT, as inputs a dict with ``request``
    and as outputs a dict with ``answer``, both `for_trace`, and the attributes ``thread_id`` and
    ``outcome`` (that of the result). The trace's metadata hold the thread under `SESSION`. Every
    model call and tool call is a span under the root. Runs at the same time in several threads
    make separate traces, each with its own spans.

    A failed tool is a failed span in a run that goes on. What the model or the loop raises goes
    through; the root then has the status ERROR and the exception's class name as ``outcome``, as
    a tool's span would.
    """
    root = mlflow.start_span_no_context(
        "agent run",
        span_type=SpanType.AGENT,
        inputs=for_trace({"request": request}, personal),
        attributes={"thread_id": thread_id},
        metadata={SESSION: thread_id},
    )
    ask = traced_model(model.bind_tools([t.as_function() for t in tools]), root, personal)
    try:
        result = run_loop(
            ask, [traced_tool(t, root, personal) for t in tools], request, max_steps=max_steps
        )
    except BaseException as error:
        root.set_attribute("outcome", type(error).__name__)
        root.set_status(_failure(error, personal))
        root.end()
        raise
    root.set_outputs(for_trace({"answer": result.answer}, personal))
    root.set_attribute("outcome", result.outcome)
    root.end()
    return result


_PATTERNS = (
    re.compile(r"[^\s@<>,;:()]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"),
    re.compile(r"\+[0-9](?:[-. ]?[0-9]){6,14}(?![0-9])"),
)


def _replace(text: str, known: str) -> str:
    """Every `known` in `text`, in whatever case, replaced."""
    low, wanted, found = text.lower(), known.lower(), []
    at = 0
    while (hit := low.find(wanted, at)) >= 0:
        found += [text[at:hit], REDACTED]
        at = hit + len(known)
    return "".join([*found, text[at:]])


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value[:LONGEST]
    if isinstance(value, dict):
        return {_cut(k): _cut(v) for k, v in value.items()}
    return [_cut(v) for v in value] if isinstance(value, list) else value


def _failure(error: BaseException, personal: Collection[str]) -> SpanStatus:
    said = for_trace(f"{type(error).__name__}: {error}", personal)
    return SpanStatus(SpanStatusCode.ERROR, said)


def _watched(
    name: str,
    kind: str,
    parent: LiveSpan,
    personal: Collection[str],
    inputs: Any,
    work: Callable[[], Any],
    told: Callable[[Any], tuple[Any, dict[str, Any]]],
) -> Any:
    """Do the work in a span under `parent`."""
    client = MlflowClient()
    ids = (
        parent.trace_id,
        client.start_span(
            name,
            parent.trace_id,
            parent.span_id,
            span_type=kind,
            inputs=for_trace(inputs, personal),
        ).span_id,
    )
    try:
        result = work()
    except BaseException as error:
        how = {"outcome": type(error).__name__}
        client.end_span(*ids, attributes=how, status=_failure(error, personal))
        raise
    outputs, attributes = told(result)
    attributes["outcome"] = "ok"
    client.end_span(*ids, outputs=for_trace(outputs, personal), attributes=attributes)
    return result
