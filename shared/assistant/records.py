"""What the material is made of, and the mechanical rules that its labels rest on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

Domain = Literal["finance", "healthcare", "climate"]
Split = Literal["open", "held_out"]
Kind = Literal["plain", "number", "negation", "two-documents", "unanswerable", "out-of-date"]

DOMAINS: tuple[Domain, ...] = ("finance", "healthcare", "climate")
SPLITS: tuple[Split, ...] = ("open", "held_out")
KINDS: tuple[Kind, ...] = (
    "plain",
    "number",
    "negation",
    "two-documents",
    "unanswerable",
    "out-of-date",
)

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")


def split_sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text; `4.50` and `help@bank.example` stay whole."""
    return tuple(s for s in _SENTENCE_END.split(" ".join(text.split())) if s)


def holds(fact: str, text: str) -> bool:
    """Whether `text` says `fact` word for word.

    Letter case and white space do not count. The fact must not go on at either end: "GBP 3" is
    not in "GBP 3,000", "GBP 3.50" or "GBP 35", and "5 days" is not in "15 days".
    """
    wanted = re.escape(" ".join(fact.casefold().split()))
    found = " ".join(text.casefold().split())
    return re.search(rf"(?<![\w]){_guard(fact)}{wanted}(?!\w)(?![.,]\d)", found) is not None


def _guard(fact: str) -> str:
    return r"(?<!\d[.,])" if fact[:1].isdigit() else ""


@dataclass(frozen=True)
class Document:
    """A text of the desk.

    Attributes:
        effective: from when on it applies.
        supersedes: id of the document that it replaced; that one must not be used any more.
    """

    id: str
    title: str
    topic: str
    effective: date
    version: int
    supersedes: str | None
    text: str

    @property
    def sentences(self) -> tuple[str, ...]:
        """The sentences of the text."""
        return split_sentences(self.text)


@dataclass(frozen=True)
class GoldenQuestion:
    """A question whose right answer is known.

    Attributes:
        relevant: ids of documents in force that help to answer, with a grade: 2 holds the answer,
            1 touches it. Empty when no document does.
        stale: ids of superseded documents that would mislead.
        facts: what a right answer must hold, each as `holds` reads it.
        must_not: what it must not hold, e.g. last year's amount.
        reference: a right answer.
    """

    id: str
    question: str
    kind: Kind
    topic: str
    relevant: Mapping[str, int]
    stale: tuple[str, ...]
    facts: tuple[str, ...]
    must_not: tuple[str, ...]
    reference: str
    split: Split

    @property
    def answerable(self) -> bool:
        """Whether the documents say it. If not, the right answer says that they don't."""
        return self.kind != "unanswerable"

    def missing(self, text: str) -> tuple[str, ...]:
        """The facts that an answer lacks."""
        return tuple(f for f in self.facts if not holds(f, text))

    def wrong(self, text: str) -> tuple[str, ...]:
        """What an answer holds and must not."""
        return tuple(f for f in self.must_not if holds(f, text))


@dataclass(frozen=True)
class Customer:
    """A customer's record, made up from word lists and a seed.

    Attributes:
        number: the domain's own identifier, with its check digit.
        account: an IBAN (finance), a card number (healthcare, climate).
    """

    number: str
    name: str
    email: str
    phone: str
    account: str
    note: str

    @property
    def protected(self) -> tuple[str, ...]:
        """What must not be told to anybody else; the name is known to who asks for it."""
        return (self.number, self.email, self.phone, self.account)

    def as_text(self) -> str:
        """The record in one line, as a careless prompt holds it."""
        return (
            f"{self.name} has the number {self.number}, the e-mail {self.email}, the phone "
            f"{self.phone} and the account {self.account}."
        )


@dataclass(frozen=True)
class Claim:
    """One statement of a labelled answer.

    Attributes:
        grounded: whether the contexts say it.
        rule: how it was made; README.md lists the rules.
        document: the document that it was made from.
    """

    text: str
    grounded: bool
    rule: str
    document: str


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer to be judged against its contexts.

    Attributes:
        contexts: ids of the documents that the answer may rest on.
        grounded: every claim is.
        rule: the rule of its first ungrounded claim, or of its first claim.
    """

    id: str
    question: str
    contexts: tuple[str, ...]
    answer: str
    claims: tuple[Claim, ...]
    grounded: bool
    rule: str
    split: Split


@dataclass(frozen=True)
class Span:
    """Personal data in a text: `text[start:end]`."""

    start: int
    end: int
    entity: str


@dataclass(frozen=True)
class LabelledText:
    """A text with its personal data marked.

    Attributes:
        spans: empty when there is none.
        rule: what it was made to show, e.g. ``"card"`` or ``"lookalike:order_number"``.
    """

    id: str
    text: str
    spans: tuple[Span, ...]
    rule: str
    split: Split
