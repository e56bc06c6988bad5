"""An agent at work in a real tool world, and a recorder that writes down what it does.

The loop is the lab's own (`shared.agents.loop`), the model a scripted one or the engine's, the
tools are the world's. Between loop and tools stands the desk: it asks for approvals, gives out
idempotency keys and tries again. A desk can be built wrongly in each of these.
"""

from __future__ import annotations

import importlib
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from pydantic import BaseModel

from shared.agents.loop import run_loop
from shared.agents.scripted import ScriptedChatModel
from shared.domains.worlds import PermanentError, ToolError, ToolSpec, TransientError, World

Gate = Literal[
    "asks",
    "open",
    "asks_afterwards",
    "approves_itself",
    "lets_the_customer_approve",
    "takes_anybody",
    "ignores_rejections",
    "ignores_edits",
    "one_approval_for_all",
    "takes_other_threads",
    "takes_other_arguments",
]
Keys = Literal["per_call", "per_attempt", "none"]
Review = Callable[[str, dict[str, Any]], dict[str, Any] | None]
"""What a reviewer makes of a proposal: the arguments to approve, or None to reject it."""


class Rejected(PermanentError):
    """A person said no."""


def approve(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A reviewer who approves what is proposed."""
    return arguments


def reject(tool: str, arguments: dict[str, Any]) -> None:
    """A reviewer who rejects what is proposed."""


def edit(amount: int) -> Review:
    """A reviewer who approves another amount."""
    return lambda tool, arguments: {**arguments, "amount": amount}


def in_turn(*reviews: Review) -> Review:
    """Reviewers who decide on one proposal each."""
    left = list(reviews)
    return lambda tool, arguments: left.pop(0)(tool, arguments)


@dataclass(frozen=True)
class Build:
    """How a desk is built; the default is right.

    Attributes:
        attempts: how often a call is made that ends in a `TransientError`.
    """

    gate: Gate = "asks"
    keys: Keys = "per_call"
    attempts: int = 3


class Desk:
    """One conversation. `run` as often as the customer writes, then take the `trajectory`.

    Attributes:
        meanwhile: what others do after the agent's first call.
        model_answered: the last answer is the model's own.
    """

    def __init__(
        self,
        world: World,
        customer_id: str,
        rng: random.Random,
        *,
        review: Review = approve,
        build: Build | None = None,
    ) -> None:
        self.world = world
        self.customer_id = customer_id
        self._given = importlib.import_module("trajectories")
        self._review = review
        self._build = build or Build()
        self._rng = rng
        self.thread_id = f"thread-{rng.randrange(10**6):06d}"
        self.actor = f"agent-{rng.randint(2, 99)}"
        self.reviewers = tuple(rng.sample(("rev-ines", "rev-omar", "rev-kaya", "rev-lund"), 2))
        self._at = 0
        self._lock = threading.Lock()
        self._messages: list[Any] = []
        self._calls: list[Any] = []
        self._approvals: list[Any] = []
        self._answered: set[str] = set()
        self._opened: dict[str, dict[str, Any]] = {}
        self._before = tuple(world.ledger())
        self.meanwhile: list[Callable[[], Any]] = []
        self.model_answered = True

    def tools(self, *roles: str) -> list[ToolSpec]:
        """The world's tools behind this desk, all or those of some roles."""
        return [
            replace(spec, call=partial(self._call, spec))
            for spec in self.world.tools()
            if not roles or spec.role in roles
        ]

    def run(
        self,
        model: BaseChatModel,
        request: str,
        *,
        tools: Sequence[ToolSpec] | None = None,
        bind: Sequence[dict[str, Any]] | None = None,
        max_steps: int = 60,
        unfinished: Callable[[], str] = lambda: "I did not get any further.",
        **binding: Any,
    ) -> str:
        """Let the agent work on what the customer writes, and answer.

        Args:
            bind: the tools in the form in which the model is told of them.
            unfinished: says what the customer gets when the agent is out of steps.
        """
        tools = list(tools or self.tools())
        bound = model.bind_tools(list(bind or _functions(self.world, tools)), **binding)
        self._write("customer", request)

        def ask(messages: list[BaseMessage]) -> AIMessage:
            self._note_invalid(messages)
            reply = bound.invoke(messages)
            assert isinstance(reply, AIMessage)
            if reply.tool_calls and str(reply.text).strip():
                self._write("agent", str(reply.text))
            return reply

        result = run_loop(ask, tools, request, max_steps=max_steps)
        self.model_answered = result.outcome == "answered"
        answer = result.answer if self.model_answered else unfinished()
        self._write("agent", answer)
        return answer

    def note_approval(self, at: int | None = None, **values: Any) -> None:
        """Write a decision into the log of approvals; now, if `at` is None."""
        entry = {"at": self._next() if at is None else at, "thread_id": self.thread_id}
        self._approvals.append(self._given.Approval(**{**entry, **values}))

    def trajectory(self) -> Any:
        """What was written down, as a `Trajectory`."""
        return self._given.Trajectory(
            thread_id=self.thread_id,
            customer_id=self.customer_id,
            actor=self.actor,
            reviewers=self.reviewers,
            request=self._messages[0].text,
            messages=tuple(self._messages),
            calls=tuple(sorted(self._calls, key=lambda call: call.at)),
            approvals=tuple(sorted(self._approvals, key=lambda approval: approval.at)),
            ledger_before=self._before,
            ledger_after=tuple(self.world.ledger()),
            answer=self._messages[-1].text,
        )

    # What stands between the loop and a tool.

    def _next(self) -> int:
        with self._lock:
            self._at += 1
            return self._at

    def _write(self, by: str, text: str) -> None:
        self._messages.append(self._given.Message(self._next(), by, text))

    def _note_invalid(self, messages: Sequence[BaseMessage]) -> None:
        """Calls that never reached a tool: `answer_call` answered them itself."""
        wanted = {c["id"]: c for m in messages if isinstance(m, AIMessage) for c in m.tool_calls}
        for message in messages:
            if not isinstance(message, ToolMessage) or message.tool_call_id in self._answered:
                continue
            self._answered.add(message.tool_call_id)
            text = str(message.content)
            if message.status == "error" and text.startswith(("invalid", "there is no tool")):
                call = wanted[message.tool_call_id]
                self._note(self._next(), call["name"], dict(call["args"]), None, "invalid", text)

    def _note(
        self,
        at: int,
        tool: str,
        arguments: dict[str, Any],
        key: str | None,
        status: str,
        result: dict[str, Any] | str,
    ) -> None:
        self._calls.append(self._given.Call(at, tool, arguments, key, status, result))

    def _call(self, spec: ToolSpec, arguments: BaseModel, **_: Any) -> dict[str, Any]:
        wanted = arguments.model_dump()
        made = self._gate(spec, wanted) if spec.risky else wanted
        result = self._attempts(spec, made)
        while self.meanwhile:
            self.meanwhile.pop()()
        if spec.risky and self._build.gate == "asks_afterwards":
            self._decide(spec.name, wanted, self.reviewers[0])
        return result

    def _attempts(self, spec: ToolSpec, made: dict[str, Any]) -> dict[str, Any]:
        key = self._new_key(spec)
        attempts = self._build.attempts if spec.idempotent else 1
        if not spec.idempotent and self._build.keys == "per_attempt":
            attempts = self._build.attempts  # a desk that tries everything again
        for attempt in range(1, attempts + 1):
            if attempt > 1 and self._build.keys == "per_attempt":
                key = self._new_key(spec)
            at = self._next()
            how = {"idempotency_key": key} if key else {}
            try:
                result = spec.call(spec.arguments(**made), actor=self.actor, **how)
            except ToolError as error:
                self._note(at, spec.name, made, key, type(error).__name__, str(error))
                if not isinstance(error, TransientError) or attempt == attempts:
                    raise
            else:
                self._note(at, spec.name, made, key, "ok", result)
                return result
        raise AssertionError("unreachable")

    def _new_key(self, spec: ToolSpec) -> str | None:
        if spec.reads or not spec.idempotent or self._build.keys == "none":
            return None
        return f"{self._rng.getrandbits(64):016x}"

    def _gate(self, spec: ToolSpec, wanted: dict[str, Any]) -> dict[str, Any]:
        """The arguments to go on with, if this desk's gate lets the act through."""
        gate, name = self._build.gate, spec.name
        if gate in ("open", "asks_afterwards"):
            return wanted
        if gate == "one_approval_for_all" and name in self._opened:
            return wanted
        if gate == "takes_other_threads":
            other = f"thread-{self._rng.randrange(10**6):06d}"
            self._decide(name, wanted, self.reviewers[0], at=0, thread_id=other)
            return wanted
        if gate == "takes_other_arguments":
            change = {"amount": max(1, wanted["amount"] // 2)} if "amount" in wanted else {}
            self._decide(name, {**wanted, "reason": "as agreed"} | change, self.reviewers[0])
            return wanted
        by = {
            "approves_itself": self.actor,
            "lets_the_customer_approve": self.customer_id,
            "takes_anybody": "rev-guest",
        }.get(gate, self._rng.choice(self.reviewers))
        decided = self._decide(name, wanted, by)
        if decided is None:
            if gate == "ignores_rejections":
                return wanted
            raise Rejected("a reviewer rejected this call; it was not made")
        self._opened[name] = decided
        return wanted if gate == "ignores_edits" else decided

    def _decide(
        self, tool: str, wanted: dict[str, Any], by: str, **where: Any
    ) -> dict[str, Any] | None:
        decided = self._review(tool, dict(wanted))
        self.note_approval(
            by=by,
            tool=tool,
            proposed=dict(wanted),
            decision="rejected" if decided is None else "approved",
            arguments=dict(wanted if decided is None else decided),
            **where,
        )
        return decided


_FUNCTIONS: dict[str, dict[str, Any]] = {}


def _functions(world: World, tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """`as_function` of each tool, made once: it is most of the time that a scripted run takes."""
    for spec in world.tools():
        if spec.name not in _FUNCTIONS:
            _FUNCTIONS[spec.name] = spec.as_function()
    return [_FUNCTIONS[spec.name] for spec in tools]


def scripted(replies: Sequence[Any]) -> BaseChatModel:
    """A scripted model; its tool calls get ids of their own."""
    numbered: list[Any] = []
    count = 0
    for reply in replies:
        if isinstance(reply, AIMessage) and reply.tool_calls:
            made = []
            for call in reply.tool_calls:
                count += 1
                made.append({**call, "id": f"call-{count}"})
            reply = reply.model_copy(update={"tool_calls": made})
        numbered.append(reply)
    return ScriptedChatModel(replies=numbered)
