"""Task 2.2: drift statistics, written out by hand.

They compare one column of a reference window with the same column of a current window. NumPy,
pandas and `scipy.special` (for the tails `kolmogorov` and `chdtrc`) are yours to use; `scipy.stats`
and Evidently are what your numbers are compared with, so they stay out of this file.

Where a column has missing values, no statistic may lose them in silence: the binned ones count
them in a bin of their own, the others report how many they had to leave out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.special import chdtrc, kolmogorov

FLOOR = 1e-4
"""The share that PSI takes for a bin that is empty in one window, as Evidently does."""

MAX_VALUES = 20
"""A numeric reference with at most so many distinct values is binned value by value."""

LEAST_SPREAD = 1e-3
"""The smallest standard deviation that a distance is divided by, as in Evidently."""


@dataclass(frozen=True)
class BinCounts:
    """Rows of both windows in the same bins.

    Attributes:
        labels: one for each bin. A value (string, number or bool) where the bin holds one value,
            ``(low, high)`` where it holds numbers with ``low <= x < high``, None for missing.
        reference, current: rows in each bin, in the order of `labels`.
    """

    labels: tuple[Hashable, ...]
    reference: tuple[int, ...]
    current: tuple[int, ...]


@dataclass(frozen=True)
class Statistic:
    """What a comparison says, and on how many rows it rests.

    Attributes:
        value: the statistic.
        p_value: probability of a value at least as large if nothing had changed, None where
            the statistic is a distance without a test.
        reference_rows, current_rows: rows that were compared.
        reference_missing, current_missing: share of all rows, 0 to 1, that were left out because
            the value is missing.
    """

    value: float
    p_value: float | None
    reference_rows: int
    current_rows: int
    reference_missing: float
    current_missing: float


def count_bins(
    reference: pd.Series,
    current: pd.Series,
    *,
    bins: int = 10,
    edges: Sequence[float] | None = None,
) -> BinCounts:
    """Count the rows of both windows in bins that the reference defines.

    A numeric column (not bool) whose reference has more than `MAX_VALUES` distinct values, or one
    for which `edges` are given, is cut at inner edges, in rising order: a value on an edge belongs
    to the bin above it, the first bin is open below and the last one above, so that n edges make
    n + 1 bins and every value has one. Without `edges`, these are the quantiles of
    the reference's present values at 1/bins, 2/bins, ... (NumPy's default interpolation), equal
    ones taken once.

    Any other column has one bin for each value that either window holds, a value that only the
    current window holds included.

    When either window has missing values (None, NaN), one more bin, the last, counts them.

    Args:
        reference, current: the column in each window. Dtypes may differ; one may be all missing.
        bins: how many quantile bins.
        edges: inner edges to use instead, in rising order; the caller gives them for numbers only.

    Raises:
        ValueError: a window has no rows; the message names it, ``reference`` or ``current``.
    """
    _require_rows(reference, current)
    if edges is None and not _is_continuous(reference):
        return _count_values(reference, current)
    if edges is None:
        levels = np.arange(1, bins) / bins
        edges = np.unique(np.quantile(_present(reference), levels)).tolist()
    inner = np.asarray(edges, dtype=float)
    bounds = [-np.inf, *inner.tolist(), np.inf]
    labels: list[Hashable] = list(pairwise(bounds))
    counts = []
    for column in (reference, current):
        numbers = np.searchsorted(inner, _present(column), side="right")
        counts.append([*np.bincount(numbers, minlength=len(labels)), _missing(column)])
    return _bin_counts([*labels, None], *counts)


def psi(
    reference: pd.Series,
    current: pd.Series,
    *,
    bins: int = 10,
    edges: Sequence[float] | None = None,
) -> Statistic:
    """Population stability index over the bins of `count_bins`, natural logarithm.

    Sum over bins of ``(c - r) * ln(c / r)``, where r and c are the bin's shares of all rows of its
    window. A share of exactly 0 counts as `FLOOR`; no other share is changed. Evidently's `psi`
    gives the same for columns binned value by value, and for others when it is given the same
    edges (its own come from both windows together).

    All rows are compared, so nothing is left out; there is no p-value.

    Raises:
        ValueError: a window has no rows.
    """
    counts = count_bins(reference, current, bins=bins, edges=edges)
    r, c = (np.where(s == 0, FLOOR, s) for s in _shares(counts))
    return _over_all_rows(float(((c - r) * np.log(c / r)).sum()), None, reference, current)


def jensen_shannon(
    reference: pd.Series,
    current: pd.Series,
    *,
    bins: int = 10,
    edges: Sequence[float] | None = None,
) -> Statistic:
    """Jensen-Shannon distance over the bins of `count_bins`, natural logarithm.

    The square root of the divergence: half of KL(r || m) plus half of KL(c || m), where m is the
    mean of both shares. An empty bin adds nothing to its own side. 0 when the shares are equal,
    sqrt(ln 2) when no bin is shared; the same as ``scipy.spatial.distance.jensenshannon``.

    All rows are compared, so nothing is left out; there is no p-value.

    Raises:
        ValueError: a window has no rows.
    """
    r, c = _shares(count_bins(reference, current, bins=bins, edges=edges))
    middle = (r + c) / 2
    divergence = (_relative_entropy(r, middle) + _relative_entropy(c, middle)) / 2
    return _over_all_rows(float(np.sqrt(max(divergence, 0.0))), None, reference, current)


def chi_square(
    reference: pd.Series,
    current: pd.Series,
    *,
    bins: int = 10,
    edges: Sequence[float] | None = None,
) -> Statistic:
    """Chi-square test of one distribution behind both windows, over the bins of `count_bins`.

    Both windows are samples: the expected count of a cell is its row total times its column
    total over all rows, as in ``scipy.stats.chi2_contingency(table, correction=False)``. Bins
    that are empty in both windows play no part. With one bin left, value is 0 and p-value 1.

    (Evidently's `chisquare` takes the reference for the exact truth, so it alarms more often.)

    Raises:
        ValueError: a window has no rows.
    """
    counts = count_bins(reference, current, bins=bins, edges=edges)
    table = np.array([counts.reference, counts.current], dtype=float)
    table = table[:, table.sum(axis=0) > 0]
    degrees = table.shape[1] - 1
    if degrees == 0:
        return _over_all_rows(0.0, 1.0, reference, current)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    value = float(((table - expected) ** 2 / expected).sum())
    return _over_all_rows(value, float(chdtrc(degrees, value)), reference, current)


def ks(reference: pd.Series, current: pd.Series) -> Statistic:
    """Two-sample Kolmogorov-Smirnov test of the present values, unbinned.

    The value is the largest distance between the two empirical distribution functions, each the
    share of values that are less than or equal to x; ties are common in real columns. The
    p-value is the asymptotic one, ``kolmogorov(value * sqrt(n * m / (n + m)))`` with n and m the
    numbers of present values. It is within 0.05 of ``scipy.stats.ks_2samp(method="asymp")`` from
    100 rows a window on, and nearer for small p-values.

    Raises:
        ValueError: a window has no present value; the message names it.
        TypeError: a window with present values is not numeric.
    """
    before, now = _numbers(reference, "reference"), _numbers(current, "current")
    points = np.concatenate([before, now])
    gap = _distribution(before, points) - _distribution(now, points)
    value = float(np.abs(gap).max())
    size = len(before) * len(now) / (len(before) + len(now))
    return _over_present_rows(value, float(kolmogorov(value * np.sqrt(size))), reference, current)


def wasserstein(reference: pd.Series, current: pd.Series, *, normalised: bool = True) -> Statistic:
    """First Wasserstein distance of the present values: the mean distance rows have to move.

    The area between the two empirical distribution functions, in the column's own unit. When
    `normalised`, it is divided by the standard deviation of the reference's present values
    (population: ddof 0), but by no less than `LEAST_SPREAD`, so that columns in different units
    share one threshold. Equal to ``scipy.stats.wasserstein_distance`` and, normalised, to
    Evidently's `wasserstein`. There is no p-value.

    Raises:
        ValueError: a window has no present value; the message names it.
        TypeError: a window with present values is not numeric.
    """
    before, now = _numbers(reference, "reference"), _numbers(current, "current")
    points = np.unique(np.concatenate([before, now]))
    gap = np.abs(_distribution(before, points[:-1]) - _distribution(now, points[:-1]))
    value = float((gap * np.diff(points)).sum())
    if normalised:
        value /= max(float(before.std()), LEAST_SPREAD)
    return _over_present_rows(value, None, reference, current)


def _is_continuous(column: pd.Series) -> bool:
    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        return False
    return column.nunique() > MAX_VALUES


def _count_values(reference: pd.Series, current: pd.Series) -> BinCounts:
    # A pandas categorical also lists categories that no row has.
    before, now = (
        counts[counts > 0] for counts in map(pd.Series.value_counts, (reference, current))
    )
    values = list(dict.fromkeys([*before.index, *now.index]))
    return _bin_counts(
        [*values, None],
        [*(before.get(v, 0) for v in values), _missing(reference)],
        [*(now.get(v, 0) for v in values), _missing(current)],
    )


def _bin_counts(
    labels: list[Hashable], reference: Sequence[int], current: Sequence[int]
) -> BinCounts:
    """Drop the bin for missing values, the last, where there are none."""
    last = None if reference[-1] or current[-1] else -1
    return BinCounts(
        tuple(labels[:last]),
        tuple(int(n) for n in reference[:last]),
        tuple(int(n) for n in current[:last]),
    )


def _shares(counts: BinCounts) -> tuple[np.ndarray, np.ndarray]:
    r, c = np.array(counts.reference, dtype=float), np.array(counts.current, dtype=float)
    return r / r.sum(), c / c.sum()


def _relative_entropy(shares: np.ndarray, against: np.ndarray) -> float:
    held = shares > 0
    return float((shares[held] * np.log(shares[held] / against[held])).sum())


def _distribution(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Share of `values` less than or equal to each point."""
    return np.searchsorted(np.sort(values), points, side="right") / len(values)


def _present(column: pd.Series) -> np.ndarray:
    return column.dropna().to_numpy(dtype=float)


def _missing(column: pd.Series) -> int:
    return int(column.isna().sum())


def _numbers(column: pd.Series, which: str) -> np.ndarray:
    _require(column, which)
    present = column.dropna()
    if present.empty:
        raise ValueError(f"the {which} window has no present value of {column.name}")
    if not pd.api.types.is_numeric_dtype(column):
        raise TypeError(f"{column.name} is not numeric in the {which} window: {column.dtype}")
    return present.to_numpy(dtype=float)


def _require(column: pd.Series, which: str) -> None:
    if len(column) == 0:
        raise ValueError(f"the {which} window has no rows")


def _require_rows(reference: pd.Series, current: pd.Series) -> None:
    _require(reference, "reference")
    _require(current, "current")


def _over_all_rows(
    value: float, p_value: float | None, reference: pd.Series, current: pd.Series
) -> Statistic:
    return Statistic(value, p_value, len(reference), len(current), 0.0, 0.0)


def _over_present_rows(
    value: float, p_value: float | None, reference: pd.Series, current: pd.Series
) -> Statistic:
    gone_before, gone = _missing(reference), _missing(current)
    return Statistic(
        value,
        p_value,
        len(reference) - gone_before,
        len(current) - gone,
        gone_before / len(reference),
        gone / len(current),
    )
