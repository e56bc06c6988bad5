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
    raise NotImplementedError("Task 2.5: write fit_calibrator")


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
    raise NotImplementedError("Task 2.5: write estimate_performance")


def share_interval(hits: int, rows: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval, two-sided, for the share of `hits` among `rows`.

    Raises:
        ValueError: `rows` is 0.
    """
    raise NotImplementedError("Task 2.5: write share_interval")


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
    raise NotImplementedError("Task 2.5: write auc_interval")


def realized_performance(
    scores: ArrayLike, labels: ArrayLike, threshold: float = 0.5, confidence: float = 0.95
) -> Realized:
    """Measure positive rate, accuracy and ROC AUC on the rows whose labels have arrived.

    Each comes with its interval at `confidence`. `rows` counts all rows, `labelled` those with a
    label. `positive_rate` and `accuracy` are None without labels, `roc_auc` is None while the
    labels hold fewer than two classes.
    """
    raise NotImplementedError("Task 2.5: write realized_performance")


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
    raise NotImplementedError("Task 2.5: write report_window")
