"""Hands a waiting thread the customer's next message.

caught-by: test_an_approval_is_for_one_call_and_not_for_the_next_like_it
hint: still-waiting
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from filelock import FileLock
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
from langgraph.types import Command, interrupt
from pydantic import ValidationError

from shared.agents.toolbox import answer_call
from shared.domains.worlds import NotFound, ToolError, ToolSpec, TransientError

Verdict = Literal["approved", "edited", "rejected", "expired"]
Outcome = Literal["done", "not_done", "failed", "unknown", "stale"]

AGENT = "agent"
CLOCK = "clock"
"""Who "decides" when nobody did in time."""

SAME = ("customer_id", "item_id")
"""Arguments that no edit may change."""


class NotAllowed(PermissionError):
    """This person may not decide about this call."""


class NotShown(ValueError):
    """The decision is about something else than what the approval shows."""


class StillWaiting(RuntimeError):
    """The thread waits for a decision."""


class InvalidEdit(ValueError):
    """A reviewer's arguments can't be taken.

    Attributes:
        problems: what is wrong with each field, by the field's name.
    """

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {text}" for name, text in problems.items()))
        self.problems = problems


@dataclass(frozen=True)
class Approval:
    """One risky call, as a reviewer is shown it.

    Attributes:
        id: names it, and no other; the idempotency key of the call.
        thread_id: the conversation.
        call_id: the tool call's id. Models use ids again in later requests.
        requester: who asked the agent.
        tool: the tool's name.
        arguments: what the model wants to call it with.
        facts: what `read_facts` gave.
        fingerprint: `fingerprint` of tool, arguments and facts.
        asked_at: seconds, by the desk's clock.
        expires_at: from then on it's too late to decide.
    """

    id: str
    thread_id: str
    call_id: str
    requester: str
    tool: str
    arguments: dict[str, Any]
    facts: dict[str, Any]
    fingerprint: str
    asked_at: float
    expires_at: float


@dataclass(frozen=True)
class Decision:
    """What was decided about an approval.

    Attributes:
        approval_id: which one.
        verdict: ``"approved"``, ``"edited"``, ``"rejected"`` or ``"expired"``.
        decided_by: the reviewer, or `CLOCK`.
        decided_at: seconds, by the desk's clock.
        fingerprint: of what was shown.
        arguments: what the tool shall be called with; None when it shall not be.
        note: the reviewer's own words, for the trail only.
    """

    approval_id: str
    verdict: Verdict
    decided_by: str
    decided_at: float
    fingerprint: str
    arguments: dict[str, Any] | None = None
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """What the trail holds about one approval.

    Attributes:
        approval: what was asked.
        decision: None until there is one.
        begun: the call was about to be made. Whether it was made, only `outcome` tells.
        outcome: None until the call is dealt with. ``"done"``; ``"not_done"``: rejected or
            expired; ``"failed"``: the tool refused; ``"unknown"``: it may have happened;
            ``"stale"``: the facts had changed, it was asked for anew.
        content: what the model was told; empty until there is an outcome.
    """

    approval: Approval
    decision: Decision | None
    begun: bool
    outcome: Outcome | None
    content: str


@dataclass(frozen=True)
class Run:
    """How far a thread has come.

    Attributes:
        status: ``"waiting"`` for decisions, or ``"answered"``.
        answer: what the customer reads. Never empty.
        waiting: ids of the approvals that wait for a decision.
    """

    thread_id: str
    status: Literal["waiting", "answered"]
    answer: str
    waiting: tuple[str, ...] = ()


def fingerprint(tool: str, arguments: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """SHA-256 of a call and the facts about it: 64 hexadecimal digits.

    The same for the same tool, arguments and facts, in every process and in whatever order the
    keys come; another one when a value, at any depth, is another or of another type.
    """
    text = json.dumps([tool, dict(arguments), dict(facts)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_edit(
    spec: ToolSpec, asked: Mapping[str, Any], edited: Mapping[str, Any]
) -> dict[str, Any]:
    """A reviewer's arguments, if they can be taken in place of those that were asked for.

    Schema: the tool's model takes them strictly, as they are. Policy: an edit makes the act
    smaller, never another one. The arguments named in `SAME` stay as asked, and ``amount`` is
    at most what was asked.

    Returns:
        the arguments, as a new dict.

    Raises:
        InvalidEdit: `problems` holds each field that is wrong. When the schema refuses any, it
            is of the schema only.
    """
    try:
        taken = spec.arguments.model_validate(dict(edited), strict=True).model_dump()
    except ValidationError as error:
        problems = {".".join(map(str, e["loc"])): e["msg"] for e in error.errors()}
        raise InvalidEdit(problems) from error
    problems = {
        name: f"must stay {asked[name]!r}: another one is another request"
        for name in SAME
        if name in taken and taken[name] != asked[name]
    }
    if "amount" in taken and taken["amount"] > asked["amount"]:
        problems["amount"] = f"must be at most {asked['amount']}, which was asked for"
    if problems:
        raise InvalidEdit(problems)
    return taken


SCHEMA = """
CREATE TABLE IF NOT EXISTS approvals (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
    thread_id TEXT NOT NULL, call_id TEXT NOT NULL, requester TEXT NOT NULL, tool TEXT NOT NULL,
    arguments TEXT NOT NULL, facts TEXT NOT NULL, fingerprint TEXT NOT NULL,
    asked_at REAL NOT NULL, expires_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS decisions (approval_id TEXT PRIMARY KEY, verdict TEXT NOT NULL,
    decided_by TEXT NOT NULL, decided_at REAL NOT NULL, fingerprint TEXT NOT NULL,
    arguments TEXT NOT NULL, note TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS begun (approval_id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS outcomes (approval_id TEXT PRIMARY KEY, outcome TEXT NOT NULL,
    content TEXT NOT NULL);
""" + "".join(
    f"CREATE TRIGGER IF NOT EXISTS {table}_{act} BEFORE {act} ON {table} "
    "BEGIN SELECT RAISE(ABORT, 'the trail only grows'); END;\n"
    for table in ("approvals", "decisions", "begun", "outcomes")
    for act in ("UPDATE", "DELETE")
)
"""The trail's tables. `arguments` and `facts` hold JSON."""


class Trail:
    """The audit trail, in one SQLite file that several processes may use at once.

    It is also what the agent goes by: a call waits while its approval has no decision.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.connection() as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(SCHEMA)

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own; each statement is a transaction, and durable."""
        db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA recursive_triggers = ON")  # or REPLACE would delete unseen
            yield db
        finally:
            db.close()

    def ask(self, approval: Approval) -> Approval:
        """Record what a reviewer is asked; one that asks about the same call and has no outcome
        yet stands, and is returned."""
        with self.connection() as db:
            db.execute("BEGIN IMMEDIATE")
            known = self.latest(approval.thread_id, approval.call_id)
            if known is None or known.outcome is not None:
                row = asdict(approval)
                row |= {k: json.dumps(row[k]) for k in ("arguments", "facts")}
                marks = ", ".join(f":{name}" for name in row)
                db.execute(f"INSERT INTO approvals ({', '.join(row)}) VALUES ({marks})", row)
            else:
                approval = known.approval
            db.execute("COMMIT")
        return approval

    def decide(self, decision: Decision) -> Decision:
        """Record a decision, unless the approval has one; return the one that is recorded.

        However many processes decide at once, one decision is recorded, and all get that one.
        """
        row = asdict(decision) | {"arguments": json.dumps(decision.arguments)}
        marks = ", ".join(f":{name}" for name in row)
        with self.connection() as db:
            db.execute(
                f"INSERT INTO decisions ({', '.join(row)}) VALUES ({marks}) ON CONFLICT DO NOTHING",
                row,
            )
        recorded = self.find(decision.approval_id).decision
        assert recorded is not None
        return recorded

    def begin(self, approval_id: str) -> None:
        """Record that the call is about to be made."""
        with self.connection() as db:
            db.execute("INSERT OR IGNORE INTO begun VALUES (?)", (approval_id,))

    def finish(self, approval_id: str, outcome: Outcome, content: str) -> None:
        """Record what came of it; the first outcome stands."""
        with self.connection() as db:
            db.execute(
                "INSERT OR IGNORE INTO outcomes VALUES (?, ?, ?)", (approval_id, outcome, content)
            )

    def find(self, approval_id: str) -> Entry:
        """What is recorded about one approval.

        Raises:
            KeyError: there is none of that id.
        """
        found = self.entries(id=approval_id)
        if not found:
            raise KeyError(approval_id)
        return found[0]

    def latest(self, thread_id: str, call_id: str) -> Entry | None:
        """The newest entry about one tool call."""
        found = self.entries(thread_id=thread_id, call_id=call_id)
        return found[-1] if found else None

    def pending(self, thread_id: str | None = None) -> list[Approval]:
        """What waits for a decision, in one thread or all, oldest first."""
        within = {} if thread_id is None else {"thread_id": thread_id}
        return [e.approval for e in self.entries(**within) if e.decision is None]

    def entries(self, **where: str) -> list[Entry]:
        """The trail, oldest first; `where` takes columns of approvals, as ``thread_id="t-1"``."""
        condition = " AND ".join(f"a.{name} = :{name}" for name in where) or "1"
        with self.connection() as db:
            rows = db.execute(
                "SELECT a.*, d.verdict, d.decided_by, d.decided_at, d.note, "
                "d.fingerprint AS seen, d.arguments AS taken, b.approval_id AS begun, "
                "o.outcome, o.content FROM approvals a "
                "LEFT JOIN decisions d ON d.approval_id = a.id "
                "LEFT JOIN begun b ON b.approval_id = a.id "
                "LEFT JOIN outcomes o ON o.approval_id = a.id "
                f"WHERE {condition} ORDER BY a.n",
                where,
            ).fetchall()
        return [entry_of(row) for row in rows]


def entry_of(row: sqlite3.Row) -> Entry:
    """One row of the trail."""
    approval = {name: row[name] for name in Approval.__dataclass_fields__}
    approval |= {k: json.loads(row[k]) for k in ("arguments", "facts")}
    decision = row["verdict"] and Decision(
        row["id"],
        row["verdict"],
        row["decided_by"],
        row["decided_at"],
        row["seen"],
        json.loads(row["taken"]),
        row["note"],
    )
    began = row["begun"] is not None
    return Entry(Approval(**approval), decision, began, row["outcome"], row["content"] or "")


def read_facts(tools: Sequence[ToolSpec], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a reviewer has to know about a risky call: the customer's record, and the item if the
    call is about one. Read by the world's own tools, not by the model.

    Raises:
        ToolError: they can't be read, or the item is not this customer's.
    """
    by_role = {spec.role: spec for spec in tools}

    def read(role: Literal["lookup", "items"]) -> dict[str, Any]:
        spec = by_role[role]
        return spec.call(spec.arguments(customer_id=arguments["customer_id"]))

    facts: dict[str, Any] = {"customer": read("lookup")}
    if "item_id" in arguments:
        items = {item["id"]: item for item in read("items")["items"]}
        if arguments["item_id"] not in items:
            raise NotFound(f"{arguments['customer_id']} has no {arguments['item_id']}")
        facts["item"] = items[arguments["item_id"]]
    return facts


def open_calls(messages: Sequence[BaseMessage]) -> list[ToolCall]:
    """Tool calls of the model's last reply that have no answer yet."""
    answered: set[str] = set()
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        elif isinstance(message, AIMessage):
            return [call for call in message.tool_calls if call["id"] not in answered]
        else:
            break
    return []


def carry_out(spec: ToolSpec, entry: Entry) -> tuple[Outcome, str]:
    """Do what was decided: make the call, once, or leave it. It looks at nothing but the decision.

    The approval's id is the idempotency key, so made again the call does nothing new.

    Returns:
        the outcome, and what to tell the model.
    """
    decision = entry.decision
    if decision is None:
        raise NotAllowed(f"nobody has decided about {spec.name}")
    if decision.arguments is None:
        why = "nobody decided in time, it has expired" if decision.verdict == "expired" else ""
        return "not_done", f"{spec.name} was not done: {why or 'a reviewer rejected it'}"
    arguments = spec.arguments.model_validate(decision.arguments, strict=True)
    try:
        answer = spec.call(arguments, idempotency_key=entry.approval.id, actor=AGENT)
    except TransientError as error:
        return "unknown", f"{spec.name}: {error}. It may have happened: do not repeat it"
    except ToolError as error:
        return "failed", f"{spec.name} was not done: {error}"
    if decision.verdict == "edited":
        answer = {"changed_by_a_reviewer": decision.arguments, "result": answer}
    return "done", json.dumps(answer)


def notice(entry: Entry) -> str:
    """What the customer must know of a call, whatever the model says. Empty for one that was
    made as the model wanted, and for a stale one."""
    tool, decision = entry.approval.tool, entry.decision
    if decision is None or entry.outcome in (None, "stale"):
        return ""
    if entry.outcome == "not_done":
        expired = decision.verdict == "expired"
        return f"Not done: {tool} " + ("has expired." if expired else "was rejected.")
    if entry.outcome == "failed":
        return f"Not done: {tool} was refused."
    if entry.outcome == "unknown":
        return f"Not certain: {tool} may have been done. A person looks into it."
    asked, taken = entry.approval.arguments, decision.arguments or {}
    changed = [f"{k} {v!r} in place of {asked[k]!r}" for k, v in taken.items() if v != asked[k]]
    return f"Done with changes: {tool}, {', '.join(changed)}." if changed else ""


class AgentState(TypedDict):
    """What the graph's nodes share.

    Attributes:
        messages: the conversation, oldest first.
        requester: who asked.
        notices: what the customer must know about this request's calls. A node that returns it
            replaces it.
    """

    messages: Annotated[list[AnyMessage], add_messages]
    requester: str
    notices: list[str]


Graph = CompiledStateGraph[AgentState, None, AgentState, AgentState]


def build_graph(
    model: BaseChatModel,
    tools: Sequence[ToolSpec],
    trail: Trail,
    checkpointer: BaseCheckpointSaver[Any],
    *,
    ttl_s: float,
    clock: Callable[[], float],
) -> Graph:
    """The agent, compiled with the checkpointer; `Desk` runs it, the thread's id in its config.

    The model, with the tools bound (as `ToolSpec.as_function` dicts), is asked until it replies
    without tool calls. Every tool call is answered by one `ToolMessage` with its id. When a reply
    has calls:

    1. Calls that aren't risky are made by `answer_call`, once, and nobody is asked. Calls that
       can't be made, of no such tool or a risky one with arguments that its model refuses, are
       left to `answer_call` too: it tells the model.
    2. For each other risky call the facts are read, and `trail.ask` records an `Approval`, with
       a new id and `ttl_s` from now (`clock`) to decide. When the facts can't be read
       (`ToolError`), the model is told in a message of status ``"error"``, and nobody is asked.
    3. While one of the thread's approvals has no decision, the graph is interrupted. The node
       that calls `interrupt` runs again from its top at each resume, so nothing in it may have
       an effect before that. What the interrupt returns decides nothing.
    4. When all are decided, one after the other is dealt with, and its outcome and what the model
       is told are recorded by `trail.finish`. One with an outcome already, from a run that broke
       off, isn't dealt with again. A call that shall be made and wasn't begun: its facts are read
       anew, since the one before may have changed them too. If the fingerprint of tool, arguments
       as asked and facts is another now, or they can't be read, its outcome is ``"stale"``, and
       the call is asked about again as from 2. If not, `trail.begin` and then `carry_out`. A call
       that was begun is carried out without a look at the facts: its own effect may have changed
       them.
    5. What came of it is told to the model: the content recorded, with the status ``"success"``
       for ``"done"``, ``"error"`` for the others. Its `notice`, if any, is added to `notices`.
    """
    specs = {spec.name: spec for spec in tools}
    bound = model.bind_tools([spec.as_function() for spec in tools])

    def ask_model(state: AgentState) -> dict[str, Any]:
        return {"messages": [bound.invoke(state["messages"])]}

    def make_safe_calls(state: AgentState) -> dict[str, Any]:
        safe = [c for c in open_calls(state["messages"]) if not _needs_a_person(specs, c)]
        return {"messages": [answer_call(tools, call) for call in safe]}

    def ask_person(state: AgentState, config: RunnableConfig) -> dict[str, Any]:
        answers = []
        for call in open_calls(state["messages"]):
            try:
                facts = read_facts(tools, call["args"])
            except ToolError as error:
                answers.append(_answer(call, f"nobody was asked: {error}", "error"))
                continue
            now = clock()
            trail.ask(
                Approval(
                    id=uuid.uuid4().hex,
                    thread_id=_thread(config),
                    call_id=call["id"] or "",
                    requester=state["requester"],
                    tool=call["name"],
                    arguments=call["args"],
                    facts=facts,
                    fingerprint=fingerprint(call["name"], call["args"], facts),
                    asked_at=now,
                    expires_at=now + ttl_s,
                )
            )
        return {"messages": answers}

    def wait(_: AgentState, config: RunnableConfig) -> dict[str, Any]:
        # In a loop: whoever resumes the graph has not decided anything by that.
        while waiting := trail.pending(_thread(config)):
            interrupt([asdict(approval) for approval in waiting])
        return {}

    def act(state: AgentState, config: RunnableConfig) -> dict[str, Any]:
        answers, notices = [], list(state["notices"])
        for call in open_calls(state["messages"]):
            entry = settle(_thread(config), call)
            if entry.outcome == "stale":
                continue
            status = "success" if entry.outcome == "done" else "error"
            answers.append(_answer(call, entry.content, status))
            notices += filter(None, [notice(entry)])
        return {"messages": answers, "notices": notices}

    def settle(thread_id: str, call: ToolCall) -> Entry:
        entry = trail.latest(thread_id, call["id"] or "")
        assert entry is not None
        if entry.outcome is not None:
            return entry
        approval = entry.approval
        made = entry.decision is not None and entry.decision.arguments is not None
        if made and not entry.begun and _has_changed(tools, approval):
            trail.finish(approval.id, "stale", "")
        else:
            if made:
                trail.begin(approval.id)
            trail.finish(approval.id, *carry_out(specs[approval.tool], entry))
        return trail.find(approval.id)

    def after(state: AgentState) -> str:
        return "ask_person" if open_calls(state["messages"]) else "model"

    graph = StateGraph(AgentState)
    graph.add_node("model", ask_model)
    graph.add_node("safe_calls", make_safe_calls)
    graph.add_node("ask_person", ask_person)
    graph.add_node("wait", wait)
    graph.add_node("act", act)
    graph.add_edge(START, "model")
    graph.add_conditional_edges(
        "model", lambda s: "safe_calls" if open_calls(s["messages"]) else END, ["safe_calls", END]
    )
    graph.add_conditional_edges("safe_calls", after, ["ask_person", "model"])
    graph.add_edge("ask_person", "wait")
    graph.add_edge("wait", "act")
    graph.add_conditional_edges("act", after, ["ask_person", "model"])
    return graph.compile(checkpointer=checkpointer)


@contextmanager
def alone(folder: Path, thread_id: str) -> Iterator[None]:
    """One at a time works on a thread, of all threads and processes. The system lets go of it
    when a process dies."""
    name = hashlib.sha256(thread_id.encode()).hexdigest()[:32]
    with FileLock(folder / f"{name}.lock"):
        yield


class Desk:
    """Where customers ask, reviewers decide and time runs out. Several processes may open one.

    Args:
        folder: holds checkpoints and trail; made when it is not there.
        reviewers: who may decide, by name. The login has identified them.
        ttl_s: how long an approval waits for its decision.
        clock: seconds, the same for all processes.
    """

    def __init__(
        self,
        model: BaseChatModel,
        tools: Sequence[ToolSpec],
        folder: Path,
        *,
        reviewers: Collection[str],
        ttl_s: float = 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.tools = list(tools)
        self.reviewers = frozenset(reviewers)
        self.clock = clock
        self.trail = Trail(folder / "trail.sqlite")
        self.checkpoints = sqlite3.connect(
            folder / "checkpoints.sqlite", timeout=30, check_same_thread=False
        )
        self.graph = build_graph(
            model, tools, self.trail, SqliteSaver(self.checkpoints), ttl_s=ttl_s, clock=clock
        )

    def close(self) -> None:
        """Close the checkpoints' file."""
        self.checkpoints.close()

    def config(self, thread_id: str) -> RunnableConfig:
        """What the graph is run with."""
        return {"configurable": {"thread_id": thread_id}}

    def pending(self) -> list[Approval]:
        """What waits for a decision, oldest first."""
        return self.trail.pending()

    def run(self, thread_id: str) -> Run:
        """How far a thread has come; changes nothing.

        Raises:
            KeyError: there is no such thread.
        """
        state = self.graph.get_state(self.config(thread_id))
        if not state.values:
            raise KeyError(thread_id)
        waiting = self.trail.pending(thread_id)
        # Not `state.next`: it is empty too when a node's result is there, but not yet the
        # checkpoint that takes it in.
        if state.tasks:
            tools = ", ".join(approval.tool for approval in waiting)
            text = f"A colleague has to look at this first: {tools or 'one moment, please'}."
            return Run(thread_id, "waiting", text, tuple(a.id for a in waiting))
        said = str(state.values["messages"][-1].text).strip()
        text = said or "I have nothing more to say. Please ask again."
        return Run(thread_id, "answered", "\n".join([*state.values["notices"], text]))

    def ask(self, thread_id: str, requester: str, text: str) -> Run:
        """Work on what a customer writes, until there is an answer or a decision is needed.

        The graph gets the text as a human message, the requester, and no notices. It is run
        `alone` on the thread.

        Raises:
            StillWaiting: the thread has begun something that is not finished. Nothing is done.
        """
        with alone(self.folder, thread_id):
            given: Any = {
                "messages": [HumanMessage(text)],
                "requester": requester,
                "notices": [],
            }
            self.graph.invoke(given, self.config(thread_id), durability="sync")
        return self.run(thread_id)

    def decide(
        self,
        approval_id: str,
        *,
        reviewer: str,
        verdict: str,
        shown: str,
        arguments: Mapping[str, Any] | None = None,
        note: str = "",
    ) -> Decision:
        """Record what a reviewer decided, and let the thread go on (`go_on`).

        Someone who decides when the approval has a decision, or posts the same one again, changes
        nothing. Who decides at `expires_at` or later is too late: what is recorded is the verdict
        ``"expired"``, by `CLOCK`, with the arguments None and no note.

        Args:
            verdict: ``"approved"``, ``"edited"`` or ``"rejected"``.
            shown: the fingerprint that the reviewer was shown.
            arguments: with ``"edited"``, what to call the tool with; with others, None.

        Returns:
            the decision that is recorded, whoever's it is.

        Raises:
            KeyError: there is no such approval.
            NotAllowed: the reviewer is not one of the desk's, or is the requester, `AGENT` or
                `CLOCK`.
            ValueError: another verdict, or arguments missing or too many.
            NotShown: `shown` is not the approval's fingerprint.
            InvalidEdit: by `check_edit`, against the arguments that the approval shows.

            In all these cases nothing is recorded and nothing goes on.
        """
        approval = self.trail.find(approval_id).approval
        if reviewer not in self.reviewers - {AGENT, CLOCK, approval.requester}:
            raise NotAllowed(f"{reviewer} may not decide about {approval.tool}")
        if verdict not in ("approved", "edited", "rejected"):
            raise ValueError(f"there is no verdict {verdict!r}")
        if (arguments is not None) is not (verdict == "edited"):
            raise ValueError("arguments come with the verdict 'edited', and only with it")
        if shown != approval.fingerprint:
            raise NotShown("this is not what the approval shows")
        taken = None
        if verdict == "approved":
            taken = approval.arguments
        if arguments is not None:
            spec = {tool.name: tool for tool in self.tools}[approval.tool]
            taken = check_edit(spec, approval.arguments, arguments)
        now = self.clock()
        if now >= approval.expires_at:
            decision = _expired(approval, now)
        else:
            decision = Decision(approval_id, verdict, reviewer, now, shown, taken, note)  # type: ignore[arg-type]
        recorded = self.trail.decide(decision)
        self.go_on(approval.thread_id)
        return recorded

    def expire(self) -> list[Decision]:
        """Decide what is overdue (see `decide`), by `CLOCK`, and let the threads go on.

        Returns:
            what expired just now, oldest first.
        """
        now = self.clock()
        overdue = [a for a in self.trail.pending() if now >= a.expires_at]
        recorded = [self.trail.decide(_expired(approval, now)) for approval in overdue]
        for thread_id in dict.fromkeys(approval.thread_id for approval in overdue):
            self.go_on(thread_id)
        return [decision for decision in recorded if decision.verdict == "expired"]

    def go_on(self, thread_id: str) -> Run:
        """Let a thread go on from its last checkpoint, if there is something to go on with.

        `alone` on the thread, it resumes a graph that is interrupted, or runs on one that broke
        off, unless an approval of the thread waits. A thread that is finished stays as it is. So
        it can be called at any time, by anybody, any number of times.

        Raises:
            KeyError: there is no such thread.
        """
        with alone(self.folder, thread_id):
            state = self.graph.get_state(self.config(thread_id))
            if state.tasks and not self.trail.pending(thread_id):
                step: Any = Command(resume=True) if state.interrupts else None
                self.graph.invoke(step, self.config(thread_id), durability="sync")
        return self.run(thread_id)


def _expired(approval: Approval, now: float) -> Decision:
    return Decision(approval.id, "expired", CLOCK, now, approval.fingerprint)


def _needs_a_person(specs: Mapping[str, ToolSpec], call: ToolCall) -> bool:
    spec = specs.get(call["name"])
    if spec is None or not spec.risky:
        return False
    try:
        spec.arguments.model_validate(call["args"], strict=True)
    except ValidationError:
        return False
    return True


def _has_changed(tools: Sequence[ToolSpec], approval: Approval) -> bool:
    try:
        facts = read_facts(tools, approval.arguments)
    except ToolError:
        return True
    return fingerprint(approval.tool, approval.arguments, facts) != approval.fingerprint


def _answer(call: ToolCall, content: str, status: str) -> ToolMessage:
    return ToolMessage(content, name=call["name"], tool_call_id=call["id"] or "", status=status)


def _thread(config: RunnableConfig) -> str:
    return str(config["configurable"]["thread_id"])
