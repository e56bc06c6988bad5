"""Adds evidence up over whole sentences, with shared words beside the embedding."""

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
    """Cuts at every join, then glues together again what is too short to be a claim."""
    found: list[str] = []
    for sentence in split_sentences(answer):
        tokens = re.split(r"(;\s+|,\s+(?:and|while|but)\s+)", sentence)
        current = tokens[0]
        for join, part in zip(tokens[1::2], tokens[2::2], strict=True):
            if len(current.split()) >= 4 and len(part.split()) >= 4:
                found.append(current.strip())
                current = part
            else:
                current += join + part
        found.append(current.strip())
    return tuple(c for c in found if any(ch.isalnum() for ch in c))


def quantities(text: str) -> frozenset[Quantity]:
    """Reads token by token instead of with one pattern."""
    text = re.sub(r"(?<=\d)%", " %", in_digits(text)).replace("-", " ")
    tokens = [t.strip(".,;:!?()\"'") for t in text.split()]
    tokens = [t for t in tokens if t]
    lowered = [t.casefold() for t in tokens]
    found = set()
    for n, token in enumerate(tokens):
        if clock := re.fullmatch(r"(\d{1,2}):(\d{2})", token):
            found.add(Quantity(60.0 * int(clock[1]) + int(clock[2]), "clock"))
        elif re.fullmatch(r"\d+(?:\.\d+)?", token):
            unit, factor = _unit(lowered, n)
            found.add(Quantity(round(float(token) * factor, 6), unit))
    return frozenset(found)


def support(claim: str, contexts: Sequence[str], *, names: Collection[str] = ()) -> Support:
    """Adds evidence up over whole sentences: nearness and shared words, less what is against."""
    best = Support(claim, 0.0, "", "nothing was retrieved")
    facts, words, used = quantities(claim), _stems(claim), _used(names, claim)
    for document in contexts:
        sentences = split_sentences(document)
        strange = used - _used(names, document)
        near = vectors_of(sentences) @ vectors_of([claim])[0]
        for sentence, cosine in zip(sentences, near.tolist(), strict=True):
            shared = len(words & _stems(sentence)) / max(1, len(words))
            whole = claim.rstrip(".") in sentence
            value = 1.0 if whole else 0.7 * max(0.0, cosine) + 0.3 * shared
            missing = facts - quantities(sentence)
            problems = [
                (0.8, f"no such number: {[q.value for q in missing]}", bool(missing)),
                (0.8, f"no such name: {sorted(strange)}", bool(strange)),
                (0.13, "turned round", _odd(claim) != _odd(sentence)),
                (0.08, "condition gone", _limits(sentence) and not _limits(claim)),
            ]
            against = [(cost, why) for cost, why, holds in problems if holds]
            if whole and sentence.rstrip(".") != claim.rstrip("."):
                against = [a for a in against if a[1] != "turned round"]
            value = min(1.0, max(0.0, value - sum(cost for cost, _ in against)))
            if value >= best.value:
                reason = ", ".join(why for _, why in against) or "supported"
                best = Support(claim, value, sentence, reason)
    return best


def choose_threshold(
    scores: Sequence[float], grounded: Sequence[bool], *, max_blocked: float = 0.2
) -> float:
    """Counts down from the top."""
    if len(scores) != len(grounded) or not any(grounded):
        raise ValueError("one label a score, and at least one grounded answer")
    right = np.sort(np.asarray(scores, float)[np.asarray(grounded, bool)])
    blocked = np.searchsorted(right, right, side="left") / len(right)
    return float(right[blocked <= max_blocked + 1e-9].max())


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
        """The minimum over the claims."""
        self.score = self.reason = self.error = None
        self.success, self.score_breakdown = False, {}
        for field in ("retrieval_context", "actual_output"):
            if getattr(test_case, field) is None:
                self._refuse(field)
        claims = split_claims(test_case.actual_output)
        if not claims:
            self._refuse("actual_output")
        contexts = list(test_case.retrieval_context)
        for claim in claims:
            found = support(claim, contexts, names=self.names)
            self.score_breakdown[claim] = found.value
            if self.score is None or found.value < self.score:
                self.score = found.value
                self.reason = f"{claim!r} is the weakest claim ({found.reason})"
        self.success = self.score >= self.threshold
        return self.score

    def _refuse(self, field: str) -> None:
        self.error = f"{field} is missing"
        raise MissingTestCaseParamsError(self.error)

    async def a_measure(self, test_case: LLMTestCase, *args: Any, **kwargs: Any) -> float:
        """The same as `measure`; nothing here waits for anything."""
        return self.measure(test_case)

    @property
    def __name__(self) -> str:
        """How reports call it."""
        return "Groundedness"


def _unit(tokens: Sequence[str], n: int) -> tuple[str, float]:
    """The unit of the number at place n; that of a second number where it has none."""
    if n and tokens[n - 1] == "gbp":
        return UNITS["GBP"]
    rest = tokens[n + 1 :]
    if len(rest) > 1 and rest[0] in ("to", "or", "and") and re.fullmatch(r"[\d.]+", rest[1]):
        rest = rest[2:]
    for length in (2, 1):
        unit = UNITS.get(" ".join(rest[:length]))
        if unit and len(rest) >= length:
            return unit
    return "", 1.0


def _stems(text: str) -> set[str]:
    return {w[:5] for w in re.findall(r"[a-z]{3,}", text.casefold())}


def _used(names: Collection[str], text: str) -> set[str]:
    return {n for n in names if re.search(rf"\b{re.escape(n)}\b", text, re.IGNORECASE)}


def _odd(text: str) -> bool:
    return len(NEGATIONS.findall(text)) % 2 == 1


def _limits(text: str) -> bool:
    return bool(CONDITIONS.search(text))
