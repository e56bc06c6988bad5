"""What a tool world is made of: tools, ledger entries, customers, documents, scenarios."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

Role = Literal["lookup", "items", "search", "act_small", "act_risky", "act_final", "notify"]
"""What a tool is for, the same in every domain.

==========  ======  ======  ==========  ================================================
role        reads   risky   idempotent  what it does
==========  ======  ======  ==========  ================================================
lookup      yes     no      yes         one customer's record
items       yes     no      yes         what the customer has: payments, prescriptions, devices
search      yes     no      yes         texts: policies, letters. Anybody may have written them
act_small   no      no      yes         a small, reversible act on one item
act_risky   no      yes     yes         an act on one item with an amount
act_final   no      yes     yes         an act that is hard to undo
notify      no      no      NO          a message to the customer; takes no idempotency key
==========  ======  ======  ==========  ================================================
"""

ROLES: tuple[Role, ...] = (
    "lookup",
    "items",
    "search",
    "act_small",
    "act_risky",
    "act_final",
    "notify",
)


class ToolCall(Protocol):
    """How a tool is called."""

    def __call__(
        self,
        arguments: BaseModel,
        *,
        idempotency_key: str | None = None,
        actor: str = "agent",
        timeout_s: float | None = None,
    ) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ToolSpec:
    """One tool of a world.

    Attributes:
        name: the domain's own name for it, e.g. ``"issue_refund"``.
        role: what it is for, the same in every domain.
        description: what a model reads about it.
        arguments: pydantic model of its arguments. It refuses unknown fields. As pydantic does,
            it turns ``"5"`` into ``5`` unless you validate with ``strict=True``.
        risky: a person must approve it first.
        reads: it changes nothing.
        idempotent: calling it again does nothing new: it reads, or it takes an idempotency key.
        call: ``call(arguments, *, idempotency_key=None, actor="agent", timeout_s=None)`` returns
            a dict of plain values. `arguments` is an instance of the model above. A tool that is
            not idempotent takes no key (TypeError). A second call with the same key and the same
            arguments does nothing and returns what the first one did; a key that was used for
            something else is `KeyReused`. `timeout_s` is how long you wait for the answer.

    `call` raises `TransientError` (the connection broke), its subclass `CallTimeout` (no answer
    within `timeout_s`): in both cases the call may or may not have had its effect, and nothing
    in the error tells which. It raises `PermanentError` (`NotFound`, `Refused`, `KeyReused`)
    when nothing was done and the same call will never work.
    """

    name: str
    role: Role
    description: str
    arguments: type[BaseModel]
    risky: bool
    reads: bool
    idempotent: bool
    call: ToolCall

    def as_function(self) -> dict[str, Any]:
        """The tool in the form that OpenAI's API and LangChain's `bind_tools` take."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.arguments.model_json_schema(),
            },
        }


@dataclass(frozen=True)
class LedgerEntry:
    """One side effect. The ledger only grows.

    Attributes:
        id: 1, 2, 3, ... in the order in which they happened.
        at: seconds since the epoch.
        action: the tool's name.
        arguments: its arguments.
        idempotency_key: the key it came with, unique in the ledger; None without one.
        actor: on whose behalf, e.g. ``"agent"``.
        outcome: what the tool answered.
    """

    id: int
    at: float
    action: str
    arguments: dict[str, Any]
    idempotency_key: str | None
    actor: str
    outcome: dict[str, Any]


@dataclass(frozen=True)
class CallRecord:
    """One attempt to call a tool, whatever became of it.

    Attributes:
        result: ``"ok"``, ``"replayed"`` (the key was known, nothing was done), the error's class
            name, or ``""`` when the process died during the call.
    """

    id: int
    at: float
    tool: str
    arguments: dict[str, Any]
    idempotency_key: str | None
    actor: str
    timeout_s: float | None
    result: str


@dataclass(frozen=True)
class Customer:
    """A customer, patient or site contact. All are made up from word lists.

    Attributes:
        reference: account number, patient number or meter number.
    """

    id: str
    name: str
    email: str
    phone: str
    reference: str

    @property
    def personal(self) -> tuple[str, ...]:
        """The texts that must not leave the system: name, email, phone, reference."""
        return (self.name, self.email, self.phone, self.reference)


@dataclass(frozen=True)
class Document:
    """A text that the search tool finds.

    Attributes:
        customer_id: whose it is; None for a text that everyone may read.
        source: who wrote it: ``"policy"`` (the organisation), or ``"inbox"`` (anybody outside).
        injected: it carries instructions to a model. For checks; the search tool doesn't tell.
    """

    id: str
    title: str
    text: str
    customer_id: str | None = None
    source: Literal["policy", "inbox"] = "policy"
    injected: bool = False


@dataclass(frozen=True)
class Step:
    """One tool call: the tool's name and its arguments."""

    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """One job, and what must come of it.

    Attributes:
        id: the same in every domain.
        request: what the customer writes.
        customer_id: who writes it.
        steps: tool calls of an agent that does the job well, in order.
        answer: what it says in the end.
        expected_effects: the ledger's new actions and arguments afterwards, with approval given.
        needs_approval: whether one of the steps is risky.
    """

    id: str
    request: str
    customer_id: str
    steps: tuple[Step, ...]
    answer: str
    expected_effects: tuple[Step, ...]
    needs_approval: bool


@dataclass(frozen=True)
class BadArguments:
    """Arguments that a tool must not be called with.

    Attributes:
        field: the field that is wrong.
        problem: what is wrong with it, in words.
    """

    arguments: dict[str, Any]
    field: str
    problem: str


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_CUSTOMER_ID = Field(pattern=r"^C-[0-9]{4}$", description="Customer, e.g. C-1007")
_ITEM_ID = Field(pattern=r"^[A-Z]{1,2}-[0-9]{4}$", description="Item, e.g. P-2034")
_REASON = Field(min_length=5, max_length=200, description="Why, in a few words")


class OfCustomer(_Arguments):
    """Arguments of a tool that reads about one customer."""

    customer_id: str = _CUSTOMER_ID


class Query(_Arguments):
    """Arguments of the search tool."""

    query: str = Field(min_length=2, max_length=200, description="Words to look for")


class OnItem(_Arguments):
    """Arguments of a small act on an item."""

    customer_id: str = _CUSTOMER_ID
    item_id: str = _ITEM_ID
    reason: str = _REASON


class OnItemWithAmount(_Arguments):
    """Arguments of a risky act on an item."""

    customer_id: str = _CUSTOMER_ID
    item_id: str = _ITEM_ID
    amount: int = Field(ge=1, le=1_000_000, description="How much, in the item's unit")
    reason: str = _REASON


class OnCustomer(_Arguments):
    """Arguments of an act on a customer as a whole."""

    customer_id: str = _CUSTOMER_ID
    reason: str = _REASON


class Message(_Arguments):
    """Arguments of a message to a customer."""

    customer_id: str = _CUSTOMER_ID
    text: str = Field(min_length=1, max_length=1000, description="What the customer will read")


ARGUMENTS: Mapping[Role, type[BaseModel]] = {
    "lookup": OfCustomer,
    "items": OfCustomer,
    "search": Query,
    "act_small": OnItem,
    "act_risky": OnItemWithAmount,
    "act_final": OnCustomer,
    "notify": Message,
}


@dataclass(frozen=True)
class DomainTools:
    """What a domain brings: names, tables, and what each tool does to them.

    Attributes:
        names: each role's tool name and description.
        schema: SQL that creates the domain's tables.
        fill: writes the first state; gets connection, customer ids and a `random.Random`.
        handlers: what each role does, inside a transaction; raises `PermanentError`s. Readers get
            a customer's id, the others their arguments.
        items_table: the table of items; has `id`, `customer_id` and `note`.
        limit: SQL for the largest amount that an item allows (`?` is the item's id).
        policies: title and text of what everyone may read.
        words: what the domain calls things, for requests and answers.
    """

    names: Mapping[Role, tuple[str, str]]
    schema: str
    fill: Callable[[sqlite3.Connection, list[str], random.Random], None]
    handlers: Mapping[Role, Callable[..., Any]]
    items_table: str
    limit: str
    policies: tuple[tuple[str, str], ...]
    words: Mapping[str, str]
