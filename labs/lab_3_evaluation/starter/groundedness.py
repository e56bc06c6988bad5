"""Task 3.2: groundedness as a DeepEval metric, without a judge.

An answer is grounded when each of its claims is said by a document that was retrieved. No model
is asked: a claim is laid beside the sentences of the contexts, and what speaks against it is
counted. Nearness alone does not decide it: "GBP 4.50 a month" and "GBP 5.40 a month" are near.

    metric = GroundednessMetric(threshold=0.4, names=known_names("finance"))
    metric.measure(LLMTestCase(input=question, actual_output=answer, retrieval_context=texts))
    metric.score, metric.success, metric.reason

Yours to use: `vectors_of`, `in_digits`, `UNITS`, `NEGATIONS`, `CONDITIONS` and `known_names` below,
and `split_sentences`. How values come about is your design; what they must tell apart is stated.
The labelled answers of the split "open" are there to try it on.
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
    raise NotImplementedError("Task 3.2: write split_claims")


def quantities(text: str) -> frozenset[Quantity]:
    """The numbers of a text with their units, the same in any notation.

    Numbers are read in digits after `in_digits`. "GBP" stands before its number, the other units
    of `UNITS` after it, in any letter case, with or without a blank ("5 %", "5%"). The first number
    of "14 to 21 days" has the unit of the second ("to", "or" and "and" alike) if it has none of its
    own. A time of day ("16:30") is one quantity of unit "clock". "14 days" and "two weeks" are
    equal, so are "GBP 1,200" and "1200 pounds", and "24 hours" and "one day"; "14 days" and
    "14 weeks" are not, nor "5 days" and "5 working days".
    """
    raise NotImplementedError("Task 3.2: write quantities")


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
    raise NotImplementedError("Task 3.2: write support")


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
    raise NotImplementedError("Task 3.2: write choose_threshold")


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
        raise NotImplementedError("Task 3.2: write GroundednessMetric.measure")

    async def a_measure(self, test_case: LLMTestCase, *args: Any, **kwargs: Any) -> float:
        """The same as `measure`; nothing here waits for anything."""
        return self.measure(test_case)

    @property
    def __name__(self) -> str:
        """How reports call it."""
        return "Groundedness"
