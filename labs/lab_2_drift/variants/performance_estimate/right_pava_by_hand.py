"""Pool-adjacent-violators by hand, ranks for the AUC, SciPy's own interval and root finder."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm, rankdata


@dataclass(frozen=True)
class Estimate:
    rows: int
    positive_rate: float | None = None
    accuracy: float | None = None
    accuracy_se: float | None = None
    roc_auc: float | None = None


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Realized:
    rows: int
    labelled: int
    positive_rate: Interval | None = None
    accuracy: Interval | None = None
    roc_auc: Interval | None = None


@dataclass(frozen=True)
class WindowReport:
    estimate: Estimate
    on_labelled: Estimate
    realized: Realized
    verdict: str


def _valid(scores, labels=None, mask=None):
    s = np.array(scores, dtype=float)
    if np.isnan(s).any() or (s.size and (s.min() < 0 or s.max() > 1)):
        raise ValueError("a score outside [0, 1]")
    if labels is None:
        return s, None
    y = np.array(labels, dtype=float)
    if len(y) != len(s) or (mask is not None and len(mask) != len(s)):
        raise ValueError("lengths differ")
    if not set(np.unique(y[~np.isnan(y)])) <= {0.0, 1.0}:
        raise ValueError("a label that is neither 0 nor 1")
    return s, y


class _Steps:
    """A non-decreasing step function, fitted by pooling neighbours that are out of order."""

    def __init__(self, s, y):
        order = np.argsort(s, kind="stable")
        means, weights, ends = [], [], []
        for score, label in zip(s[order].tolist(), y[order].tolist(), strict=True):
            mean, weight, end = label, 1.0, score
            while means and (means[-1] >= mean or ends[-1] == end):
                total = weight + weights[-1]
                mean = (mean * weight + means.pop() * weights.pop()) / total
                weight = total
                ends.pop()
            means.append(mean)
            weights.append(weight)
            ends.append(end)
        self.means, self.ends = np.array(means), np.array(ends)

    def __call__(self, scores):
        s, _ = _valid(scores)
        return self.means[np.minimum(np.searchsorted(self.ends, s), len(self.means) - 1)]


def fit_calibrator(scores, labels, trained_on):
    s, y = _valid(scores, labels, trained_on)
    keep = np.logical_not(trained_on) & np.isfinite(y)
    if not 0 < y[keep].sum() < keep.sum():
        raise ValueError("both classes are needed")
    return _Steps(s[keep], y[keep])


def estimate_performance(calibrate, scores, threshold=0.5):
    s, _ = _valid(scores)
    if not len(s):
        return Estimate(0)
    p = np.asarray(calibrate(s))
    positive = s >= threshold
    right = (p[positive].sum() + (1 - p[~positive]).sum()) / len(s)
    return Estimate(
        len(s), float(p.mean()), float(right), float(sqrt(np.sum(p * (1 - p))) / len(s)), _auc(s, p)
    )


def _auc(s, p):
    # Rows below plus half of the equal ones, by weight of the negatives.
    order = np.argsort(s)
    ranked, q = s[order], np.concatenate([[0.0], np.cumsum((1 - p)[order])])
    below = q[np.searchsorted(ranked, s, side="left")]
    upto = q[np.searchsorted(ranked, s, side="right")]
    own = p * (1 - p)
    pairs = p.sum() * (1 - p).sum() - own.sum()
    if len(s) == 1 or pairs < 1e-12:
        return None
    return float((np.sum(p * (below + upto) / 2) - own.sum() / 2) / pairs)


def share_interval(hits, rows, confidence=0.95):
    if not rows:
        raise ValueError("no rows")
    ci = binomtest(hits, rows).proportion_ci(confidence, method="wilson")
    return Interval(hits / rows, min(ci.low, hits / rows), max(ci.high, hits / rows))


def auc_interval(auc, positives, negatives, confidence=0.95):
    if not positives or not negatives:
        raise ValueError("both classes are needed")
    z = norm.isf((1 - confidence) / 2)

    def gap(t):
        q1, q2 = t / (2 - t), 2 * t * t / (1 + t)
        v = t * (1 - t) + (positives - 1) * (q1 - t * t) + (negatives - 1) * (q2 - t * t)
        return abs(auc - t) - z * sqrt(max(v, 0.0) / (positives * negatives))

    tiny = 1e-9
    low = 0.0 if auc <= tiny else brentq(gap, 0.0, min(auc, 1 - tiny))
    high = 1.0 if auc >= 1 - tiny else brentq(gap, max(auc, tiny), 1.0)
    return Interval(auc, min(low, auc), max(high, auc))


def realized_performance(scores, labels, threshold=0.5, confidence=0.95):
    s, y = _valid(scores, labels)
    known, truth = s[y == y], y[y == y]
    if not len(truth):
        return Realized(len(s), 0)
    hits = int(np.sum((known >= threshold) == truth))
    n1 = int(truth.sum())
    n0 = len(truth) - n1
    auc = None
    if n1 and n0:
        u = rankdata(known)[truth == 1].sum() - n1 * (n1 + 1) / 2
        auc = auc_interval(float(u / (n1 * n0)), n1, n0, confidence)
    return Realized(
        len(s),
        len(truth),
        share_interval(n1, len(truth), confidence),
        share_interval(hits, len(truth), confidence),
        auc,
    )


def report_window(calibrate, scores, labels, threshold=0.5, confidence=0.99):
    s, y = _valid(scores, labels)
    whole = estimate_performance(calibrate, s, threshold)
    part = estimate_performance(calibrate, s[y == y], threshold)
    realized = realized_performance(s, y, threshold, confidence)
    if realized.labelled == 0:
        return WindowReport(whole, part, realized, "pending")
    for name in ("positive_rate", "accuracy", "roc_auc"):
        guess, seen = getattr(part, name), getattr(realized, name)
        if guess is not None and seen is not None and (guess < seen.low or guess > seen.high):
            return WindowReport(whole, part, realized, "outside")
    return WindowReport(whole, part, realized, "agrees")
