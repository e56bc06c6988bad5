"""Takes the window before as the reference, strictly enough to live with seasons, and slides
into the drift.

caught-by: test_gradual_drift_is_noticed_within_six_windows
hint: fixed-reference
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import chdtrc, kolmogorov

_FALSE_ALARMS_A_WINDOW = 1e-7
_LEAST_EXPECTED = 5


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


class AlertRule:
    """Watches for drift against a reference of two whole years."""

    def __init__(self, reference: pd.DataFrame, schema: Schema) -> None:
        self._schema = schema
        last = reference[schema.time].max()
        self._before = _Profile(reference[reference[schema.time] == last], schema)

    def update(self, window: pd.DataFrame) -> Alert | None:
        p_values = self._before.p_values(window)
        self._before = _Profile(window, self._schema)
        # Bonferroni: as many chances of a false alarm as tests, so each gets its share.
        limit = _FALSE_ALARMS_A_WINDOW / len(p_values)
        worst: dict[str, float] = {}
        for (column, _), p_value in p_values.items():
            worst[column] = min(p_value, worst.get(column, 1.0))
        columns = tuple(sorted((c for c in worst if worst[c] < limit), key=worst.__getitem__))
        if not columns:
            return None
        return Alert(
            columns,
            f"{', '.join(columns)} unlike the same month of the reference "
            f"(p = {worst[columns[0]]:.1e} for {columns[0]})",
        )


class _Profile:
    """One calendar month of the reference, ready to be compared with a window."""

    def __init__(self, rows: pd.DataFrame, schema: Schema) -> None:
        self._schema = schema
        self._values = {c: rows[c].to_numpy(dtype=float) for c in schema.numeric}
        self._counts = {c: _counts(rows[c]) for c in (*schema.categorical, schema.target)}

    def p_values(self, window: pd.DataFrame) -> dict[tuple[str, str], float]:
        """One p-value for each column and each thing that can change about it."""
        found: dict[tuple[str, str], float] = {}
        for column, reference in self._values.items():
            current = window[column].to_numpy(dtype=float)
            gone_before, gone = np.isnan(reference), np.isnan(current)
            found[column, "values"] = _ks_p_value(reference[~gone_before], current[~gone])
            found[column, "missing"] = _chi_square_p_value(
                np.bincount(gone_before, minlength=2), np.bincount(gone, minlength=2)
            )
        for column, counts in self._counts.items():
            now = _counts(window[column])
            seen = sorted(counts.keys() | now.keys(), key=str)
            found[column, "shares"] = _chi_square_p_value(
                np.array([counts[value] for value in seen]),
                np.array([now[value] for value in seen]),
            )
        return found


def _counts(column: pd.Series) -> Counter[object]:
    """How often each value comes; missing counts as the value None."""
    # NaN is the one value that differs from itself.
    return Counter(None if value != value else value for value in column.tolist())


def _ks_p_value(reference: np.ndarray, current: np.ndarray) -> float:
    n, m = len(reference), len(current)
    if not n or not m:
        return 1.0  # what is gone shows in the test of the missing share
    points = np.sort(np.concatenate([reference, current]))
    below_reference = np.searchsorted(np.sort(reference), points, side="right") / n
    below_current = np.searchsorted(np.sort(current), points, side="right") / m
    distance = np.abs(below_reference - below_current).max()
    return float(kolmogorov(distance * np.sqrt(n * m / (n + m))))


def _chi_square_p_value(reference: np.ndarray, current: np.ndarray) -> float:
    """Two-sample chi-square; values too rare for the approximation are counted together."""
    table = np.stack([reference, current]).astype(float)
    expected = table.sum(axis=0) * table.sum(axis=1).min() / table.sum()
    rare = expected < _LEAST_EXPECTED
    if rare.any():
        table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
    table = table[:, table.sum(axis=0) > 0]
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    degrees = table.shape[1] - 1
    return float(chdtrc(degrees, ((table - expected) ** 2 / expected).sum())) if degrees else 1.0
