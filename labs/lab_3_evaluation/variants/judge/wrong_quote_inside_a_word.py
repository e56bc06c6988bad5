"""Mended but for one fault: a quote may begin or end inside a word.

caught-by: test_support_counts_only_with_words_of_one_source
hint: whose-words
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import httpx
from deepeval.errors import MissingTestCaseParamsError
from deepeval.metrics import BaseMetric
from deepeval.models import DeepEvalBaseLLM
from deepeval.test_case import LLMTestCase
from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    """The engine's model as DeepEval sees a model.

    Args:
        base_url: of an OpenAI-compatible API, ``http://127.0.0.1:<port>/v1``.
        model: its name; what `get_model_name` returns.
        temperature: above 0, or all runs would be the same run.
        max_tokens: of a reply.
    """

    def __init__(
        self, base_url: str, model: str, *, temperature: float = 0.7, max_tokens: int = 96
    ) -> None:
        self._url = f"{base_url}/chat/completions"
        self._model = model
        self._temperature, self._max_tokens = temperature, max_tokens
        self._client = httpx.Client(timeout=120)
        super().__init__(model)

    def load_model(self, *args: Any, **kwargs: Any) -> EngineModel:
        """Nothing to load: the engine has it."""
        return self

    def generate(self, prompt: str, schema: type[BaseModel] | None = None, *, seed: int = 0) -> Any:
        """One request to ``POST {base_url}/chat/completions``.

        It holds `model`, the `messages` (the prompt as the one user message), `max_tokens`,
        `temperature`, `seed`, and with a schema ``response_format``: type ``json_schema`` with the
        schema's name and JSON schema, `strict`.

        Returns:
            An instance of `schema`, or the text where there is none.

        Raises:
            BadReply: ``"truncated"``: `finish_reason` is not ``"stop"``. ``"malformed"``: the text
                is missing, or the schema does not accept it.
            JudgeUnavailable: no connection, no answer in time, or a status other than 200.
        """
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self._max_tokens,
            "temperature": self._temperature,
            "seed": seed,
        }
        if schema is not None:
            wanted = {"name": schema.__name__, "schema": schema.model_json_schema(), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        choice = self._ask(body)["choices"][0]
        text = choice["message"]["content"]
        if choice["finish_reason"] != "stop":
            raise BadReply("truncated", text or "")
        if text is None:
            raise BadReply("malformed", "")
        if schema is None:
            return text
        try:
            return schema.model_validate_json(text)
        except ValidationError as error:
            raise BadReply("malformed", text) from error

    async def a_generate(
        self, prompt: str, schema: type[BaseModel] | None = None, *, seed: int = 0
    ) -> Any:
        """`generate`, without blocking the event loop."""
        return await asyncio.to_thread(self.generate, prompt, schema, seed=seed)

    def get_model_name(self) -> str:
        """The name that requests carry."""
        return self._model

    def _ask(self, body: Mapping[str, Any]) -> Any:
        try:
            reply = self._client.post(self._url, json=body)
        except httpx.HTTPError as error:
            raise JudgeUnavailable(f"{self._url} does not answer: {error}") from error
        if reply.status_code != 200:
            raise JudgeUnavailable(f"{self._url}: {reply.status_code} {reply.text[:200]}")
        return reply.json()


def is_evidence(quote: str, contexts: Sequence[str]) -> bool:
    """Whether a quote stands in one of the contexts.

    It has at least `MIN_QUOTE_WORDS` words, between white space, and one context holds it word for
    word; letter case and the length of white space do not count. It neither begins nor ends inside
    a word of the context, between two letters or digits: "a fee of 5" is no quote from "a fee of
    50", and "a fee of 50" is one from "A fee of 50."
    """
    wanted = _plain(quote)
    return len(wanted.split()) >= MIN_QUOTE_WORDS and any(wanted in _plain(c) for c in contexts)


def judge_answer(
    model: EngineModel, item: Item, *, seeds: Sequence[int] = SEEDS, wording: str = WORDINGS[0]
) -> Verdict:
    """Have an answer judged once with each seed, all of them, and count the votes.

    A run that says "supported" votes for it only if its quote `is_evidence` from the item's
    contexts; if not, its outcome is ``"no_evidence"``. "unsupported" needs no quote. A `BadReply`
    is a run that failed, with its kind as outcome. Failed runs vote for nothing, and stay among
    the runs of which a verdict needs more than half.

    Raises:
        ValueError: no seed, or one twice.
        JudgeUnavailable: the engine did not answer.
    """
    _check_seeds(seeds)
    prompt = answer_prompt(item, wording)
    runs = [_run(model, prompt, item, seed) for seed in seeds]
    outcomes = tuple(outcome for outcome, _ in runs)
    supported, unsupported = (
        outcomes.count(vote) / len(outcomes) for vote in ("supported", "unsupported")
    )
    decided = max(supported, unsupported) > 0.5
    return Verdict(
        grounded=supported > unsupported if decided else None,
        agreement=max(supported, unsupported) if decided else 0.0,
        outcomes=outcomes,
        quotes=tuple(dict.fromkeys(quote for o, quote in runs if o == "supported")),
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
    """Have two answers compared with each seed in both orders: a first, and b first.

    Raises:
        ValueError: no seed, or one twice.
        JudgeUnavailable: the engine did not answer.
    """
    _check_seeds(seeds)
    outcomes: list[Literal["a", "b", "position", "failed"]] = []
    places: list[str] = []
    for seed in seeds:
        straight = _prefer(model, pair_prompt(question, contexts, a, b), seed)
        swapped = _prefer(model, pair_prompt(question, contexts, b, a), seed)
        places += [place for place in (straight, swapped) if place is not None]
        if straight is None or swapped is None:
            outcomes.append("failed")
        elif straight == swapped:
            outcomes.append("position")
        else:
            outcomes.append("a" if straight == "first" else "b")
    winner: Literal["a", "b"] | None = None
    for side in ("a", "b"):
        if outcomes.count(side) * 2 > len(outcomes):
            winner = side
    share = places.count("first") / len(places) if places else None
    return Comparison(winner, tuple(outcomes), share)


def kappa(
    labels: Sequence[bool], verdicts: Sequence[bool | None], confidence: float = 0.95
) -> Kappa:
    """Cohen's kappa of labels and verdicts: ``(p - e) / (1 - e)``.

    `p` is the share of all examples where the two are the same; a verdict of None is never the
    same as a label. `e` is the agreement by chance of just these labels and verdicts: the share of
    labels that are True times the share of verdicts that are, plus the same for False. Shares are
    of all examples, so that those without a verdict lower `p`.

    The interval is Wilson's (two-sided, at `confidence`) of `p`, both ends put into the formula
    with the same `e`. It has a width also where all agree.

    Returns:
        A `Kappa` of None where `e` is 1.

    Raises:
        ValueError: no example, or not as many verdicts as labels.
    """
    n = len(labels)
    if n == 0 or len(verdicts) != n:
        raise ValueError(f"{n} labels and {len(verdicts)} verdicts: at least one, and as many")
    same = sum(y is not None and x == y for x, y in zip(labels, verdicts, strict=True))
    chance = sum(labels.count(k) * verdicts.count(k) for k in (True, False)) / n**2
    if chance == 1:
        return Kappa(None, None, None)
    low, high = _wilson(same, n, confidence)
    return Kappa(*((share - chance) / (1 - chance) for share in (same / n, low, high)))


def calibrate(
    model: EngineModel,
    examples: Sequence[Example],
    *,
    seeds: Sequence[int] = SEEDS,
    wordings: Sequence[str] = WORDINGS,
    bar: float = BAR,
) -> Calibration:
    """Choose the wording on open examples, then measure the judge on held-out ones.

    Of several wordings it takes the one with the highest `kappa` on the examples with `split`
    ``"open"``; of equal ones the first, and one without a kappa comes last. With a single wording
    no open example is judged. Every figure of the result is of the examples with `split`
    ``"held_out"``, judged with that wording, and of all of them, whatever the judge made of them:

    - `examples`, `confusion`: the labels ``"grounded"`` and ``"ungrounded"`` (outer keys) against
      the verdicts ``"grounded"``, ``"ungrounded"`` and ``"none"`` (inner keys), all six counts.
    - `kappa`: of these.
    - `runs`, `failures`: runs made, and those that failed, by kind.
    - `by_rule`: for each rule, how many verdicts are the label, and how many examples it has.
    - `trusted`: the lower end of kappa's interval is `bar` or above. Where there is no kappa: no.
    - `reason`: a sentence with kappa, the ends of its interval and the bar, each with two digits
      after the point (or "no kappa"). It says "do not trust" where `trusted` is false, and only
      there.

    Raises:
        ValueError: no held-out example, no wording, or several wordings and no open example.
        JudgeUnavailable: the engine did not answer.
    """
    held_out = [e for e in examples if e.split == "held_out"]
    if not held_out:
        raise ValueError("a judge cannot be calibrated without held-out examples")
    wording = _best(model, [e for e in examples if e.split == "open"], seeds, wordings)
    verdicts = _verdicts(model, held_out, seeds, wording)
    given = [v.grounded for v in verdicts]
    agreement = kappa([e.grounded for e in held_out], given)
    trusted = agreement.low is not None and agreement.low >= bar
    outcomes = Counter(o for v in verdicts for o in v.outcomes)
    return Calibration(
        model=model.get_model_name(),
        wording=wording,
        seeds=tuple(seeds),
        examples=len(held_out),
        confusion=_confusion(held_out, given),
        kappa=agreement,
        runs=outcomes.total(),
        failures={kind: outcomes[kind] for kind in FAILURES},
        by_rule=_by_rule(held_out, given),
        trusted=trusted,
        reason=_reason(agreement, len(held_out), bar, trusted),
    )


class JudgeMetric(BaseMetric):
    """DeepEval metric: 1.0 if the calibrated judge finds an answer grounded, 0.0 if not.

    Args:
        model: the judge.
        calibration: its own. Answers are judged with the wording and the seeds of the calibration.

    Both stay attributes of these names: DeepEval copies a metric by handing them over again.

    Raises:
        UntrustedJudge: the calibration is not `trusted`: the message holds its `reason`. Or it is
            of a model of another name: the message names both.
    """

    model: EngineModel
    async_mode = False
    include_reason = True

    def __init__(self, model: EngineModel, calibration: Calibration) -> None:
        if not calibration.trusted:
            raise UntrustedJudge(calibration.reason)
        if calibration.model != model.get_model_name():
            raise UntrustedJudge(
                f"do not trust {model.get_model_name()}: the calibration is of {calibration.model}"
            )
        self.threshold = 0.5
        self.evaluation_model = model.get_model_name()
        self.model, self.calibration = model, calibration

    def measure(self, test_case: LLMTestCase, *args: Any, **kwargs: Any) -> float:
        """Judge `actual_output` to `input` against `retrieval_context`.

        Sets `score`: 1.0 where the verdict is grounded, 0.0 where it is not or where there is none;
        `success`: score is 1.0; `reason`: the verdict with its evidence, or how the runs failed.

        Raises:
            MissingTestCaseParamsError: one of the three is missing or empty.
        """
        if not (test_case.input and test_case.actual_output and test_case.retrieval_context):
            raise MissingTestCaseParamsError(
                "the judge needs input, actual_output and retrieval_context"
            )
        contexts = tuple(str(c) for c in test_case.retrieval_context)
        item = Item(test_case.input, contexts, test_case.actual_output)
        verdict = judge_answer(
            self.model, item, seeds=self.calibration.seeds, wording=self.calibration.wording
        )
        self.score = 1.0 if verdict.grounded is True else 0.0
        self.success = self.score == 1.0
        self.reason = _explain(verdict)
        return self.score

    async def a_measure(self, test_case: LLMTestCase, *args: Any, **kwargs: Any) -> float:
        """`measure`, without blocking the event loop."""
        return await asyncio.to_thread(self.measure, test_case)

    def is_successful(self) -> bool:
        """Whether the last measured answer was found grounded."""
        return bool(self.success)

    @property
    def __name__(self) -> str:
        return "Calibrated judge"


def _sources(contexts: Sequence[str]) -> str:
    return "\n".join(f"Source {n}: {text}" for n, text in enumerate(contexts, 1))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _check_seeds(seeds: Sequence[int]) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {tuple(seeds)}: at least one, and none twice")


def _run(model: EngineModel, prompt: str, item: Item, seed: int) -> tuple[Outcome, str]:
    try:
        opinion: Opinion = model.generate(prompt, schema=Opinion, seed=seed)
    except BadReply as error:
        return error.kind, ""
    if opinion.verdict == "supported" and not is_evidence(opinion.quote, item.contexts):
        return "no_evidence", opinion.quote
    return opinion.verdict, opinion.quote


def _prefer(model: EngineModel, prompt: str, seed: int) -> str | None:
    try:
        preference: Preference = model.generate(prompt, schema=Preference, seed=seed)
    except BadReply:
        return None
    return preference.better


def _wilson(hits: int, n: int, confidence: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, shrink = hits / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / shrink
    # Rounding must not push an end past the share itself.
    return min(centre - half, p), max(centre + half, p)


def _verdicts(
    model: EngineModel, examples: Sequence[Example], seeds: Sequence[int], wording: str
) -> list[Verdict]:
    return [judge_answer(model, e.item, seeds=seeds, wording=wording) for e in examples]


def _best(
    model: EngineModel, examples: Sequence[Example], seeds: Sequence[int], wordings: Sequence[str]
) -> str:
    if not wordings or (len(wordings) > 1 and not examples):
        raise ValueError(f"{len(wordings)} wordings cannot be compared on {len(examples)} examples")
    if len(wordings) == 1:
        return wordings[0]
    labels = [e.grounded for e in examples]

    def agreement(wording: str) -> float:
        given = [v.grounded for v in _verdicts(model, examples, seeds, wording)]
        value = kappa(labels, given).value
        return -math.inf if value is None else value

    return max(wordings, key=agreement)


def _confusion(
    examples: Sequence[Example], given: Sequence[bool | None]
) -> dict[str, dict[str, int]]:
    names = {True: "grounded", False: "ungrounded", None: "none"}
    pairs = Counter((e.grounded, v) for e, v in zip(examples, given, strict=True))
    return {
        names[label]: {name: pairs[label, verdict] for verdict, name in names.items()}
        for label in (True, False)
    }


def _by_rule(
    examples: Sequence[Example], given: Sequence[bool | None]
) -> dict[str, tuple[int, int]]:
    total = Counter(e.rule for e in examples)
    right = Counter(e.rule for e, v in zip(examples, given, strict=True) if v is e.grounded)
    return {rule: (right[rule], total[rule]) for rule in sorted(total)}


def _reason(agreement: Kappa, examples: int, bar: float, trusted: bool) -> str:
    found = "no kappa"
    if agreement.value is not None:
        found = f"kappa {agreement.value:.2f} ({agreement.low:.2f} to {agreement.high:.2f})"
    decision = "this judge may be a gate" if trusted else "do not trust this judge"
    return f"{found} on {examples} held-out answers, the bar is {bar:.2f}: {decision}."


def _explain(verdict: Verdict) -> str:
    if verdict.grounded is True:
        return f'Supported ({verdict.agreement:.0%} of runs): "{verdict.quotes[0]}"'
    if verdict.grounded is False:
        return f"Unsupported ({verdict.agreement:.0%} of runs)."
    counts = ", ".join(f"{n} {o}" for o, n in Counter(verdict.outcomes).most_common())
    return f"The judge gave no verdict: {counts}."
