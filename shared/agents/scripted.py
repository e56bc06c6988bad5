"""A chat model that says what a script tells it to, for checks that must be exact.

    look = calls("get_customer", {"customer_id": "C-1001"})
    model = ScriptedChatModel(replies=[look, says("Done.")])

It is a LangChain chat model like any other: it binds tools, streams, gives structured output and
reports token usage.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, PrivateAttr, SkipValidation

from shared.domains.worlds import Scenario, Step

Reply: TypeAlias = AIMessage | str | Exception
Script = Callable[[list[BaseMessage]], Reply]


class ScriptExhausted(RuntimeError):
    """The model was called more often than its script has replies."""


class ScriptedChatModel(BaseChatModel):
    """Gives scripted replies and remembers what it was asked.

    Attributes:
        replies: what to say, one after the other; or a function from the messages to a reply.
            A str is said as it is; an exception is raised.
        on_end: after the last of a list of replies: ``"raise"`` ScriptExhausted, or ``"repeat"``
            the last one for ever.
        name_: reported as the model's name.

    A reply without usage gets one: `count_tokens` of the messages and of the reply.
    """

    replies: SkipValidation[Sequence[Reply] | Script]
    on_end: Literal["raise", "repeat"] = "raise"
    name_: str = "scripted"

    _seen: list[list[BaseMessage]] = PrivateAttr(default_factory=list)
    _tools: list[list[str]] = PrivateAttr(default_factory=list)
    _usage: list[int] = PrivateAttr(default_factory=list)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @property
    def calls(self) -> int:
        """How often the model was called."""
        return len(self._seen)

    @property
    def tokens(self) -> int:
        """Input and output tokens of all its replies."""
        return sum(self._usage)

    @property
    def asked(self) -> list[list[BaseMessage]]:
        """The messages of each call, oldest first."""
        return [list(messages) for messages in self._seen]

    @property
    def tools_bound(self) -> list[list[str]]:
        """The names of the tools that each call came with."""
        return [list(names) for names in self._tools]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.name_}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {**super()._get_ls_params(stop=stop, **kwargs), "ls_model_name": self.name_}

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools: dicts, pydantic models, functions or LangChain tools."""
        functions = [t.as_function() if hasattr(t, "as_function") else t for t in tools]
        return self.bind(tools=[convert_to_openai_tool(f) for f in functions], **kwargs)

    def with_structured_output(
        self, schema: Any, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """The model's next reply, read as JSON of `schema` (a pydantic model or a JSON schema)."""

        def read(message: BaseMessage) -> Any:
            if isinstance(schema, type) and issubclass(schema, BaseModel):
                return schema.model_validate_json(str(message.content))
            return json.loads(str(message.content))

        def read_with_raw(message: BaseMessage) -> dict[str, Any]:
            try:
                return {"raw": message, "parsed": read(message), "parsing_error": None}
            except ValueError as error:
                return {"raw": message, "parsed": None, "parsing_error": error}

        return self | RunnableLambda(read_with_raw if include_raw else read)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = self._reply(messages, kwargs.get("tools") or [])
        return ChatResult(generations=[ChatGeneration(message=reply)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        reply = self._reply(messages, kwargs.get("tools") or [])
        chunks: Any = [
            {"name": c["name"], "args": json.dumps(c["args"]), "id": c["id"], "index": n}
            for n, c in enumerate(reply.tool_calls)
        ]
        chunk = AIMessageChunk(
            content=reply.content,
            tool_call_chunks=chunks,
            usage_metadata=reply.usage_metadata,
            response_metadata=reply.response_metadata,
            id=reply.id,
        )
        yield ChatGenerationChunk(message=chunk)

    def _reply(self, messages: list[BaseMessage], tools: list[dict[str, Any]]) -> AIMessage:
        with self._lock:
            number = len(self._seen)
            self._seen.append(list(messages))
            self._tools.append([t["function"]["name"] for t in tools])
        reply = self.replies(list(messages)) if callable(self.replies) else self._next(number)
        if isinstance(reply, Exception):
            raise reply
        message = AIMessage(reply) if isinstance(reply, str) else reply.model_copy(deep=True)
        if message.usage_metadata is None:
            given = sum(count_tokens(m) for m in messages)
            made = count_tokens(message)
            message.usage_metadata = {
                "input_tokens": given,
                "output_tokens": made,
                "total_tokens": given + made,
            }
        message.response_metadata = {"model_name": self.name_, **message.response_metadata}
        with self._lock:
            self._usage.append(message.usage_metadata["total_tokens"])
        return message

    def _next(self, number: int) -> Reply:
        assert not callable(self.replies)
        if number < len(self.replies):
            return self.replies[number]
        if self.on_end == "repeat" and self.replies:
            last = self.replies[-1]
            if isinstance(last, AIMessage) and last.tool_calls:
                again = [{**c, "id": f"{c['id']}-{number}"} for c in last.tool_calls]
                return last.model_copy(update={"tool_calls": again})
            return last
        raise ScriptExhausted(f"the script has {len(self.replies)} replies; this is another call")


def says(text: str, *, input_tokens: int | None = None, output_tokens: int = 0) -> AIMessage:
    """A reply in words. Without `input_tokens` its usage is counted."""
    return AIMessage(text, usage_metadata=_usage(input_tokens, output_tokens))


def calls(
    tool: str,
    arguments: dict[str, Any],
    *,
    id: str | None = None,
    input_tokens: int | None = None,
    output_tokens: int = 0,
) -> AIMessage:
    """A reply that calls one tool."""
    return calls_all(
        [Step(tool, arguments)],
        ids=None if id is None else [id],
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )


def calls_all(
    steps: Sequence[Step],
    *,
    ids: Sequence[str] | None = None,
    input_tokens: int | None = None,
    output_tokens: int = 0,
) -> AIMessage:
    """A reply that calls several tools at once.

    Without `ids` a call's id is made from what is called, e.g. ``"call-issue_refund-0"``; a script
    that calls the same tool twice gives ids.
    """
    return AIMessage(
        "",
        tool_calls=[
            {
                "name": step.tool,
                "args": dict(step.arguments),
                "id": ids[n] if ids is not None else f"call-{step.tool}-{n}",
                "type": "tool_call",
            }
            for n, step in enumerate(steps)
        ],
        usage_metadata=_usage(input_tokens, output_tokens),
    )


def follow(scenario: Scenario) -> Script:
    """A script that does a scenario's steps one after the other and then gives its answer.

    Which step is next is read from the messages alone (how many tool calls since the last human
    message), so that another process can go on where one was killed.
    """

    def reply(messages: list[BaseMessage]) -> Reply:
        since = 0
        for n, message in enumerate(messages):
            if isinstance(message, HumanMessage):
                since = n
        done = sum(len(m.tool_calls) for m in messages[since:] if isinstance(m, AIMessage))
        if done < len(scenario.steps):
            step = scenario.steps[done]
            return calls(step.tool, step.arguments, id=f"call-{scenario.id}-{done}")
        return says(scenario.answer)

    return reply


def count_tokens(message: BaseMessage) -> int:
    """A stand-in for a tokenizer: one token for every four characters begun."""
    text = str(message.content)
    if isinstance(message, AIMessage):
        text += "".join(c["name"] + json.dumps(c["args"]) for c in message.tool_calls)
    if isinstance(message, ToolMessage):
        text += message.name or ""
    return -(-len(text) // 4)


def _usage(given: int | None, made: int) -> Any:
    if given is None:
        return None
    return {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
