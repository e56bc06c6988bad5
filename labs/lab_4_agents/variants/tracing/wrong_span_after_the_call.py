"""Writes the span when the answer is there, so that it has no duration.

caught-by: test_a_tool_call_is_a_span_of_its_run_in_whatever_thread_it_is_made
hint: begin-before
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlflow
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from mlflow.entities import LiveSpan, SpanEvent, SpanStatus, SpanStatusCode, SpanType
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
    terms = sorted((re.escape(p) for p in personal if p), key=len, reverse=True)
    known = re.compile("|".join(terms), re.IGNORECASE) if terms else None

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {clean(k): clean(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(v) for v in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        text = str(value)
        if known is not None:
            text = known.sub(REDACTED, text)
        return _PHONE.sub(REDACTED, _EMAIL.sub(REDACTED, text))

    return clean(value)


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
        answer, failure = None, None
        try:
            answer = spec.call(arguments, **how)
        except Exception as error:
            failure = error
        with _span(spec.name, SpanType.TOOL, parent, arguments.model_dump(), personal) as end:
            if failure is not None:
                raise failure
            end["outputs"] = answer
        return answer

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

    def ask(messages: list[BaseMessage]) -> AIMessage:
        new = {"messages": len(messages), "last": str(messages[-1].text)}
        with _span("model", SpanType.CHAT_MODEL, parent, new, personal) as end:
            reply: AIMessage = model.invoke(messages)
            end["outputs"] = {
                "text": str(reply.text),
                "tool_calls": [{"name": c["name"], "args": c["args"]} for c in reply.tool_calls],
            }
            name = reply.response_metadata.get("model_name")
            if name:
                end["attributes"][MODEL] = name
            if reply.usage_metadata:
                end["attributes"][USAGE] = {
                    k: reply.usage_metadata[k]  # type: ignore[literal-required]
                    for k in ("input_tokens", "output_tokens", "total_tokens")
                }
        return reply

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
    with _ending(root, personal) as end:
        result = run_loop(
            traced_model(model.bind_tools([t.as_function() for t in tools]), root, personal),
            [traced_tool(tool, root, personal) for tool in tools],
            request,
            max_steps=max_steps,
        )
        end["outputs"] = {"answer": result.answer}
        end["attributes"]["outcome"] = result.outcome
    return result


_EMAIL = re.compile(r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)+")
_PHONE = re.compile(r"\+\d(?:[ .-]?\d){6,14}(?!\d)")


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {_cut(k): _cut(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cut(v) for v in value]
    return value[:LONGEST] if isinstance(value, str) else value


@contextmanager
def _span(
    name: str, kind: str, parent: LiveSpan, inputs: Any, personal: Collection[str]
) -> Iterator[dict[str, Any]]:
    # Not `mlflow.start_span`: its parent is the thread's current span, and a pool's threads have
    # none; and it records the text and traceback of what passes through it.
    span = mlflow.start_span_no_context(
        name, span_type=kind, parent_span=parent, inputs=for_trace(inputs, personal)
    )
    with _ending(span, personal) as end:
        yield end


@contextmanager
def _ending(span: LiveSpan, personal: Collection[str]) -> Iterator[dict[str, Any]]:
    """Ends a span with the outputs and attributes that its body leaves in the yielded dict."""
    end: dict[str, Any] = {"outputs": None, "attributes": {"outcome": "ok"}}
    try:
        yield end
    except BaseException as error:
        kind, text = type(error).__name__, for_trace(str(error), personal)
        said = {"exception.type": kind, "exception.message": text}
        span.add_event(SpanEvent(name="exception", attributes=said))
        span.end(
            attributes={"outcome": kind},
            status=SpanStatus(SpanStatusCode.ERROR, f"{kind}: {text}"),
        )
        raise
    span.end(outputs=for_trace(end["outputs"], personal), attributes=end["attributes"])
