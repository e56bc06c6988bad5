"""One method with a loop over a dict, a strict schema for the tools, messages converted by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import shared.agents.quiet_crewai  # noqa: F401  isort: skip  (before crewai)
from crewai import BaseLLM
from crewai.flow.flow import Flow, FlowState, start
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.tools import BaseTool
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from shared.domains.worlds import ToolError, ToolSpec, TransientError

MAX_STEPS = 8
"""Model calls in a job."""

STOPPED = "I could not finish this. Please ask again, or let a person take over."
ERROR = "error: "
"""How the text of a tool begins that did not do what it was asked for."""


@dataclass(frozen=True)
class Waiting:
    """A call that waits for a person's decision.

    Attributes:
        call_id: the job's own id of the call.
        tool: the tool's name.
        arguments: what it will be called with if it is approved.
    """

    call_id: str
    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """Where a job stands.

    Attributes:
        answer: the model's last text, or `STOPPED`. Empty while calls wait.
        waiting: the calls that must be decided before the job can go on, in the model's order.
    """

    answer: str
    waiting: tuple[Waiting, ...] = ()


class Decision(BaseModel):
    """What a person decided about a waiting call.

    Attributes:
        kind: approve, edit or reject.
        arguments: for an edit only: what to call the tool with instead.
        note: for the model to read when the call was rejected.
    """

    kind: Literal["approve", "edit", "reject"]
    arguments: dict[str, Any] | None = None
    note: str = ""


class Call(BaseModel):
    """A tool call that the model asks for.

    Attributes:
        id: the job's own id.
        model_id: the id that the model gave it.
        tool, arguments: as the model wrote them.
    """

    id: str
    model_id: str
    tool: str
    arguments: dict[str, Any]


class JobState(FlowState):
    """What the store knows of a job. `id` is the job's.

    Attributes:
        messages: the conversation, as dicts in the form of OpenAI's chat API.
        steps: how often the model was asked.
        open: calls of the last reply that are not answered yet, in order.
        decisions: what people decided, by the job's call id.
        begun: id of the call that can't be repeated and was about to be made.
        answer: the job's answer, empty until it has one.
    """

    messages: list[dict[str, Any]] = Field(default_factory=list)
    steps: int = 0
    open: list[Call] = Field(default_factory=list)
    decisions: dict[str, Decision] = Field(default_factory=dict)
    begun: str = ""
    answer: str = ""


def call_key(job_id: str, call_id: str) -> str:
    """The idempotency key of one call of one job."""
    return hashlib.sha256(json.dumps([job_id, call_id]).encode()).hexdigest()


def invalid_arguments(spec: ToolSpec, arguments: Mapping[str, Any]) -> str:
    """What strict validation has against the arguments, for the model to read; empty if nothing."""
    try:
        spec.arguments.model_validate(dict(arguments), strict=True)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return f"{ERROR}{spec.name} was not called, its arguments are invalid: {wrong}"
    return ""


def why_not(call: Call, tools: Mapping[str, ToolSpec]) -> str:
    """Why a call can't be made, for the model to read; empty if it can."""
    if call.tool not in tools:
        return f"{ERROR}there is no tool {call.tool}"
    return invalid_arguments(tools[call.tool], call.arguments)


def waiting_calls(state: JobState, tools: Mapping[str, ToolSpec]) -> list[Call]:
    """The open calls that a person must decide: risky ones that can be made, not decided yet."""
    return [
        call
        for call in state.open
        if not why_not(call, tools) and tools[call.tool].risky and call.id not in state.decisions
    ]


def environment(folder: Path) -> dict[str, str]:
    """Environment variables under which CrewAI keeps to this machine and to `folder`.

    A process that is started with them (and with no other setting of CrewAI's), imports CrewAI
    and runs flows

    - looks up no host and connects to none, also not at its end;
    - makes no file or folder in the home folder of the user who starts it, nor in its working
      folder. What CrewAI wants to keep is somewhere under `folder`, which exists.

    OpenTelemetry as such stays on: the lab's own traces go through it.
    """
    return {
        "CREWAI_DISABLE_TELEMETRY": "true",
        "CREWAI_DISABLE_TRACKING": "true",
        "CREWAI_TRACING_ENABLED": "false",
        "CREWAI_DISABLE_VERSION_CHECK": "true",
        "CREWAI_STORAGE_DIR": str(folder.resolve()),
        # CrewAI makes a key and a settings folder below the home, whatever it is told.
        "HOME": str(folder.resolve()),
    }


def crew_tool(spec: ToolSpec, *, key: str | None = None) -> BaseTool:
    """A tool of the world as a tool of CrewAI, with the same name, description and `args_schema`.

    Its ``run(**arguments)`` calls the world's tool once and returns what the model will read:

    - what the tool answered, as JSON;
    - or a text that begins with `ERROR`, when strict validation refuses the arguments (nothing
      is called; the text names each field that is wrong) or the tool raises a `ToolError` (the
      text contains the class's name and the error's own text). After a `TransientError` of a
      tool that does more than read it also contains ``"do not repeat"``.

    Arguments are passed on exactly as given: nothing is converted or left out. Any other
    exception is a bug and goes through. CrewAI must never answer from its cache of results (see
    `BaseTool.cache_function`): between two equal calls the world may have changed.

    Args:
        key: goes along as the idempotency key if the tool takes one: a tool that writes and is
            idempotent. Other tools are called without.
    """
    return _Wrapped(
        name=spec.name,
        description=spec.description,
        args_schema=_strict(spec),
        cache_function=lambda *_: False,
        call_it=partial(_call_world, spec, key),
    )


class ChatLLM(BaseLLM):
    """A LangChain chat model as a model of CrewAI, for flows and for CrewAI's own agents.

    Args:
        chat: the model. It does the work; nothing else is connected to.
    """

    _chat: BaseChatModel = PrivateAttr()

    def __init__(self, chat: BaseChatModel) -> None:
        super().__init__(model=chat.get_name())
        self._chat = chat

    def supports_function_calling(self) -> bool:
        """True: CrewAI's agents then pass their tools to `call` and make its tool calls."""
        return True

    def call(
        self,
        messages: str | list[Any],
        tools: list[Any] | None = None,
        callbacks: list[Any] | None = None,
        available_functions: dict[str, Any] | None = None,
        from_task: Any = None,
        from_agent: Any = None,
        response_model: type[BaseModel] | None = None,
    ) -> str | list[dict[str, Any]]:
        """Ask the model once. Makes no tool call itself, whatever functions are available.

        Args:
            messages: one text of the user, or dicts in the form of OpenAI's chat API: ``role``
                and ``content``; an assistant's may have ``tool_calls``; a tool's has ``name`` and
                ``tool_call_id``. The chat model gets the same as LangChain messages, tool calls
                and their ids included. Other keys are CrewAI's own.
            tools: bound to the model, as they are (dicts in OpenAI's form). None: no tools.

        Returns:
            the reply's text, or, if it asks for tools, its calls in OpenAI's form: dicts with
            ``id``, ``type`` (``"function"``) and ``function``, a dict of ``name`` and
            ``arguments``, which is JSON text.
        """
        given = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        chat = self._chat.bind_tools(tools) if tools else self._chat
        reply = chat.invoke([_langchain(m) for m in given])
        assert isinstance(reply, AIMessage)
        if not reply.tool_calls:
            return str(reply.text)
        return [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": json.dumps(call["args"])},
            }
            for call in reply.tool_calls
        ]


class AgentFlow(Flow[dict[str, Any]]):
    """One job: a loop in one method, over a dict that is stored after each change."""

    _skip_auto_memory: bool = PrivateAttr(default=True)
    _work: Any = PrivateAttr()

    def __init__(self, state: dict[str, Any], work: Any) -> None:
        super().__init__(initial_state=state, suppress_flow_events=True)
        self._work = work

    @start()
    def loop(self) -> dict[str, Any]:
        """All of it."""
        self._work(self.state)
        return dict(self.state)


class _Job:
    """Where a job is stored and what it works with. A state is a dict of plain values."""

    def __init__(
        self, job_id: str, model: BaseChatModel, tools: Sequence[ToolSpec], store: Path
    ) -> None:
        self.id, self.llm = job_id, ChatLLM(model)
        self.tools = {tool.name: tool for tool in tools}
        self.store = SQLiteFlowPersistence(str(store))

    def run(self, state: dict[str, Any]) -> Turn:
        """Go on as far as possible."""
        flow = AgentFlow(state, self._go_on)
        flow.kickoff()
        return self._turn(dict(flow.state))

    def waiting(self, state: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Calls that a person must decide."""
        return {
            key: call
            for key, call in state["calls"].items()
            if "text" not in call and "decision" not in call and self._needs_people(call)
        }

    def save(self, state: dict[str, Any]) -> None:
        """Put it on disk."""
        self.store.save_state(self.id, "loop", dict(state))

    def _needs_people(self, call: dict[str, Any]) -> bool:
        spec = self.tools.get(call["tool"])
        return spec is not None and spec.risky and not invalid_arguments(spec, call["arguments"])

    def _turn(self, state: dict[str, Any]) -> Turn:
        waiting = self.waiting(state).items()
        return Turn(
            state["answer"], tuple(Waiting(k, c["tool"], c["arguments"]) for k, c in waiting)
        )

    def _go_on(self, state: dict[str, Any]) -> None:
        while not state["answer"] and not self.waiting(state):
            unanswered = [c for c in state["calls"].values() if "text" not in c]
            if unanswered:
                self._make(state, unanswered[0])
            elif state["asked"] == MAX_STEPS:
                state["answer"] = STOPPED
            else:
                self._ask(state)
            self.save(state)

    def _ask(self, state: dict[str, Any]) -> None:
        reply = self.llm.call(
            state["messages"], tools=[t.as_function() for t in self.tools.values()]
        )
        state["asked"] += 1
        if isinstance(reply, str):
            state["messages"].append({"role": "assistant", "content": reply})
            state["answer"] = reply if reply.strip() else STOPPED
            return
        state["messages"].append({"role": "assistant", "content": None, "tool_calls": reply})
        for made in reply:
            state["calls"][f"call {len(state['calls']) + 1}"] = {
                "model_id": made["id"],
                "tool": made["function"]["name"],
                "arguments": json.loads(made["function"]["arguments"]),
            }

    def _make(self, state: dict[str, Any], call: dict[str, Any]) -> None:
        key = next(k for k, c in state["calls"].items() if c is call)
        decision = call.get("decision", {"kind": "approve"})
        spec = self.tools.get(call["tool"])
        if spec is None:
            text = f"{ERROR}there is no {call['tool']}"
        elif decision["kind"] == "reject":
            text = f"{ERROR}a person says no: {decision['note']}"
        elif call.get("begun") and not spec.idempotent:
            text = f"{ERROR}it may be done already, do not repeat it"
        else:
            call["begun"] = True
            self.save(state)
            arguments = decision.get("arguments") or call["arguments"]
            text = str(crew_tool(spec, key=call_key(self.id, key)).run(**arguments))
            if decision["kind"] == "edit":
                text += f" (called with {json.dumps(arguments)})"
        call["text"] = text
        state["messages"].append(
            {
                "role": "tool",
                "name": call["tool"],
                "tool_call_id": call["model_id"],
                "content": text,
            }
        )


def start_job(
    request: str, *, job_id: str, model: BaseChatModel, tools: Sequence[ToolSpec], store: Path
) -> Turn:
    """Begin a job, and work until it is done or waits for people.

    Args:
        request: what the customer wrote: the first message, of the role ``"user"``.
        tools: what the model may ask for. It is told of them as `ToolSpec.as_function` says.
        store: the SQLite file; it need not exist, its folder does.

    Raises:
        ValueError: the store has a job of that id. It is left as it is.
    """
    job = _Job(job_id, model, tools, store)
    if job.store.load_state(job_id) is not None:
        raise ValueError(f"{job_id!r} is taken")
    messages = [{"role": "user", "content": request}]
    state = {"id": job_id, "messages": messages, "calls": {}, "asked": 0, "answer": ""}
    job.save(state)
    return job.run(state)


def resume_job(
    decisions: Mapping[str, Decision],
    *,
    job_id: str,
    model: BaseChatModel,
    tools: Sequence[ToolSpec],
    store: Path,
) -> Turn:
    """Go on with a job, in whatever process, with what people decided meanwhile.

    All decisions are checked before any of them counts. One that was taken before may come again
    and changes nothing. Calls that are not decided go on waiting, and the reply with them. A job
    that is done stays done: the same turn comes back, and nothing is asked or made.

    Args:
        decisions: by `Waiting.call_id`. May be empty, e.g. to go on after a crash.

    Raises:
        KeyError: the store has no job of that id.
        ValueError: a decision is about a call that isn't waiting and wasn't decided in just this
            way before, or an edit has arguments that strict validation refuses. None of the
            decisions is taken; the job stands where it stood.
    """
    job = _Job(job_id, model, tools, store)
    state = job.store.load_state(job_id)
    if state is None:
        raise KeyError(job_id)
    waiting = job.waiting(state)
    for call_id, decision in decisions.items():
        plain = decision.model_dump(mode="json")
        if call_id in waiting:
            if decision.kind == "edit":
                _strict(job.tools[waiting[call_id]["tool"]]).model_validate(decision.arguments)
            state["calls"][call_id]["decision"] = plain
        elif state["calls"].get(call_id, {}).get("decision") != plain:
            raise ValueError(f"{call_id!r} waits for no decision")
    job.save(state)
    return job.run(state)


def _strict(spec: ToolSpec) -> type[BaseModel]:
    class Strict(spec.arguments):  # type: ignore[name-defined,misc]
        model_config = ConfigDict(strict=True)

    return Strict


class _Wrapped(BaseTool):
    call_it: Any

    def _run(self, **arguments: Any) -> str:
        return str(self.call_it(arguments))

    def run(self, **arguments: Any) -> str:
        try:
            return str(super().run(**arguments))
        except _NotValid as error:
            return f"{ERROR}{error}"

    def _validate_kwargs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        try:
            self.args_schema.model_validate(kwargs)
        except ValidationError as error:
            raise _NotValid(f"the arguments of {self.name} are wrong: {error}") from error
        return kwargs


class _NotValid(ValueError):
    pass


def _call_world(spec: ToolSpec, key: str | None, arguments: dict[str, Any]) -> str:
    with_key = {"idempotency_key": key} if spec.role.startswith("act_") else {}
    try:
        return json.dumps(spec.call(spec.arguments(**arguments), **with_key))
    except TransientError as error:
        doubt = "" if spec.reads else " Do not repeat it: it may have happened."
        return f"{ERROR}{type(error).__name__}: {error}.{doubt}"
    except ToolError as error:
        return f"{ERROR}{type(error).__name__}: {error}"


def _langchain(message: Mapping[str, Any]) -> BaseMessage:
    text = message.get("content") or ""
    match message["role"]:
        case "system":
            return SystemMessage(text)
        case "tool":
            return ToolMessage(text, name=message["name"], tool_call_id=message["tool_call_id"])
        case "assistant":
            made = [
                {
                    "id": call["id"],
                    "name": call["function"]["name"],
                    "args": json.loads(call["function"]["arguments"]),
                }
                for call in message.get("tool_calls") or []
            ]
            return AIMessage(text, tool_calls=made)
    return HumanMessage(text)
