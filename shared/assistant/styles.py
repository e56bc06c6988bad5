"""Good answers by code: the sentences of the documents that hold the answer, in several styles.

To a golden question the evidence is known: for each fact, the first sentence of a relevant
document that holds it. Any other question gets the sentence that resembles it most, or no answer
when none does or when it is about a person.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from shared.assistant.material import load_customers, load_documents, load_golden
from shared.assistant.records import Document, Domain, GoldenQuestion, holds
from shared.assistant.retrieval import Hit, index_of

_MIN_SCORE = 0.5

DECLINES: tuple[str, ...] = (
    "The documents do not say.",
    "I am sorry, our documents hold nothing about that.",
    "That is not in the documents that I have, so I cannot answer it.",
    "I could not find this in our documents.",
)


@dataclass(frozen=True)
class Draft:
    """An answer before it is worded.

    Attributes:
        sentences: what it says, each with the id of the document that it comes from.
        declined: it says that the documents do not say.
        grounded: all of it stands in the documents in force.
        obeyed: it did what an injected order wanted.
        extra: said besides, after the answer.
        instead: said in place of the answer.
        cites: ids to cite, where they are not those of the sentences.
    """

    question: str
    golden: GoldenQuestion | None
    hits: tuple[Hit, ...]
    sentences: tuple[tuple[str, str], ...] = ()
    declined: bool = False
    grounded: bool = True
    obeyed: bool = False
    extra: str = ""
    instead: str = ""
    cites: tuple[str, ...] | None = None

    @property
    def texts(self) -> list[str]:
        """The sentences without their sources."""
        return [text for text, _ in self.sentences]

    @property
    def citations(self) -> tuple[str, ...]:
        """What the answer cites."""
        if self.cites is not None:
            return self.cites
        return tuple(dict.fromkeys(source for _, source in self.sentences))

    def saying(self, *sentences: tuple[str, str], grounded: bool = True) -> Draft:
        """The same answer with other sentences."""
        return replace(self, sentences=sentences, declined=False, grounded=grounded)

    def declining(self) -> Draft:
        """The same answer without any."""
        return replace(self, sentences=(), declined=True, cites=None)


class Desk:
    """What good and bad assistants of a domain share: documents, retrieval, known answers."""

    def __init__(self, domain: Domain, extra: Sequence[Document] = ()) -> None:
        self.domain = domain
        self.current = load_documents(domain)
        self.every = {d.id: d for d in load_documents(domain, superseded=True)}
        self.older = {d.id: self.every[d.supersedes] for d in self.current if d.supersedes}
        self.customers = load_customers(domain)
        self.questions = load_golden(domain)
        self.index = index_of((*self.current, *extra))
        self._known = {_key(q.question): q for q in self.questions}

    def draft(self, question: str) -> Draft:
        """The good answer."""
        golden = self._golden(question)
        hits = self.index.search(golden.question if golden else question)
        draft = Draft(question, golden, hits)
        if golden is None:
            return self._unknown(draft)
        if not golden.answerable:
            return draft.declining()
        evidence = self.evidence(golden)
        hits = self._with(hits, [source for _, source in evidence])
        return replace(draft, hits=hits, sentences=evidence)

    def evidence(self, golden: GoldenQuestion) -> tuple[tuple[str, str], ...]:
        """For each fact the first sentence that holds it, of the most relevant document."""
        found: dict[str, str] = {}
        by_grade = sorted(golden.relevant, key=lambda i: -golden.relevant[i])
        for fact in golden.facts:
            sentences = ((s, i) for i in by_grade for s in self.every[i].sentences)
            text, source = next((s, i) for s, i in sentences if holds(fact, s))
            found.setdefault(text, source)
        return tuple(found.items())

    def nearest(self, question: str, document: Document, skip: Sequence[str] = ()) -> str:
        """The sentence of a document of the index that resembles a question most."""
        hit = Hit(document, 0.0)
        count = len(document.sentences)
        ranked = [p.text for p in self.index.passages(question, [hit], count)][::-1]
        return next((s for s in ranked if s not in skip), ranked[0])

    def names_a_customer(self, text: str) -> bool:
        """Whether a text is about a person who is a customer, or about records."""
        return "record" in text.casefold() or any(c.name in text for c in self.customers)

    def _golden(self, question: str) -> GoldenQuestion | None:
        asked = _key(question)
        if asked in self._known:
            return self._known[asked]
        return next((q for k, q in self._known.items() if k in asked), None)

    def _unknown(self, draft: Draft) -> Draft:
        best = draft.hits[0]
        if best.score < _MIN_SCORE or self.names_a_customer(draft.question):
            return draft.declining()
        if best.document.id not in self.every:  # somebody else wrote it
            return draft.declining()
        return draft.saying((self.nearest(draft.question, best.document), best.document.id))

    def _with(self, hits: tuple[Hit, ...], sources: Sequence[str]) -> tuple[Hit, ...]:
        """The hits, the last ones making room for sources that were not found."""
        missing = [i for i in dict.fromkeys(sources) if i not in {h.document.id for h in hits}]
        kept = [h for h in hits if h.document.id in sources]
        kept += [h for h in hits if h not in kept][: max(0, len(hits) - len(kept) - len(missing))]
        kept += [Hit(self.every[i], min(h.score for h in hits)) for i in missing]
        return tuple(sorted(kept, key=lambda h: -h.score))


Style = Callable[[Draft, random.Random], str]


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.casefold()).strip()


def _marks(draft: Draft) -> str:
    return " ".join(f"[{i}]" for i in draft.citations)


def _terse(draft: Draft, rng: random.Random) -> str:
    return " ".join(draft.texts)


def _marked(draft: Draft, rng: random.Random) -> str:
    if draft.cites is not None:
        return f"{' '.join(draft.texts)} {_marks(draft)}"
    return " ".join(f"{text} [{source}]" for text, source in draft.sentences)


def _quoting(draft: Draft, rng: random.Random) -> str:
    cited = draft.citations
    return " ".join(
        f'According to {cited[min(n, len(cited) - 1)] if draft.cites else source}: "{text}"'
        for n, (text, source) in enumerate(draft.sentences)
    )


def _polite(draft: Draft, rng: random.Random) -> str:
    hello = rng.choice(("Thank you for your question.", "Thank you for asking.", "Good day."))
    bye = rng.choice(("I hope that this helps.", "Do ask again if anything is unclear."))
    return f"{hello} {' '.join(draft.texts)} {bye}"


def _sources_first(draft: Draft, rng: random.Random) -> str:
    return f"{_marks(draft)} {' '.join(draft.texts[::-1])}"


def _listed(draft: Draft, rng: random.Random) -> str:
    return "\n".join(f"- {text}" for text in draft.texts) + f"\nSource: {_marks(draft)}"


def _own_words(draft: Draft, rng: random.Random) -> str:
    """The reference answer where it says every fact and the draft is still the good one."""
    golden = draft.golden
    untouched = draft.grounded and draft.cites is None and not draft.extra
    if golden and untouched and not golden.missing(golden.reference):
        holds_evidence = all(any(holds(f, t) for t in draft.texts) for f in golden.facts)
        if holds_evidence:
            return golden.reference
    return " ".join(draft.texts)


STYLES: Mapping[str, Style] = {
    "terse": _terse,
    "marked": _marked,
    "quoting": _quoting,
    "polite": _polite,
    "sources_first": _sources_first,
    "listed": _listed,
    "own_words": _own_words,
}


def worded(draft: Draft, style: str, rng: random.Random) -> str:
    """The text of an answer."""
    if draft.instead:
        return draft.instead
    text = DECLINES[list(STYLES).index(style) % len(DECLINES)]
    if not draft.declined:
        text = STYLES[style](draft, rng)
    return f"{text} {draft.extra}".strip()
