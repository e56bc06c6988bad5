"""Asks through the openai client; kappa, table and interval by scikit-learn and SciPy."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import openai
from deepeval.errors import MissingTestCaseParamsError
from deepeval.metrics import BaseMetric
from deepeval.models import DeepEvalBaseLLM
from deepeval.test_case import LLMTestCase
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from shared.assistant.material import contexts_of, load_labelled
from shared.assistant.records import Split

BAR = 0.6
"""Least kappa of a judge that a release may depend on; the lower end of its interval counts."""

SEEDS = (1, 2, 3, 4, 5)
"""Of the engine's sampling, one a run."""

MIN_QUOTE_WORDS = 3

WORDINGS = (
    "Do the sources say everything that the answer says?",
    "Compare each number, name and condition of the answer with the sources. Is each the same?",
    "You look for mistakes in answers. Is each statement of this one in the sources?",
)
"""Ways to ask; which one a judge understands best is found out by `calibrate`."""

Outcome = Literal["supported", "unsupported", "truncated", "malformed", "no_evidence"]
"""What came of one run: a vote, or the way in which it failed."""

FAILURES: tuple[Outcome, ...] = ("truncated", "malformed", "no_evidence")


class JudgeUnavailable(RuntimeError):
    """The engine did not answer; nothing is known about the judge."""


class UntrustedJudge(RuntimeError):
    """The judge must not be used as a gate; the message says why."""


class BadReply(ValueError):
    """A reply that is no vote.

    Attributes:
        kind: ``"truncated"`` or ``"malformed"``.
    """

    def __init__(self, kind: Literal["truncated", "malformed"], text: str) -> None:
        super().__init__(f"{kind} reply: {text[:200]!r}")
        self.kind = kind


class Opinion(BaseModel):
    """What the judge replies about one answer. Evidence comes first, so that a verdict follows."""

    model_config = ConfigDict(extra="forbid")

    quote: str = Field(max_length=160)
    verdict: Literal["supported", "unsupported"]


class Preference(BaseModel):
    """What the judge replies about two answers."""

    model_config = ConfigDict(extra="forbid")

    better: Literal["first", "second"]


@dataclass(frozen=True)
class Item:
    """An answer to be judged against the texts that it may rest on."""

    question: str
    contexts: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Example:
    """An item with its label.

    Attributes:
        rule: how it was labelled; `shared/assistant/README.md` lists the rules.
    """

    item: Item
    grounded: bool
    rule: str
    split: Split


@dataclass(frozen=True)
class Verdict:
    """What several runs say about one answer.

    Attributes:
        grounded: what more than half of all runs voted for; None when neither side has that many.
        agreement: the share of all runs that voted for it; 0.0 when `grounded` is None.
        outcomes: one a run, in the order of the seeds.
        quotes: the evidence of the runs that voted "supported", each once, in order.
    """

    grounded: bool | None
    agreement: float
    outcomes: tuple[Outcome, ...]
    quotes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Which of two answers is better.

    Attributes:
        winner: what more than half of all seeds chose; None when neither has that many.
        outcomes: one a seed: ``"a"`` or ``"b"`` where both orders chose it, ``"position"`` where
            the choice changed with the order, ``"failed"`` where a reply could not be used.
        first_share: among the usable replies, the share that chose the answer shown first. About
            0.5 for a judge that does not mind the order; None without a usable reply.
    """

    winner: Literal["a", "b"] | None
    outcomes: tuple[Literal["a", "b", "position", "failed"], ...]
    first_share: float | None


@dataclass(frozen=True)
class Kappa:
    """Agreement beyond chance, with its interval. All None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Calibration:
    """How a judge did on held-out labels. `calibrate` says what each figure is.

    Attributes:
        confusion: label, then verdict, then count: ``confusion["grounded"]["none"]``.
        failures: runs by the way they failed: all three of `FAILURES`, also those with 0.
        by_rule: for each rule of the labels: right verdicts, and examples.
    """

    model: str
    wording: str
    seeds: tuple[int, ...]
    examples: int
    confusion: Mapping[str, Mapping[str, int]]
    kappa: Kappa
    runs: int
    failures: Mapping[str, int]
    by_rule: Mapping[str, tuple[int, int]]
    trusted: bool
    reason: str


def examples_of(domain: str, split: Split | None = None) -> list[Example]:
    """The domain's labelled answers as examples."""
    return [
        Example(Item(a.question, contexts_of(a, domain), a.answer), a.grounded, a.rule, a.split)
        for a in load_labelled(domain, split)
    ]


def answer_prompt(item: Item, wording: str) -> str:
    """What the judge is asked about one answer."""
    return (
        f"{_sources(item.contexts)}\n\nQuestion: {item.question}\nAnswer: {item.answer}\n\n"
        f"{wording}\nReply in JSON: as quote copy the words of a source that the answer rests on, "
        "then give the verdict, supported or unsupported."
    )


def pair_prompt(question: str, contexts: Sequence[str], first: str, second: str) -> str:
    """What the judge is asked about two answers, shown in this order."""
    return (
        f"{_sources(contexts)}\n\nQuestion: {question}\nFirst answer: {first}\n"
        f"Second answer: {second}\n\nWhich answer says only what the sources say? Reply in JSON: "
        "better is first or second."
    )


class EngineModel(DeepEvalBaseLLM):
    def __init__(
        self, base_url: str, model: str, *, temperature: float = 0.7, max_tokens: int = 96
    ) -> None:
        self._client = openai.OpenAI(base_url=base_url, api_key="none", timeout=120, max_retries=0)
        self._how = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        super().__init__(model)

    def load_model(self, *args: Any, **kwargs: Any) -> EngineModel:
        return self

    def get_model_name(self) -> str:
        return str(self._how["model"])

    def generate(self, prompt: str, schema: type[BaseModel] | None = None, *, seed: int = 0) -> Any:
        how: dict[str, Any] = {**self._how, "seed": seed}
        how["messages"] = [{"role": "user", "content": prompt}]
        if schema is not None:
            how["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": schema.__name__,
                    "schema": schema.model_json_schema(),
                    "strict": True,
                },
            }
        try:
            choice = self._client.chat.completions.create(**how).choices[0]
        except openai.OpenAIError as error:
            raise JudgeUnavailable(str(error)) from error
        text = choice.message.content
        if choice.finish_reason != "stop":
            raise BadReply("truncated", text or "")
        try:
            if text is None:
                raise ValueError("no text")
            return text if schema is None else schema.model_validate_json(text)
        except (ValidationError, ValueError) as error:
            raise BadReply("malformed", text or "") from error

    async def a_generate(
        self, prompt: str, schema: type[BaseModel] | None = None, *, seed: int = 0
    ) -> Any:
        return await asyncio.to_thread(self.generate, prompt, schema, seed=seed)


def is_evidence(quote: str, contexts: Sequence[str]) -> bool:
    words = quote.casefold().split()
    if len(words) < MIN_QUOTE_WORDS:
        return False
    quoted = " ".join(words)
    for text in (" ".join(c.casefold().split()) for c in contexts):
        for start in range(len(text) - len(quoted) + 1):
            end = start + len(quoted)
            if text[start:end] == quoted and not (_inside(text, start) or _inside(text, end)):
                return True
    return False


def judge_answer(
    model: EngineModel, item: Item, *, seeds: Sequence[int] = SEEDS, wording: str = WORDINGS[0]
) -> Verdict:
    prompt = answer_prompt(item, wording)

    def run(seed: int) -> tuple[Outcome, str | None]:
        try:
            said = model.generate(prompt, Opinion, seed=seed)
        except BadReply as error:
            return error.kind, None
        if said.verdict == "unsupported":
            return "unsupported", None
        if is_evidence(said.quote, item.contexts):
            return "supported", said.quote
        return "no_evidence", None

    runs = _each(run, seeds)
    votes = Counter(outcome for outcome, _ in runs if outcome not in FAILURES)
    ((vote, count),) = votes.most_common(1) or [("", 0)]
    decided = 2 * count > len(runs)
    return Verdict(
        grounded=(vote == "supported") if decided else None,
        agreement=count / len(runs) if decided else 0.0,
        outcomes=tuple(outcome for outcome, _ in runs),
        quotes=tuple(dict.fromkeys(quote for _, quote in runs if quote is not None)),
    )


def compare(
    model: EngineModel,
    question: str,
    contexts: Sequence[str],
    a: str,
    b: str,
    *,
    seeds: Sequence[int] = SEEDS,
) -> Comparison:
    orders = {
        "ab": pair_prompt(question, contexts, a, b),
        "ba": pair_prompt(question, contexts, b, a),
    }

    def run(seed: int) -> dict[str, str]:
        """The side chosen in each order; an order without a usable reply is missing."""
        chosen = {}
        for order, prompt in orders.items():
            try:
                said = model.generate(prompt, Preference, seed=seed)
            except BadReply:
                continue
            chosen[order] = order[0 if said.better == "first" else 1]
        return chosen

    runs = _each(run, seeds)
    outcomes: list[Any] = []
    for chosen in runs:
        sides = set(chosen.values())
        if len(chosen) < 2:
            outcomes.append("failed")
        else:
            outcomes.append(sides.pop() if len(sides) == 1 else "position")
    firsts = [side == order[0] for chosen in runs for order, side in chosen.items()]
    won: list[Any] = [side for side in "ab" if outcomes.count(side) > len(outcomes) / 2]
    return Comparison(
        winner=won[0] if won else None,
        outcomes=tuple(outcomes),
        first_share=float(np.mean(firsts)) if firsts else None,
    )


def kappa(
    labels: Sequence[bool], verdicts: Sequence[bool | None], confidence: float = 0.95
) -> Kappa:
    x, y = _coded(labels), _coded(verdicts)
    if x.size != y.size or x.size == 0:
        raise ValueError("labels and verdicts go in pairs, and at least one")
    chance = float(sum((x == k).mean() * (y == k).mean() for k in (0, 1, 2)))
    if np.isclose(chance, 1.0):
        return Kappa(None, None, None)
    interval = binomtest(int((x == y).sum()), x.size).proportion_ci(confidence, method="wilson")
    low, high = ((float(end) - chance) / (1 - chance) for end in interval)
    return Kappa(float(cohen_kappa_score(x, y)), low, high)


def calibrate(
    model: EngineModel,
    examples: Sequence[Example],
    *,
    seeds: Sequence[int] = SEEDS,
    wordings: Sequence[str] = WORDINGS,
    bar: float = BAR,
) -> Calibration:
    by_split: dict[str, list[Example]] = {"open": [], "held_out": []}
    for example in examples:
        by_split[example.split].append(example)
    tuning, test = by_split["open"], by_split["held_out"]
    if not test or not wordings or (len(wordings) > 1 and not tuning):
        raise ValueError("too few examples or wordings")
    best, best_value = wordings[0], -2.0
    for wording in wordings if len(wordings) > 1 else ():
        value = _measure(model, tuning, seeds, wording)[1].value
        if value is not None and value > best_value:
            best, best_value = wording, value
    verdicts, found = _measure(model, test, seeds, best)
    labels = [e.grounded for e in test]
    table = confusion_matrix(
        _coded(labels), _coded([v.grounded for v in verdicts]), labels=[1, 0, 2]
    )
    outcomes = [o for v in verdicts for o in v.outcomes]
    rules: dict[str, list[bool]] = {}
    for example, verdict in zip(test, verdicts, strict=True):
        rules.setdefault(example.rule, []).append(verdict.grounded == example.grounded)
    text = "no kappa"
    trusted = False
    if found.low is not None:
        trusted = found.low >= bar
        text = f"kappa {found.value:.2f}, interval {found.low:.2f} to {found.high:.2f}"
    return Calibration(
        model=model.get_model_name(),
        wording=best,
        seeds=tuple(seeds),
        examples=len(test),
        confusion={
            label: dict(zip(("grounded", "ungrounded", "none"), row.tolist(), strict=True))
            for label, row in zip(("grounded", "ungrounded"), table, strict=False)
        },
        kappa=found,
        runs=len(outcomes),
        failures={kind: outcomes.count(kind) for kind in FAILURES},
        by_rule={rule: (sum(hits), len(hits)) for rule, hits in rules.items()},
        trusted=trusted,
        reason=f"{text}; bar {bar:.2f}; " + ("passed" if trusted else "do not trust it"),
    )


class JudgeMetric(BaseMetric):
    def __init__(self, model: EngineModel, calibration: Calibration) -> None:
        if not calibration.trusted:
            raise UntrustedJudge(f"This judge is no gate. {calibration.reason}")
        if model.get_model_name() != calibration.model:
            raise UntrustedJudge(
                f"{calibration.model} was calibrated, and not {model.get_model_name()}."
            )
        self.threshold = 1.0
        self.calibration, self.model = calibration, model

    def measure(self, test_case: LLMTestCase, *args: Any, **kwargs: Any) -> float:
        given = (test_case.input, test_case.retrieval_context, test_case.actual_output)
        if not all(given):
            raise MissingTestCaseParamsError("input, retrieval_context, actual_output: all needed")
        verdict = judge_answer(
            self.model,
            Item(given[0], tuple(map(str, given[1] or ())), str(given[2])),
            seeds=self.calibration.seeds,
            wording=self.calibration.wording,
        )
        self.score = float(verdict.grounded or 0)
        self.success = bool(verdict.grounded)
        self.reason = f"outcomes {verdict.outcomes}, evidence {verdict.quotes}"
        return self.score

    async def a_measure(self, test_case: LLMTestCase, *args: Any, **kwargs: Any) -> float:
        return await asyncio.to_thread(self.measure, test_case)

    @property
    def __name__(self) -> str:
        return "Judge"


def _sources(contexts: Sequence[str]) -> str:
    return "\n".join(f"Source {n}: {text}" for n, text in enumerate(contexts, 1))


def _inside(text: str, place: int) -> bool:
    """Whether a place is between two letters or digits."""
    return text[max(place - 1, 0) : place].isalnum() and text[place : place + 1].isalnum()


def _each(run: Callable[[int], Any], seeds: Sequence[int]) -> list[Any]:
    if len(seeds) == 0 or len(seeds) != len({*seeds}):
        raise ValueError("seeds must be different, and at least one")
    return [run(seed) for seed in seeds]


def _coded(values: Sequence[bool | None]) -> np.ndarray:
    return np.array([2 if v is None else int(v) for v in values], dtype=int)


def _measure(
    model: EngineModel, examples: Sequence[Example], seeds: Sequence[int], wording: str
) -> tuple[list[Verdict], Kappa]:
    verdicts = [judge_answer(model, e.item, seeds=seeds, wording=wording) for e in examples]
    return verdicts, kappa([e.grounded for e in examples], [v.grounded for v in verdicts])
