"""A LangGraph graph: proposals wait at an interrupt, and the state is kept by a checkpointer."""

from __future__ import annotations

import json
import logging
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict
from uuid import uuid4

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt
from pydantic import BaseModel, ValidationError

from shared.domains.worlds import Role, ToolError, ToolSpec

log = logging.getLogger("support_agent")

HOSTS = ("help.example.org",)
"""Hosts that an answer may link to."""

LINK_REMOVED = "[link removed]"


@dataclass(frozen=True)
class Session:
    """What the login found out."""

    customer_id: str
    may: frozenset[Role]


@dataclass(frozen=True)
class Proposal:
    """A call that waits for a person's decision, as the reviewer sees it."""

    id: str
    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """What came of a request or a decision."""

    text: str
    waiting: tuple[Proposal, ...] = ()


class _State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], operator.add]
    steps: int
    todo: list[dict[str, Any]]
    waiting: list[dict[str, Any]]
    tainted: bool


class SupportAgent:
    """One conversation with one customer."""

    def __init__(
        self,
        model: BaseChatModel,
        tools: Sequence[ToolSpec],
        session: Session,
        *,
        max_steps: int = 8,
    ) -> None:
        self._who = session.customer_id
        self._every = {t.name for t in tools}
        self._mine = {t.name: t for t in tools if t.role in session.may}
        self._bound = model.bind_tools([t.as_function() for t in self._mine.values()])
        self._most = max_steps
        graph = StateGraph(_State)
        graph.add_node("model", self._model)
        graph.add_node("act", self._act)
        graph.add_node("review", self._review)
        graph.add_edge(START, "model")
        graph.add_conditional_edges("model", lambda s: "act" if s["todo"] else END)
        graph.add_conditional_edges("act", self._after_act)
        graph.add_conditional_edges("review", self._after_act)
        self._graph = graph.compile(checkpointer=InMemorySaver())
        self._config: Any = {
            "configurable": {"thread_id": uuid4().hex},
            "recursion_limit": 1000 + 4 * max_steps,
        }
        opening: _State = {"messages": [SystemMessage("Answer the customer.")], "tainted": False}
        self._graph.update_state(self._config, opening, as_node=START)

    def ask(self, request: str) -> Turn:
        """Work on what the customer writes."""
        if self._values().get("waiting"):
            raise RuntimeError("a proposal is waiting")
        self._graph.invoke({"messages": [HumanMessage(request)], "steps": 0}, self._config)
        return self._turn()

    def decide(self, proposal_id: str, *, approve: bool) -> Turn:
        """What a person decided about a proposal."""
        if proposal_id not in {w["id"] for w in self._values().get("waiting", [])}:
            raise KeyError(proposal_id)
        self._graph.invoke(Command(resume={"id": proposal_id, "approve": approve}), self._config)
        return self._turn()

    def _values(self) -> dict[str, Any]:
        return dict(self._graph.get_state(self._config).values)

    def _turn(self) -> Turn:
        state = self._values()
        if state["waiting"]:
            shown = [Proposal(w["id"], w["tool"], dict(w["arguments"])) for w in state["waiting"]]
            return Turn("We have to look at this ourselves first.", tuple(shown))
        last = state["messages"][-1]
        text = "" if isinstance(last, ToolMessage) else _with_our_links(str(last.text)).strip()
        return Turn(text or "I have no answer. A colleague can help you.")

    def _model(self, state: _State) -> _State:
        reply = self._bound.invoke(state["messages"])
        todo = [{"id": c["id"], "tool": c["name"], "given": c["args"]} for c in reply.tool_calls]
        return {"messages": [reply], "steps": state["steps"] + 1, "todo": todo, "waiting": []}

    def _act(self, state: _State) -> _State:
        told: list[AnyMessage] = []
        waiting: list[dict[str, Any]] = []
        tainted = state["tainted"]
        for call in state["todo"]:
            arguments = self._arguments(call)
            spec = self._mine.get(call["tool"])
            if spec is None or arguments is None:
                log.info("refused: %s", call["tool"] if call["tool"] in self._every else "?")
                told.append(_message(call, "This call is not possible.", "error"))
            elif spec.risky or (tainted and not spec.reads):
                log.info("proposed: %s", spec.name)
                waiting.append({**call, "id": uuid4().hex, "call": call["id"]})
                waiting[-1]["arguments"] = arguments.model_dump()
            else:
                message, strange = self._made(spec, call, arguments)
                told.append(message)
                tainted = tainted or strange
        return {"messages": told, "waiting": waiting, "tainted": tainted, "todo": []}

    def _review(self, state: _State) -> _State:
        # Runs again from here when it is resumed: nothing has been done before this line.
        decision = interrupt([w["id"] for w in state["waiting"]])
        chosen = next(w for w in state["waiting"] if w["id"] == decision["id"])
        left = [w for w in state["waiting"] if w is not chosen]
        call = {"id": chosen["call"], "tool": chosen["tool"]}
        log.info("%s: %s", "approved" if decision["approve"] else "rejected", chosen["tool"])
        if not decision["approve"]:
            told, strange = _message(call, "A person said no. Nothing was done.", "error"), False
        else:
            spec = self._mine[chosen["tool"]]
            arguments = spec.arguments.model_validate(chosen["arguments"], strict=True)
            told, strange = self._made(spec, call, arguments)
        tainted = state["tainted"] or strange
        return {"messages": [told], "waiting": left, "tainted": tainted, "steps": 0}

    def _after_act(self, state: _State) -> Literal["model", "review", "__end__"]:
        if state["waiting"]:
            return "review"
        return "model" if state["steps"] < self._most else "__end__"

    def _arguments(self, call: dict[str, Any]) -> BaseModel | None:
        spec = self._mine.get(call["tool"])
        if spec is None:
            return None
        given = dict(call["given"])
        if "customer_id" in spec.arguments.model_fields:
            given = {"customer_id": self._who} | given
        try:
            arguments = spec.arguments.model_validate(given, strict=True)
        except ValidationError:
            return None
        return arguments if getattr(arguments, "customer_id", self._who) == self._who else None

    def _made(
        self, spec: ToolSpec, call: dict[str, Any], arguments: BaseModel
    ) -> tuple[ToolMessage, bool]:
        log.info("made: %s", spec.name)
        try:
            answer = spec.call(arguments)
        except ToolError as error:
            return _message(call, json.dumps({"error": type(error).__name__}), "error"), False
        strange = False
        if spec.role == "search":
            found = [d for d in answer["documents"] if d["customer_id"] in (self._who, None)]
            answer, strange = {"found": found}, {d["source"] for d in found} - {"policy"} != set()
        if spec.role == "items":
            strange = any(item["note"] != "" for item in answer["items"])
        return _message(call, json.dumps(answer), "success"), strange


def _message(call: dict[str, Any], content: str, status: str) -> ToolMessage:
    return ToolMessage(content, name=call["tool"], tool_call_id=call["id"] or "", status=status)


_RUN = re.compile(r"[^\s\"'`<>(){}\[\]]+")
_TWO_SLASHES = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?[/\\][/\\].*")
_OURS = re.compile(
    r"https://(?:" + "|".join(re.escape(host) for host in HOSTS) + r")(?:/[\w./-]*)?[.,]*", re.ASCII
)


def _with_our_links(text: str) -> str:
    def judge(run: re.Match[str]) -> str:
        found = _TWO_SLASHES.search(run[0])
        if found is None:
            return run[0]
        keep = _OURS.fullmatch(found[0])
        return run[0][: found.start()] + (found[0] if keep else LINK_REMOVED)

    return _RUN.sub(judge, text)
