"""SciPy's tests at a milder level, and an alarm only when the same column fails twice running."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, ks_2samp

LEVEL = 0.05


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
    """Alarms when a column differs from its month in two windows in a row."""

    def __init__(self, reference: pd.DataFrame, schema: Schema) -> None:
        self.schema = schema
        self.columns = [*schema.numeric, *schema.categorical, schema.target]
        self.reference = {
            month: rows[self.columns]
            for month, rows in reference.groupby(reference[schema.time].dt.month)
        }
        self.suspects: dict[str, float] = {}

    def update(self, window: pd.DataFrame) -> Alert | None:
        """Compare with the same month; alarm about columns that were suspects before."""
        rows = self.reference[window[self.schema.time].iloc[0].month]
        p_values = {c: self._p_value(c, rows[c], window[c]) for c in self.columns}
        level = LEVEL / len(self.columns)
        now = {c: p for c, p in p_values.items() if p < level}
        twice = sorted(now.keys() & self.suspects.keys(), key=now.__getitem__)
        self.suspects = now
        if not twice:
            return None
        return Alert(tuple(twice), f"{twice[0]} differs from its month for the second time")

    def _p_value(self, column: str, before: pd.Series, now: pd.Series) -> float:
        if column not in self.schema.numeric:
            return shares(before, now)
        missing = shares(before.isna(), now.isna())
        if before.isna().all() or now.isna().all():
            return missing
        values = ks_2samp(before.dropna(), now.dropna(), method="asymp").pvalue
        return min(1.0, 2 * min(missing, values))


def shares(before: pd.Series, now: pd.Series) -> float:
    """P-value of two columns of categories; the rare ones are one category."""
    counts = pd.DataFrame(
        {
            "before": before.value_counts(dropna=False),
            "now": now.value_counts(dropna=False),
        }
    ).fillna(0)
    rare = counts.sum(axis=1) < 20
    table = np.vstack([counts[~rare].to_numpy(), counts[rare].sum().to_numpy()])
    table = table[table.sum(axis=1) > 0]
    return 1.0 if len(table) < 2 else float(chi2_contingency(table, correction=False).pvalue)
