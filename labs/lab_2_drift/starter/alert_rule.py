"""Task 2.4: the rule that watches a stream of monthly windows and decides when to call someone.

An alarm that comes every month teaches people to ignore alarms. One that never comes leaves them
to find out from customers. Your rule is run on streams that it has not seen, and has to be quiet
where nothing changes, and quick where something does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import chdtrc, kolmogorov


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
        raise NotImplementedError("Task 2.4: write AlertRule.__init__")

    def update(self, window: pd.DataFrame) -> Alert | None:
        """Look at the next window, in order of time; return an `Alert` or None.

        It is called for every window, also after an alarm. It must not change `window`. A column
        may arrive with values never seen before, or wholly missing.
        """
        raise NotImplementedError("Task 2.4: write AlertRule.update")
