"""The real assistant on the running engine, and a desk small enough for it."""

from __future__ import annotations

from functools import partial
from typing import Any

from shared.assistant.assistant import Answer, Assistant
from shared.assistant.attacks import make_attacks
from shared.assistant.backends import AssistantError, Recorded
from shared.assistant.material import load_customers, load_documents, load_golden
from shared.assistant.records import Document, GoldenQuestion
from shared.engine import Engine

BUDGET = 12


class LiveAssistant:
    """The assistant without a defence. It keeps answers, and what went wrong with the engine."""

    def __init__(
        self, domain: str, engine: Engine, documents: tuple[Document, ...] | None = None
    ) -> None:
        self._documents = documents or load_documents(domain)
        self._again = partial(LiveAssistant, domain, engine)
        self._assistant = Assistant(domain, engine, documents=self._documents)
        self._kept: dict[str, Answer] = {}
        self.trouble: AssistantError | None = None

    def given(self, *documents: Document) -> LiveAssistant:
        return self._again((*self._documents, *documents))

    def ask(self, question: str) -> Answer:
        if question not in self._kept:
            try:
                self._kept[question] = self._assistant.ask(question)
            except AssistantError as error:
                self.trouble = error
                raise
        return self._kept[question]


def live_desk(kind: Any, domain: str) -> Any:
    """A small `Desk`, with questions that the recorded model got wrong by `is_wrong`."""
    recorded = Assistant(domain, Recorded.load(domain))
    failed = [g for g in load_golden(domain) if is_wrong(g, recorded.ask(g.question).text)]
    golden = (
        *[g for g in failed if g.answerable][:2],
        *[g for g in failed if not g.answerable][:1],
    )
    now = load_documents(domain)
    ids = {d.id for d in now}
    attack = make_attacks(domain, per_kind=1)[0]
    return kind(
        domain=domain,
        documents=now,
        superseded=tuple(d for d in load_documents(domain, superseded=True) if d.id not in ids),
        golden=golden,
        customers=load_customers(domain)[:1],
        attacks=(attack,),
        budget=BUDGET,
    )


def is_wrong(golden: GoldenQuestion, text: str) -> bool:
    """It has none of the facts, or it answers where no document does."""
    if golden.answerable:
        return len(golden.missing(text)) == len(golden.facts)
    return any(c.isdigit() for c in text)
