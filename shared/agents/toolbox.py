"""Carry out what a model asks for, and tell it what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from langchain_core.messages import ToolCall, ToolMessage
from pydantic import ValidationError

from shared.domains.worlds import ToolError, ToolSpec


def answer_call(tools: Iterable[ToolSpec], call: ToolCall) -> ToolMessage:
    """Validate a tool call strictly, make it once, and put what came of it into a message.

    The message's content is the result as JSON. What the model did wrong (no such tool, invalid
    arguments) and what the tool answered instead of a result (a `ToolError`) is text, in a
    message of status ``"error"``. Any other exception goes through.
    """
    spec = {t.name: t for t in tools}.get(call["name"])
    if spec is None:
        return _message(call, f"there is no tool {call['name']}", "error")
    try:
        arguments = spec.arguments.model_validate(call["args"], strict=True)
        return _message(call, json.dumps(spec.call(arguments)), "success")
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return _message(call, f"invalid arguments: {wrong}", "error")
    except ToolError as error:
        return _message(call, f"{type(error).__name__}: {error}", "error")


def _message(call: ToolCall, content: str, status: str) -> ToolMessage:
    return ToolMessage(content, name=call["name"], tool_call_id=call["id"] or "", status=status)
