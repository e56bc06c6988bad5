"""Looks for a name anywhere in the text: the current account is a Rent account.

caught-by: test_a_name_that_the_document_does_not_have_costs_support
hint: names
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from deepeval.errors import MissingTestCaseParamsError
from deepeval.metrics import BaseMetric
from deepeval.test_case import LLMTestCase
from numpy.typing import NDArray

from shared.assistant.claims import ENTITIES
from shared.assistant.records import Domain, split_sentences
from shared.models.embed import embedder

UNITS: Mapping[str, tuple[str, float]] = {
    "GBP": ("GBP", 1.0),
    "pounds": ("GBP", 1.0),
    "pound": ("GBP", 1.0),
    "pence": ("GBP", 0.01),
    "percent": ("percent", 1.0),
    "%": ("percent", 1.0),
    "minutes": ("day", 1 / 1440),
    "minute": ("day", 1 / 1440),
    "hours": ("day", 1 / 24),
    "hour": ("day", 1 / 24),
    "working days": ("working day", 1.0),
    "working day": ("working day", 1.0),
    "days": ("day", 1.0),
    "day": ("day", 1.0),
    "weeks": ("day", 7.0),
    "week": ("day", 7.0),
    "months": ("month", 1.0),
    "month": ("month", 1.0),
    "years": ("month", 12.0),
    "year": ("month", 12.0),
}
"""Each written unit: the unit that it is counted in, and how many of these it is."""

NEGATIONS = re.compile(
    r"\b(?:not|cannot|no|never|nobody|none|nothing|neither|nor|without|free|waived|forbidden|"
    r"refused|unable)\b",
    re.IGNORECASE,
)
"""Words that turn a statement round. Two of them in one sentence may say yes again."""

CONDITIONS = re.compile(
    r"\b(?:unless|except|only|if|when|provided|until|before|after|within|under|below|above|over|"
    r"up to|at most|at least|less than|more than)\b",
    re.IGNORECASE,
)
"""Words that begin a condition or a limit."""

NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve"),
)
KNOWN_VECTORS: dict[str, NDArray[np.float32]] = {}


@dataclass(frozen=True)
class Quantity:
    """A number of a text.

    Attributes:
        value: in `unit`, rounded to 6 decimals.
        unit: "GBP", "percent", "day", "working day", "month", "clock" (minutes since midnight),
            or "" for a number without a unit of `UNITS`.
    """

    value: float
    unit: str = ""


@dataclass(frozen=True)
class Support:
    """How far the contexts say one claim.

    Attributes:
        claim: what was judged.
        value: 0 (nothing says it) to 1 (said word for word).
        sentence: the sentence of a context that says it best, whole, as `split_sentences` gives
            it, also where only a part of it was compared; empty without contexts.
        reason: what speaks against it, naming the number or the name; or that nothing does.
    """

    claim: str
    value: float
    sentence: str
    reason: str


def known_names(domain: Domain) -> tuple[str, ...]:
    """Names that the domain's desk knows: products, places, roles, days."""
    return tuple(name for group in ENTITIES[domain] for name in group)


def vectors_of(texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors of length 1, one row a text; each text is embedded once a process."""
    missing = [t for t in dict.fromkeys(texts) if t not in KNOWN_VECTORS]
    if missing:
        KNOWN_VECTORS.update(zip(missing, embedder().encode(missing), strict=True))
    return np.array([KNOWN_VECTORS[t] for t in texts], np.float32).reshape(len(texts), -1)


def in_digits(text: str) -> str:
    """The text with its numbers written alike.

    "1,200" becomes "1200", "seven" and "Seven" become "7" ("one" only before a unit: "one day"),
    "4:30 pm" and "half past four" become "16:30". In words, the hours one to seven are those of
    the afternoon.
    """
    words = "|".join(NUMBER_WORDS[2:])
    units = "|".join(u for u in UNITS if u.isalpha())

    def clock(match: re.Match[str]) -> str:
        hour = int(match[1]) % 12 + (12 if match[3].lower() == "pm" else 0)
        return f"{hour}:{match[2]}"

    def half(match: re.Match[str]) -> str:
        hour = NUMBER_WORDS.index(match[1].lower())
        return f"{hour + 12 if hour <= 7 else hour}:30"

    def digits(match: re.Match[str]) -> str:
        return str(NUMBER_WORDS.index(match[0].lower()))

    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"\b(\d{1,2}):(\d{2}) ?(am|pm)\b", clock, text, flags=re.IGNORECASE)
    text = re.sub(rf"\bhalf past (one|{words})\b", half, text, flags=re.IGNORECASE)
    return re.sub(rf"\b(?:{words}|one(?= (?:{units})\b))\b", digits, text, flags=re.IGNORECASE)


def split_claims(answer: str) -> tuple[str, ...]:
    """The claims of an answer, in its order: what can be true or false by itself.

    Each sentence is split where "; ", ", and ", ", while " or ", but " joins two statements: only
    where both sides have at least four words. Joins are taken from left to right: the left side
    begins where the sentence was last split, the right side ends at the next join, split or not.
    A claim keeps its words and has no white space at its ends; the joining word is in no claim.
    "GBP 4.50", "16:30", "GBP 1,200" and "help@bank.example" stay whole. A text without any letter
    or digit has no claims.
    """
    claims: list[str] = []
    for sentence in split_sentences(answer):
        claims += _statements(sentence)
    return tuple(c for c in claims if re.search(r"\w", c))


def quantities(text: str) -> frozenset[Quantity]:
    """The numbers of a text with their units, the same in any notation.

    Numbers are read in digits after `in_digits`. "GBP" stands before its number, the other units
    of `UNITS` after it, in any letter case, with or without a blank ("5 %", "5%"). The first number
    of "14 to 21 days" has the unit of the second ("to", "or" and "and" alike) if it has none of its
    own. A time of day ("16:30") is one quantity of unit "clock". "14 days" and "two weeks" are
    equal, so are "GBP 1,200" and "1200 pounds", and "24 hours" and "one day"; "14 days" and
    "14 weeks" are not, nor "5 days" and "5 working days".
    """
    found: set[Quantity] = set()
    for match in _NUMBER.finditer(in_digits(text)):
        if match["hour"]:
            found.add(Quantity(int(match["hour"]) * 60.0 + int(match["minute"]), "clock"))
            continue
        written = (match["before"] or match["after"] or "").casefold()
        unit, factor = _UNIT_OF.get(written, ("", 1.0))
        found.add(Quantity(round(float(match["figure"]) * factor, 6), unit))
    return frozenset(found)


def support(claim: str, contexts: Sequence[str], *, names: Collection[str] = ()) -> Support:
    """How far one of the contexts says a claim: the best of their sentences counts.

    A sentence that stands in a context word for word has at least 0.95. What no sentence resembles
    is lower than a paraphrase. Each of the following costs a claim at least 0.05, compared with the
    same claim and sentence without it: the claim

    - has a number (value and unit, `quantities`) that the sentence does not have; another notation
      of the same quantity costs nothing by itself,
    - has a name of `names` (whole words, any letter case) that the sentence's document does not
      have. A number and a name from two documents do not support a claim together,
    - says no where the sentence says yes, or the other way round,
    - leaves out the condition under which the sentence says it.

    Args:
        claim: one claim, as `split_claims` gives it.
        contexts: the texts of whole documents.
        names: what must not be mistaken for one another.
    """
    best = Support(claim, 0.0, "", "no context has a sentence")
    pieces = [_Piece(p, s, c) for c in contexts for s in split_sentences(c) for p in _parts(s)]
    if not pieces:
        return best
    cosines = vectors_of([p.text for p in pieces]) @ vectors_of([claim])[0]
    stated = _statement(claim, names)
    for n in np.argsort(-cosines, kind="stable")[:_LOOKED_AT]:
        piece, nearness = pieces[n], min(1.0, max(0.0, float(cosines[n])))
        against = _against(stated, piece)
        value = nearness * float(np.prod([factor for factor, _ in against]))
        if value > best.value:
            reason = "; ".join(why for _, why in against) or "nothing speaks against it"
            best = Support(claim, value, piece.sentence, f"{reason} (nearness {nearness:.2f})")
    return best


def choose_threshold(
    scores: Sequence[float], grounded: Sequence[bool], *, max_blocked: float = 0.2
) -> float:
    """The highest of the grounded answers' scores that blocks at most `max_blocked` of them.

    An answer passes when its score is at least the threshold.

    Args:
        scores: one an answer, 0 to 1.
        grounded: the label of each.
        max_blocked: share of the grounded answers, 0 to 1, that may be below the threshold.

    Raises:
        ValueError: the lengths differ, or no answer is grounded.
    """
    right = sorted(s for s, g in zip(scores, grounded, strict=True) if g)
    if not right:
        raise ValueError("no answer is grounded: there is nothing to choose a threshold by")
    allowed = [s for s in right if sum(r < s for r in right) <= max_blocked * len(right) + 1e-9]
    return allowed[-1]


class GroundednessMetric(BaseMetric):
    """Whether the retrieved contexts say everything that an answer says.

    Args:
        threshold: the lowest score that passes, 0 to 1.
        names: as `support` takes them.
    """

    def __init__(self, threshold: float = 0.5, *, names: Collection[str] = ()) -> None:
        self.threshold = threshold
        self.names = tuple(names)
        self.async_mode = False

    def measure(self, test_case: LLMTestCase, *args: Any, **kwargs: Any) -> float:
        """Judge `actual_output` against `retrieval_context`, and return the score.

        The score is the value of the weakest claim: one invented sentence spoils an answer. Sets

        - `score`: 0 to 1, and `success`: whether it is at least `threshold`,
        - `score_breakdown`: the value of each claim, by its text,
        - `reason`: quotes the weakest claim and says why it is the weakest,
        - `error`: None, or the message of what was raised.

        An empty `retrieval_context` ([]) is a fact about the retriever: the score is 0.

        Raises:
            MissingTestCaseParamsError: `actual_output` or `retrieval_context` is None, or the
                answer has no claim. The message names the field. Nothing of an earlier measurement
                is left then: `score` and `reason` are None, `success` is False.
        """
        self.score, self.reason, self.success, self.error = None, None, False, None
        self.score_breakdown = {}
        contexts = test_case.retrieval_context
        claims = split_claims(test_case.actual_output or "")
        if contexts is None or not claims:
            field = "retrieval_context" if contexts is None else "actual_output"
            self.error = f"groundedness needs {field}, and there is none"
            raise MissingTestCaseParamsError(self.error)
        texts = [str(c) for c in contexts]
        judged = [support(c, texts, names=self.names) for c in claims]
        weakest = min(judged, key=lambda s: s.value)
        self.score_breakdown = {s.claim: s.value for s in judged}
        self.score = weakest.value
        self.reason = f'weakest claim, {weakest.value:.2f}: "{weakest.claim}": {weakest.reason}'
        self.success = self.is_successful()
        return self.score

    async def a_measure(self, test_case: LLMTestCase, *args: Any, **kwargs: Any) -> float:
        """The same as `measure`; nothing here waits for anything."""
        return self.measure(test_case)

    @property
    def __name__(self) -> str:
        """How reports call it."""
        return "Groundedness"


_LOOKED_AT = 5
_LEAST_WORDS = 4
_JOINED = re.compile(r";\s+|,\s+(?:and|while|but)\s+")
_NUMBER_MISSING = 0.2
_NAME_MISSING = 0.2
_TURNED_ROUND = 0.8
_CONDITION_GONE = 0.8

_UNIT_OF = {written.casefold(): unit for written, unit in UNITS.items()}
_AFTER = "|".join(sorted(map(re.escape, UNITS.keys() - {"GBP"}), key=len, reverse=True))
_NUMBER = re.compile(
    r"(?<![\d.:])(?:(?P<hour>\d{1,2}):(?P<minute>\d{2})\b|"
    r"(?:\b(?P<before>GBP)\s*)?(?P<figure>\d+(?:\.\d+)?)"
    rf"(?=\s*(?:(?:to|or|and)\s+\d+(?:\.\d+)?\s*)?(?P<after>{_AFTER})(?!\w)|))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Piece:
    """A sentence of a context, or a statement of it."""

    text: str
    sentence: str
    document: str


@dataclass(frozen=True)
class _Statement:
    """What a claim says that can be compared."""

    numbers: frozenset[Quantity]
    names: tuple[str, ...]
    says_no: bool
    conditional: bool


def _statement(text: str, names: Collection[str]) -> _Statement:
    return _Statement(
        quantities(text),
        tuple(n for n in names if _has_name(n, text)),
        len(NEGATIONS.findall(text)) % 2 == 1,
        CONDITIONS.search(text) is not None,
    )


def _against(claim: _Statement, piece: _Piece) -> list[tuple[float, str]]:
    """What speaks against a claim: a factor for each thing, and the thing in words."""
    said = _statement(piece.text, ())
    found: list[tuple[float, str]] = []
    if missing := claim.numbers - quantities(piece.sentence):
        numbers = ", ".join(sorted(f"{q.value:g} {q.unit}".strip() for q in missing))
        found.append((_NUMBER_MISSING, f"the nearest sentence does not have the number {numbers}"))
    if strange := [n for n in claim.names if not _has_name(n, piece.document)]:
        found.append((_NAME_MISSING, f"its document does not name {', '.join(strange)}"))
    if claim.says_no != said.says_no:
        found.append((_TURNED_ROUND, "one says no where the other says yes"))
    if said.conditional and not claim.conditional:
        found.append((_CONDITION_GONE, "the sentence has a condition that the claim leaves out"))
    return found


def _has_name(name: str, text: str) -> bool:
    return name.casefold() in text.casefold()


def _statements(sentence: str) -> list[str]:
    """A sentence split where it joins statements."""
    parts: list[str] = []
    start = 0
    for join in _JOINED.finditer(sentence):
        before, after = sentence[start : join.start()], sentence[join.end() :]
        if min(len(before.split()), len(_JOINED.split(after)[0].split())) >= _LEAST_WORDS:
            parts.append(before)
            start = join.end()
    return [p.strip() for p in (*parts, sentence[start:])]


def _parts(sentence: str) -> list[str]:
    """A sentence as a whole, and its statements."""
    return list(dict.fromkeys((sentence, *_statements(sentence))))
