"""Labelled streams of monthly windows, made from a domain's real rows, to test alert rules on.

A stream is two years of reference and then twelve monthly windows, with or without a change
that begins at a known window. Rows are real; which of them come in which month is drawn:
independently and with replacement from the domain's reference period. So a stream of kind
``"none"`` has no drift by construction, which real data never promises. It also has no
autocorrelation, which real data always has: an alert rule meets an easier world here.

==================  ================================================================== ==========
kind                what happens from the onset on                                     made from
==================  ================================================================== ==========
none                nothing                                                            resampling
season              nothing new: one column tilts with the month, as in each year of   resampling
                    the reference
sudden              rows come from a later period of the domain's own history          real drift
gradual             each month 15 % of the rows more come from that period             real drift
one_feature         one numeric column is 0.6 standard deviations higher or lower      injected
missing_values      15 % of one column's values go missing                             injected
unit_change         half the rows carry one column in another unit                     injected
label_shift         the odds of the target are 2.5 times as high; within each class    resampling
                    the rows are as before
==================  ================================================================== ==========

The negative control (`control_stream`) is real throughout: reference rows are residents of 2015,
the windows residents of 2016 to 2018, each drawn once. They are drawn in no order, because the
source lists some years by type of household and others not: consecutive rows of 2018 look like a
drift that is none. One column is left out: `anc` (ancestry) does drift, its "not reported" grew
from 13.7 % to 17.2 %.

Everything is drawn from the generator that is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from shared.domains.tabular import CONTROL, TabularData

QUIET = ("none", "season")
DRIFTS = ("sudden", "gradual", "one_feature", "missing_values", "unit_change", "label_shift")
KINDS = QUIET + DRIFTS

ROWS = 400
REFERENCE_MONTHS = 24
MONTHS = 12
ONSETS = (3, 6)
"""First and last window in which a drift may begin, counted from 0."""

GRADUAL_STEP = 0.15
SHIFT_SD = 0.6
MISSING_SHARE = 0.15
UNIT_SHARE = 0.5
ODDS_FACTOR = 2.5
SEASON_TILT = 0.8

_FIRST_MONTH = pd.Timestamp("2021-01-01")

_LATER = {
    "finance": ("2001-01-01", "2003-01-01"),
    "healthcare": ("2002-01-01", "2003-01-01"),
    "climate": ("2012-01-01", "2016-01-01"),
}

_CONTROL_DRIFTS = ("anc",)

_UNITS: dict[str, dict[str, tuple[float, str]]] = {
    "finance": {
        "return_1d": (0.01, "per cent became a fraction"),
        "return_5d": (0.01, "per cent became a fraction"),
        "range_1d": (0.01, "per cent became a fraction"),
        "drawdown_250d": (0.01, "per cent became a fraction"),
    },
    "healthcare": {
        "age": (12.0, "years became months"),
        "vehicle_age": (12.0, "years became months"),
    },
    "climate": {
        "wind_kn": (0.514444, "knots became metres a second"),
        "pressure_mb": (0.02953, "millibars became inches of mercury"),
        "pressure_change_12h": (100.0, "millibars became pascals"),
    },
}


@dataclass(frozen=True)
class Stream:
    """Reference months, the months that follow, and what was done to them.

    Attributes:
        kind: one of `KINDS`, or ``"control"``.
        time, target, numeric, categorical: names of the columns.
        reference: two years of rows; the time column holds the first day of each row's month.
        windows: the following months in order, in the same columns.
        onset: index of the first changed window, None where nothing changes.
        column: the one column that was changed, None where there is no such column.
        story: what was done, in words.
    """

    kind: str
    time: str
    target: str
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    reference: pd.DataFrame
    windows: tuple[pd.DataFrame, ...]
    onset: int | None
    column: str | None
    story: str


def make_stream(data: TabularData, kind: str, rng: np.random.Generator) -> Stream:
    """Draw a stream of `kind` from a domain's rows.

    Raises:
        ValueError: no such kind, or `data` is the negative control.
    """
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}; choose from {', '.join(KINDS)}")
    if data.domain == CONTROL:
        raise ValueError("the negative control has one stream: control_stream(data, rng)")
    pool = data.reference_frame
    onset = None if kind in QUIET else int(rng.integers(ONSETS[0], ONSETS[1] + 1))
    rows = _draw(data, pool, kind, onset, rng)
    frame = rows.assign(**{data.time: _months()})
    column, story = None, _STORIES.get(kind, "")
    if kind in ("one_feature", "missing_values", "unit_change"):
        changed = np.arange(len(frame)) >= (REFERENCE_MONTHS + (onset or 0)) * ROWS
        frame, column, story = _inject(data, pool, kind, frame, changed, rng)
    if kind == "label_shift":
        column = data.target
    reference, windows = _split(frame)
    return Stream(
        kind=kind,
        time=data.time,
        target=data.target,
        numeric=data.numeric,
        categorical=data.categorical,
        reference=reference,
        windows=windows,
        onset=onset,
        column=column,
        story=story,
    )


def control_stream(data: TabularData, rng: np.random.Generator) -> Stream:
    """Draw a stream from the negative control: real later years, and no drift.

    Raises:
        ValueError: `data` is not the negative control.
    """
    if data.domain != CONTROL:
        raise ValueError(f"{data.domain} is no negative control")
    years = [data.reference, *((start, end) for _, start, end in data.current)]
    sizes = [REFERENCE_MONTHS * ROWS] + [MONTHS * ROWS // len(data.current)] * len(data.current)
    times = data.frame[data.time]
    chosen = np.concatenate(
        [
            rng.choice(np.flatnonzero((times >= start) & (times < end)), size, replace=False)
            for (start, end), size in zip(years, sizes, strict=True)
        ]
    )
    steady = tuple(c for c in data.categorical if c not in _CONTROL_DRIFTS)
    columns = [data.time, *data.numeric, *steady, data.target]
    frame = data.frame[columns].take(chosen).reset_index(drop=True)
    reference, windows = _split(frame.assign(**{data.time: _months()}))
    return Stream(
        kind=CONTROL,
        time=data.time,
        target=data.target,
        numeric=data.numeric,
        categorical=steady,
        reference=reference,
        windows=windows,
        onset=None,
        column=None,
        story="residents of later years",
    )


_STORIES = {
    "none": "nothing changes",
    "season": "one column tilts with the month, each year alike",
    "sudden": "rows come from a later period at once",
    "gradual": "each month 15 % of the rows more come from a later period",
    "label_shift": f"the odds of the target are {ODDS_FACTOR} times as high",
}


def _draw(
    data: TabularData,
    pool: pd.DataFrame,
    kind: str,
    onset: int | None,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """All rows of a stream in order of time, before anything is injected."""
    months = REFERENCE_MONTHS + MONTHS
    if kind == "season":
        score = _season_score(data, pool, rng)
        phase = rng.integers(12)
        picks = []
        for month in range(12):
            tilt = SEASON_TILT * np.sin(2 * np.pi * (month - phase) / 12)
            picks.append(_weighted(np.exp(tilt * score), months // 12 * ROWS, rng))
        by_month = np.stack(picks).reshape(12, months // 12, ROWS)
        return pool.take(by_month.transpose(1, 0, 2).ravel()).reset_index(drop=True)
    chosen = rng.integers(len(pool), size=(months, ROWS))
    if onset is None:
        return pool.take(chosen.ravel()).reset_index(drop=True)
    first = REFERENCE_MONTHS + onset
    if kind == "label_shift":
        odds = np.where(pool[data.target].to_numpy() == 1, ODDS_FACTOR, 1.0)
        chosen[first:] = _weighted(odds, (months - first) * ROWS, rng).reshape(-1, ROWS)
    elif kind in ("sudden", "gradual"):
        later = data.window(*_LATER[data.domain])
        pool = pd.concat([pool, later], ignore_index=True)
        share = np.ones(months - first)
        if kind == "gradual":
            share = np.minimum(1.0, GRADUAL_STEP * np.arange(1, months - first + 1))
        new = rng.random((months - first, ROWS)) < share[:, None]
        fresh = rng.integers(len(pool) - len(later), len(pool), size=new.shape)
        chosen[first:] = np.where(new, fresh, chosen[first:])
    return pool.take(chosen.ravel()).reset_index(drop=True)


def _season_score(data: TabularData, pool: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """How much each row belongs to the high season: the rank of one numeric column."""
    ranks = pool[str(rng.choice(data.numeric))].rank(pct=True).fillna(0.5).to_numpy()
    return float(rng.choice([-1, 1])) * (ranks - ranks.mean()) / ranks.std()


def _weighted(weights: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    cumulative = np.cumsum(weights)
    return np.searchsorted(cumulative, rng.random(size) * cumulative[-1], side="right")


def _inject(
    data: TabularData,
    pool: pd.DataFrame,
    kind: str,
    frame: pd.DataFrame,
    changed: np.ndarray,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, str, str]:
    if kind == "one_feature":
        column = str(rng.choice(data.numeric))
        shift = float(rng.choice([-1, 1])) * SHIFT_SD * float(pool[column].std())
        new = frame[column] + np.where(changed, shift, 0.0)
        return frame.assign(**{column: new}), column, f"{column} moved by {shift:+.3g}"
    if kind == "missing_values":
        column = str(rng.choice(data.features))
        lost = changed & (rng.random(len(frame)) < MISSING_SHARE)
        new = frame[column].mask(lost)
        return frame.assign(**{column: new}), column, f"15 % of {column} went missing"
    column = str(rng.choice(list(_UNITS[data.domain])))
    factor, words = _UNITS[data.domain][column]
    half = changed & (rng.random(len(frame)) < UNIT_SHARE)
    new = frame[column] * np.where(half, factor, 1.0)
    return frame.assign(**{column: new}), column, f"{column}: {words} in half the rows"


def _months() -> np.ndarray:
    starts = pd.date_range(_FIRST_MONTH, periods=REFERENCE_MONTHS + MONTHS, freq="MS")
    return np.repeat(starts.to_numpy(), ROWS)


def _split(frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[pd.DataFrame, ...]]:
    cut = REFERENCE_MONTHS * ROWS
    windows = tuple(
        frame.iloc[start : start + ROWS].reset_index(drop=True)
        for start in range(cut, len(frame), ROWS)
    )
    return frame.iloc[:cut], windows
