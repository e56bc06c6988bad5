"""Checks of task 2.4: the alert rule, run on streams it has not seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.alerts import check_drift, check_quiet, columns_of, streams, watch

from shared.domains.tabular import CONTROL
from shared.grading.expect import expect

slow = pytest.mark.limit(100)
ONSET = 4
TWO_COLUMNS = 12
TWO_COLUMNS_RIGHT = 10


@slow
def test_update_returns_an_alert_or_none_and_changes_nothing_it_is_given(learner, rng, domain):
    for kind in ("none", "sudden"):
        (stream,) = streams(domain, kind, 1, rng)
        # What every table has and no model sees: a row number that only grows.
        reference = stream.reference.assign(row_id=np.arange(len(stream.reference)))
        start = len(reference)
        before = reference.copy(deep=True)
        schema = learner.Schema(stream.time, stream.target, stream.numeric, stream.categorical)
        rule = learner.AlertRule(reference, schema)
        for window in stream.windows:
            given = window.assign(row_id=np.arange(start, start + len(window)))
            start += len(window)
            kept = given.copy(deep=True)
            columns_of(rule.update(given), stream)
            _expect_unchanged(kept, given, "window")
        _expect_unchanged(before, reference, "reference")


@slow
def test_sudden_drift_is_noticed_within_three_windows(learner, rng, domain, figure):
    check_drift(
        learner,
        domain,
        "sudden",
        rng,
        figure,
        name="sudden drift",
        why="These rows really come from a later period of this domain. A rule that sleeps "
        "through them watches nothing.",
        hint="compare-what",
    )


@slow
def test_gradual_drift_is_noticed_within_six_windows(learner, rng, domain, figure):
    check_drift(
        learner,
        domain,
        "gradual",
        rng,
        figure,
        name="gradual drift",
        why="Most drift comes slowly. A rule whose idea of normal moves along with it "
        "never sees a difference, while the model falls behind month by month.",
        hint="fixed-reference",
    )


@slow
def test_drift_of_one_feature_is_noticed_and_named(learner, rng, domain, figure):
    check_drift(
        learner,
        domain,
        "one_feature",
        rng,
        figure,
        name="one feature",
        why="Drift rarely takes half the columns. One broken feature is enough to break a model.",
        hint="any-column",
    )


@slow
def test_of_two_columns_the_one_that_moved_further_is_named_first(learner, rng, domain):
    moved, right = [], 0
    for number, stream in enumerate(streams(domain, "none", TWO_COLUMNS, rng)):
        # By turns the first and the last of the two, so that the order of names does not help.
        two = sorted(rng.choice(sorted(stream.numeric), 2, replace=False))
        far, near = two[:: 1 if number % 2 else -1]
        shift = {c: k * float(stream.reference[c].std()) for c, k in ((far, 3.0), (near, 0.8))}
        windows = tuple(
            w if i < ONSET else w.assign(**{c: w[c] + by for c, by in shift.items()})
            for i, w in enumerate(stream.windows)
        )
        named = watch(learner, replace(stream, windows=windows, onset=ONSET)).first_named
        right += named == far
        moved.append(f"{far} by 3, {near} by 0.8; named first: {named}")
    wrong = next((text for text in moved if not text.endswith(f": {text.split(' by ')[0]}")), "")
    expect(
        right >= TWO_COLUMNS_RIGHT,
        observed=f"the column that moved further is named first in {right} of {TWO_COLUMNS} streams"
        + (f"; not, for example, where standard deviations were {wrong}" if wrong else ""),
        expected=f"at least {TWO_COLUMNS_RIGHT} of {TWO_COLUMNS}",
        why="Whoever is called at night looks at the first name, and has ten minutes.",
        hint="name-first",
    )


@slow
def test_missing_values_are_noticed_and_named(learner, rng, domain, figure):
    check_drift(
        learner,
        domain,
        "missing_values",
        rng,
        figure,
        name="missing values",
        why="What is left of the column looks as always, so its mean and its distribution say "
        "nothing. The model meets imputed values where it had facts.",
        hint="missing-counts",
    )


@slow
def test_a_change_of_unit_is_noticed_and_named(learner, rng, domain, figure):
    check_drift(
        learner,
        domain,
        "unit_change",
        rng,
        figure,
        name="unit change",
        why="One of two feeds changed its unit. Around zero the mean hardly moves, "
        "and every second prediction is made from nonsense.",
        hint="whole-shape",
    )


@slow
def test_label_shift_is_noticed_and_named(learner, rng, domain, figure):
    check_drift(
        learner,
        domain,
        "label_shift",
        rng,
        figure,
        name="label shift",
        why="Positives came to be far more frequent. Thresholds, staffing and prices that were "
        "set for the old rate are wrong, though each feature alone may look familiar.",
        hint="watch-the-target",
    )


@slow
def test_a_column_that_arrives_wholly_missing_raises_an_alarm(learner, rng, domain):
    (stream,) = streams(domain, "none", 1, rng)
    schema = learner.Schema(stream.time, stream.target, stream.numeric, stream.categorical)
    for column in (str(rng.choice(stream.numeric)), str(rng.choice(stream.categorical))):
        rule = learner.AlertRule(stream.reference, schema)
        alarms = []
        for number, window in enumerate(stream.windows):
            gone = pd.Series(np.nan, index=window.index).astype(window[column].dtype)
            given = window.assign(**{column: gone}) if number >= 3 else window
            alarms.append(columns_of(rule.update(given), stream))
        expect(
            any(alarm is not None and column in alarm for alarm in alarms[3:6]),
            observed=f"no alarm about {column} in 3 windows that hold no value of it at all",
            expected=f"an alarm that names {column}",
            why="A feed that has died is the plainest incident there is. Statistics of no values "
            "are NaN, and NaN is larger than no threshold.",
            hint="missing-counts",
        )


@slow
def test_a_stream_without_drift_stays_quiet(learner, rng, domain, figure):
    check_quiet(
        learner,
        domain,
        "none",
        rng,
        figure,
        name="no drift",
        why="Nothing changed in these streams. With every false alarm the next true one is read "
        "a little later, until nobody reads them.",
        hint=_why_loud,
    )


@slow
def test_a_season_that_returns_each_year_stays_quiet(learner, rng, domain, figure):
    check_quiet(
        learner,
        domain,
        "season",
        rng,
        figure,
        name="returning season",
        why="The reference holds two whole years, and this year went the same way. A rule that "
        "calls every season a drift is switched off by its second summer.",
        hint=lambda rate, one_column: "season",
    )


@slow
def test_later_years_of_the_negative_control_stay_quiet(learner, rng, domain, figure):
    check_quiet(
        learner,
        domain,
        CONTROL,
        rng,
        figure,
        name="negative control",
        why="These are real rows of real later years, in 16 columns that did not drift. "
        "More columns, and values that are rare, make more false alarms.",
        hint=lambda rate, one_column: "rare-values",
    )


def _why_loud(rate: float, one_column: bool) -> str:
    if rate > 0.1:
        return "many-columns"
    return "rare-values" if one_column else "many-windows"


def _expect_unchanged(before: pd.DataFrame, after: pd.DataFrame, what: str) -> None:
    expect(
        bool(before.equals(after)),
        observed=f"the {what} was changed in place",
        expected=f"the {what} as it was handed in",
        why="The same frame goes on to the model and to the archive.",
        hint="no-side-effects",
    )
