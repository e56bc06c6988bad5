"""The same job in CrewAI: the agent as a flow, with the same tools, the same gate, the same ledger.

begin ──> next_step ──┬─ "ask" ───> ask_model ──┐
              ^       ├─ "act" ───> make_call ──┤
              └───────┼─────────────────────────┘
                      ├─ "wait" ──> wait_for_people     (the process may end here)
                      └─ "done" ──> finish

Job:
    A job has an id, `job_id`. `start_job` begins it and `resume_job` goes on with it, in this
    process or in another one a week later. All that is known of it is in its store, the file of a
    `SQLiteFlowPersistence` in which the flow's id is the job's. Several jobs may share a store;
    one process at a time works on a job. The work is done by an `AgentFlow`, and prints nothing.
    The model is asked at most `MAX_STEPS` times in a job. A job that would need more, or whose
    model says nothing, ends with the answer `STOPPED`.

Calls:
    The calls of one reply are made in the order in which the model asks for them. Each is
    answered by exactly one message of the role ``"tool"`` with the id that the model gave it.
    What the model reads there is the text that `crew_tool` gave, with what the gate adds.
    A call of a tool that is not among the job's tools, or with arguments that are not valid, is
    not made and waits for nobody: the model reads that, with the tool's or the fields' names.
    A job gives each call an id of its own, any text, the same after a crash. The model's ids do
    not do: small servers count from 0 in every reply, so that a later call may come with the id
    of an earlier one. Decisions and idempotency keys (`call_key`) go by the job's ids.

Gate:
    No risky call is made unless a person decided so, with `resume_job`. A reply with risky calls
    waits as a whole: none of its calls is made before all its risky ones are decided. Then

    - ``"approve"``: the call is made with the arguments that were shown;
    - ``"edit"``: it is made with the decision's arguments instead. The model reads them too;
    - ``"reject"``: it is not made. The model reads the decision's note.

Crash:
    Wherever the process was killed, `resume_job` goes on from there. A call of which it isn't
    known whether it was made is made again if that does no harm: the tool reads, or takes an
    idempotency key (and gets the same one). Otherwise it is not: the model reads an `ERROR` that
    contains ``"do not repeat"``. What was decided stays decided.
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
    raise NotImplementedError("Task 4.8: write environment")


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
    raise NotImplementedError("Task 4.8: write crew_tool")


class ChatLLM(BaseLLM):
    """A LangChain chat model as a model of CrewAI, for flows and for CrewAI's own agents.

    Args:
        chat: the model. It does the work; nothing else is connected to.
    """

    _chat: BaseChatModel = PrivateAttr()

    def __init__(self, chat: BaseChatModel) -> None:
        raise NotImplementedError("Task 4.8: write ChatLLM.__init__")

    def supports_function_calling(self) -> bool:
        """True: CrewAI's agents then pass their tools to `call` and make its tool calls."""
        raise NotImplementedError("Task 4.8: write ChatLLM.supports_function_calling")

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
        raise NotImplementedError("Task 4.8: write ChatLLM.call")


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
        raise NotImplementedError("Task 4.8: write AgentFlow.__init__")

    @start()
    def begin(self) -> None:
        """Nothing to do: the state says where the job stands."""
        raise NotImplementedError("Task 4.8: write AgentFlow.begin")

    @router(or_("begin", "ask_model", "make_call"))
    def next_step(self) -> str:
        """What comes next, from the state alone: wait, act, ask or done."""
        raise NotImplementedError("Task 4.8: write AgentFlow.next_step")

    @listen("ask")
    def ask_model(self) -> None:
        """Ask the model once; the state then holds its calls, or the answer."""
        raise NotImplementedError("Task 4.8: write AgentFlow.ask_model")

    @listen("act")
    def make_call(self) -> None:
        """Deal with the first open call: make it, or say why not."""
        raise NotImplementedError("Task 4.8: write AgentFlow.make_call")

    @listen("wait")
    def wait_for_people(self) -> None:
        """Nothing to do: the state is saved, and the flow ends here for now."""
        raise NotImplementedError("Task 4.8: write AgentFlow.wait_for_people")

    @listen("done")
    def finish(self) -> None:
        """See that there is an answer."""
        raise NotImplementedError("Task 4.8: write AgentFlow.finish")


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
    raise NotImplementedError("Task 4.8: write start_job")


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
    raise NotImplementedError("Task 4.8: write resume_job")
