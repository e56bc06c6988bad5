"""Notes which call was begun, but saves it with the result.

caught-by: test_another_process_goes_on_where_one_was_killed
hint: before-you-call
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import shared.agents.quiet_crewai  # noqa: F401  isort: skip  (before crewai)
from crewai import BaseLLM
from crewai.flow.flow import Flow, FlowState, listen, or_, router, start
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.tools import BaseTool
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, convert_to_messages
from pydantic import BaseModel, Field, PrivateAttr, ValidationError

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
    return _WorldTool(spec, key)


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
        reply = chat.invoke(convert_to_messages([_without_extras(m) for m in given]))
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


class AgentFlow(Flow[JobState]):
    """One job from where it stands to its end, or to the next decision.

    CrewAI begins a flow at its start, also one whose state it has reloaded. So no method relies
    on what ran before it in this process: each looks at the state, and saves it. Another cut into
    methods is as good: what a job does counts.
    """

    # Without this, a flow makes itself a memory: a vector store, and an embedding service.
    _skip_auto_memory: bool = PrivateAttr(default=True)
    _llm: BaseLLM = PrivateAttr()
    _tools: dict[str, ToolSpec] = PrivateAttr()

    def __init__(
        self, state: JobState, llm: BaseLLM, tools: Sequence[ToolSpec], store: SQLiteFlowPersistence
    ) -> None:
        super().__init__(
            initial_state=state,
            persistence=store,
            suppress_flow_events=True,
            tracing=False,
            max_method_calls=10_000,
        )
        self._llm = llm
        self._tools = {tool.name: tool for tool in tools}

    @start()
    def begin(self) -> None:
        """Nothing to do: the state says where the job stands."""

    @router(or_("begin", "ask_model", "make_call"))
    def next_step(self) -> str:
        """What comes next, from the state alone: wait, act, ask or done."""
        if waiting_calls(self.state, self._tools):
            return "wait"
        if self.state.open:
            return "act"
        if self.state.answer or self.state.steps >= MAX_STEPS:
            return "done"
        return "ask"

    @listen("ask")
    def ask_model(self) -> None:
        """Ask the model once; the state then holds its calls, or the answer."""
        tools = [tool.as_function() for tool in self._tools.values()]
        reply = self._llm.call(self.state.messages, tools=tools)
        state = self.state
        if isinstance(reply, str):
            state.messages.append({"role": "assistant", "content": reply})
            state.answer = reply.strip() or STOPPED
        else:
            state.messages.append({"role": "assistant", "content": "", "tool_calls": reply})
            state.open = [_call(state.steps, n, made) for n, made in enumerate(reply)]
        state.steps += 1
        self._save("ask_model")

    @listen("act")
    def make_call(self) -> None:
        """Deal with the first open call: make it, or say why not."""
        call = self.state.open[0]
        text = self._outcome(call)
        self.state.messages.append(
            {"role": "tool", "name": call.tool, "tool_call_id": call.model_id, "content": text}
        )
        self.state.open = self.state.open[1:]
        self._save("make_call")

    @listen("wait")
    def wait_for_people(self) -> None:
        """Nothing to do: the state is saved, and the flow ends here for now."""

    @listen("done")
    def finish(self) -> None:
        """See that there is an answer."""
        self.state.answer = self.state.answer or STOPPED
        self._save("finish")

    def _outcome(self, call: Call) -> str:
        wrong = why_not(call, self._tools)
        if wrong:
            return wrong
        spec, arguments, added = self._tools[call.tool], call.arguments, ""
        decision = self.state.decisions.get(call.id)
        if decision is not None and decision.kind == "reject":
            return f"{ERROR}a person rejected this call; it was not made. {decision.note}".strip()
        if decision is not None and decision.kind == "edit":
            arguments = decision.arguments or {}
            added = f"a person changed the arguments to {json.dumps(arguments)}. "
        if not spec.idempotent:
            if self.state.begun == call.id:
                return f"{ERROR}this call may have been made already; do not repeat it"
            self.state.begun = call.id
        tool = crew_tool(spec, key=call_key(self.state.id, call.id))
        return added + str(tool.run(**arguments))

    def _save(self, method: str) -> None:
        assert self.persistence is not None
        self.persistence.save_state(self.state.id, method, self.state)


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
    saved = SQLiteFlowPersistence(str(store))
    if saved.load_state(job_id) is not None:
        raise ValueError(f"there is a job {job_id!r} already; resume it")
    state = JobState(id=job_id, messages=[{"role": "user", "content": request}])
    saved.save_state(job_id, "start_job", state)
    return _work(state, model, tools, saved)


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
    saved = SQLiteFlowPersistence(str(store))
    stored = saved.load_state(job_id)
    if stored is None:
        raise KeyError(job_id)
    state, specs = JobState(**stored), {tool.name: tool for tool in tools}
    waiting = {call.id: call for call in waiting_calls(state, specs)}
    for call_id, decision in decisions.items():
        if state.decisions.get(call_id) == decision:
            continue
        if call_id not in waiting:
            raise ValueError(f"no call {call_id!r} is waiting for a decision")
        _check(decision, waiting[call_id], specs)
    state.decisions |= decisions
    saved.save_state(job_id, "resume_job", state)
    return _work(state, model, tools, saved)


class _WorldTool(BaseTool):
    _spec: ToolSpec = PrivateAttr()
    _how: dict[str, Any] = PrivateAttr()

    def __init__(self, spec: ToolSpec, key: str | None) -> None:
        super().__init__(
            name=spec.name,
            description=spec.description,
            args_schema=spec.arguments,
            cache_function=_never,
        )
        self._spec = spec
        takes_key = spec.idempotent and not spec.reads
        self._how = {"idempotency_key": key} if takes_key and key is not None else {}

    def run(self, *args: Any, **kwargs: Any) -> str:
        # CrewAI's own validation would turn "500" into 500 and raise for what it can't turn.
        return self._run(*args, **kwargs)

    def _run(self, **arguments: Any) -> str:
        invalid = invalid_arguments(self._spec, arguments)
        if invalid:
            return invalid
        checked = self._spec.arguments.model_validate(arguments, strict=True)
        try:
            return json.dumps(self._spec.call(checked, **self._how))
        except ToolError as error:
            in_doubt = isinstance(error, TransientError) and not self._spec.reads
            advice = ". It may have happened: do not repeat the call" if in_doubt else ""
            return f"{ERROR}{self._spec.name}: {type(error).__name__}: {error}{advice}"


def _never(*_: Any) -> bool:
    return False


_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id")


def _without_extras(message: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: message[k] for k in _KEYS if message.get(k) is not None}
    return {"content": "", **kept}


def _call(step: int, n: int, made: Mapping[str, Any]) -> Call:
    return Call(
        id=f"{step}-{n}",
        model_id=str(made["id"]),
        tool=made["function"]["name"],
        arguments=json.loads(made["function"]["arguments"]),
    )


def _check(decision: Decision, call: Call, tools: Mapping[str, ToolSpec]) -> None:
    if decision.kind == "edit":
        invalid = invalid_arguments(tools[call.tool], decision.arguments or {})
        if invalid:
            raise ValueError(invalid)


def _work(
    state: JobState, model: BaseChatModel, tools: Sequence[ToolSpec], store: SQLiteFlowPersistence
) -> Turn:
    flow = AgentFlow(state, ChatLLM(model), tools, store)
    flow.kickoff()
    waiting = waiting_calls(flow.state, {tool.name: tool for tool in tools})
    return Turn(
        flow.state.answer, tuple(Waiting(call.id, call.tool, call.arguments) for call in waiting)
    )
