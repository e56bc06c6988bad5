"""The same statistics by other formulas: entropies, quantile functions, sums of squares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import gammaincc, kolmogorov, xlogy

FLOOR = 1e-4
MAX_VALUES = 20
LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class BinCounts:
    """Rows of both windows in the same bins."""

    labels: tuple[Hashable, ...]
    reference: tuple[int, ...]
    current: tuple[int, ...]


@dataclass(frozen=True)
class Statistic:
    """What a comparison says, and on how many rows it rests."""

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
    """Label each row with its bin, then count the labels."""
    for name, window in (("reference", reference), ("current", current)):
        if window.empty:
            raise ValueError(f"no rows in the {name} window")
    present = reference.dropna()
    numeric = pd.api.types.is_numeric_dtype(reference) and reference.dtype != bool
    if edges is None and numeric and present.nunique() > MAX_VALUES:
        edges = sorted({float(present.quantile(i / bins)) for i in range(1, bins)})
    if edges is not None:
        bounds = [-np.inf, *map(float, edges), np.inf]
        ranges = list(zip(bounds[:-1], bounds[1:], strict=True))
        before, now = (_in_ranges(window, ranges) for window in (reference, current))
        labels: list[Hashable] = list(ranges)
    else:
        before, now = Counter(present.tolist()), Counter(current.dropna().tolist())
        labels = sorted(before | now, key=str)
    before[None], now[None] = int(reference.isna().sum()), int(current.isna().sum())
    if before[None] or now[None]:
        labels.append(None)
    return BinCounts(tuple(labels), tuple(before[v] for v in labels), tuple(now[v] for v in labels))


def psi(
    reference: pd.Series,
    current: pd.Series,
    *,
    bins: int = 10,
    edges: Sequence[float] | None = None,
) -> Statistic:
    """The sum of both relative entropies, with a floor under empty bins."""
    r, c = _shares(count_bins(reference, current, bins=bins, edges=edges))
    r[r == 0], c[c == 0] = FLOOR, FLOOR
    value = np.sum(xlogy(r, r) - xlogy(r, c)) + np.sum(xlogy(c, c) - xlogy(c, r))
    return Statistic(float(value), None, len(reference), len(current), 0.0, 0.0)


def jensen_shannon(
    reference: pd.Series,
    current: pd.Series,
    *,
    bins: int = 10,
    edges: Sequence[float] | None = None,
) -> Statistic:
    """Root of: entropy of the mean less mean of the entropies."""
    r, c = _shares(count_bins(reference, current, bins=bins, edges=edges))
    entropy = [-xlogy(s, s).sum() for s in ((r + c) / 2, r, c)]
    divergence = entropy[0] - (entropy[1] + entropy[2]) / 2
    value = float(np.sqrt(max(divergence, 0.0)))
    return Statistic(value, None, len(reference), len(current), 0.0, 0.0)


def chi_square(
    reference: pd.Series,
    current: pd.Series,
    *,
    bins: int = 10,
    edges: Sequence[float] | None = None,
) -> Statistic:
    """n * (sum of count squared over row total over column total - 1)."""
    counts = count_bins(reference, current, bins=bins, edges=edges)
    table = np.array([counts.reference, counts.current], dtype=float)
    table = table[:, table.any(axis=0)]
    rows, columns = table.sum(axis=1, keepdims=True), table.sum(axis=0)
    value = max(0.0, table.sum() * ((table**2 / rows / columns).sum() - 1))
    degrees = table.shape[1] - 1
    if degrees:
        p_value = float(gammaincc(degrees / 2, value / 2))
    else:
        value, p_value = 0.0, 1.0
    return Statistic(float(value), p_value, len(reference), len(current), 0.0, 0.0)


def ks(reference: pd.Series, current: pd.Series) -> Statistic:
    """Cumulative counts over the distinct values of both windows."""
    before, now = _values("reference", reference), _values("current", current)
    counts = pd.DataFrame(
        {"r": before.value_counts(normalize=True), "c": now.value_counts(normalize=True)}
    )
    gaps = counts.sort_index().fillna(0).cumsum()
    value = float((gaps["r"] - gaps["c"]).abs().max())
    root = 1 / np.sqrt(1 / len(before) + 1 / len(now))
    return _present_rows(value, float(kolmogorov(root * value)), reference, current)


def wasserstein(reference: pd.Series, current: pd.Series, *, normalised: bool = True) -> Statistic:
    """The mean gap between the quantile functions, both steps laid side by side."""
    before = np.sort(_values("reference", reference).to_numpy(dtype=float))
    now = np.sort(_values("current", current).to_numpy(dtype=float))
    n, m = len(before), len(now)
    # Steps in units of 1 / (n * m), so that both grids are whole numbers.
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    widths = np.diff(ends, prepend=0) / (n * m)
    gap = np.abs(before[(ends - 1) // m] - now[(ends - 1) // n])
    value = float((gap * widths).sum())
    if normalised:
        value /= max(float(before.std()), LEAST_SPREAD)
    return _present_rows(value, None, reference, current)


def _in_ranges(window: pd.Series, ranges: list[tuple[float, float]]) -> Counter[Hashable]:
    values = window.dropna().to_numpy(dtype=float)
    return Counter({(a, b): int(((values >= a) & (values < b)).sum()) for a, b in ranges})


def _shares(counts: BinCounts) -> tuple[np.ndarray, np.ndarray]:
    r, c = (np.array(side, dtype=float) for side in (counts.reference, counts.current))
    return r / r.sum(), c / c.sum()


def _values(name: str, window: pd.Series) -> pd.Series:
    present = window.dropna()
    if present.empty:
        raise ValueError(f"no present value in the {name} window")
    if not pd.api.types.is_numeric_dtype(present):
        raise TypeError(f"the {name} window holds {present.dtype}, not numbers")
    return present


def _present_rows(
    value: float, p_value: float | None, reference: pd.Series, current: pd.Series
) -> Statistic:
    return Statistic(
        value,
        p_value,
        int(reference.notna().sum()),
        int(current.notna().sum()),
        float(reference.isna().mean()),
        float(current.isna().mean()),
    )
