"""Lists unpaired answers, and goes on with the others, however few.

caught-by: test_nothing_is_decided_on_too_few_or_missing_answers
hint: missing-pairs
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from mlflow import MlflowClient
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]
Verdict = Literal["pass", "block", "undecided"]

OVERALL = "overall"
"""Name of the change over all questions."""

TABLE = "slices.json"
"""The table of changes among the MLflow run's artifacts."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a metric said about one answer of one version.

    Attributes:
        question: id of the golden question.
        slice: the part of the traffic it stands for, e.g. its kind.
        value: 0 to 1; 0 and 1 only for a metric that says no or yes. None: there was no answer
            to score, because the assistant crashed or ran out of time.
        attempt: which of several answers to this question, e.g. the seed.
    """

    question: str
    slice: str
    value: float | None
    attempt: int = 0


@dataclass(frozen=True)
class Plan:
    """What is stated before anybody has seen a score.

    Attributes:
        margin: loss of mean score that you would accept, in points of score: 0.05 is from 0.80
            to 0.75, and from 0.20 to 0.15.
        alpha: chance of a false block, over all slices and looks.
        min_questions: with fewer, nothing is decided.
        max_unpaired: share of answers without a counterpart, above which nothing is decided.
        looks: how often the gate may be asked while answers still come in.

    Raises:
        ValueError: a number is out of range.
    """

    margin: float = 0.05
    alpha: float = 0.05
    min_questions: int = 30
    max_unpaired: float = 0.02
    looks: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise ValueError(f"margin={self.margin}: points of score, between 0 and 1")
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha={self.alpha}: a probability between 0 and 0.5")
        if self.min_questions < 1 or self.looks < 1:
            raise ValueError("min_questions and looks are at least 1")
        if not 0 <= self.max_unpaired < 1:
            raise ValueError(f"max_unpaired={self.max_unpaired}: a share, from 0 to below 1")


@dataclass(frozen=True)
class Paired:
    """Both versions, question by question.

    Attributes:
        questions: ids of the questions that have a pair, sorted.
        slices: (n,) the slice of each.
        old: (n,) the old version's mean score of each, over the paired attempts.
        new: (n,) the new version's, over the same attempts.
        unpaired: (question, attempt) that one version has and the other lacks, sorted.
        answers: distinct (question, attempt) of both versions together.
        crashed_old: answers of the old version without a value, paired or not.
        crashed_new: the new version's.
    """

    questions: tuple[str, ...]
    slices: tuple[str, ...]
    old: Floats
    new: Floats
    unpaired: tuple[tuple[str, int], ...]
    answers: int
    crashed_old: int
    crashed_new: int


@dataclass(frozen=True)
class Change:
    """How the score of some questions changed.

    Attributes:
        name: the slice, or `OVERALL`.
        questions: how many.
        old: mean score of the old version, each question counting once.
        new: of the new one.
        change: new minus old, in points of score; below 0 the new version is worse.
        low: lower end of the interval of `change`.
        high: upper end.
        p: one-sided p-value of "not worse"; small when the new version is worse.
        adjusted_p: `p` corrected for all changes that the gate looks at; filled by the gate.
        verdict: what this change alone says; filled by the gate.
    """

    name: str
    questions: int
    old: float
    new: float
    change: float
    low: float
    high: float
    p: float
    adjusted_p: float | None = None
    verdict: Verdict = "undecided"


@dataclass(frozen=True)
class Decision:
    """What the gate says, and what it rests on.

    Attributes:
        verdict: "pass", "block", or "undecided": not enough evidence for either.
        reason: why, in a sentence for whoever waits for the release.
        overall: the change over all questions.
        slices: the change of each slice, sorted by name; empty where there is only one slice.
        blocked_by: names of the changes that block; empty unless the verdict is "block".
        unpaired: answers without a counterpart, as in `Paired`.
        crashed_old: as in `Paired`.
        crashed_new: as in `Paired`.
        plan: what was stated beforehand.
        look: which of the plan's looks this was, from 1.
        seed: of the resampling.
    """

    verdict: Verdict
    reason: str
    overall: Change
    slices: tuple[Change, ...]
    blocked_by: tuple[str, ...]
    unpaired: tuple[tuple[str, int], ...]
    crashed_old: int
    crashed_new: int
    plan: Plan
    look: int
    seed: int


def pair_scores(old: Iterable[Score], new: Iterable[Score]) -> Paired:
    """Bring both versions' scores together, question by question.

    Two scores are a pair when question and attempt are the same; the order in which they come
    plays no part. Only pairs are compared, the others are named in `unpaired`. An answer that
    crashed counts as 0, in either version: whoever asked got nothing. A question's score is the
    mean over its paired attempts.

    Raises:
        ValueError: the same version has two scores for one question and attempt; a value is NaN
            or outside [0, 1]; a question is in two slices; or there is no pair at all. The
            message names the question, where there is one.
    """
    slices: dict[str, str] = {}
    before, after = _by_answer(old, slices), _by_answer(new, slices)
    pairs = sorted(before.keys() & after.keys())
    if not pairs:
        raise ValueError("no answer of one version has a counterpart in the other")
    questions = tuple(dict.fromkeys(question for question, _ in pairs))
    place = {question: n for n, question in enumerate(questions)}
    where = np.array([place[question] for question, _ in pairs])
    attempts = np.bincount(where)
    means = [
        np.bincount(where, [scores[k] or 0.0 for k in pairs]) / attempts
        for scores in (before, after)
    ]
    return Paired(
        questions=questions,
        slices=tuple(slices[question] for question in questions),
        old=means[0],
        new=means[1],
        unpaired=tuple(sorted(before.keys() ^ after.keys())),
        answers=len(before.keys() | after.keys()),
        crashed_old=sum(value is None for value in before.values()),
        crashed_new=sum(value is None for value in after.values()),
    )


def compare(name: str, old: ArrayLike, new: ArrayLike, *, alpha: float, seed: int = 0) -> Change:
    """The change of some questions, with a paired test and an interval.

    `p` is the chance of a mean change as low as this one or lower, if the versions are equal:
    if, within each question, old and new might as well be swapped. It keeps its level at any
    size, so that n questions all lost give no p below 0.5**n. Exact sign flips do that (for
    scores of 0 and 1 they are McNemar's exact test); so does a sample of flips with its own
    outcome counted in, so that `p` is never 0, which is precise enough from some thousand flips
    on. `p` is 1 where nothing changed.

    `low` and `high` are the two-sided interval of confidence 1 - 2 * alpha, so that each end
    misses with probability `alpha`: Student's t, or a bootstrap of some thousand resamples of the
    questions. With 400 questions or more, a tenth of them changed, and an alpha of 0.05 or 0.1,
    each end lies within 20 % of a half-width of the t interval's end. An interval without width
    would be a lie: n questions that all stay the same, 8 or more, still give low <= -1/n and
    high >= 1/n. (One way: put in two imagined questions, one lost and one won by a whole point,
    as Agresti and Min do.)

    Args:
        name: for the result.
        old: (n,) one score a question.
        new: (n,) for the same questions in the same order.
        alpha: chance that the true change lies below `low`; the same for above `high`.
        seed: of the resampling; the same arguments give the same change.

    Raises:
        ValueError: the lengths differ, or there is no question.

    Source: Good, Permutation, Parametric, and Bootstrap Tests of Hypotheses, chapter 3; Agresti
    and Min, Statistics in Medicine 24 (2005), for the imagined questions.
    """
    before, after = np.asarray(old, dtype=float), np.asarray(new, dtype=float)
    if before.shape != after.shape or not len(before):
        raise ValueError(f"{len(before)} old and {len(after)} new scores cannot be compared")
    changes = after - before
    imagined = np.append(changes, [-1.0, 1.0])
    error = imagined.std(ddof=1) / math.sqrt(len(imagined))
    reach = float(special.stdtrit(len(imagined) - 1, 1 - alpha) * error)
    centre = float(imagined.mean())
    return Change(
        name=name,
        questions=len(changes),
        old=float(before.mean()),
        new=float(after.mean()),
        change=float(changes.mean()),
        low=centre - reach,
        high=centre + reach,
        p=_chance_of_so_low(changes, seed),
    )


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being looked at together, in the given order.

    If none of the changes is real, the chance that any corrected value is at or below alpha is at
    most alpha, however the changes hang together: Holm's method, or Bonferroni's, which is never
    smaller. None is above 1. No p-value gives an empty list.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
    """
    count = len(p_values)
    order = np.argsort(p_values)
    adjusted = np.empty(count)
    scaled = np.asarray(p_values, dtype=float)[order] * (count - np.arange(count))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in adjusted]


def release_gate(
    old: Iterable[Score], new: Iterable[Score], plan: Plan, *, look: int = 1, seed: int = 0
) -> Decision:
    """Decide whether the new version may go out.

    Scores are paired, and the changes overall and of each slice are compared, each at
    `plan.alpha / plan.looks`, the level that one look may spend. Their p-values are corrected
    together. Where there is only one slice, it is the whole, and is not looked at twice.

    The verdict of a change, overall or of a slice:

    - "pass" if its `low` is above `-plan.margin`: a loss that large is ruled out. (A loss that is
      certain, and smaller than the margin, was accepted beforehand.)
    - "block" otherwise, if its adjusted p is at most the level of the look.
    - "undecided" otherwise.

    The verdict of the gate, the first that applies:

    - "undecided" if more than `plan.max_unpaired` of `Paired.answers` are unpaired. Answers
      seldom go missing at random.
    - "undecided" if fewer than `plan.min_questions` questions are paired.
    - "block" if any change says so; `blocked_by` names all that do, `OVERALL` first.
    - Otherwise what the overall change says. Slices need not pass: most are too small to.

    The reason names the unpaired answers' share, the number of questions, what blocks, or the
    interval, whichever decided.

    Args:
        old: scores of the version in service.
        new: scores of the version that would replace it.
        plan: stated beforehand.
        look: which look this is, from 1. A look takes in all answers so far.
        seed: of the resampling.

    Raises:
        ValueError: as `pair_scores`, or `look` is not among the plan's looks.
    """
    if not 1 <= look <= plan.looks:
        raise ValueError(f"look {look}: the plan has {plan.looks}, stated beforehand")
    paired = pair_scores(old, new)
    level = plan.alpha / plan.looks
    found = _changes(paired, level, seed)
    adjusted = adjust_p_values([c.p for c in found])
    changes = [
        replace(c, adjusted_p=p, verdict=_verdict(c, p, level, plan.margin))
        for c, p in zip(found, adjusted, strict=True)
    ]
    verdict, reason = _decide(paired, changes, plan)
    blocking = tuple(c.name for c in changes if c.verdict == "block")
    return Decision(
        verdict=verdict,
        reason=reason,
        overall=changes[0],
        slices=tuple(changes[1:]),
        blocked_by=blocking if verdict == "block" else (),
        unpaired=paired.unpaired,
        crashed_old=paired.crashed_old,
        crashed_new=paired.crashed_new,
        plan=plan,
        look=look,
        seed=seed,
    )


def required_questions(
    loss: float, spread: float, *, alpha: float = 0.05, power: float = 0.8, tests: int = 1
) -> int:
    """How many questions it takes to block a version that lost `loss`, with probability `power`.

    The normal approximation for the one-sided test, rounded up: the square of
    (z(1 - alpha / tests) + z(power)) * spread / loss, with z the normal quantile.

    Args:
        loss: true loss of mean score, in points of score, above 0.
        spread: standard deviation of the questions' changes, above 0. For scores of 0 and 1 of
            which a share d differs it is sqrt(d - loss**2).
        alpha: the level of the gate (of one look).
        power: wanted probability of a block.
        tests: changes that are looked at together: 1, or the slices and the whole.

    Returns:
        Questions, not answers: asking the same question again adds less than a new one.

    Raises:
        ValueError: `loss` or `spread` is not above 0, `alpha` or `power` is not between 0 and 1,
            or `tests` is below 1.
    """
    if loss <= 0 or spread <= 0 or not 0 < alpha < 1 or not 0 < power < 1 or tests < 1:
        raise ValueError(
            f"loss={loss} and spread={spread} must be above 0, alpha={alpha} and power={power} "
            f"between 0 and 1, tests={tests} at least 1"
        )
    reach = special.ndtri(1 - alpha / tests) + special.ndtri(power)
    return math.ceil((reach * spread / loss) ** 2)


def log_decision(
    decision: Decision, *, old: str, new: str, tracking_uri: str, experiment: str
) -> str:
    """Put a decision on record: one finished MLflow run in the existing `experiment`.

    - Name: "<old> to <new>". A "block" is a finished run as well: the gate did not fail.
    - Tags: `verdict` and `reason`.
    - Parameters: `old_version`, `new_version`, `seed`, `look`, and every field of the plan by its
      own name.
    - Metrics: `change`, `change_low`, `change_high` and `p` of the overall change, `questions`,
      `unpaired` (a count), `crashed_old`, `crashed_new`, `blocking` (how many changes block).
    - Table `TABLE`, as `MlflowClient.log_table` writes it: a row for the overall change and then
      one for each slice, with the fields of `Change` as columns.

    Args:
        decision: of `release_gate`.
        old: name of the version in service, e.g. "assistant-41".
        new: name of the version that was judged.
        tracking_uri: the store.
        experiment: its name.

    Returns:
        The run's id.

    Raises:
        LookupError: there is no such experiment.
    """
    client = MlflowClient(tracking_uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise LookupError(f"there is no experiment {experiment!r}")
    run_id: str = client.create_run(found.experiment_id, run_name=f"{old} to {new}").info.run_id
    for key, value in _parameters(decision, old, new).items():
        client.log_param(run_id, key, value)
    for key, number in _metrics(decision).items():
        client.log_metric(run_id, key, number)
    client.set_tag(run_id, "verdict", decision.verdict)
    client.set_tag(run_id, "reason", decision.reason)
    rows = [asdict(c) for c in (decision.overall, *decision.slices)]
    client.log_table(run_id, {k: [row[k] for row in rows] for k in rows[0]}, TABLE)
    client.set_terminated(run_id)
    return run_id


_FLIPS = 5_000
_ENUMERATED = 10
_Answers = Mapping[tuple[str, int], float | None]


def _by_answer(scores: Iterable[Score], slices: dict[str, str]) -> _Answers:
    """The values of one version; notes each question's slice on the way."""
    found: dict[tuple[str, int], float | None] = {}
    for score in scores:
        key = (score.question, score.attempt)
        if key in found:
            raise ValueError(f"{score.question}, attempt {score.attempt}, is there twice")
        if score.value is not None and not 0 <= score.value <= 1:
            raise ValueError(f"{score.question} has the value {score.value}, not 0 to 1")
        if slices.setdefault(score.question, score.slice) != score.slice:
            raise ValueError(f"{score.question} is in two slices")
        found[key] = score.value
    return found


def _changes(paired: Paired, level: float, seed: int) -> list[Change]:
    """The overall change, then those of the slices."""
    found = [compare(OVERALL, paired.old, paired.new, alpha=level, seed=seed)]
    labels = np.array(paired.slices)
    names = sorted(set(paired.slices))
    if len(names) > 1:
        for name in names:
            own = labels == name
            found.append(compare(name, paired.old[own], paired.new[own], alpha=level, seed=seed))
    return found


def _verdict(change: Change, adjusted_p: float, level: float, margin: float) -> Verdict:
    if change.low > -margin:
        return "pass"
    return "block" if adjusted_p <= level else "undecided"


def _decide(paired: Paired, changes: Sequence[Change], plan: Plan) -> tuple[Verdict, str]:
    """The gate's verdict and its reason."""
    overall, questions = changes[0], len(paired.questions)
    if questions < plan.min_questions:
        return "undecided", f"{questions} questions; the plan asks for {plan.min_questions}"
    blocking = [c for c in changes if c.verdict == "block"]
    if blocking:
        return "block", "worse: " + "; ".join(
            f"{c.name} {c.change:+.3f} in {c.questions} questions (adjusted p {c.adjusted_p:.2g})"
            for c in blocking
        )
    interval = f"the change is {overall.change:+.3f}, between {overall.low:+.3f} and "
    interval += f"{overall.high:+.3f}, over {questions} questions"
    if overall.verdict == "pass":
        return "pass", f"{interval}: a loss of {plan.margin} is ruled out"
    return "undecided", f"{interval}: a loss of {plan.margin} is not ruled out, nor any shown"


def _chance_of_so_low(changes: Floats, seed: int) -> float:
    """One-sided p-value of the mean by flipping signs; a change of 0 has none to flip."""
    sizes = np.abs(changes[changes != 0])
    if not len(sizes):
        return 1.0
    if np.allclose(sizes, sizes[0], rtol=1e-12):  # McNemar's exact test
        return float(special.bdtr(int((changes > 0).sum()), len(sizes), 0.5))
    if len(sizes) <= _ENUMERATED:
        lost, own = _every_choice(len(sizes)), 0
    else:
        coins = np.random.default_rng(seed).integers(0, 2, (_FLIPS, len(sizes)), np.int8)
        lost, own = coins.astype(float), 1
    # The sum of changes is the sum of sizes minus twice what was lost.
    observed = (sizes.sum() - changes.sum()) / 2
    extreme = int((lost @ sizes >= observed - 1e-9).sum())
    return (extreme + own) / (len(lost) + own)


@lru_cache(maxsize=_ENUMERATED)
def _every_choice(count: int) -> Floats:
    """(2**count, count) all ways to lose or win `count` questions."""
    numbers = np.arange(2**count)[:, None]
    return (numbers >> np.arange(count) & 1).astype(float)


def _parameters(decision: Decision, old: str, new: str) -> dict[str, str | float]:
    return {
        "old_version": old,
        "new_version": new,
        "seed": decision.seed,
        "look": decision.look,
        **asdict(decision.plan),
    }


def _metrics(decision: Decision) -> dict[str, float]:
    overall = decision.overall
    return {
        "change": overall.change,
        "change_low": overall.low,
        "change_high": overall.high,
        "p": overall.p,
        "questions": overall.questions,
        "unpaired": len(decision.unpaired),
        "crashed_old": decision.crashed_old,
        "crashed_new": decision.crashed_new,
        "blocking": len(decision.blocked_by),
    }
