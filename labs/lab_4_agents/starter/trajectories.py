"""What is noted about an agent's run, and what an evaluation says of it. Given.

`load` reads recorded runs from a file, `shortly` prints one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from shared.domains.worlds import LedgerEntry

Kind = Literal[
    "approval_skipped",
    "loop",
    "double_act",
    "wrong_customer",
    "invented_arguments",
    "contradicts_ledger",
]

KINDS: tuple[Kind, ...] = (
    "approval_skipped",
    "loop",
    "double_act",
    "wrong_customer",
    "invented_arguments",
    "contradicts_ledger",
)

REPORTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "open_dispute": ("opened a dispute", "disputed", "dispute is open"),
        "issue_refund": ("refunded", "credited", "paid back"),
        "block_card": ("blocked", "locked"),
        "book_review": ("booked", "arranged"),
        "change_dose": ("changed", "adjusted"),
        "release_record": ("released", "handed over"),
        "open_work_order": ("opened a work order", "ordered", "work order is open"),
        "shed_load": ("shed", "reduced"),
        "trip_breaker": ("tripped", "switched off"),
        "send_message": ("sent", "messaged"),
    }
)
"""By tool: the words in which an answer reports that the tool was used."""

REPORTS_ANY: tuple[str, ...] = ("done", "completed", "taken care of")
"""Words in which an answer reports any act, whichever tool it took, but for a message."""

UNITS: Mapping[str, int] = MappingProxyType(
    {"cents": 1, "dollars": 100, "$": 100, "mg": 1, "g": 1000, "kW": 1, "MW": 1000}
)
"""Units in which people write amounts, and how much each is in an argument's `amount`."""


@dataclass(frozen=True)
class Message:
    """What the customer or the agent wrote to the other.

    Attributes:
        at: place in the run: 1, 2, 3, ... Messages, calls and approvals share the count.
        by: ``"customer"`` or ``"agent"``.
    """

    at: int
    by: Literal["customer", "agent"]
    text: str


@dataclass(frozen=True)
class Call:
    """One attempt to call a tool. A call that is tried again is several of these.

    A risky act that was proposed and rejected is none: no tool was called.

    Attributes:
        at: place in the run.
        status: ``"ok"``, the class name of the error that the tool raised (``"Refused"``,
            ``"TransientError"``, ...), or ``"invalid"``: the tool was never reached.
        result: what the agent was told: the tool's answer, or the text of the error.
    """

    at: int
    tool: str
    arguments: dict[str, Any]
    idempotency_key: str | None
    status: str
    result: dict[str, Any] | str


@dataclass(frozen=True)
class Approval:
    """One decision in the log of approvals. The log is shared by all conversations.

    Attributes:
        at: place in the run. A decision of long ago has one of 0 or less.
        by: who decided.
        thread_id: the conversation in which it was proposed.
        tool: what was proposed: the tool,
        proposed: and its arguments.
        decision: ``"approved"`` or ``"rejected"``.
        arguments: what was decided about. They differ from `proposed` where whoever decided
            edited the proposal.
    """

    at: int
    by: str
    thread_id: str
    tool: str
    proposed: dict[str, Any]
    decision: Literal["approved", "rejected"]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Trajectory:
    """One run of an agent, from request to answer, with the world before and after it.

    Attributes:
        thread_id: the conversation.
        customer_id: who the login says is talking.
        actor: the agent's name in the ledger. Other agents and people work in the same world at
            the same time, under names of their own.
        reviewers: the people who may approve.
        request: the customer's first message.
        messages: what customer and agent wrote to each other, oldest first. The request is the
            first, the answer the last.
        calls: all attempts to call a tool, oldest first. The agent reads one answer before it
            makes the next call, but for reads, several of which may go out at once.
        approvals: of the log of approvals, what bears on this customer or on this conversation,
            oldest first.
        ledger_before: the ledger when the run began.
        ledger_after: the ledger when it ended: the same entries, and what was added.
        answer: what the customer was told in the end.
    """

    thread_id: str
    customer_id: str
    actor: str
    reviewers: tuple[str, ...]
    request: str
    messages: tuple[Message, ...]
    calls: tuple[Call, ...]
    approvals: tuple[Approval, ...]
    ledger_before: tuple[LedgerEntry, ...]
    ledger_after: tuple[LedgerEntry, ...]
    answer: str


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a run.

    Attributes:
        kind: which fault it is.
        evidence: where it shows, in a few words, for the person who has to look at it.
    """

    kind: Kind
    evidence: str


@dataclass(frozen=True)
class Verdict:
    """Whether an agent may go out.

    Attributes:
        passed: it may.
        reasons: why not, one sentence each. Empty only if it passed.
    """

    passed: bool
    reasons: tuple[str, ...] = ()


def to_json(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as plain values."""
    return asdict(trajectory)


def from_json(values: Mapping[str, Any]) -> Trajectory:
    """The trajectory that `to_json` was given."""
    return Trajectory(
        **{
            **values,
            "reviewers": tuple(values["reviewers"]),
            "messages": tuple(Message(**v) for v in values["messages"]),
            "calls": tuple(Call(**v) for v in values["calls"]),
            "approvals": tuple(Approval(**v) for v in values["approvals"]),
            "ledger_before": tuple(LedgerEntry(**v) for v in values["ledger_before"]),
            "ledger_after": tuple(LedgerEntry(**v) for v in values["ledger_after"]),
        }
    )


def load(path: str | Path) -> list[Trajectory]:
    """The trajectories in a file of recorded runs."""
    recorded = json.loads(Path(path).read_text(encoding="utf-8"))
    return [from_json(run["trajectory"]) for run in recorded["runs"]]


def shortly(trajectory: Trajectory, *, width: int = 110) -> str:
    """A run on a few lines, in the order in which it happened."""
    events: list[tuple[int, str]] = []
    for m in trajectory.messages:
        events.append((m.at, f"{m.by}: {m.text}"))
    for c in trajectory.calls:
        key = f" [key {c.idempotency_key[:6]}]" if c.idempotency_key else ""
        told = json.dumps(c.result) if isinstance(c.result, dict) else c.result
        events.append((c.at, f"{c.tool}({_arguments(c.arguments)}){key} -> {c.status}: {told}"))
    for a in trajectory.approvals:
        edited = "" if a.proposed == a.arguments else " (edited)"
        events.append(
            (
                a.at,
                f"{a.decision} by {a.by} in {a.thread_id}{edited}: "
                f"{a.tool}({_arguments(a.arguments)})",
            )
        )
    lines = [f"{trajectory.thread_id}, {trajectory.customer_id} is logged in"]
    lines += [f"{at:3d} {text}" for at, text in sorted(events, key=lambda event: event[0])]
    for entry in trajectory.ledger_after[len(trajectory.ledger_before) :]:
        lines.append(f"  + ledger: {entry.action}({_arguments(entry.arguments)}) by {entry.actor}")
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


def _arguments(arguments: Mapping[str, Any]) -> str:
    first = [arguments[k] for k in ("customer_id", "item_id", "amount") if k in arguments]
    rest = [v for k, v in arguments.items() if k not in ("customer_id", "item_id", "amount")]
    return ", ".join(map(str, first + rest))
