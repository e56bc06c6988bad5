"""The local engine as a LangChain chat model, for live checks.

The engine's model has 135 million parameters. It keeps to a schema, because the engine makes it;
what it decides is close to chance. So live checks grade protocol, never cleverness.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from shared.engine import Engine

_LONGEST = 600
"""Characters of one message that the small context is given."""
_ALL = 2000
"""Characters of all messages. A token of digits is one character: 2,048 tokens must do."""


def live_chat_model(engine: Engine, *, max_tokens: int = 200, seed: int = 0) -> ChatOpenAI:
    """The running engine through LangChain's OpenAI client: greedy, one retry, no key.

    ``live_chat_model(engine).with_structured_output(Model, method="json_schema")`` gives instances
    of a pydantic model; `include_raw=True` keeps the usage.
    """
    return ChatOpenAI(
        base_url=engine.base_url,
        api_key=SecretStr("none"),
        model=engine.model,
        temperature=0.0,
        seed=seed,
        max_completion_tokens=max_tokens,
        max_retries=1,
        timeout=60,
        use_responses_api=False,
    )


def live_agent_model(engine: Engine, *, max_tokens: int = 200, seed: int = 0) -> LiveAgentModel:
    """The running engine as a chat model that binds tools."""
    return LiveAgentModel(client=live_chat_model(engine, max_tokens=max_tokens, seed=seed))


class LiveAgentModel(BaseChatModel):
    """A chat model whose tool calls are structured output.

    Small models and plain servers have no function calling. With tools bound, the engine is held
    to the JSON schema "one of these tools with its arguments, or an answer", and its reply becomes
    an `AIMessage` with `tool_calls` or text. A reply that was cut off is text as it stands.
    """

    client: ChatOpenAI

    @property
    def _llm_type(self) -> str:
        return "live-agent"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        given = super()._get_ls_params(stop=stop, **kwargs)
        return {**given, "ls_model_name": self.client.model_name}

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools: `ToolSpec`s, dicts, pydantic models or LangChain tools.

        With `tool_choice="any"` (or ``"required"``) it must call one and cannot answer.
        """
        functions = [t.as_function() if hasattr(t, "as_function") else t for t in tools]
        must = tool_choice in ("any", "required", True)
        made = [convert_to_openai_tool(f) for f in functions]
        return self.bind(tools=made, must_call=must, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        tools = [t["function"] for t in kwargs.get("tools") or []]
        client: Runnable[Any, Any] = self.client
        if tools:
            choices = decision(tools, answer=not kwargs.get("must_call"))
            schema = {"name": "decision", "strict": True, "schema": choices}
            # In the body: as an argument of its own it makes the client raise
            # LengthFinishReasonError when a reply is cut off, and its tokens are lost.
            wanted = {"response_format": {"type": "json_schema", "json_schema": schema}}
            client = self.client.bind(extra_body=wanted)
        given = _recent([_flat(m) for m in messages])
        if tools:
            given = _instructed(given, tools)
        raw = client.invoke(given)
        number = sum(isinstance(m, AIMessage) for m in messages)
        reply = _decided(str(raw.content), number) if tools else AIMessage(str(raw.content))
        reply.usage_metadata = raw.usage_metadata
        reply.response_metadata = dict(raw.response_metadata)
        return ChatResult(generations=[ChatGeneration(message=reply)])


def decision(tools: Sequence[dict[str, Any]], *, answer: bool = True) -> dict[str, Any]:
    """JSON schema of "one of these tools with its arguments, or an answer"."""
    choices: list[dict[str, Any]] = [
        {
            "type": "object",
            "properties": {"tool": {"const": t["name"]}, "arguments": _bounded(t["parameters"])},
            "required": ["tool", "arguments"],
            "additionalProperties": False,
        }
        for t in tools
    ]
    if answer:
        choices.append(
            {
                "type": "object",
                "properties": {"answer": {"type": "string", "maxLength": 80}},
                "required": ["answer"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": choices}


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` with short texts: a small model that may write on does."""
    properties = {}
    for name, field in schema.get("properties", {}).items():
        kept = {k: v for k, v in field.items() if k not in ("title", "description")}
        if kept.get("type") == "string" and "pattern" not in kept:
            kept["maxLength"] = min(kept.get("maxLength", 60), 60)
        properties[name] = kept
    return {
        "type": "object",
        "properties": properties,
        "required": list(schema.get("required", [])),
        "additionalProperties": False,
    }


def _instructed(messages: list[BaseMessage], tools: Sequence[dict[str, Any]]) -> list[BaseMessage]:
    listed = "\n".join(f"- {t['name']}: {t['description']}" for t in tools)
    text = f"Tools:\n{listed}\nReply in JSON: one tool with arguments, or an answer."
    if messages and isinstance(messages[0], SystemMessage):
        return [SystemMessage(f"{messages[0].content}\n{text}"), *messages[1:]]
    return [SystemMessage(text), *messages]


def _recent(messages: list[BaseMessage]) -> list[BaseMessage]:
    """What the small context can take: system message, first request, and the latest others."""
    opening = 2 if messages and isinstance(messages[0], SystemMessage) else 1
    kept: list[BaseMessage] = []
    left = _ALL - sum(len(str(m.content)) for m in messages[:opening])
    for message in reversed(messages[opening:]):
        left -= len(str(message.content))
        if left < 0:
            break
        kept.insert(0, message)
    return [*messages[:opening], *kept]


def _flat(message: BaseMessage) -> BaseMessage:
    """A message without tool calls, for a chat template that knows none."""
    if isinstance(message, ToolMessage):
        return HumanMessage(f"Result of {message.name}: {str(message.content)[:_LONGEST]}")
    if isinstance(message, AIMessage) and message.tool_calls:
        made = [{"tool": c["name"], "arguments": c["args"]} for c in message.tool_calls]
        return AIMessage(json.dumps(made[0] if len(made) == 1 else made)[:_LONGEST])
    return message.model_copy(update={"content": str(message.content)[:_LONGEST]})


def _decided(text: str, number: int) -> AIMessage:
    try:
        made = json.loads(text)
    except ValueError:
        return AIMessage(text)
    if "answer" in made:
        return AIMessage(made["answer"])
    call = {"name": made["tool"], "args": made["arguments"], "id": f"live-{number}"}
    return AIMessage("", tool_calls=[call])
