"""Leaves LangGraph's durability as it is: the next node begins while the checkpoint is written.

caught-by: test_what_the_model_decided_is_in_the_file_before_any_of_it_is_begun
hint: when-is-it-written
"""

from __future__ import annotations

import hashlib
import json
import operator
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from filelock import FileLock, Timeout
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph
from pydantic import ValidationError

from shared.domains.worlds import PermanentError, Step, ToolSpec

Reason = Literal["locked", "damaged", "version"]


@dataclass(frozen=True)
class Reply:
    """What came of a request.

    Attributes:
        text: what the customer reads, never empty: the model's answer, and for each unknown call
            the tool's name and the word ``"unknown"``.
        unknown: the calls of this request that may or may not have had their effect, in order.
            A person has to look.
    """

    text: str
    unknown: tuple[Step, ...] = ()


class ThreadBusy(Exception):
    """Another worker is at this thread. Nothing was done."""


class CheckpointError(Exception):
    """The checkpoint file cannot be used now. What it holds is still there.

    Attributes:
        reason: ``"locked"``: somebody else keeps it locked; try later. ``"damaged"``: SQLite finds
            it corrupt, or no database at all. ``"version"``: an unfinished request was begun by
            another version of the agent.
    """

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@contextmanager
def only_worker(path: Path, thread_id: str) -> Iterator[None]:
    """Be the only worker at a thread while the body runs.

    `thread_id` is any text. The same one under another checkpoint file is another thread.

    A worker that is slow or paused still is one. A worker that is dead is none, however it died:
    the next one takes over at once.

    Raises:
        ThreadBusy: at once, if there is another worker at the thread, in whatever process or
            Python thread.
    """
    folder = path.with_name(f"{path.name}.locks")
    folder.mkdir(parents=True, exist_ok=True)
    # The kernel holds such a lock for an open file, and drops it when the process ends.
    lock = FileLock(folder / _digest(thread_id))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ThreadBusy(f"another worker is at thread {thread_id!r}") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def open_checkpoints(path: Path, *, wait_s: float) -> Iterator[SqliteSaver]:
    """The checkpoints in the file at `path`, made when there is none. Closed after the body.

    What SQLite says about this file becomes a `CheckpointError` with the file's name in its text,
    whenever it says it: here, or later to who uses the saver. Other exceptions of the body, also
    an `sqlite3.Error` of somebody else's database, go through as they are.

    Args:
        wait_s: how long one access waits for a locked file.

    Raises:
        CheckpointError: the file is ``"locked"`` for longer than that, or ``"damaged"``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=wait_s, check_same_thread=False)) as db:
        saver = _Saver(db, path)
        saver.setup()
        yield saver


def build_graph(
    model: BaseChatModel, tools: Sequence[ToolSpec], saver: BaseCheckpointSaver[Any]
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """The agent as a graph, compiled with `saver`, for one `run_durably`.

    A node that was cut off runs again from its top. So ask of each node: what of it may happen
    twice, and what must be in the file before it?
    """
    specs = {tool.name: tool for tool in tools}
    bound = model.bind_tools([tool.as_function() for tool in tools])
    run = uuid.uuid4().hex

    def ask_model(state: _State) -> dict[str, Any]:
        return {"messages": [bound.invoke(state["messages"])]}

    def begin(state: _State) -> dict[str, Any]:
        return {"begun": _mark(_open_calls(state["messages"])[0], run)}

    def act(state: _State, config: RunnableConfig) -> dict[str, Any]:
        call = _open_calls(state["messages"])[0]
        spec = specs.get(call["name"])
        if once(call) and state["begun"] != _mark(call, run):
            return {"messages": [_unknown(call)]}
        key = _digest(config["configurable"]["thread_id"], call["id"])
        return {"messages": [_make(spec, call, key)]}

    def finish(state: _State) -> dict[str, Any]:
        return {"replies": {state["request_id"]: _reply(state["messages"])}}

    def once(call: ToolCall) -> bool:
        return call["name"] in specs and not specs[call["name"]].idempotent

    def after_model(state: _State) -> str:
        return next_call(state) if _open_calls(state["messages"]) else "finish"

    def after_act(state: _State) -> str:
        return next_call(state) if _open_calls(state["messages"]) else "model"

    def next_call(state: _State) -> str:
        return "begin" if once(_open_calls(state["messages"])[0]) else "act"

    graph = StateGraph(_State)
    graph.add_node("model", ask_model)
    graph.add_node("begin", begin)
    graph.add_node("act", act)
    graph.add_node("finish", finish)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", after_model, ["begin", "act", "finish"])
    graph.add_edge("begin", "act")
    graph.add_conditional_edges("act", after_act, ["begin", "act", "model"])
    graph.add_edge("finish", END)
    return graph.compile(checkpointer=saver)


def run_durably(
    model: BaseChatModel,
    tools: Sequence[ToolSpec],
    path: Path,
    request: str,
    *,
    thread_id: str,
    request_id: str,
    version: str = "1",
    wait_s: float = 5.0,
) -> Reply:
    """Work on a request until it is finished, to the contract at the top of this file.

    Args:
        path: the checkpoint file.
        thread_id: the customer's conversation. Any text.
        request_id: names this request within its thread. Any text.
        version: of the agent: its graph, tools and model. It is kept with each request that is
            begun. Finished requests of other versions are part of the conversation like any other.
        wait_s: how long one access waits for a locked checkpoint file.

    Raises:
        ThreadBusy: another worker is at this thread.
        CheckpointError: the checkpoint file cannot be used, or an unfinished request of this
            thread was begun under another `version`. Nothing is lost: once the cause is gone (or
            with that version), the next call goes on.
    """
    with only_worker(path, thread_id), open_checkpoints(path, wait_s=wait_s) as saver:
        graph = build_graph(model, tools, saver)
        config: RunnableConfig = {
            "configurable": {"thread_id": thread_id},
            "metadata": {"version": version},
            "recursion_limit": 100,
        }
        found = graph.get_state(config)
        replies = found.values.get("replies", {})
        # Not `found.next`: that is empty too when a node's result is there, but not yet the
        # checkpoint that takes it in.
        if found.tasks:
            _same_version(dict(found.metadata or {}), version, path)
            # None goes on where the last checkpoint is; an input would begin anew.
            replies = graph.invoke(None, config)["replies"]
        if request_id not in replies:
            new = {"request_id": request_id, "messages": [HumanMessage(request)]}
            replies = graph.invoke(new, config)["replies"]
    reply = replies[request_id]
    return Reply(reply["text"], tuple(Step(**step) for step in reply["unknown"]))


class _State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    request_id: str
    begun: str
    """The call begun last that must be made once only, and the run that began it."""
    replies: Annotated[dict[str, Any], operator.or_]


class _Saver(SqliteSaver):
    """Says `CheckpointError` for what SQLite says about its file."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        super().__init__(db)
        self._path = path

    def setup(self) -> None:
        with self._errors():
            super().setup()

    @contextmanager
    def cursor(self, transaction: bool = True) -> Iterator[sqlite3.Cursor]:
        with self._errors(), super().cursor(transaction) as cursor:
            yield cursor

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            reason = _REASONS.get((getattr(error, "sqlite_errorcode", None) or 0) & 0xFF)
            if reason is None:
                raise
            raise CheckpointError(reason, f"{self._path} is {reason}: {error}") from error


_REASONS: dict[int, Reason] = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
}


def _same_version(metadata: dict[str, Any], version: str, path: Path) -> None:
    begun = metadata.get("version")
    if begun != version:
        text = f"{path} holds an unfinished request of version {begun!r}; this is {version!r}"
        raise CheckpointError("version", text)


def _digest(*texts: str | None) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _mark(call: ToolCall, run: str) -> str:
    return f"{run} {call['id']}"


def _open_calls(messages: Sequence[BaseMessage]) -> list[ToolCall]:
    """The calls of the last reply that have no answer yet."""
    answered = set()
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        elif isinstance(message, AIMessage):
            return [call for call in message.tool_calls if call["id"] not in answered]
    return []


def _make(spec: ToolSpec | None, call: ToolCall, key: str) -> ToolMessage:
    if spec is None:
        return _message(call, f"there is no tool {call['name']}", "error")
    keyed = {"idempotency_key": key} if spec.idempotent and not spec.reads else {}
    try:
        arguments = spec.arguments.model_validate(call["args"], strict=True)
        return _message(call, json.dumps(spec.call(arguments, **keyed)), "success")
    except ValidationError as error:
        return _message(call, f"invalid arguments: {error}", "error")
    except PermanentError as error:
        return _message(call, f"{type(error).__name__}: {error}", "error")


def _unknown(call: ToolCall) -> ToolMessage:
    text = f"It is unknown whether {call['name']} was done. Do not repeat it: a person will look."
    message = _message(call, text, "error")
    message.additional_kwargs["unknown"] = {"tool": call["name"], "arguments": call["args"]}
    return message


def _message(call: ToolCall, content: str, status: str) -> ToolMessage:
    return ToolMessage(content, name=call["name"], tool_call_id=call["id"] or "", status=status)


def _reply(messages: Sequence[BaseMessage]) -> dict[str, Any]:
    since = max(n for n, message in enumerate(messages) if isinstance(message, HumanMessage))
    marked = [m.additional_kwargs.get("unknown") for m in messages[since:]]
    unknown = [step for step in marked if step]
    lines = [str(messages[-1].text).strip() or "I have no answer."]
    lines += [f"It is unknown whether {step['tool']} was done." for step in unknown]
    return {"text": "\n".join(lines), "unknown": unknown}
