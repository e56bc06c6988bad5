"""Estimate a classifier's performance before its labels arrive, and check it when they do.

A binary classifier serves a score in [0, 1] for every row and decides "positive" where the score
is at or above a threshold. Labels arrive weeks later, often for some rows only. Until then,
confidence-based performance estimation (CBPE) answers with what calibrated scores promise.

Conventions of this file:

- `scores`: the model's raw scores, one a row, each in [0, 1].
- `labels`: one a row: 1, 0, or NaN where the label has not arrived.
- Decisions are always taken on the raw score: positive where ``score >= threshold``.
- A figure that cannot be computed is ``None``, never NaN and never 0.
- Arrays of different lengths, scores outside [0, 1] (NaN included) and labels other than
  0, 1 and NaN raise `ValueError`.

Sources: NannyML's description of CBPE; Wilson (1927) for the interval of a share; Hanley and
McNeil (1982) for the variance of an AUC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

Calibrator = Callable[[ArrayLike], NDArray[np.float64]]
"""Takes raw scores, returns for each the probability that its label is 1."""


@dataclass(frozen=True)
class Estimate:
    """What the scores promise, without labels."""

    rows: int
    positive_rate: float | None
    accuracy: float | None
    accuracy_se: float | None
    roc_auc: float | None


@dataclass(frozen=True)
class Interval:
    """A measured figure and the interval around it: ``0 <= low <= value <= high <= 1``."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Realized:
    """What the labels that have arrived say."""

    rows: int
    labelled: int
    positive_rate: Interval | None
    accuracy: Interval | None
    roc_auc: Interval | None


@dataclass(frozen=True)
class WindowReport:
    """One window: the estimate, and how it stood the test."""

    estimate: Estimate
    """For all rows of the window: the figure for the dashboard."""
    on_labelled: Estimate
    """For the rows whose labels have arrived: the figure to compare."""
    realized: Realized
    verdict: Literal["pending", "agrees", "outside"]


def fit_calibrator(scores: ArrayLike, labels: ArrayLike, trained_on: ArrayLike) -> Calibrator:
    """Learn from reference rows how often a row with a given score turns out positive.

    Args:
        scores: raw scores of the reference rows.
        labels: their labels; rows whose label has not arrived are left out.
        trained_on: one bool a row, true where the model was fitted on that row. Such rows are
            left out: a model's scores on its own training rows are better than on any other.

    Returns:
        A calibrator: takes an array of scores (an empty one too), returns as many probabilities
        in [0, 1], never decreasing in the score. It assumes no particular shape: a model may be
        over-confident at one end and under-confident at the other. With 30,000 usable rows its
        mean absolute error is below 0.03.

    Raises:
        ValueError: the usable rows do not hold both classes.
    """
    s, y = _checked(scores, labels)
    seen = np.asarray(trained_on, dtype=bool)
    if seen.shape != s.shape:
        raise ValueError(f"{s.size} scores, but {seen.size} values in trained_on")
    usable = ~np.isnan(y) & ~seen
    if np.unique(y[usable]).size < 2:
        raise ValueError("calibration needs labelled rows of both classes outside training")
    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    model.fit(s[usable], y[usable])

    def calibrate(raw: ArrayLike) -> NDArray[np.float64]:
        values = _checked_scores(raw)
        return model.predict(values) if values.size else values

    return calibrate


def estimate_performance(
    calibrate: Calibrator, scores: ArrayLike, threshold: float = 0.5
) -> Estimate:
    """Estimate positive rate, accuracy and ROC AUC of a window without its labels.

    With p the calibrated probability of a row:

    - `positive_rate` is the mean of p: the share of rows whose label will be 1.
    - A positive decision is right with probability p, a negative one with 1 - p. `accuracy` is
      the mean of that probability c; `accuracy_se` is ``sqrt(sum(c * (1 - c))) / rows``: how far
      the realized accuracy strays from the estimate by chance alone, if the calibration holds.
    - `roc_auc`: every row counts as positive with weight p and as negative with weight 1 - p.
      Over all ordered pairs of two different rows (i, j), weighted p_i * (1 - p_j): the share in
      which the raw score of i is above that of j; equal scores count one half. None where the
      weights sum to 0 (fewer than two rows, for instance).

    An empty window has ``rows`` 0 and None for the rest.
    """
    s = _checked_scores(scores)
    if s.size == 0:
        return Estimate(rows=0, positive_rate=None, accuracy=None, accuracy_se=None, roc_auc=None)
    p = np.asarray(calibrate(s), dtype=float)
    correct = np.where(s >= threshold, p, 1.0 - p)
    return Estimate(
        rows=s.size,
        positive_rate=float(p.mean()),
        accuracy=float(correct.mean()),
        accuracy_se=float(np.sqrt(np.sum(correct * (1.0 - correct))) / s.size),
        roc_auc=_expected_auc(s, p),
    )


def share_interval(hits: int, rows: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval, two-sided, for the share of `hits` among `rows`.

    Raises:
        ValueError: `rows` is 0.
    """
    if rows == 0:
        raise ValueError("no rows, no interval")
    z = _z(confidence)
    share = hits / rows
    shrink = 1 + z**2 / rows
    centre = (share + z**2 / (2 * rows)) / shrink
    half = z * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2)) / shrink
    # Rounding must not push a bound past the figure itself, at 0 % and 100 % above all.
    return Interval(
        value=share,
        low=float(min(max(centre - half, 0.0), share)),
        high=float(max(min(centre + half, 1.0), share)),
    )


def auc_interval(auc: float, positives: int, negatives: int, confidence: float = 0.95) -> Interval:
    """The values of the true AUC that the measured one does not contradict.

    As Wilson's interval does for a share, it takes the variance at the candidate value and not
    at the measured one: all t in [0, 1] with ``(auc - t)**2 <= z**2 * V(t)``, where z is the
    two-sided normal quantile and V is Hanley and McNeil's variance::

        V(t) = (t(1-t) + (positives-1)(t/(2-t) - t*t) + (negatives-1)(2*t*t/(1+t) - t*t))
               / (positives * negatives)

    So a perfect AUC on ten rows still has an interval with a width. Bounds to within 1e-6.

    Raises:
        ValueError: `positives` or `negatives` is 0.
    """
    if positives == 0 or negatives == 0:
        raise ValueError("an AUC needs both classes")
    z2 = _z(confidence) ** 2

    def contradicted(t: float) -> bool:
        # Hanley and McNeil's variance, factored: no cancellation near 0 and 1.
        variance = (
            t
            * (1 - t)
            * (1 + (positives - 1) * (1 - t) / (2 - t) + (negatives - 1) * t / (1 + t))
            / (positives * negatives)
        )
        return (auc - t) ** 2 > z2 * variance

    return Interval(
        value=auc, low=_border(0.0, auc, contradicted), high=_border(1.0, auc, contradicted)
    )


def realized_performance(
    scores: ArrayLike, labels: ArrayLike, threshold: float = 0.5, confidence: float = 0.95
) -> Realized:
    """Measure positive rate, accuracy and ROC AUC on the rows whose labels have arrived.

    Each comes with its interval at `confidence`. `rows` counts all rows, `labelled` those with a
    label. `positive_rate` and `accuracy` are None without labels, `roc_auc` is None while the
    labels hold fewer than two classes.
    """
    s, y = _checked(scores, labels)
    arrived = ~np.isnan(y)
    known, truth = s[arrived], y[arrived] == 1.0
    positives, labelled = int(truth.sum()), int(truth.size)
    correct = int(((known >= threshold) == truth).sum())
    return Realized(
        rows=s.size,
        labelled=labelled,
        positive_rate=share_interval(positives, labelled, confidence) if labelled else None,
        accuracy=share_interval(correct, labelled, confidence) if labelled else None,
        roc_auc=(
            auc_interval(
                float(roc_auc_score(truth, known)), positives, labelled - positives, confidence
            )
            if 0 < positives < labelled
            else None
        ),
    )


def report_window(
    calibrate: Calibrator,
    scores: ArrayLike,
    labels: ArrayLike,
    threshold: float = 0.5,
    confidence: float = 0.99,
) -> WindowReport:
    """Estimate a window, and compare with its labels as far as they have arrived.

    `calibrate` comes from the reference and stays as it is. The labels that arrive first are
    seldom a fair sample, so the comparison is like with like: `on_labelled` is the estimate for
    the labelled rows only.

    `verdict`: "pending" without a label; "outside" where `on_labelled` has a positive rate, an
    accuracy or a ROC AUC outside the realized interval of the same figure (a figure that is None
    on either side is not compared); "agrees" otherwise. With three figures at confidence 0.99,
    up to three windows in a hundred are outside by chance alone.
    """
    s, y = _checked(scores, labels)
    on_labelled = estimate_performance(calibrate, s[~np.isnan(y)], threshold)
    realized = realized_performance(s, y, threshold, confidence)
    pairs = (
        (on_labelled.positive_rate, realized.positive_rate),
        (on_labelled.accuracy, realized.accuracy),
        (on_labelled.roc_auc, realized.roc_auc),
    )
    verdict: Literal["pending", "agrees", "outside"] = (
        "pending"
        if not realized.labelled
        else (
            "outside" if any(_outside(value, interval) for value, interval in pairs) else "agrees"
        )
    )
    return WindowReport(
        estimate=estimate_performance(calibrate, s, threshold),
        on_labelled=on_labelled,
        realized=realized,
        verdict=verdict,
    )


def _checked_scores(scores: ArrayLike) -> NDArray[np.float64]:
    s = np.asarray(scores, dtype=float)
    if s.ndim != 1 or not np.all((s >= 0.0) & (s <= 1.0)):
        raise ValueError("scores must be one number a row, each in [0, 1]")
    return s


def _checked(
    scores: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    s, y = _checked_scores(scores), np.asarray(labels, dtype=float)
    if s.shape != y.shape:
        raise ValueError(f"{s.size} scores, but {y.size} labels")
    if not np.all(np.isnan(y) | (y == 0.0) | (y == 1.0)):
        raise ValueError("labels must be 0, 1 or NaN (not yet arrived)")
    return s, y


def _expected_auc(s: NDArray[np.float64], p: NDArray[np.float64]) -> float | None:
    _, group = np.unique(s, return_inverse=True)
    positive = np.bincount(group, weights=p)
    negative = np.bincount(group, weights=1.0 - p)
    # No row is compared with itself: it has one label, not both.
    itself = float(np.sum(p * (1.0 - p)))
    total = float(positive.sum() * negative.sum()) - itself
    if s.size < 2 or total <= 1e-12:
        return None
    below = np.cumsum(negative) - negative
    won = float(np.sum(positive * (below + negative / 2.0))) - itself / 2.0
    return float(np.clip(won / total, 0.0, 1.0))


def _border(end: float, inside: float, contradicted: Callable[[float], bool]) -> float:
    """Bisect between `end` and `inside` for the last value that is not contradicted."""
    if not contradicted(end):
        return end
    for _ in range(60):
        middle = (end + inside) / 2.0
        if contradicted(middle):
            end = middle
        else:
            inside = middle
    return inside


def _z(confidence: float) -> float:
    return float(norm.ppf(0.5 + confidence / 2.0))


def _outside(value: float | None, interval: Interval | None) -> bool:
    return value is not None and interval is not None and not interval.low <= value <= interval.high
