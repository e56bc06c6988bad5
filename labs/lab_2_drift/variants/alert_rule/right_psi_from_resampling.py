"""PSI in fixed bins a month; thresholds from a gamma fitted to what resampling that month gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import gamma

ROUNDS = 120
LEVEL = 1e-6
WINDOW_ROWS = 400


@dataclass(frozen=True)
class Schema:
    """Which column is what."""

    time: str
    target: str
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]


@dataclass(frozen=True)
class Alert:
    """What the person on call is told."""

    columns: tuple[str, ...]
    reason: str


class Bins:
    """Turns a column into bin numbers: deciles or values of the reference, other, missing."""

    def __init__(self, column: pd.Series, numeric: bool) -> None:
        present = column.dropna()
        self.numeric = numeric
        if numeric:
            self.edges = np.unique(np.quantile(present, np.linspace(0.1, 0.9, 9)))
            self.size = len(self.edges) + 2
        else:
            common = present.value_counts()
            self.numbers = {v: i for i, v in enumerate(common[common >= 20].index)}
            self.size = len(self.numbers) + 2

    def shares(self, column: pd.Series) -> np.ndarray:
        missing = column.isna().to_numpy()
        if self.numeric:
            numbers = np.searchsorted(self.edges, column.to_numpy(dtype=float), side="right")
        else:
            other = self.size - 2
            numbers = np.array([self.numbers.get(v, other) for v in column.tolist()])
        numbers = np.where(missing, self.size - 1, numbers)
        # Half a row in each bin keeps the logarithm finite and small counts tame.
        return (np.bincount(numbers, minlength=self.size) + 0.5) / (len(column) + 0.5 * self.size)


def psi(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """PSI along the last axis."""
    return ((now - before) * np.log(now / before)).sum(axis=-1)


class AlertRule:
    """Alarms when a PSI lies far above what resampling the reference month gives."""

    def __init__(self, reference: pd.DataFrame, schema: Schema) -> None:
        self.schema = schema
        self.watched: dict[tuple[int, str], tuple[Bins, np.ndarray, float]] = {}
        rng = np.random.default_rng(0)
        months = reference[schema.time].dt.month
        for column in (*schema.numeric, *schema.categorical, schema.target):
            bins = Bins(reference[column], column in schema.numeric)
            for month, rows in reference[column].groupby(months):
                shares = bins.shares(rows)
                # Both sides vary, as they do when a window is compared with this month.
                old = rng.multinomial(len(rows), shares, size=ROUNDS) + 0.5
                new = rng.multinomial(WINDOW_ROWS, shares, size=ROUNDS) + 0.5
                old /= old.sum(axis=1, keepdims=True)
                new /= new.sum(axis=1, keepdims=True)
                null = psi(old, new)
                mean, variance = null.mean(), null.var()
                limit = gamma.isf(LEVEL, mean**2 / variance, scale=variance / mean)
                self.watched[int(month), column] = (bins, shares, float(limit))

    def update(self, window: pd.DataFrame) -> Alert | None:
        """Compare each column's PSI with its limit for this month."""
        month = int(window[self.schema.time].iloc[0].month)
        excess = {}
        for column in (*self.schema.numeric, *self.schema.categorical, self.schema.target):
            bins, shares, limit = self.watched[month, column]
            excess[column] = float(psi(shares, bins.shares(window[column]))) / limit
        found = sorted((c for c in excess if excess[c] > 1), key=excess.__getitem__, reverse=True)
        if not found:
            return None
        return Alert(tuple(found), f"PSI of {found[0]} is {excess[found[0]]:.1f} times its limit")
