"""Checks of task 2.2: drift statistics by hand, against SciPy's and Evidently's numbers."""

from __future__ import annotations

import ast
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from shared.domains.tabular import load_tabular
from shared.grading.expect import (
    expect,
    expect_equal,
    expect_raises,
    fail,
    number,
    plain,
    show,
)

LEVELS = np.arange(1, 10) / 10
BINNED = ("psi", "jensen_shannon", "chi_square")
UNBINNED = ("ks", "wasserstein")
EVIDENTLY = {
    "psi": "psi",
    "jensen_shannon": "jensenshannon",
    "wasserstein": "wasserstein",
    "ks": "ks",
}


def test_bins_are_the_quantiles_of_the_reference_window(learner, rng):
    reference = pd.Series(rng.gamma(2.0, 3.0, size=700), name="latency")
    current = pd.Series(rng.gamma(2.0, 5.0, size=450) + 4, name="latency")
    wanted = _quantiles(reference)
    labels, before, now = _bins(learner.count_bins(reference, current))
    expected = _cut(current, wanted)
    hint = None
    others = {
        "the current window": _quantiles(current),
        "both windows together": _quantiles(pd.concat([reference, current])),
    }
    seen = f"bins with {before} and {now} rows"
    for whose, edges in others.items():
        if now == _cut(current, edges):
            seen, hint = f"bins at the quantiles of {whose}: {before} and {now} rows", "whose-bins"
    expect(
        now == expected and before == _cut(reference, wanted),
        observed=seen,
        expected=f"bins at the reference's quantiles: {_cut(reference, wanted)} and "
        f"{expected} rows, values beyond the outer edges included",
        why="Bins that follow the current window move with the drift they are to measure, and "
        "no two months are measured with the same ruler.",
        hint=hint or "ten-bins",
    )
    bounds = [-np.inf, *wanted.tolist(), np.inf]
    expect_equal(
        labels,
        [list(pair) for pair in pairwise(bounds)],
        what="labels",
        why="A bin without its bounds can't be drawn or explained.",
        rel=1e-9,
        hint="ten-bins",
    )
    _, before, now = _bins(learner.count_bins(reference, current, bins=4))
    expect_equal(
        [len(before), sum(before), len(now), sum(now)],
        [4, 700, 4, 450],
        what="number of bins and of rows in each window, with bins=4",
        why="Rows that fall in no bin are rows that nobody watches.",
        hint="ten-bins",
    )


def test_a_value_on_an_edge_belongs_to_the_bin_above(learner):
    reference = pd.Series([-5.0, 0.0, 1.0, 1.0, 2.0, 3.0, 10.0])
    current = pd.Series([1.0, 1.0, 2.0, 99.0])
    labels, before, now = _bins(learner.count_bins(reference, current, edges=[1.0, 2.0]))
    expect_equal(
        [labels, before, now],
        [[[-np.inf, 1.0], [1.0, 2.0], [2.0, np.inf]], [2, 2, 3], [0, 2, 2]],
        what="labels and rows of [-5, 0, 1, 1, 2, 3, 10] and [1, 1, 2, 99] at edges [1, 2]",
        why="Real columns sit on round numbers. With the edge on the other side, "
        "your PSI differs from everybody else's.",
        hint="on-the-edge",
    )
    heavy = pd.Series(np.repeat([0.0, 1.5], [900, 100]) + np.r_[np.zeros(900), np.arange(100)])
    labels, before, _ = _bins(learner.count_bins(heavy, heavy))
    expect_equal(
        [sum(before), min(number(n, what="rows of a bin") for n in before[1:]) > 0],
        [1000, True],
        what="rows in all, and whether no bin but the lowest is empty, for a column that is "
        "0 in nine rows of ten",
        why="Equal quantiles make bins of no width; they hold nothing and mean nothing.",
        hint="on-the-edge",
    )


def test_categories_that_the_reference_never_saw_are_counted(learner, rng):
    reference = pd.Series(rng.choice(["card", "cash"], size=300, p=[0.7, 0.3]))
    current = pd.Series(rng.choice(["card", "cash", "crypto"], size=200, p=[0.5, 0.2, 0.3]))
    wanted = {
        v: [int((reference == v).sum()), int((current == v).sum())]
        for v in ("card", "cash", "crypto")
    }
    why = (
        "A category that was never seen is the plainest drift there is, and the one on which "
        "encoders fail. Left out, the window looks as always."
    )
    expect_equal(
        _by_label(learner.count_bins(reference, current)),
        wanted,
        what="rows by category",
        why=why,
        hint="unseen",
    )
    kind = pd.CategoricalDtype(["card", "cash", "crypto", "cheque"])
    expect_equal(
        _by_label(learner.count_bins(reference.astype(kind), current.astype(kind))),
        wanted,
        what="rows by category, of a pandas categorical with a category that no row has",
        why="Only values that a window holds are bins; declared ones are not.",
        hint="unseen",
    )
    expect_equal(
        _by_label(learner.count_bins(pd.Series([True] * 8), pd.Series([True, False]))),
        {True: [8, 1], False: [0, 1]},
        what="rows by value of a boolean column",
        why="Flags are columns like others.",
        hint="few-values",
    )


def test_psi_stays_finite_where_a_bin_is_empty(learner, rng):
    rows = rng.integers(20, 60, size=4)
    for reference, current in (
        ("aabbbc", "aaaaab"),
        ("a" * int(rows[0]) + "b" * int(rows[1]), "c" * int(rows[2]) + "b" * int(rows[3])),
        ("a" * 9, "b" * 5),
        ("a" * 20_000 + "b", "a" * 90 + "b" * 10),  # a share below FLOOR, which is not 0
    ):
        before, now = pd.Series(list(reference)), pd.Series(list(current))
        values = sorted({*reference, *current})
        wanted = _psi(*([list(s).count(v) for v in values] for s in (reference, current)))
        expect_equal(
            number(
                learner.psi(before, now).value,
                what="psi with a bin that is empty in one window",
                why="One inf in a mean over columns hides all the others.",
                hint="floor",
            ),
            wanted,
            what="psi with a bin that is empty in one window",
            rel=1e-9,
            why="The share 0 counts as FLOOR, and nothing else is changed. Leaving the bin out "
            "hides the change; adding a constant everywhere gives numbers no tool agrees with.",
            hint="floor",
        )


def test_missing_values_are_a_bin_of_their_own_and_are_reported(learner, rng):
    numbers = pd.Series(rng.normal(size=600))
    words = pd.Series(rng.choice(["a", "b", "c"], size=600))
    for column in (numbers, words):
        gone = column.mask(pd.Series(rng.random(600) < 0.2))
        lost = int(gone.isna().sum())
        why = (
            "A feed that loses a fifth of its values is an incident. After dropna() the rest "
            "looks healthy, and no statistic notices."
        )
        labels, before, now = _bins(learner.count_bins(column, gone))
        expect(
            labels[-1] is None and (before[-1], now[-1]) == (0, lost) and sum(now) == 600,
            observed=f"last bin {show(labels[-1])} with {before[-1]} and {now[-1]} rows, "
            f"{sum(now)} current rows in all",
            expected=f"last bin None with 0 and {lost} rows, 600 current rows in all",
            why=why,
            hint="missing-bin",
        )
        labels, _, _ = _bins(learner.count_bins(column, column))
        expect(
            None not in labels,
            observed="a bin for missing values, and no value is missing",
            expected="no such bin: 0 and 0 rows are no category",
            why="Degrees of freedom count bins. One that never fills makes every test blunter.",
            hint="missing-bin",
        )
        change = number(learner.psi(column, gone).value, what="psi")
        expect(
            change > 0.8,
            observed=f"psi = {change:.3f} when a fifth of the values went missing",
            expected="psi above 0.8: missing is a share that rose from 0 to a fifth",
            why=why,
            hint="missing-bin",
        )
    gone = numbers.mask(pd.Series(rng.random(600) < 0.2))
    lost = int(gone.isna().sum())
    for name in UNBINNED:
        found = _statistic(getattr(learner, name)(numbers, gone), name)
        expect_equal(
            [found[k] for k in ("reference_rows", "current_rows", "current_missing")],
            [600, 600 - lost, lost / 600],
            what=f"reference_rows, current_rows and current_missing of {name}",
            abs_=1e-12,
            why="Values that are not there can't be ordered, so they are left out. How many were "
            "is half of what the reader needs.",
            hint="say-what-is-left-out",
        )


def test_ks_is_the_largest_gap_between_unbinned_distributions(learner, rng):
    smooth = (rng.normal(size=350), rng.normal(0.2, 1.2, size=270))
    for before, now in (smooth, _rounded(*smooth)):
        got = number(learner.ks(pd.Series(before), pd.Series(now)).value, what="ks")
        want = float(stats.ks_2samp(before, now).statistic)
        tied = before is not smooth[0]
        expect_equal(
            got,
            want,
            what="ks of two columns "
            + ("with many equal values" if tied else "of distinct values"),
            abs_=1e-9,
            why="Both distribution functions jump at a tie together. Compared in the middle of "
            "the jump they are apart though the columns are the same."
            if tied
            else "The largest gap may lie inside a bin. KS needs every value, not ten of them.",
            hint="ties" if tied else "unbinned",
        )


def test_ks_p_value_knows_the_sizes_of_both_windows(learner, rng):
    for n, m in ((400, 100), (100, 400), (150, 3000), (600, 600)):
        before, now = rng.normal(size=n), rng.normal(0.12, 1.0, size=m)
        found = learner.ks(pd.Series(before), pd.Series(now))
        want = float(stats.ks_2samp(before, now, method="asymp").pvalue)
        expect_equal(
            number(found.p_value, what="p_value of ks"),
            want,
            what=f"p_value of ks for {n} and {m} rows",
            abs_=0.05,
            why="The same gap is nothing in 100 rows and certain in 100,000. A p-value that looks "
            "at one window, or at the sum of both, alarms at the wrong size.",
            hint="both-sizes",
        )


def test_wasserstein_is_in_the_columns_unit_or_in_standard_deviations(learner, rng):
    before, now = rng.gamma(2.0, 30.0, size=400), rng.gamma(2.5, 31.0, size=330)
    wanted = float(stats.wasserstein_distance(before, now))
    series = pd.Series(before), pd.Series(now)
    expect_equal(
        number(learner.wasserstein(*series, normalised=False).value, what="wasserstein"),
        wanted,
        what="wasserstein(normalised=False)",
        rel=1e-9,
        why="In the column's unit it says how far rows moved: 12 milliseconds, 3 years.",
        hint="area-between",
    )
    spread = float(np.std(before))
    got = number(learner.wasserstein(*series).value, what="wasserstein")
    expect_equal(
        got,
        wanted / spread,
        what="wasserstein of a column with a standard deviation "
        f"of {spread:.1f} in the reference and {float(np.std(now)):.1f} now",
        rel=1e-9,
        why="Divided by the reference's standard deviation it has no unit: one threshold serves "
        "dollars and cents alike, and does not move with the drift.",
        hint="own-unit",
    )
    flat, moved = pd.Series([3.0] * 50), pd.Series([3.5] * 50)
    expect_equal(
        number(learner.wasserstein(flat, moved).value, what="wasserstein of a constant"),
        0.5 / 1e-3,
        what="wasserstein of a constant that moved by 0.5",
        rel=1e-9,
        why="A constant has no spread to divide by. LEAST_SPREAD keeps the result finite.",
        hint="own-unit",
    )


def test_chi_square_takes_both_windows_for_samples(learner, rng):
    reference = pd.Series(rng.choice(list("abcd"), size=260, p=[0.4, 0.3, 0.2, 0.1]))
    current = pd.Series(rng.choice(list("abcde"), size=310, p=[0.3, 0.3, 0.2, 0.1, 0.1]))
    table = pd.DataFrame({"r": reference.value_counts(), "c": current.value_counts()}).fillna(0)
    want = stats.chi2_contingency(table.to_numpy().T, correction=False)
    found = _statistic(learner.chi_square(reference, current), "chi_square")
    for key, wanted in (("value", want.statistic), ("p_value", want.pvalue)):
        expect_equal(
            number(found[key], what=f"{key} of chi_square"),
            float(wanted),
            what=f"{key} of chi_square",
            rel=1e-6,
            why="The reference is a sample too. Taken for the exact truth, its own noise counts "
            "as drift, and a category it lacks divides by zero.",
            hint="two-samples",
        )
    same = _statistic(learner.chi_square(pd.Series(["a"] * 9), pd.Series(["a"] * 5)), "chi_square")
    expect_equal(
        [same["value"], same["p_value"]],
        [0.0, 1.0],
        what="value and p_value of chi_square where both windows hold one and the same value",
        abs_=1e-12,
        why="Nothing can differ, so nothing does. No degrees of freedom must not become NaN.",
        hint="few-values",
    )


def test_jensen_shannon_is_a_distance_between_0_and_the_root_of_ln_2(learner, rng):
    for p, q in (([0.5, 0.3, 0.2, 0.0], [0.1, 0.3, 0.2, 0.4]), ([0.9, 0.1], [0.4, 0.6])):
        before = pd.Series(rng.choice(list("abcd")[: len(p)], size=500, p=p))
        now = pd.Series(rng.choice(list("abcd")[: len(q)], size=400, p=q))
        table = pd.DataFrame({"r": before.value_counts(), "c": now.value_counts()}).fillna(0)
        want = float(jensenshannon(table["r"], table["c"]))
        got = number(learner.jensen_shannon(before, now).value, what="jensen_shannon")
        squared = abs(got - want**2) < 1e-6
        expect_equal(
            got,
            want,
            what="jensen_shannon" + (", which is the divergence" if squared else ""),
            abs_=1e-8,
            why="Thresholds are given for the distance, the root of the divergence. A divergence "
            "of 0.01 is a distance of 0.1: a default threshold of 0.1 would never fire.",
            hint="distance-or-divergence",
        )
    apart = number(
        learner.jensen_shannon(pd.Series(["a"] * 5), pd.Series(["b"] * 7)).value,
        what="jensen_shannon of windows that share no value",
        hint="floor",
    )
    expect_equal(
        apart,
        float(np.sqrt(np.log(2))),
        what="jensen_shannon of windows that share no value",
        abs_=1e-9,
        why="It needs no floor: against the mean of both no share is infinite.",
        hint="distance-or-divergence",
    )


def test_constants_and_columns_of_few_values_are_compared_value_by_value(learner, rng):
    constant = pd.Series([7.0] * 200)
    for name in (*BINNED, *UNBINNED):
        value = number(getattr(learner, name)(constant, constant).value, what=name)
        expect_equal(
            value,
            0.0,
            what=f"{name} of a constant and itself",
            abs_=1e-12,
            why="Constant columns are in every table. NaN or an error on one stops the report "
            "on all the others.",
            hint="few-values",
        )
    moved = pd.Series([7.0] * 120 + [8.0] * 80)
    expect_equal(
        _by_label(learner.count_bins(constant, moved)),
        {7.0: [200, 120], 8.0: [0, 80]},
        what="rows by value of a column that was always 7 and now is 8 at times",
        why="All quantiles of a constant are the same edge, and everything above it shares its "
        "bin: the change becomes invisible.",
        hint="few-values",
    )
    few = pd.Series(rng.choice([1.0, 2.0, 3.0, 5.0], size=400, p=[0.6, 0.2, 0.1, 0.1]))
    other = pd.Series(rng.choice([1.0, 2.0, 4.0], size=300))
    wanted = {
        v: [int((few == v).sum()), int((other == v).sum())]
        for v in sorted({*few.unique(), *other.unique()})
    }
    expect_equal(
        _by_label(learner.count_bins(few, other)),
        wanted,
        what="rows by value of a numeric column with four distinct values",
        why="Deciles of a column with four values are mostly the same number twice.",
        hint="few-values",
    )


def test_windows_without_rows_or_values_are_refused_by_name(learner, rng):
    numbers, empty = pd.Series(rng.normal(size=50), name="age"), pd.Series([], dtype=float)
    gone = pd.Series([np.nan] * 40, name="age")
    why = (
        "A job that ran before its data arrived sees no rows. A drift of 0.0 for that window is "
        "a green light nobody gave."
    )
    for name in ("count_bins", *BINNED, *UNBINNED):
        function = getattr(learner, name)
        for which, windows in (
            ("reference", (empty, numbers)),
            ("current", (numbers, empty)),
        ):
            expect_raises(
                ValueError,
                lambda function=function, windows=windows: function(*windows),
                doing=f"{name} with no rows in the {which} window",
                mentions=which,
                why=why,
                hint="refuse",
            )
    for name in UNBINNED:
        function = getattr(learner, name)
        expect_raises(
            ValueError,
            lambda function=function: function(numbers, gone),
            doing=f"{name} with no present value in the current window",
            mentions="current",
            why="Distances from nothing are NaN, and NaN is above no threshold: the worst window "
            "would pass.",
            hint="refuse",
        )
        expect_raises(
            TypeError,
            lambda function=function: function(pd.Series(list("abcabc")), numbers),
            doing=f"{name} of strings",
            why="Strings have no order that means anything. Say so, rather than sort them.",
            hint="refuse",
        )
    nothing = pd.Series([None] * 30, dtype=object)
    labels, before, now = _bins(learner.count_bins(numbers, nothing))
    expect_equal(
        [labels[-1], before[-1], now[-1], sum(now)],
        [None, 0, 30, 30],
        what="last label, its rows in both windows, and current rows, "
        "when a numeric column arrives wholly missing",
        why="That is how a dead feed looks. It must be the largest drift of all, not a crash.",
        hint="missing-bin",
    )


@pytest.mark.limit(90)  # importing Evidently takes seconds
def test_statistics_agree_with_evidently_on_the_domains_own_windows(learner, rng, domain):
    data = load_tabular(domain)
    label = str(rng.choice([label for label, _, _ in data.current]))
    reference, current = data.reference_frame, dict(data.windows())[label]
    numeric, categorical = str(rng.choice(data.numeric)), str(rng.choice(data.categorical))
    wanted = _evidently(numeric, categorical, reference, current)
    for (column, name), value in wanted.items():
        before, now = reference[column].dropna(), current[column].dropna()
        function = getattr(learner, name)
        if name == "ks":
            got, tolerance = number(function(before, now).p_value, what="p_value of ks"), 0.05
        elif column == numeric and name in BINNED:
            # Evidently cuts at edges that it takes from both windows; yours are told them.
            both = np.concatenate([before, now])
            edges = np.histogram_bin_edges(both, bins="sturges")[1:-1].tolist()
            got = number(function(before, now, edges=edges).value, what=name)
            tolerance = 1e-6
        else:
            got, tolerance = number(function(before, now).value, what=name), 1e-6
        expect_equal(
            got,
            value,
            what=f"{name} of {column}, {label} against the reference",
            abs_=tolerance,
            why="This is what Evidently's report will show for the same column. Where two tools "
            "disagree, nobody trusts either.",
            hint="compare-with-evidently",
        )


def test_the_statistics_are_written_by_hand(learner):
    path = getattr(learner.psi, "__wrapped__", learner.psi).__code__.co_filename
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    banned = ("scipy.stats", "scipy.spatial", "evidently", "sklearn")
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            used |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found = sorted({b for b in banned for name in used if name == b or name.startswith(b + ".")})
    expect(
        not found,
        observed=f"an import of {', '.join(found)}",
        expected="NumPy, pandas and scipy.special only",
        why="Your numbers are compared with those libraries'. After this task you may use them, "
        "and know what they do with ties, empty bins and missing values.",
        hint="by-hand",
    )


def _quantiles(column: pd.Series) -> np.ndarray:
    return np.quantile(column, LEVELS)


def _cut(column: pd.Series, edges: np.ndarray) -> list[int]:
    numbers = np.searchsorted(edges, column.to_numpy(), side="right")
    return np.bincount(numbers, minlength=len(edges) + 1).tolist()


def _psi(before: Any, now: Any) -> float:
    r, c = (np.asarray(x, dtype=float) / np.sum(x) for x in (before, now))
    r, c = np.where(r == 0, 1e-4, r), np.where(c == 0, 1e-4, c)
    return float(((c - r) * np.log(c / r)).sum())


def _rounded(*columns: np.ndarray) -> list[np.ndarray]:
    return [np.round(column * 2) / 2 for column in columns]


def _bins(counts: Any) -> tuple[list[Any], list[int], list[int]]:
    labels, before, now = plain(counts.labels), plain(counts.reference), plain(counts.current)
    if not (
        isinstance(labels, list) and isinstance(before, list) and isinstance(now, list)
    ) or not (len(labels) == len(before) == len(now)):
        fail(
            observed=f"labels {show(labels)}, reference {show(before)}, current {show(now)}",
            expected="BinCounts with one label and two counts for each bin",
            why="Whoever draws or tests the bins walks over them side by side.",
        )
    return labels, before, now


def _by_label(counts: Any) -> dict[Any, list[int]]:
    labels, before, now = _bins(counts)
    if any(isinstance(label, (list, dict)) for label in labels):
        fail(
            observed=f"labels {show(labels)}",
            expected="one bin for each value, labelled with that value",
            why="Columns of few values, flags and strings are compared value by value.",
            hint="few-values",
        )
    return {label: [b, n] for label, b, n in zip(labels, before, now, strict=True)}


def _statistic(result: Any, name: str) -> dict[str, Any]:
    values = plain(result)
    keys = ("value", "p_value", "reference_rows", "current_rows")
    if not isinstance(values, dict) or not {*keys, "reference_missing"} <= values.keys():
        fail(
            observed=f"{name} returned {show(values)}",
            expected="a Statistic",
            why="A number without the rows it rests on can't be judged.",
        )
    return values


def _evidently(
    numeric: str, categorical: str, reference: pd.DataFrame, current: pd.DataFrame
) -> dict[tuple[str, str], float]:
    """Evidently's numbers for two columns; it leaves missing values out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift

        wanted = [(numeric, name) for name in EVIDENTLY]
        wanted += [(categorical, name) for name in ("psi", "jensen_shannon")]
        definition = DataDefinition(numerical_columns=[numeric], categorical_columns=[categorical])
        columns = [numeric, categorical]
        report = Report([ValueDrift(column=c, method=EVIDENTLY[n]) for c, n in wanted])
        now, before = (
            Dataset.from_pandas(frame[columns], data_definition=definition)
            for frame in (current, reference)
        )
        metrics = report.run(now, before).dict()["metrics"]
    return {key: float(m["value"]) for key, m in zip(wanted, metrics, strict=True)}
