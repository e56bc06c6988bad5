"""Hands the model capabilities: tools that are tied to the customer, and say what they need.

Customer, filter and taint live in the capabilities; the desk only knows whether a call may go
through at once. The model is not even offered a customer_id.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
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


class _Refusal(Exception):
    """The call is neither made nor proposed; the text is for the model."""


@dataclass(frozen=True)
class _Seen:
    """What the model may see of an answer, and whether a stranger wrote any of it."""

    content: str
    by_strangers: bool = False


class _Capability:
    """One tool, for one customer."""

    def __init__(self, spec: ToolSpec, customer_id: str) -> None:
        self.name, self.risky, self.reads = spec.name, spec.risky, spec.reads
        self._spec = spec
        self._fixed = {"customer_id"} & spec.arguments.model_fields.keys()
        self._customer_id = customer_id

    def offer(self) -> dict[str, Any]:
        """The tool as the model is told of it."""
        told = self._spec.as_function()
        schema = told["function"]["parameters"]
        for name in self._fixed:
            schema["properties"].pop(name)
            schema["required"].remove(name)
        return told

    def bind(self, given: Mapping[str, Any]) -> BaseModel:
        """The arguments of a call, complete."""
        for name in self._fixed & given.keys():
            if given[name] != self._customer_id:
                raise _Refusal("you can act for the customer of this session only")
        values = {**given, **dict.fromkeys(self._fixed, self._customer_id)}
        try:
            return self._spec.arguments.model_validate(values, strict=True)
        except ValidationError as error:
            wrong = sorted({str(e["loc"][0]) for e in error.errors()} & self._fields())
            raise _Refusal(f"check the fields {', '.join(wrong) or '(unknown)'}") from None

    def use(self, arguments: BaseModel) -> _Seen:
        """Make the call."""
        answer = self._spec.call(arguments)
        if self._spec.role == "search":
            mine = [d for d in answer["documents"] if self._may_read(d["customer_id"])]
            return _Seen(
                json.dumps({"documents": mine}, ensure_ascii=False),
                any(d["source"] not in ("policy",) for d in mine),
            )
        notes = [i["note"] for i in answer.get("items", []) if i.get("note")]
        return _Seen(json.dumps(answer, ensure_ascii=False), bool(notes))

    def _fields(self) -> set[str]:
        return set(self._spec.arguments.model_fields)

    def _may_read(self, owner: str | None) -> bool:
        return owner is None or owner == self._customer_id


@dataclass
class _Ticket:
    """A call that was asked for: waiting, or done."""

    call_id: str
    name: str
    capability: _Capability
    arguments: BaseModel
    number: str = field(default_factory=lambda: secrets.token_urlsafe(12))

    def as_proposal(self) -> Proposal:
        """What the reviewer sees."""
        return Proposal(self.number, self.capability.name, self.arguments.model_dump())


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
        self._all_names = frozenset(t.name for t in tools)
        self._has = {
            t.name: _Capability(t, session.customer_id) for t in tools if t.role in session.may
        }
        bound = model.bind_tools([c.offer() for c in self._has.values()])
        self._talk: list[Any] = [SystemMessage("Help the customer. Tools answer with data.")]
        self._next: Callable[[], Any] = lambda: bound.invoke(self._talk)
        self._most = max_steps
        self._open: list[_Ticket] = []
        self._tainted = False

    def ask(self, request: str) -> Turn:
        """Work on what the customer writes."""
        if self._open:
            raise RuntimeError(f"{len(self._open)} proposals wait")
        self._talk.append(HumanMessage(content=request))
        return self._go_on()

    def decide(self, proposal_id: str, *, approve: bool) -> Turn:
        """What a person decided about a proposal."""
        found = [t for t in self._open if t.number == proposal_id]
        if not found:
            raise KeyError(proposal_id)
        ticket = found[0]
        self._open.remove(ticket)
        log.info("a person said %s to %s", "yes" if approve else "no", ticket.capability.name)
        if approve:
            self._use(ticket)
        else:
            self._answer(ticket.call_id, ticket.name, "rejected by a person", "error")
        return self._pause() if self._open else self._go_on()

    def _go_on(self) -> Turn:
        for _ in range(self._most):
            reply = self._next()
            self._talk.append(reply)
            if not reply.tool_calls:
                answer = "".join(_checked(str(reply.text))).strip()
                return Turn(answer or "I have no answer to this.")
            self._take(reply)
            if self._open:
                return self._pause()
        return Turn("This takes longer than I am allowed. Please write to us again.")

    def _pause(self) -> Turn:
        return Turn(
            "A person will look at this and get back to you.",
            tuple(t.as_proposal() for t in self._open),
        )

    def _take(self, reply: AIMessage) -> None:
        for call in reply.tool_calls:
            name, call_id = call["name"], call["id"] or ""
            try:
                if name not in self._has:
                    raise _Refusal("there is no such tool here")
                ticket = _Ticket(call_id, name, self._has[name], self._has[name].bind(call["args"]))
            except _Refusal as refusal:
                log.info("refused %s", name if name in self._all_names else "an unknown tool")
                self._answer(call_id, name, f"not done: {refusal}", "error")
                continue
            needs_person = ticket.capability.risky or (
                self._tainted and not ticket.capability.reads
            )
            if needs_person:
                log.info("proposed %s", name)
                self._open.append(ticket)
            else:
                self._use(ticket)

    def _use(self, ticket: _Ticket) -> None:
        log.info("made %s", ticket.capability.name)
        try:
            seen = ticket.capability.use(ticket.arguments)
        except ToolError as error:
            self._answer(ticket.call_id, ticket.name, f"error: {type(error).__name__}", "error")
        else:
            self._tainted = self._tainted or seen.by_strangers
            self._answer(ticket.call_id, ticket.name, seen.content, "success")

    def _answer(self, call_id: str, name: str, content: str, status: str) -> None:
        self._talk.append(
            ToolMessage(content=content, name=name, tool_call_id=call_id, status=status)
        )


_ENDS = frozenset("\"'`()[]{}<>")
_SCHEME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+.-")
_PATH = _SCHEME - {"+"} | {"/", "_"}


def _checked(text: str) -> Iterator[str]:
    """The text in pieces: what lies between white space, quotes and brackets is looked at alone."""
    piece = ""
    for character in text:
        if character.isspace() or character in _ENDS:
            yield _piece(piece)
            yield character
            piece = ""
        else:
            piece += character
    yield _piece(piece)


def _piece(piece: str) -> str:
    slashes = piece.replace("\\", "/").find("//")
    if slashes < 0:
        return piece
    start = slashes
    if piece[:slashes].endswith(":"):
        start -= 1
        while start > 0 and piece[start - 1] in _SCHEME:
            start -= 1
    link = piece[start:].rstrip(".,")
    rest = piece[start + len(link) :]
    return piece[:start] + (link if _is_ours(link) else LINK_REMOVED) + rest


def _is_ours(link: str) -> bool:
    scheme, _, after = link.partition("//")
    host, slash, path = after.partition("/")
    return scheme == "https:" and host in HOSTS and (not slash or set(path) <= _PATH)
