"""An agent whose work outlives its process.

Whoever has a request calls `run_durably`, and calls it again, from any process, until it returns.
At any moment the process may be killed by SIGKILL. The next call goes on where that one was:
nothing is lost, and nothing is done twice.

START -> model -> (begin ->) act -> ... -> model -> ... -> finish -> END

Requests:
    `request_id` names one request within its thread. Called with a request that is not finished,
    `run_durably` goes on with it; with one that is finished, it returns the same reply again and
    asks nobody. A thread works on one request after the other: an earlier one that is not
    finished is finished first. The model is given all messages of the thread so far, the requests
    unchanged. Threads share nothing: request ids and call ids may occur in several of them.

Decisions:
    A model that is asked twice decides twice. Its reply is in the file before anything that it
    asks for is begun, and once it is there the model is not asked for it again.

Calls:
    The calls of a reply are made one after the other, in their order. What came of one is in the
    file before the next one is begun or the model is asked. Arguments are validated strictly by
    the tool's model. A write that is `idempotent` gets an idempotency key: one for each call of
    each thread (ids of calls are unique within their thread), the same in every process. Other
    tools get none. Nothing else is passed to a tool.

Outcomes:
    The model is given one tool message for each call, with the call's id and the tool's name:
    of status ``"success"``, with the answer as JSON, or of status ``"error"``, which says what is
    wrong: there is no such tool, the arguments are invalid, a `PermanentError`, or unknown (below).
    Any other exception of a tool or a model (a `TransientError`, a bug) goes through as it is and
    counts like a kill: the next `run_durably` goes on there.

Unknown:
    A call of a tool that is not `idempotent` (a message) is made at most once, ever. That it is
    begun is in the file before it is made. When a process goes on and finds a call begun whose
    outcome is not in the file, nobody knows whether it happened. It is not made again: the model
    is told so, with the word ``"unknown"``, and `Reply.unknown` tells the caller. Only such calls
    are unknown.

Workers:
    One thread is worked on by one worker at a time: `only_worker`. Other threads don't wait.

The file:
    One SQLite file holds the checkpoints of all threads, through LangGraph's `SqliteSaver`.
    A file that cannot be used is a `CheckpointError`, and is left as it is.
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
    raise NotImplementedError("Task 4.3: write only_worker")


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
    raise NotImplementedError("Task 4.3: write open_checkpoints")


def build_graph(
    model: BaseChatModel, tools: Sequence[ToolSpec], saver: BaseCheckpointSaver[Any]
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """The agent as a graph, compiled with `saver`, for one `run_durably`.

    A node that was cut off runs again from its top. So ask of each node: what of it may happen
    twice, and what must be in the file before it?
    """
    raise NotImplementedError("Task 4.3: write build_graph")


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
    raise NotImplementedError("Task 4.3: write run_durably")
