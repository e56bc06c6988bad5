"""Names the columns over the line in the order of their names.

caught-by: test_of_two_columns_the_one_that_moved_further_is_named_first
hint: name-first
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import chdtrc, kolmogorov

_FALSE_ALARMS_A_WINDOW = 5e-5
_LEAST_EXPECTED = 5


@dataclass(frozen=True)
class Schema:
    """Which column is what.

    Attributes:
        time: timestamp column; all rows of a window carry the first day of its month.
        target: 0/1 column, known for every row.
        numeric: float columns, may hold NaN.
        categorical: string columns, may hold missing values.
    """

    time: str
    target: str
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]


@dataclass(frozen=True)
class Alert:
    """What the person on call is told.

    Attributes:
        columns: the columns that gave rise to the alarm, the most suspicious first. The target
            is one of them when its rate changed.
        reason: one sentence for a person.
    """

    columns: tuple[str, ...]
    reason: str


class AlertRule:
    """Watches for drift against a reference of two whole years.

    A year has a course: a January that differs from July but looks like the Januaries of the
    reference is no drift. Rows within a window are independent of each other.

    You are graded on streams of 24 reference months and 12 further ones, 400 rows each, drawn
    from the domain's data (`shared.domains.streams` makes them, with other seeds than yours):

    - Quiet streams: nothing changes; or a season returns as in the reference; or real later
      years of the negative control, 16 columns that do not drift. Of 40 streams of each sort,
      at most 2 may raise any alarm at all.
    - Drift that begins after 3 to 6 months and stays: rows of a later period at once, or 15 % of
      the rows more each month; one numeric column moved by 0.6 standard deviations; 15 % of one
      column's values gone missing; one column in another unit in half the rows; odds of the
      target 2.5 times as high. Of 16 streams of each sort, at least 14 must raise an alarm
      within 3 windows, the onset's own included (gradual drift: within 6).
    - Where one column changed, the first alarm of the drift names it first in at least 13 of 16
      streams.

    The rule sees some 2,600 windows in all. Statistics on arrays take seconds for that; a full
    drift report a window would take hours.
    """

    def __init__(self, reference: pd.DataFrame, schema: Schema) -> None:
        """Learn what is normal.

        Args:
            reference: two whole years of rows, in order of time. It must not be changed.
            schema: which columns to watch; the frames may hold others, which are ignored.
        """
        self._schema = schema
        months = reference[schema.time].dt.month
        self._same_month = {
            int(month): _Profile(rows, schema) for month, rows in reference.groupby(months)
        }

    def update(self, window: pd.DataFrame) -> Alert | None:
        """Look at the next window, in order of time; return an `Alert` or None.

        It is called for every window, also after an alarm. It must not change `window`. A column
        may arrive with values never seen before, or wholly missing.
        """
        month = int(window[self._schema.time].iloc[0].month)
        p_values = self._same_month[month].p_values(window)
        # Bonferroni: as many chances of a false alarm as tests, so each gets its share.
        limit = _FALSE_ALARMS_A_WINDOW / len(p_values)
        worst: dict[str, float] = {}
        for (column, _), p_value in p_values.items():
            worst[column] = min(p_value, worst.get(column, 1.0))
        columns = tuple(sorted((c for c in worst if worst[c] < limit), key=str))
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
