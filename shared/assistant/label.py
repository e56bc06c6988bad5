"""Makes the labelled answers: `python -m shared.assistant.label` writes labelled/<domain>.jsonl.

An answer is one to three claims, each a sentence. A grounded claim is a sentence of the contexts,
or a paraphrase written by hand, changed at most in form. An ungrounded one was made false by one
rule, and the rule's condition is checked against all contexts. README.md states the rules.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

from shared.assistant import claims as rules
from shared.assistant.material import HERE, load_documents, load_golden, read_rows
from shared.assistant.records import DOMAINS, SPLITS, Claim, Document, Domain, LabelledAnswer, Split

SEED = 20261126
PER_LABEL = 78
"""Answers for each label in each split: 312 a domain."""

GROUNDED = ("verbatim", "paraphrase", "merged", "reformatted")
UNGROUNDED = (
    "number_changed",
    "entity_swapped",
    "negation_flipped",
    "condition_dropped",
    "unsupported_added",
    "other_document",
)
_SHARES = {"verbatim": 17, "paraphrase": 28, "merged": 17, "reformatted": 16}
_TRIES = 4000


@dataclass(frozen=True)
class Paraphrase:
    """What was written by hand about one sentence of a document.

    Attributes:
        paraphrase: says the same.
        flipped: says the contrary.
        dropped: leaves a condition out and so says too much; empty where there is none.
    """

    document: str
    source: str
    paraphrase: str
    flipped: str
    dropped: str = ""


@dataclass
class _Pool:
    """What one split of a domain is made from."""

    domain: Domain
    split: Split
    documents: list[Document]
    paraphrases: list[Paraphrase]
    unsupported: list[str]
    superseded: dict[str, Document]
    foreign: set[str]
    """Sentences that documents of the other split hold too: a claim belongs to one split."""
    rng: random.Random
    used: set[str] = field(default_factory=set)
    spent: list[str] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for document in (*self.superseded.values(), *self.documents):
            self.origin |= dict.fromkeys(document.sentences, document.id)
        self.origin |= {p.paraphrase: p.document for p in self.paraphrases}

    def of(self, document: Document) -> list[Paraphrase]:
        return [p for p in self.paraphrases if p.document == document.id]

    def contexts(self, document: Document) -> list[Document]:
        """The document and two others, of the same topic where there are any."""
        others = [d for d in self.documents if d.id != document.id]
        self.rng.shuffle(others)
        others.sort(key=lambda d: d.topic != document.topic)
        chosen = [document, *others[: self.rng.choice((1, 2))]]
        self.rng.shuffle(chosen)
        return chosen

    def sentence(self, document: Document) -> str:
        """A sentence of a document or a paraphrase of one, the latter twice as often."""
        by_hand = self.of(document)
        if by_hand and self.rng.random() < 0.67:
            return self.rng.choice(by_hand).paraphrase
        return self.rng.choice(document.sentences)


Maker = Callable[[_Pool, Document, list[Document]], "str | None"]


def make_labelled(domain: Domain, seed: int = SEED) -> list[LabelledAnswer]:
    """The labelled answers of a domain; the same seed gives the same ones."""
    made: list[LabelledAnswer] = []
    for split in SPLITS:
        pool = _pool(domain, split, seed)
        rows = [_make(pool, rule) for rule in _plan()]
        pool.rng.shuffle(rows)
        start = len(made) + 1
        made += [_numbered(row, domain, start + n) for n, row in enumerate(rows)]
    return made


def split_of(documents: Sequence[Document]) -> dict[str, Split]:
    """Which split a document's claims belong to: near-duplicates together, the rest in turn."""
    split: dict[str, Split] = {}
    turns: list[Document] = []
    for document in documents:
        twin = next((d for d in turns if _alike(d, document)), None)
        if twin is not None:
            split[document.id] = split[twin.id]
        else:
            counts = [sum(s == which for s in split.values()) for which in SPLITS]
            split[document.id] = SPLITS[counts[0] > counts[1]]
        turns.append(document)
    return split


def load_paraphrases(domain: str) -> list[Paraphrase]:
    """What was written by hand about the domain's documents."""
    return [Paraphrase(**r) for r in read_rows(HERE / "paraphrases" / f"{domain}.jsonl")]


def main() -> None:
    """Write the files anew."""
    folder = HERE / "labelled"
    folder.mkdir(exist_ok=True)
    for domain in DOMAINS:
        lines = [json.dumps(asdict(a), ensure_ascii=False) for a in make_labelled(domain)]
        (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _plan() -> Iterator[str]:
    for rule in GROUNDED:
        yield from [rule] * _SHARES[rule]
    for rule in UNGROUNDED:
        yield from [rule] * (PER_LABEL // len(UNGROUNDED))


def _pool(domain: Domain, split: Split, seed: int) -> _Pool:
    documents = load_documents(domain)
    where = split_of(documents)
    every = {d.id: d for d in load_documents(domain, superseded=True)}
    lines = (HERE / "unsupported" / f"{domain}.txt").read_text(encoding="utf-8").splitlines()
    return _Pool(
        domain=domain,
        split=split,
        documents=[d for d in documents if where[d.id] == split],
        paraphrases=[p for p in load_paraphrases(domain) if where[p.document] == split],
        unsupported=lines[SPLITS.index(split) :: 2],
        foreign={s for d in documents if where[d.id] != split for s in d.sentences},
        superseded={d.id: every[d.supersedes] for d in documents if d.supersedes},
        rng=random.Random(f"labelled {domain} {split} {seed}"),
    )


def _make(pool: _Pool, rule: str) -> LabelledAnswer:
    for _ in range(_TRIES):
        document = pool.rng.choice(pool.documents)
        contexts = pool.contexts(document)
        text = _MAKERS[rule](pool, document, contexts)
        if text is None or text in pool.used | pool.foreign:
            continue
        if rule in UNGROUNDED and rule != "unsupported_added" and pool.rng.random() < 0.3:
            half = pool.sentence(pool.rng.choice(contexts))
            if _same_matter(pool, text, half):
                continue
            source = pool.origin.get(text, document.id)
            first, second = pool.rng.sample((text, half), 2)
            text = rules.merge(first, second, pool.rng)
            pool.origin[text] = source
        source = pool.origin.get(text, document.id)
        main = Claim(text, rule in GROUNDED, rule, source)
        claims = _with_others(pool, main, contexts)
        answer = " ".join(c.text for c in claims)
        if answer in pool.used:
            continue
        pool.used |= {text, answer}
        return LabelledAnswer(
            id="",
            question=_question(pool, document),
            contexts=tuple(d.id for d in contexts),
            answer=answer,
            claims=tuple(claims),
            grounded=main.grounded,
            rule=rule,
            split=pool.split,
        )
    raise RuntimeError(f"{pool.domain}, {pool.split}: no more answers for {rule}")


def _with_others(pool: _Pool, main: Claim, contexts: list[Document]) -> list[Claim]:
    """The claim among none to two grounded ones, about the same documents."""
    claims = [main]
    for _ in range(pool.rng.choice((0, 1, 1, 2))):
        document = pool.rng.choice(contexts)
        by_hand = [p.paraphrase for p in pool.of(document)]
        rule = "paraphrase" if by_hand and pool.rng.random() < 0.67 else "verbatim"
        text = pool.rng.choice(by_hand if rule == "paraphrase" else document.sentences)
        repeats = any(_same_matter(pool, text, c.text) for c in claims)
        if not repeats and text not in pool.foreign:
            claims.insert(pool.rng.randint(0, len(claims)), Claim(text, True, rule, document.id))
    return claims


def _same_matter(pool: _Pool, one: str, other: str) -> bool:
    """Whether two claims come from the same sentence: together they would contradict or repeat."""
    for p in pool.paraphrases:
        forms = (p.source, p.paraphrase, p.flipped, p.dropped)
        if one in forms and other in forms:
            return True
    a, b = (set(t.casefold().split()) for t in (one, other))
    return len(a & b) > 0.6 * min(len(a), len(b))


def _question(pool: _Pool, document: Document) -> str:
    fitting = [
        q.question for q in load_golden(pool.domain, pool.split) if q.relevant.get(document.id) == 2
    ]
    return pool.rng.choice(fitting) if fitting else f"What applies to: {document.title}?"


def _numbered(row: LabelledAnswer, domain: Domain, number: int) -> LabelledAnswer:
    return LabelledAnswer(**{**vars(row), "id": f"{domain[:3].upper()}-L{number:03d}"})


def _alike(one: Document, other: Document) -> bool:
    return len(set(one.sentences) & set(other.sentences)) >= 2


def _text(contexts: Sequence[Document]) -> str:
    return " ".join(f"{d.title}. {d.text}" for d in contexts)


def _verbatim(pool: _Pool, document: Document, contexts: list[Document]) -> str | None:
    return pool.rng.choice(document.sentences)


def _paraphrase(pool: _Pool, document: Document, contexts: list[Document]) -> str | None:
    by_hand = pool.of(document)
    return pool.rng.choice(by_hand).paraphrase if by_hand else None


def _merged(pool: _Pool, document: Document, contexts: list[Document]) -> str | None:
    first, second = pool.sentence(document), pool.sentence(pool.rng.choice(contexts))
    if _same_matter(pool, first, second):
        return None
    return rules.merge(first, second, pool.rng)


def _reformatted(pool: _Pool, document: Document, contexts: list[Document]) -> str | None:
    return rules.reformat(pool.sentence(document), pool.rng)


def _number_changed(pool: _Pool, document: Document, contexts: list[Document]) -> str | None:
    taken = rules.numbers(_text(contexts))
    return rules.change_number(pool.sentence(document), taken, pool.rng)


def _entity_swapped(pool: _Pool, document: Document, contexts: list[Document]) -> str | None:
    groups = rules.ENTITIES[pool.domain]
    return rules.swap_entity(pool.sentence(document), groups, _text(contexts), pool.rng)


def _negation_flipped(pool: _Pool, document: Document, contexts: list[Document]) -> str | None:
    by_hand = pool.of(document)
    if by_hand and pool.rng.random() < 0.6:
        return pool.rng.choice(by_hand).flipped
    return rules.flip(pool.rng.choice(document.sentences))


def _condition_dropped(pool: _Pool, document: Document, contexts: list[Document]) -> str | None:
    by_hand = [p.dropped for p in pool.of(document) if p.dropped]
    cut = [s for s in map(rules.drop_condition, document.sentences) if s]
    found = [*by_hand, *cut]
    return pool.rng.choice(found) if found else None


def _unsupported_added(pool: _Pool, document: Document, contexts: list[Document]) -> str | None:
    if not pool.spent:
        pool.spent = pool.rng.sample(pool.unsupported, len(pool.unsupported))
    added = pool.spent.pop()
    if pool.rng.random() < 0.5:
        return added
    return rules.merge(pool.sentence(document), added, pool.rng)


def _other_document(pool: _Pool, document: Document, contexts: list[Document]) -> str | None:
    """A sentence of the superseded version or of a document of this split that is no context.

    It must hold a number or a name that no context holds.
    """
    old = pool.superseded.get(document.id)
    given = {d.id for d in contexts}
    others = [d for d in pool.documents if d.id not in given]
    source = old if old and pool.rng.random() < 0.7 else pool.rng.choice(others)
    sentence = pool.rng.choice(source.sentences) if source is old else pool.sentence(source)
    text = _text(contexts)
    if not rules.numbers(sentence) - rules.numbers(text) and not any(
        name in sentence and name not in text
        for group in rules.ENTITIES[pool.domain]
        for name in group
    ):
        return None
    return sentence


_MAKERS: dict[str, Maker] = {
    "verbatim": _verbatim,
    "paraphrase": _paraphrase,
    "merged": _merged,
    "reformatted": _reformatted,
    "number_changed": _number_changed,
    "entity_swapped": _entity_swapped,
    "negation_flipped": _negation_flipped,
    "condition_dropped": _condition_dropped,
    "unsupported_added": _unsupported_added,
    "other_document": _other_document,
}


if __name__ == "__main__":
    main()
