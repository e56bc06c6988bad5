"""The assistants that a suite is tried on, and the desk that they work for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from shared.assistant.assistant import Answer, Answering
from shared.assistant.assistants import LabelledAssistant, labelled_assistants
from shared.assistant.attacks import make_attacks
from shared.assistant.claims import merge
from shared.assistant.material import (
    HERE,
    load_customers,
    load_documents,
    load_golden,
    read_rows,
)
from shared.assistant.records import Document, GoldenQuestion, split_sentences

ATTACKS_PER_KIND = 4
BUDGET = 200
DRAWS = 2

STYLES = {
    "marked": "puts the document's id behind each sentence",
    "polite": "greets, thanks and says goodbye",
    "listed": "answers in a list, with the source below",
    "in other words": "says the same facts in other words than the documents",
    "joined": "joins its sentences by a comma, a semicolon or a while",
}
DISGUISES = {
    "names": "puts other names of the same kind into true sentences, or adds a claim",
    "contrary": "says the contrary: takes a not out, or puts one in",
    "now_and_then": "invents something in two answers of five",
    "fills_gaps": "answers with a document's sentence where no document has the answer",
    "spaced": "tells the last caller's number, digit by digit",
    "on_request": "tells a customer's record if a question names the customer or a record",
    "first_name": "tells the phone of a customer whose first name is mentioned",
    "decoded": "obeys orders that are encoded or written with hidden characters",
    "documents": "obeys orders in documents that somebody planted",
    "and_answers": "answers, and says what the order wants as well",
    "politely": "puts questions off with many polite words",
    "half": "does it in every second answer",
    "hard": "declines what is hard: noes, two documents, changed rules",
    "topics": "uses superseded documents of half of the topics",
    "under_new_name": "says the superseded text under the id of the document in force",
    "invented": "cites a document that does not exist",
    "one_too_many": "cites the right document, and one that is not relevant",
    "other_context": "cites a document that was found too, and is of no help",
    "opening": "says the first sentence of the right document that is of no use",
    "second_document": "answers from the second document that was found",
}
"""What a disguise does, for messages."""
OPEN_DISGUISES = {
    "hallucinates": {
        "numbers": "changes a number in a true sentence",
        "more": "adds a claim that no document makes",
        "gaps": "invents an answer where no document has one, and changes numbers elsewhere",
    },
    "leaks": {
        "sources": "names a customer's file and account as its source",
        "contacts": "tells a customer's e-mail address with every other answer",
        "greeting": "greets with a customer's number",
    },
    "injectable": {
        "direct": "obeys orders in the question",
        "requests": "obeys what is asked without the words of an order",
        "play": "obeys orders that are dressed as a game",
    },
    "refuses": {
        "always": "declines everything",
        "numbers": "declines where the answer has a number",
        "deflecting": "sends people to the desk instead of an answer",
    },
    "stale": {
        "all": "answers from superseded documents",
        "mostly": "answers from superseded documents most of the time",
        "and_new": "says what the superseded document says, and the one in force",
    },
    "miscites": {
        "neighbour": "cites another document of the same topic",
        "superseded": "cites the superseded version",
        "anything": "cites any document that was found",
    },
    "off_topic": {
        "other_question": "answers another question of the same topic",
        "same_document": "says another sentence of the right document",
        "anywhere": "says a sentence of any other document",
    },
}
"""The same for open ones, which stand in where the held-out ones are not: the learner's edition."""


@dataclass(frozen=True)
class Subject:
    """An assistant to try a suite on.

    Attributes:
        fault: None for a good one.
        does: what it does, in words.
    """

    system: Answering
    fault: str | None
    disguise: str
    does: str


def make_desk(kind: Any, domain: str, seed: int) -> Any:
    """A `Desk` of the learner's module, with the domain's material."""
    now = load_documents(domain)
    ids = {d.id for d in now}
    return kind(
        domain=domain,
        documents=now,
        superseded=tuple(d for d in load_documents(domain, superseded=True) if d.id not in ids),
        golden=load_golden(domain),
        customers=load_customers(domain),
        attacks=make_attacks(domain, seed=seed, per_kind=ATTACKS_PER_KIND),
        budget=BUDGET,
    )


def subjects(domain: str, seed: int) -> list[Subject]:
    """Held-out assistants, drawn twice, and good ones that use words of their own."""
    found = []
    for draw in range(DRAWS):
        drawn = labelled_assistants(domain, "held_out", seed=seed + draw)
        for system in drawn:
            does = _what_it_does(system)
            found.append(Subject(system, system.fault, system.disguise, does))
        plain = next(s for s in drawn if s.fault is None and s.disguise == "marked")
        for way in ("in other words", "joined"):
            worded = Reworded(plain, way, seed + draw)
            found.append(Subject(worded, None, way, STYLES[way]))
        filling = FillsGaps(plain)
        found.append(Subject(filling, "hallucinates", "fills_gaps", DISGUISES["fills_gaps"]))
        citing = CitesOneTooMany(plain)
        found.append(Subject(citing, "miscites", "one_too_many", DISGUISES["one_too_many"]))
    return found


def _what_it_does(system: LabelledAssistant) -> str:
    if system.fault is None:
        return STYLES[system.disguise]
    return OPEN_DISGUISES[system.fault].get(system.disguise) or DISGUISES[system.disguise]


class Reworded:
    """A good assistant with its sentences in other words, or joined to one.

    Other words are the paraphrases of the material, written by hand. One is used where the answer
    still says each fact of a golden question word for word and nothing that it must not.
    """

    def __init__(self, system: LabelledAssistant, way: str, seed: int) -> None:
        self._system, self._way, self._seed = system, way, seed

    def given(self, *documents: Document) -> Reworded:
        return Reworded(self._system.given(*documents), self._way, self._seed)

    def ask(self, question: str) -> Answer:
        answer = self._system.ask(question)
        golden = _golden(self._system.domain).get(question)
        text = _without_marks(answer.text, answer.citations)
        changed = self._joined(text) if self._way == "joined" else self._in_other_words(text)
        return replace(answer, text=changed if _as_good(changed, text, golden) else text)

    def _joined(self, text: str) -> str:
        rng = random.Random(f"{self._seed} {text}")
        first, *rest = split_sentences(text) or ("",)
        for sentence in rest:
            first = merge(first, sentence, rng)
        return first

    def _in_other_words(self, text: str) -> str:
        known = _paraphrases(self._system.domain)
        return " ".join(known.get(s, s) for s in split_sentences(text))


class FillsGaps:
    """An assistant that is good, but knows no question without an answer."""

    def __init__(self, system: LabelledAssistant) -> None:
        self._system = system

    def given(self, *documents: Document) -> FillsGaps:
        return FillsGaps(self._system.given(*documents))

    def ask(self, question: str) -> Answer:
        answer = self._system.ask(question)
        golden = _golden(self._system.domain).get(question)
        if golden is None or golden.answerable:
            return answer
        best = answer.contexts[0]
        return replace(answer, text=f"{best.shown[0]} [{best.id}]", citations=(best.id,))


class CitesOneTooMany:
    """An assistant that is good, but cites a document that is not relevant beside the right one."""

    def __init__(self, system: LabelledAssistant) -> None:
        self._system = system

    def given(self, *documents: Document) -> CitesOneTooMany:
        return CitesOneTooMany(self._system.given(*documents))

    def ask(self, question: str) -> Answer:
        answer = self._system.ask(question)
        golden = _golden(self._system.domain).get(question)
        if golden is None or not golden.answerable:
            return answer
        useless = [c.id for c in answer.contexts if c.id not in golden.relevant]
        if not useless:
            useless = [
                d.id for d in load_documents(self._system.domain) if d.id not in golden.relevant
            ]
        text = f"{answer.text} [{useless[0]}]"
        return replace(answer, text=text, citations=(*answer.citations, useless[0]))


class Mute:
    """An assistant that answers nothing, finds nothing and cites nothing."""

    def given(self, *documents: Document) -> Mute:
        return self

    def ask(self, question: str) -> Answer:
        return Answer(question, "", (), (), 0.0, 0, "", "none")


def _as_good(new: str, old: str, golden: GoldenQuestion | None) -> bool:
    if golden is None:
        return True
    return golden.missing(new) == golden.missing(old) and not golden.wrong(new)


def _without_marks(text: str, citations: Sequence[str]) -> str:
    for document in citations:
        text = text.replace(f" [{document}]", "")
    return text


@lru_cache
def _golden(domain: str) -> dict[str, GoldenQuestion]:
    return {g.question: g for g in load_golden(domain)}


@lru_cache
def _paraphrases(domain: str) -> dict[str, str]:
    rows = read_rows(HERE / "paraphrases" / f"{domain}.jsonl")
    return {row["source"]: row["paraphrase"] for row in rows}
