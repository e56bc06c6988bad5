"""Traces of an agent's runs: one tree a run, with what happened in it and nobody's personal data.

agent run  AGENT
├── model  CHAT_MODEL
├── get_customer  TOOL
├── model  CHAT_MODEL
└── ...
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
    raise NotImplementedError("Task 4.5: write redact")


def for_trace(value: Any, personal: Collection[str]) -> Any:
    """`redact`, and then each text longer than `LONGEST` characters cut to its first `LONGEST`."""
    raise NotImplementedError("Task 4.5: write for_trace")


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
    raise NotImplementedError("Task 4.5: write traced_tool")


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
    raise NotImplementedError("Task 4.5: write traced_model")


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
    raise NotImplementedError("Task 4.5: write run_traced")
