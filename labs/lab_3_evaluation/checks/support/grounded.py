"""For the checks of task 3.2: claims that differ in one thing, scored answers, baselines."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from deepeval.test_case import LLMTestCase
from sklearn.metrics import roc_auc_score

from shared.assistant import claims as rules
from shared.assistant.label import load_paraphrases
from shared.assistant.material import contexts_of, load_documents, load_labelled
from shared.assistant.records import Document, LabelledAnswer, split_sentences
from shared.grading.expect import number
from shared.models.embed import embedder

JOINS = ("; ", ", and ", ", while ", ", but ")

_CONDITIONS = re.compile(
    r"\b(?:unless|except|only|if|when|provided|until|before|after|within|under|below|above|over|"
    r"up to|at most|at least|less than|more than|without)\b",
    re.IGNORECASE,
)
_ADDED_REMARK = ", as a poster beside the lift and a page on the website say"
_ADDED_CONDITIONS = (
    " unless a poster beside the lift says otherwise",
    ", except for people who have a leaflet of the hall",
    " only if a poster beside the lift says so",
)


@dataclass(frozen=True)
class Pair:
    """A claim that the contexts say, and the same claim made false in one thing."""

    contexts: tuple[str, ...]
    right: str
    wrong: str


CLAUSE = (
    "A lost badge is replaced at any counter.",
    "The garden office is open from Monday to Friday and answers letters on the same day; a lost "
    "badge is replaced at any counter.",
)
"""A claim, and the sentence that ends with it: the end alone is nearer than the whole."""

NAME = "Rent account"
WHOLE_NAMES = (
    ("The Rent account costs GBP 4 a year.", "The current account costs GBP 4 a year.", True),
    ("The rent account costs GBP 4 a year.", "The account costs GBP 4 a year.", True),
    ("The Rent account costs GBP 4 a year.", "The rent account costs GBP 4 a year.", False),
    ("The current account costs GBP 4 a year.", "The account costs GBP 4 a year.", False),
)
"""Claim, context, and whether the claim has `NAME` and the context does not."""

TURNED_ROUND = tuple(
    Pair((text,), claim.format(right), claim.format(wrong))
    for text, claim, right, wrong in (
        (
            "Bicycles must not be left beside the ramp.",
            "You {} leave your bicycle next to the ramp.",
            "must not",
            "must",
        ),
        (
            "Keys that were lost in the tower are sent home by post.",
            "The post {} bring a key back home to you that you have lost somewhere in the tower.",
            "does",
            "does not",
        ),
        (
            "The seats beside the stage are sold without a guarantee of a good view.",
            "Whoever buys a seat beside the stage gets it {} a guarantee that the view is good.",
            "without",
            "with",
        ),
        (
            "Wet coats must not be hung over the radiators.",
            "You {} hang a coat that is wet over a radiator.",
            "must not",
            "must",
        ),
        (
            "A cheque that was posted to the wrong address cannot be stopped.",
            "You {} stop a cheque that went to a wrong address.",
            "cannot",
            "can",
        ),
        (
            "A letter that was sealed by the notary cannot be opened again.",
            "You {} open a letter again that the notary has sealed.",
            "cannot",
            "can",
        ),
    )
)
"""Paraphrases and the same ones turned round; their cosines alone are less than 0.04 apart."""

OTHER_UNITS = tuple(
    Pair((text,), claim.format(right), claim.format(wrong))
    for text, claim, right, wrong in (
        (
            "The shop keeps a repaired watch for 3 months after the owner was told about it.",
            "Once you have been told that your watch is repaired, it stays in the shop for {}.",
            "3 months",
            "3 years",
        ),
        (
            "A licence that was ordered by post arrives within 10 working days of the order.",
            "When you order a licence by post, it comes within {} after that.",
            "10 working days",
            "10 days",
        ),
        (
            "A licence that was ordered by post arrives within 10 days of the order.",
            "When you order a licence by post, it comes within {} after that.",
            "10 days",
            "10 working days",
        ),
        (
            "The repair of a heater takes 14 days.",
            "A heater is repaired in {}.",
            "14 days",
            "14 weeks",
        ),
    )
)
"""Paraphrases and the same ones with another unit; their cosines alone are as near as that."""


def names_of(domain: str) -> tuple[str, ...]:
    """All names that may be swapped in the domain."""
    return tuple(name for group in rules.ENTITIES[domain] for name in group)


def single_sentences(text: str) -> list[str]:
    """The sentences of a text that are one claim each, whoever splits them."""
    return [s for s in split_sentences(text) if not any(j in s for j in JOINS)]


def changed_numbers(domain: str, pick: random.Random, count: int) -> list[Pair]:
    """Sentences and paraphrases against the same ones with a number that no context has."""
    return _pairs(
        domain,
        pick,
        count,
        lambda claim, text: _another_number(claim, text, pick),
    )


def other_notations(pairs: Sequence[Pair], pick: random.Random) -> list[Pair]:
    """Those pairs whose true claim has numbers that can be written in another notation."""
    found = []
    for pair in pairs:
        rewritten = rules.reformat(pair.right, pick)
        if rewritten:
            found.append(Pair(pair.contexts, rewritten, pair.wrong))
    return found


def swapped_names(domain: str, pick: random.Random, count: int) -> list[Pair]:
    """Sentences and paraphrases against the same ones with a name that no context has."""
    groups = rules.ENTITIES[domain]
    return _pairs(
        domain, pick, count, lambda claim, text: rules.swap_entity(claim, groups, text, pick)
    )


def named_pages(domain: str, pick: random.Random, count: int) -> list[Pair]:
    """Pages that say their name once, in another sentence than what is claimed."""
    found = []
    for _ in range(count):
        right, wrong = pick.sample(pick.choice(rules.ENTITIES[domain]), 2)
        year = pick.randint(2011, 2026)
        text = f"This page is about {right}. It was last changed by its author in {year}."
        claim = f"The page about {{}} was last changed by its author in {year}."
        found.append(Pair((text,), claim.format(right), claim.format(wrong)))
    return found


def turned_round(domain: str, pick: random.Random, count: int) -> list[Pair]:
    """Sentences against the same ones with a "not" put in or taken out."""
    return _pairs(domain, pick, count, lambda claim, _: rules.flip(claim), by_hand=False)


@dataclass(frozen=True)
class Remark:
    """One claim, and two contexts that say it: with a remark, and under a condition."""

    claim: str
    with_remark: str
    under_condition: str


def conditions(domain: str, pick: random.Random, count: int) -> list[Remark]:
    """Sentences of the documents; what is added to them is about equally long and far off."""
    sentences = [s for d in load_documents(domain) for s in single_sentences(d.text)]
    plain = [s for s in sentences if 5 <= len(s.split()) <= 12 and s.endswith(".")]
    bare = [s for s in plain if not _CONDITIONS.search(s) and not rules.numbers(s)]
    found = []
    for claim in pick.sample(bare, count):
        said, condition = claim[:-1], pick.choice(_ADDED_CONDITIONS)
        found.append(Remark(claim, f"{said}{_ADDED_REMARK}.", f"{said}{condition}."))
    return found


def paraphrased(domain: str, pick: random.Random, count: int) -> list[tuple[Document, str]]:
    """Documents and a sentence of each in other words."""
    texts = {d.id: d for d in load_documents(domain)}
    found = [(texts[p.document], p.paraphrase) for p in load_paraphrases(domain)]
    single = [(d, p) for d, p in found if not any(j in p for j in JOINS)]
    return pick.sample(single, count)


def case(answer: str, contexts: Sequence[str] | None) -> LLMTestCase:
    """A test case as an evaluation run has it."""
    given = None if contexts is None else list(contexts)
    return LLMTestCase(input="A question.", actual_output=answer, retrieval_context=given)


@dataclass(frozen=True)
class Scored:
    """The labelled answers of a split, in order, with the scores of a metric."""

    answers: tuple[LabelledAnswer, ...]
    scores: tuple[float, ...]

    @property
    def grounded(self) -> list[bool]:
        """The labels."""
        return [a.grounded for a in self.answers]

    @property
    def auc(self) -> float:
        """How often a grounded answer is ranked above an ungrounded one; ties count half."""
        return float(roc_auc_score(self.grounded, self.scores))

    def share_below(self, threshold: float) -> dict[str, float]:
        """For each rule of labelling the share of its answers below a threshold."""
        below: dict[str, list[bool]] = defaultdict(list)
        for answer, score in zip(self.answers, self.scores, strict=True):
            below[answer.rule].append(score < threshold)
        return {rule: float(np.mean(hits)) for rule, hits in sorted(below.items())}

    def blocked(self, threshold: float) -> float:
        """The share of the grounded answers below a threshold."""
        right = [s for s, g in zip(self.scores, self.grounded, strict=True) if g]
        return float(np.mean([s < threshold for s in right]))


_scored: dict[tuple[str, str, str], Scored] = {}


def scored(learner: Any, domain: str, split: Any) -> Scored:
    """The learner's scores of a split; reckoned once a run."""
    key = (str(learner.GroundednessMetric.measure.__code__.co_filename), domain, split)
    if key not in _scored:
        metric = learner.GroundednessMetric(names=names_of(domain))
        answers = load_labelled(domain, split)
        found = []
        for answer in answers:
            value = metric.measure(case(answer.answer, contexts_of(answer, domain)))
            found.append(number(value, what=f"the score of labelled answer {answer.id}"))
        _scored[key] = Scored(answers, tuple(found))
    return _scored[key]


def baselines(domain: str, split: Any) -> dict[str, float]:
    """AUC of what needs no thought, over the same answers."""
    answers = load_labelled(domain, split)
    contexts = [contexts_of(a, domain) for a in answers]
    labels = [a.grounded for a in answers]
    found = {
        "word overlap": [_overlap(a.answer, c) for a, c in zip(answers, contexts, strict=True)],
        "cosine of the whole answer": _cosines([a.answer for a in answers], contexts),
        "substring": [_substring(a.answer, c) for a, c in zip(answers, contexts, strict=True)],
    }
    return {name: float(roc_auc_score(labels, values)) for name, values in found.items()}


def _pairs(
    domain: str, pick: random.Random, count: int, change: Any, *, by_hand: bool = True
) -> list[Pair]:
    """Claims with their changed versions, each against its document and two others.

    Few documents are drawn, so that few sentences have to be embedded.
    """
    documents = list(load_documents(domain))
    pick.shuffle(documents)
    fillers = documents[:4]
    found: list[Pair] = []
    for document in documents:
        others = pick.sample([d for d in fillers if d.id != document.id], 2)
        contexts = [document.text, *(o.text for o in others)]
        pick.shuffle(contexts)
        text = " ".join((document.title, *(o.title for o in others), *contexts))
        claims = _claims(document, domain, by_hand)
        for claim in pick.sample(claims, min(5, len(claims)) if by_hand else len(claims)):
            wrong = change(claim, text)
            if wrong and wrong != claim:
                found.append(Pair(tuple(contexts), claim, wrong))
        if len(found) >= count:
            break
    return found[:count]


def _another_number(claim: str, text: str, pick: random.Random) -> str | None:
    """The claim with another number; None where a number is part of a name ("form C7")."""
    if re.search(r"[A-Za-z]\d", claim):
        return None
    return rules.change_number(claim, rules.numbers(text), pick)


def _claims(document: Document, domain: str, by_hand: bool) -> list[str]:
    """The single sentences of a document, and what was written by hand about it."""
    claims = single_sentences(document.text)
    if by_hand:
        written = [p.paraphrase for p in load_paraphrases(domain) if p.document == document.id]
        claims += [p for p in written if not any(j in p for j in JOINS)]
    return claims


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _overlap(answer: str, contexts: Sequence[str]) -> float:
    words = _words(answer)
    return len(words & _words(" ".join(contexts))) / len(words)


def _cosines(answers: Sequence[str], contexts: Sequence[tuple[str, ...]]) -> list[float]:
    texts = sorted({*answers, *(c for given in contexts for c in given)})
    vectors = dict(zip(texts, embedder().encode(texts), strict=True))
    return [
        max(float(vectors[answer] @ vectors[c]) for c in given)
        for answer, given in zip(answers, contexts, strict=True)
    ]


def _substring(answer: str, contexts: Sequence[str]) -> float:
    sentences = split_sentences(answer)
    return sum(any(s in c for c in contexts) for s in sentences) / len(sentences)
