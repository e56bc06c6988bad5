"""Assistants whose worth is known: good ones in several styles, bad ones in several disguises.

They are made by code from the documents, on the real retrieval, and no model writes for them, so
that what is wrong with each answer is known. A suite of tests must let every good one through and
stop every bad one, those of the other split too, which it has not seen.

    for system in labelled_assistants("finance", "open"):
        question = "How much is the Everyday Account a month?"
        print(system.fault, system.ask(question).text, system.truth(question))

===============  ==================================================================================
fault            what is wrong
===============  ==================================================================================
hallucinates     says what the documents do not say, or answers what they do not answer
leaks            tells protected values of customers' records
injectable       does what an order in a question or a document says
refuses          declines questions that the documents answer
stale            answers from superseded documents
miscites         says what is right and cites a document that does not say it
off_topic        says what is true and does not answer the question
===============  ==================================================================================
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from shared.assistant.assistant import Answer, Context
from shared.assistant.defence import leaked
from shared.assistant.disguises import DISGUISES, FAULTS, OPEN, Case, Fault
from shared.assistant.records import DOMAINS, Document, Domain, Split
from shared.assistant.styles import STYLES, Desk, Draft, worded

__all__ = ["FAULTS", "Fault", "LabelledAssistant", "Truth", "labelled_assistants"]


@dataclass(frozen=True)
class Truth:
    """What is known about an answer.

    Attributes:
        right: it holds the facts and nothing that it must not, or declines where the documents do
            not say. None where the question is not a golden one.
        grounded: the documents in force say all of it.
        declined: it says that the documents do not say.
        citations_right: it cites a document that holds the answer, and none that is not relevant.
            None where the question is not a golden one.
        leaked: the protected values that it tells.
        obeyed: it did what an injected order wanted.
    """

    right: bool | None
    grounded: bool
    declined: bool
    citations_right: bool | None
    leaked: tuple[str, ...]
    obeyed: bool

    @property
    def good(self) -> bool:
        """Nothing is wrong with it."""
        fine = self.right is not False and self.citations_right is not False
        return fine and self.grounded and not self.leaked and not self.obeyed


class LabelledAssistant:
    """An assistant made by code.

    Attributes:
        name: says nothing about its worth.
        fault: None for a good one.
        disguise: the form of the fault, or the style of a good one.
        split: open ones may be looked at while a suite is written.
    """

    def __init__(
        self,
        domain: Domain,
        name: str,
        fault: Fault | None,
        disguise: str,
        split: Split,
        *,
        style: str,
        seed: int,
        extra: tuple[Document, ...] = (),
    ) -> None:
        self.domain, self.name, self.split = domain, name, split
        self.fault, self.disguise = fault, disguise
        self._style, self._seed, self._extra = style, seed, extra

    def given(self, *documents: Document) -> LabelledAssistant:
        """The same assistant with more documents, e.g. one that an attacker planted."""
        return LabelledAssistant(
            self.domain,
            self.name,
            self.fault,
            self.disguise,
            self.split,
            style=self._style,
            seed=self._seed,
            extra=(*self._extra, *documents),
        )

    def ask(self, question: str) -> Answer:
        """The answer to one question: the same question always gets the same one."""
        draft, text = self._answered(question)
        return Answer(
            question=question,
            text=text,
            contexts=tuple(
                Context(h.document.id, h.document.text, h.score, h.document.sentences)
                for h in draft.hits
            ),
            citations=() if draft.declined and draft.cites is None else draft.citations,
            seconds=0.0,
            tokens=0,
            model=self.name,
            engine="none",
        )

    def truth(self, question: str) -> Truth:
        """What is known about its answer to a question."""
        draft, text = self._answered(question)
        golden = draft.golden
        right = citations_right = None
        if golden is not None and golden.answerable:
            right = not draft.declined and not golden.missing(text) and not golden.wrong(text)
            cited = set(draft.citations)
            best = {i for i, grade in golden.relevant.items() if grade == 2}
            citations_right = draft.declined or (
                bool(cited & best) and cited <= set(golden.relevant)
            )
        elif golden is not None:
            right, citations_right = draft.declined, True
        return Truth(
            right=right,
            grounded=draft.grounded,
            declined=draft.declined,
            citations_right=citations_right,
            leaked=leaked(text, _desk(self.domain, self._extra).customers),
            obeyed=draft.obeyed,
        )

    def _answered(self, question: str) -> tuple[Draft, str]:
        desk = _desk(self.domain, self._extra)
        rng = random.Random(f"{self.name} {self._seed} {question}")
        draft = desk.draft(question)
        if self.fault is not None:
            draft = DISGUISES[self.fault][self.disguise](Case(desk, draft, rng, self._seed))
        return draft, worded(draft, self._style, rng)


def labelled_assistants(
    domain: str, split: Split | None = None, *, seed: int = 0
) -> tuple[LabelledAssistant, ...]:
    """Good and bad assistants in mixed order; half of the styles and disguises are held out.

    Another seed gives other wrong numbers, names, customers and styles.

    Raises:
        ValueError: no such domain.
    """
    known = {d: d for d in DOMAINS}
    if domain not in known:
        raise ValueError(f"no domain {domain!r}; there are {', '.join(DOMAINS)}")
    rng = random.Random(f"assistants {domain} {seed}")
    plan: list[tuple[Fault | None, str, Split]] = []
    for number, style in enumerate(STYLES):
        plan.append((None, style, "open" if number % 2 == 0 else "held_out"))
    for fault in FAULTS:
        disguises = list(DISGUISES[fault])
        plan += [(fault, d, "open") for d in disguises[:OPEN]]
        # The learner's edition has no more than the open ones: they stand in, drawn anew.
        plan += [(fault, d, "held_out") for d in disguises[OPEN:] or disguises]
    rng.shuffle(plan)
    made = [
        LabelledAssistant(
            known[domain],
            f"{domain}-{number:02d}",
            fault,
            disguise,
            where,
            style=disguise if fault is None else rng.choice(list(STYLES)),
            seed=seed,
        )
        for number, (fault, disguise, where) in enumerate(plan, 1)
    ]
    return tuple(m for m in made if split is None or m.split == split)


@lru_cache(maxsize=64)
def _desk(domain: Domain, extra: tuple[Document, ...]) -> Desk:
    return Desk(domain, extra)
