"""Keeps what is begun and what is finished in tables of its own, and locks with flock."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command
from pydantic import ValidationError

from shared.domains.worlds import PermanentError, Step, ToolSpec

Reason = Literal["locked", "damaged", "version"]


@dataclass(frozen=True)
class Reply:
    """What came of a request.

    Attributes:
        text: what the customer reads.
        unknown: the calls of this request that may or may not have had their effect.
    """

    text: str
    unknown: tuple[Step, ...] = ()


class ThreadBusy(Exception):
    """Another worker is at this thread. Nothing was done."""


class CheckpointError(Exception):
    """The checkpoint file cannot be used now. What it holds is still there.

    Attributes:
        reason: ``"locked"``, ``"damaged"`` or ``"version"``.
    """

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@contextmanager
def only_worker(path: Path, thread_id: str) -> Iterator[None]:
    """Hold an flock on a file named by a hash of the thread's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = hashlib.blake2b(thread_id.encode(), digest_size=16).hexdigest()
    with open(path.with_name(f".{path.name}-{name}"), "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ThreadBusy(f"thread {thread_id!r} has a worker") from error
        yield


class _Saver(SqliteSaver):
    """A saver with two tables of the agent's own beside its checkpoints."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        super().__init__(db)
        self.path = path

    def setup(self) -> None:
        if self.is_setup:
            return
        with (
            translated(self.path),
            open(self.path.with_name(f".{self.path.name}-new"), "ab") as file,
        ):
            fcntl.flock(file, fcntl.LOCK_EX)
            super().setup()
            self.conn.executescript(
                "CREATE TABLE IF NOT EXISTS begun (thread TEXT, call TEXT, "
                "PRIMARY KEY (thread, call));"
                "CREATE TABLE IF NOT EXISTS requests (thread TEXT, id TEXT, reply TEXT, "
                "PRIMARY KEY (thread, id));"
            )

    @contextmanager
    def cursor(self, transaction: bool = True) -> Iterator[sqlite3.Cursor]:
        with translated(self.path), super().cursor(transaction) as cursor:
            yield cursor

    def may_begin(self, thread: str, call: str) -> bool:
        """Whether nobody has begun this call; from now on somebody has."""
        with self.cursor() as cursor:
            cursor.execute("INSERT OR IGNORE INTO begun VALUES (?, ?)", (thread, call))
            return cursor.rowcount == 1

    def keep(self, thread: str, request: str, reply: Reply) -> None:
        with self.cursor() as cursor:
            cursor.execute(
                "INSERT OR IGNORE INTO requests VALUES (?, ?, ?)",
                (thread, request, json.dumps(asdict(reply))),
            )

    def kept(self, thread: str, request: str) -> Reply | None:
        with self.cursor(transaction=False) as cursor:
            row = cursor.execute(
                "SELECT reply FROM requests WHERE thread = ? AND id = ?", (thread, request)
            ).fetchone()
        if row is None:
            return None
        reply = json.loads(row[0])
        return Reply(reply["text"], tuple(Step(**step) for step in reply["unknown"]))


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as those of the checkpoint file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", None) or ""
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise CheckpointError("locked", f"checkpoint file {path}: {error}") from error
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise CheckpointError("damaged", f"checkpoint file {path}: {error}") from error
        raise


@contextmanager
def open_checkpoints(path: Path, *, wait_s: float) -> Iterator[_Saver]:
    """The saver on the file."""
    with closing(sqlite3.connect(path, timeout=wait_s, check_same_thread=False)) as db:
        saver = _Saver(db, path)
        saver.setup()
        yield saver


class State(TypedDict):
    """The conversation, the calls that wait, and the request that it is about."""

    messages: Annotated[list[AnyMessage], add_messages]
    waiting: list[ToolCall]
    unknown: list[dict[str, Any]]
    request: str


def build_graph(
    model: BaseChatModel, tools: Sequence[ToolSpec], saver: BaseCheckpointSaver[Any]
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Two nodes that name their successors; each run of `tool` makes one call."""
    specs = {tool.name: tool for tool in tools}
    bound = model.bind_tools([tool.as_function() for tool in tools])
    assert isinstance(saver, _Saver)

    def think(state: State, config: RunnableConfig) -> Command[str]:
        reply = bound.invoke(state["messages"])
        if reply.tool_calls:
            return Command(goto="tool", update={"messages": reply, "waiting": reply.tool_calls})
        return Command(goto="close", update={"messages": reply})

    def close(state: State, config: RunnableConfig) -> dict[str, Any]:
        unknown = tuple(Step(**step) for step in state["unknown"])
        doubt = "".join(f" ({step.tool}: unknown whether it was done)" for step in unknown)
        text = (str(state["messages"][-1].text).strip() or "No answer.") + doubt
        saver.keep(config["configurable"]["thread_id"], state["request"], Reply(text, unknown))
        return {}

    def tool(state: State, config: RunnableConfig) -> Command[str]:
        call, *rest = state["waiting"]
        thread = config["configurable"]["thread_id"]
        doubts = state["unknown"]
        spec = specs.get(call["name"])
        if (
            spec is not None
            and not spec.idempotent
            and not saver.may_begin(thread, call["id"] or "")
        ):
            doubts = [*doubts, {"tool": spec.name, "arguments": call["args"]}]
            status, text = "error", f"outcome unknown, do not repeat: {spec.name}"
        else:
            status, text = attempt(spec, call, thread)
        told = ToolMessage(text, name=call["name"], tool_call_id=call["id"], status=status)
        update = {"messages": told, "waiting": rest, "unknown": doubts}
        return Command(goto="tool" if rest else "think", update=update)

    graph = StateGraph(State)
    graph.add_node("think", think, destinations=("tool", "close"))
    graph.add_node("tool", tool, destinations=("tool", "think"))
    graph.add_node("close", close)
    graph.add_edge(START, "think")
    graph.add_edge("close", END)
    return graph.compile(checkpointer=saver)


def attempt(spec: ToolSpec | None, call: ToolCall, thread: str) -> tuple[str, str]:
    """Make a call; its status and what the model reads of it."""
    if spec is None:
        return "error", f"no such tool: {call['name']}"
    try:
        arguments = spec.arguments.model_validate(call["args"], strict=True)
        if spec.reads or not spec.idempotent:
            return "success", json.dumps(spec.call(arguments))
        key = hmac.new(thread.encode(), (call["id"] or "").encode(), "sha1").hexdigest()
        return "success", json.dumps(spec.call(arguments, idempotency_key=key))
    except (ValidationError, PermanentError) as error:
        return "error", f"{type(error).__name__}: {error}"


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
    """Finish what is there, then the request, unless that is what was there."""
    with only_worker(path, thread_id), open_checkpoints(path, wait_s=wait_s) as saver:
        graph = build_graph(model, tools, saver)
        config: RunnableConfig = {
            "configurable": {"thread_id": thread_id},
            "metadata": {"agent": version},
            "recursion_limit": 200,
        }
        there = graph.get_state(config)
        if len(there.tasks) > 0:
            if (there.metadata or {}).get("agent") != version:
                raise CheckpointError("version", f"{path}: {thread_id} is of another version")
            graph.invoke(None, config, durability="sync")
        reply = saver.kept(thread_id, request_id)
        if reply is None:
            begin = {
                "messages": [HumanMessage(request)],
                "request": request_id,
                "unknown": [],
                "waiting": [],
            }
            graph.invoke(begin, config, durability="sync")
            reply = saver.kept(thread_id, request_id)
        assert reply is not None
        return reply
