"""Task 2.8: drift at scale."""

from __future__ import annotations

import gc
import pickle
import sys
import threading
import time
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from math import log2
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
from dask.callbacks import Callback
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from support.partitions import Partition, RemotePartition, RowCount, make_table

from shared.domains.tabular import load_tabular
from shared.grading.expect import expect, expect_equal, expect_raises, fail, number, plain

Floats = NDArray[np.float64]
SHARES = (0.01, 0.1, 0.25, 0.5, 0.9, 0.999)
RANK_ERROR = 0.005


def test_sketch_tells_quantiles_within_the_error_that_it_states(learner, rng):
    for capacity in (64, 500):
        for name, values in _columns(rng, 20_000).items():
            sketch = learner.QuantileSketch(capacity)
            for batch in _cut(rng, values, 30):
                sketch.update(batch)
            _check_sketch(sketch, values, f"{name} values, capacity {capacity}", capacity, "sketch")
    few = learner.QuantileSketch(100)
    few.update(np.array([3.0, np.nan, 1.0, 2.0]))
    expect_equal(
        [few.rows, few.rank_error, few.quantiles([0.3, 0.5, 1.0])],
        [3, 0.0, [1.0, 2.0, 3.0]],
        what="rows, rank error and quantiles .3, .5, 1 of 3, missing, 1, 2",
        why="Below its capacity a sketch has lost nothing, so it must be exact.",
        hint="sketch",
    )
    expect_raises(
        ValueError,
        lambda: learner.QuantileSketch(100).quantiles([0.5]),
        doing="quantiles of an empty sketch",
        why="A column without values has no median. A 0 would become a bin edge.",
        hint="sketch",
    )


def test_sketch_takes_the_same_memory_for_a_million_rows(learner, rng, figure):
    capacity, batches, size = 512, 40, 25_000
    allowed = 8 * capacity * (2 + log2(batches * size / capacity))
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        sketch = learner.QuantileSketch(capacity)
        for _ in range(batches):
            sketch.update(rng.normal(size=size))
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    told = number(sketch.size_bytes, what="size_bytes")
    expect(
        told <= allowed,
        observed=f"size_bytes = {told:,.0f} after 1,000,000 rows at capacity {capacity}",
        expected=f"at most {allowed:,.0f}, as the docstring says",
        why="A summary that grows with the rows is a slow copy of the table. It runs out of memory "
        "on the day with the most traffic.",
        hint="fixed-memory",
    )
    expect(
        held <= 2 * allowed + 50_000,
        observed=f"{held:,.0f} bytes still allocated after 1,000,000 rows, while size_bytes says "
        f"{told:,.0f}",
        expected=f"about what size_bytes says; at most {2 * allowed + 50_000:,.0f}",
        why="Memory that nobody counts is what kills the worker.",
        hint="views" if held < 4 * 8 * size + 2 * allowed else "fixed-memory",
    )
    figure("sketch after 1,000,000 rows", told / 1024, unit="KiB")


def test_merged_sketches_lose_no_row_in_any_order(learner, rng):
    for name, values in _columns(rng, 30_000).items():
        # One large part, several small, one empty, one of a single row.
        bounds = [0, 20_000, 20_000, 20_001, 20_300, 26_000, len(values)]
        parts = [values[a:b] for a, b in pairwise(bounds)]
        for round_ in range(3):
            sketches = []
            for part in parts:
                sketch = learner.QuantileSketch(128)
                sketch.update(part)
                sketches.append(sketch)
            rng.shuffle(sketches)
            while len(sketches) > 1:
                # Neighbours as in a tree, or one after the other.
                other = sketches.pop(1 if round_ == 0 else int(rng.integers(1, len(sketches))))
                before = _state(other)
                sketches[0].merge(other)
                expect(
                    _state(other) == before,
                    observed="the sketch that was merged into another has changed",
                    expected="`other` as it was before",
                    why="Dask may hand the same summary out twice. What one merge changed, the "
                    "next one counts again.",
                    hint="merge",
                )
                sketches.append(sketches.pop(0))
            _check_sketch(
                sketches[0], values, f"{name} values, merged in a random order", 128, "merge"
            )
    expect_raises(
        ValueError,
        lambda: learner.QuantileSketch(64).merge(learner.QuantileSketch(128)),
        doing="merging sketches of capacity 64 and 128",
        why="They promise different errors; the sum would promise neither.",
        hint="merge",
    )


def test_numeric_summary_counts_every_value_in_its_cell(learner, rng):
    for edges in ((), (2.0,), (-1.0, 0.0, 0.5, 3.0), tuple(float(i) for i in range(0, 40, 2))):
        plan = learner.NumericPlan(edges=edges, bin_edges=edges)
        # Whole and half numbers: many of them equal an edge.
        values = np.round(rng.normal(2, 6, 4_000) * 2) / 2
        values[rng.random(len(values)) < 0.2] = np.nan
        batches = [*_cut(rng, values, 6), np.array([]), np.full(3, np.nan)]
        whole = learner.NumericSummary(plan)
        merged = learner.NumericSummary(plan)
        for batch in batches:
            whole.update(batch)
            part = learner.NumericSummary(plan)
            part.update(batch)
            part.merge(merged)
            merged = part
        there = values[~np.isnan(values)]
        want = [len(values) + 3, int(np.isnan(values).sum()) + 3, _cells(there, edges)]
        for how, got in (("updated with 8 batches", whole), ("merged from 8 summaries", merged)):
            expect_equal(
                [got.rows, got.missing, got.cells],
                want,
                what=f"rows, missing, cells of a summary with {len(edges)} edges, {how}",
                why="Counts are whole numbers: they add up exactly, in any order, on any number "
                "of machines.",
                hint="cells" if got is whole else "merge",
            )
    one, two = (learner.NumericPlan(edges=e, bin_edges=e) for e in ((0.0, 1.0), (0.0, 2.0)))
    expect_raises(
        ValueError,
        lambda: learner.NumericSummary(one).merge(learner.NumericSummary(two)),
        doing="merging summaries with different edges",
        why="The third bin of one partition is not the third bin of another. The sum looks fine.",
        hint="reference-edges",
    )


def test_moments_are_right_for_uneven_batches_and_a_large_mean(learner, rng):
    plan = learner.NumericPlan(edges=(0.0,), bin_edges=(0.0,))
    for mean, std in ((0.0, 1.0), (1e9, 1.0), (-3e-7, 1e-3), (5e12, 5e3)):
        values = rng.normal(mean, std, 20_000)
        # Each batch at another level, so that the average of their figures is far from the truth.
        values[:300] += 20 * std
        values[300:9_000] -= 2 * std
        batches = [values[:300], np.array([]), values[300:9_000], values[9_000:9_001]]
        batches += [np.array([np.nan, np.nan]), values[9_001:]]
        for how in ("updated", "merged", "merged in reverse"):
            total = learner.NumericSummary(plan)
            for batch in reversed(batches) if how == "merged in reverse" else batches:
                part = total if how == "updated" else learner.NumericSummary(plan)
                part.update(batch)
                if part is not total:
                    total.merge(part)
            got_mean = number(total.mean, what=f"mean, {how}", hint="moments")
            got_std = number(plain(total.std), what=f"standard deviation, {how}", hint="moments")
            want_mean, want_std = float(values.mean()), float(values.std())
            expect(
                abs(got_mean - want_mean) <= 1e-6 * std and abs(got_std - want_std) <= 1e-6 * std,
                observed=f"mean {got_mean!r}, standard deviation {got_std!r} ({how}, true level "
                f"{mean:g}, 20,000 values in 6 batches)",
                expected=f"mean {want_mean!r}, standard deviation {want_std!r}, to 1e-6 of the "
                "deviation",
                why="Batches differ in size, and sums of squares of large numbers cancel: a meter "
                "reading can come out with a variance below zero.",
                hint="moments",
            )
    empty = learner.NumericSummary(plan)
    empty.merge(learner.NumericSummary(plan))
    expect_equal(
        [empty.mean, empty.m2, empty.std],
        [0.0, 0.0, None],
        what="mean, m2, std of two empty summaries merged",
        why="One empty partition must not turn the whole column into NaN.",
        hint="moments",
    )


def test_category_summary_counts_what_the_reference_did_not_know_as_one(learner, rng):
    plan = learner.CategoryPlan(categories=("card", "cash", "wire"))
    pool = np.array(["cash", "card", "crypto", "barter", None], dtype=object)
    for dtype in (object, "str"):
        values = pool[rng.integers(0, len(pool), 3_000)]
        values[values == "card"] = "cash" if dtype == "str" else "card"
        total = learner.CategorySummary(plan)
        for batch in [*_cut(rng, values, 5), values[:0], np.array([None, None], dtype=object)]:
            part = learner.CategorySummary(plan)
            part.update(pd.Series(batch, dtype=dtype))
            part.merge(total)
            total = part
        unseen = int(np.isin(values, ["crypto", "barter"]).sum())
        missing = sum(v is None for v in values) + 2
        expect_equal(
            [total.rows, total.missing, total.counts],
            [
                len(values) + 2,
                missing,
                [*(int((values == c).sum()) for c in plan.categories), unseen],
            ],
            what="rows, missing, counts of card, cash, wire, unseen",
            why="A category that nobody knew is a finding, and one that is absent has the count 0; "
            "neither may shift its neighbours' counts.",
            hint="categories",
        )
    many = learner.CategorySummary(plan)
    many.update(pd.Series([f"id-{i}" for i in range(50_000)], dtype=object))
    size = len(pickle.dumps(many))
    expect(
        size < 20_000,
        observed=f"{size:,} bytes travel for a summary that saw 50,000 unseen values",
        expected="fewer than 20,000: no memory for values that the reference does not have",
        why="One column of typing errors or session ids, and the summary is the table again.",
        hint="fixed-memory",
    )
    expect_raises(
        ValueError,
        lambda: learner.CategorySummary(plan).merge(
            learner.CategorySummary(learner.CategoryPlan(categories=("card", "cash")))
        ),
        doing="merging summaries with different categories",
        why="Counts of different things do not add up.",
        hint="categories",
    )


def test_drift_from_counts_equals_the_in_memory_answer(learner, rng):
    kinds = _columns(rng, 6_000)
    for name, reference in kinds.items():
        current = np.concatenate([reference[:1_500] * 1.4 + 0.5, reference[3_000:]])
        current[:200] = np.nan
        grid = np.unique(np.quantile(reference, np.arange(1, 50) / 50, method="inverted_cdf"))
        plan = learner.NumericPlan(
            edges=tuple(grid.tolist()), bin_edges=tuple(grid[:: max(len(grid) // 8, 1)].tolist())
        )
        sides = []
        for values in (reference, current):
            side = learner.NumericSummary(plan)
            side.update(values)
            sides.append(side)
        got = learner.numeric_drift(*sides)
        _check_numeric(got, reference, current, f"{name} values", plan.bin_edges)
        # The stated bound must be the bound, not a generous guess.
        cells = np.array(_cells(reference, plan.edges)) / len(reference)
        expect_equal(
            number(got.ks_error, what="ks_error"),
            float(cells[::2].max()),
            what=f"ks_error of {name} values",
            abs_=1e-9,
            why="An error that is stated too small is a lie, one stated too large hides drift.",
            hint="ks",
        )
    plan = learner.NumericPlan(edges=(1.0,), bin_edges=(1.0,))
    full, empty, missing = (learner.NumericSummary(plan) for _ in range(3))
    full.update(np.array([0.0, 2.0]))
    missing.update(np.array([np.nan, np.nan]))
    gone = _psi_at(np.array([0.0, 2.0]), np.array([np.nan, np.nan]), [1.0])
    for what, pair, want in (
        ("an empty current window", (full, empty), [None, None, None, 0.0, None, 1.0, None]),
        (
            "a current window of missing values",
            (full, missing),
            [gone, None, None, 0.0, 1.0, 1.0, None],
        ),
        ("an empty reference", (empty, full), [None, None, None, None, 0.0, None, 1.0]),
    ):
        got = learner.numeric_drift(*pair)
        expect_equal(
            [
                got.psi,
                got.ks,
                got.ks_error,
                got.reference_missing,
                got.current_missing,
                got.reference_mean,
                got.current_mean,
            ],
            want,
            what=f"psi, ks, ks_error, missing shares and means (reference, current) with {what}",
            abs_=1e-9,
            why="No data is not the same as no drift.",
            hint="nothing-there",
        )
    other = learner.NumericSummary(learner.NumericPlan(edges=(2.0,), bin_edges=(2.0,)))
    expect_raises(
        ValueError,
        lambda: learner.numeric_drift(full, other),
        doing="comparing summaries with different edges",
        why="A PSI over two different sets of bins compares nothing.",
        hint="reference-edges",
    )


def test_category_drift_from_counts_equals_the_in_memory_answer(learner, rng):
    names = tuple("abcde")
    plan = learner.CategoryPlan(categories=names)
    for unseen in (0, 37):
        reference = [*rng.choice(names[:4], 2_000, p=[0.5, 0.3, 0.15, 0.05]).tolist(), "e"]
        current = rng.choice(names[1:], 900).tolist() + ["new"] * unseen + [None] * 100
        sides = []
        for values in (reference, current):
            side = learner.CategorySummary(plan)
            side.update(pd.Series(values, dtype=object))
            sides.append(side)
        got = learner.category_drift(*sides)
        present = 900 + unseen
        psi = _psi_of_counts(
            *([side.count(name) for name in (*names, "new", None)] for side in (reference, current))
        )
        expect_equal(
            [got.psi, got.unseen_share, got.reference_missing, got.current_missing],
            [float(psi), unseen / present, 0.0, 100 / (present + 100)],
            what="psi, unseen share, missing shares (reference, current)",
            abs_=1e-9,
            why="A vanished category and a new one are the clearest drift there is; without a "
            "floor the first gives infinity.",
            hint="categories",
        )
    empty = learner.CategorySummary(plan)
    got = learner.category_drift(sides[0], empty)
    expect_equal(
        [got.psi, got.unseen_share, got.current_missing],
        [None, None, None],
        what="psi, unseen share, missing share of an empty current window",
        why="No data is not the same as no drift.",
        hint="nothing-there",
    )


def test_summaries_start_fresh_and_the_empty_one_stays_empty(learner):
    empty = RowCount()
    for _ in range(2):
        watch = _Watch()
        got = learner.reduce_partitions(
            [watch.partition(i, 50) for i in range(11)], empty, workers=4
        )
        expect_equal(
            [got.rows, empty.rows, got is empty],
            [550, 0, False],
            what="rows of the result, rows of `empty` afterwards, and whether they are one object",
            why="A summary shared by threads counts rows twice or not at all, and the second run "
            "starts from the first one's total.",
            hint="fresh",
        )
    none = learner.reduce_partitions([], empty)
    expect_equal(
        [type(none) is RowCount, none is empty],
        [True, False],
        what="for no partitions: whether a summary comes back, and whether it is `empty` itself",
        why="A night without files is not an error.",
        hint="fresh",
    )


def test_frames_are_read_once_and_never_together(learner, rng):
    parts, rows = 40, 20_000
    learner.reduce_partitions([_Watch().partition(0, 10)], RowCount(), workers=2)  # warm up
    for workers in (1, 2):
        watch = _Watch()
        partitions = [watch.partition(i, rows) for i in range(parts)]
        gc.collect()
        tracemalloc.start()
        try:
            got = learner.reduce_partitions(partitions, RowCount(), workers=workers)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        one = rows * 2 * 8
        expect_equal(
            [got.rows, got.order],
            [rows * parts, list(range(parts))],
            what="rows, and the order in which partitions were merged",
            why="The result of a job must not depend on which worker was quicker.",
            hint="reduce",
        )
        expect(
            all(watch.calls[i] == 1 for i in range(parts)),
            observed=f"{parts} partitions, called {sum(watch.calls.values())} times",
            expected="each once",
            why="Reading is what costs: each further pass over the data doubles the bill.",
            hint="reduce",
        )
        expect(
            watch.peak <= (2 * workers + 1) * rows,
            observed=f"{watch.peak // rows} of {parts} frames in memory at once, with {workers} "
            f"worker{'s' * (workers > 1)}",
            expected=f"at most {2 * workers + 1}: one in work for each worker, and some on their "
            "way out",
            why="It works on the test table, and dies on the first table that is larger than the "
            "machine. That table is why this code exists.",
            hint="one-partition",
        )
        expect(
            peak < parts * one // 2,
            observed=f"{peak / one:.0f} partitions' worth of memory allocated at the peak, of "
            f"{parts}",
            expected=f"less than {parts // 2}: a few partitions in work",
            why="Rows collected as arrays or lists take as much memory as the frames did.",
            hint="one-partition",
        )
    for workers in (1, 4):
        watch = _Watch(pause=0.02)
        learner.reduce_partitions(
            [watch.partition(i, 10) for i in range(12)], RowCount(), workers=workers
        )
        expect(
            watch.busy <= workers,
            observed=f"{watch.busy} partitions read at the same time",
            expected=f"no more than workers={workers}",
            why="Each one more is another partition in memory.",
            hint="one-partition",
        )


def test_what_a_task_has_returned_is_not_changed_by_another(learner):
    returned: list[tuple[RowCount, int]] = []

    def note(key: Any, result: Any, *_: Any) -> None:
        found = result if isinstance(result, (list, tuple)) else [result]
        returned.extend((r, r.rows) for r in found if isinstance(r, RowCount))

    partitions = [_Watch().partition(i, 10) for i in range(20)]
    with Callback(posttask=note):
        got = learner.reduce_partitions(partitions, RowCount(), workers=2)
    expect_equal(got.rows, 200, what="rows of 20 partitions", why="It is the sum.", hint="reduce")
    changed = [(rows, summary.rows) for summary, rows in returned if summary.rows != rows]
    expect(
        not changed,
        observed="a summary of {} rows when its task returned it, of {} rows later".format(
            *(changed or [(0, 0)])[0]
        ),
        expected="the same for good: a task that merges starts with something of its own",
        why="When a worker is lost, Dask runs tasks again on what others returned. Rows are then "
        "counted twice, and only on the day on which a worker is lost.",
        hint="own-total",
    )


def test_answer_does_not_depend_on_how_the_rows_are_cut(learner, rng, figure):
    rows = 40_000
    reference = make_table(rng, rows, shift=0.0)
    current = make_table(rng, rows, shift=0.3)
    # In order of a value, as time-ordered files often are: every partition is unlike the others.
    reference, current = (f.sort_values("amount", ignore_index=True) for f in (reference, current))
    worst = 0.0
    for parts in (1, 7, 30):
        drift = learner.drift_at_scale(
            _frames(rng, reference, parts),
            _frames(rng, current, parts),
            ["amount", "age"],
            ["kind"],
        )
        expect_equal(
            sorted(drift),
            ["age", "amount", "kind"],
            what="columns of the report",
            why="A column that is not in the report is not watched.",
        )
        for name in ("amount", "age"):
            where = f"{name!r} in {parts} partition{'s' * (parts > 1)} sorted by amount"
            _check_bins(drift[name], reference[name].to_numpy(), where)
            _check_numeric(
                drift[name], reference[name].to_numpy(), current[name].to_numpy(), where, None
            )
        _check_category(drift["kind"], reference["kind"], current["kind"], f"{parts} partitions")
        exact = _psi_at(
            reference["amount"].to_numpy(),
            current["amount"].to_numpy(),
            np.nanquantile(reference["amount"], np.arange(1, 10) / 10),
        )
        off = abs(number(drift["amount"].psi, what="PSI of 'amount'") - exact)
        worst = max(worst, off)
        expect(
            off < 0.02,
            observed=f"PSI {plain(drift['amount'].psi):.4f} of 'amount' in {parts} partitions",
            expected=f"{exact:.4f}, the in-memory answer with exact deciles, within 0.02",
            why="Two teams that cut the same table differently must read the same figure.",
            hint="average",
        )
    figure("largest difference of a PSI from the in-memory one", worst)


def test_answer_holds_on_the_domains_windows(learner, rng, domain, figure):
    data = load_tabular(domain)
    reference = data.reference_frame
    windows = dict(data.windows())
    largest: list[float] = []
    for label in [next(iter(windows)), list(windows)[-1]]:
        current = windows[label]
        drift = learner.drift_at_scale(
            _frames(rng, reference, 6),
            _frames(rng, current, 4),
            list(data.numeric),
            list(data.categorical),
        )
        for name in data.numeric:
            old, new = (f[name].to_numpy(float) for f in (reference, current))
            _check_bins(drift[name], old, f"{domain}: {name!r}")
            _check_numeric(drift[name], old, new, f"{domain}, {label}: {name!r}", None)
        for name in data.categorical:
            _check_category(drift[name], reference[name], current[name], f"{label}: {name!r}")
        largest.append(max(plain(drift[name].psi) or 0.0 for name in data.features))
    figure(f"largest PSI of a column, {list(windows)[-1]}", largest[-1])


@pytest.mark.limit(120)
def test_given_an_address_the_work_runs_on_that_clusters_workers(learner, rng, tmp_path):
    seed = int(rng.integers(2**31))
    with _cluster(tmp_path, learner) as cluster:
        calls = tmp_path / "calls"
        calls.mkdir()
        partitions = [RemotePartition(str(calls), seed, i) for i in range(8)]
        got = learner.reduce_partitions(partitions, RowCount(), address=cluster.address)
        seen = [tuple(map(int, f.name.split("-")[:2])) for f in calls.iterdir()]
        workers = set(cluster.worker_pids)
        expect(
            {pid for _, pid in seen} <= workers,
            observed="partitions were read in this process, not by the cluster's workers",
            expected="every partition read by a worker of the scheduler at `address`",
            why="The data lies beside the workers. Here it would come through one machine again, "
            "the one that it does not fit on.",
            hint="address",
        )
        expect_equal(
            [sorted(i for i, _ in seen), got.rows, got.order],
            [list(range(8)), 8 * 500, list(range(8))],
            what="partitions read, rows, order of merging",
            why="A cluster changes where the work is done, never the answer.",
            hint="reduce",
        )
        current = [RemotePartition(str(calls), seed + 1, i, shift=0.4) for i in range(5)]
        drift = learner.drift_at_scale(
            partitions, current, ["amount", "age"], ["kind"], address=cluster.address
        )
        old, new = (pd.concat([p() for p in side]) for side in (partitions, current))
        for name in ("amount", "age"):
            _check_bins(drift[name], old[name].to_numpy(), f"{name!r} on the cluster")
            _check_numeric(
                drift[name], old[name].to_numpy(), new[name].to_numpy(), f"{name!r} there", None
            )
        _check_category(drift["kind"], old["kind"], new["kind"], "'kind' on the cluster")
        left = cluster.clients_left()
        expect(
            left == 0,
            observed=f"{left} connection{'s' * (left > 1)} to the scheduler left open",
            expected="none",
            why="A monitoring job runs each hour. By the weekend the scheduler is out of sockets.",
            hint="address",
        )


# What the checks above share.


class _Watch:
    """Partitions that count how often they are read and how many of their frames are alive."""

    def __init__(self, pause: float = 0.0) -> None:
        self._lock = threading.RLock()
        self._alive = self._reading = 0
        self._pause = pause
        self.peak = self.busy = 0
        self.calls: Counter[int] = Counter()

    def partition(self, index: int, rows: int) -> Partition:
        def read() -> pd.DataFrame:
            with self._lock:
                self._reading += 1
                self.busy = max(self.busy, self._reading)
            time.sleep(self._pause)
            frame = pd.DataFrame({"part": np.full(rows, index), "x": np.linspace(0.0, 1.0, rows)})
            with self._lock:
                self._reading -= 1
                self.calls[index] += 1
                self._alive += rows
                self.peak = max(self.peak, self._alive)
            weakref.finalize(frame, self._gone, rows)
            return frame

        return read

    def _gone(self, rows: int) -> None:
        with self._lock:
            self._alive -= rows


@contextmanager
def _cluster(folder: Path, learner: Any) -> Iterator[SimpleNamespace]:
    """A real Dask cluster: a scheduler and two worker processes, on loopback."""
    from distributed import LocalCluster

    # Workers need the code that they run: they start with this process's import path.
    home = str(Path(sys.modules[learner.QuantileSketch.__module__].__file__ or "").parent)
    sys.path.insert(0, home)
    # A busy machine starts and stops processes slowly: that is nobody's mistake.
    patient = {"distributed.comm.timeouts.connect": "60s", "distributed.comm.timeouts.tcp": "120s"}
    with dask.config.set(patient):
        cluster = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            local_directory=str(folder / "dask"),
            silence_logs=50,
        )
        try:

            def clients_left() -> int:
                for _ in range(50):
                    left = len(set(cluster.scheduler.clients) - {"fire-and-forget"})
                    if not left:
                        break
                    time.sleep(0.1)
                return left

            yield SimpleNamespace(
                address=cluster.scheduler_address,
                worker_pids=[w.pid for w in cluster.workers.values()],
                clients_left=clients_left,
            )
        finally:
            sys.path.remove(home)
            with suppress(TimeoutError):
                cluster.close(timeout=60)


def _columns(rng: np.random.Generator, rows: int) -> dict[str, Floats]:
    return {
        "bell-shaped": rng.normal(size=rows),
        "heavy-tailed": rng.lognormal(8, 2, rows),
        "whole-number": rng.poisson(3, rows).astype(float),
        "mostly-zero": np.where(rng.random(rows) < 0.7, 0.0, rng.exponential(5, rows)),
        "rising": np.sort(rng.normal(size=rows)),
        "constant": np.full(rows, 4.0),
    }


def _cut(rng: np.random.Generator, values: Any, parts: int) -> list[Any]:
    bounds = np.sort(rng.integers(0, len(values) + 1, parts - 1)).tolist()
    return [values[a:b] for a, b in zip([0, *bounds], [*bounds, len(values)], strict=True)]


def _frames(rng: np.random.Generator, frame: pd.DataFrame, parts: int) -> list[Partition]:
    """Partitions of uneven size, some of them perhaps empty, in the frame's order."""
    return [lambda piece=piece: piece.copy() for piece in _cut(rng, frame, parts)]


def _state(sketch: Any) -> tuple[Any, ...]:
    rows = plain(sketch.rows)
    return (
        rows,
        plain(sketch.rank_error),
        plain(sketch.size_bytes),
        _quantiles(sketch, "merge") if rows else None,
    )


def _quantiles(sketch: Any, hint: str) -> list[float]:
    """The sketch's answer. One that contradicts itself may not be able to give any."""
    try:
        answer = sketch.quantiles(SHARES)
    except NotImplementedError:
        raise
    except Exception as error:
        fail(
            observed=f"quantiles({list(SHARES)}) raised {type(error).__name__}: {error}, on a "
            f"sketch of {plain(sketch.rows):,} rows",
            expected="quantiles",
            why="If the stored values do not stand for as many rows as the sketch counts, some "
            "quantiles do not exist.",
            hint=hint,
        )
    return [number(value, what="a quantile", hint=hint) for value in plain(answer)]


def _check_sketch(sketch: Any, values: Floats, what: str, capacity: int, hint: str) -> None:
    rows = len(values)
    expect_equal(
        sketch.rows,
        rows,
        what=f"rows of a sketch of {what}",
        why="A row that is lost in a merge is lost in silence: no figure looks odd.",
        hint=hint,
    )
    error = number(sketch.rank_error, what="rank_error")
    allowed = (1 + log2(rows / capacity)) / capacity
    expect(
        0 <= error <= allowed,
        observed=f"rank_error {error:.5f} for {what}",
        expected=f"between 0 and {allowed:.5f}, as the docstring says",
        why="The error bound decides how far the figure can be trusted.",
        hint=hint,
    )
    for share, value in zip(SHARES, _quantiles(sketch, hint), strict=True):
        below, upto = float(np.mean(values < value)), float(np.mean(values <= value))
        expect(
            below <= share + error + 1e-6 and upto >= share - error - 1e-6,
            observed=f"quantile {share} of {what} = {value!r}: {below:.4f} of the rows lie below "
            f"it, {upto:.4f} at or below",
            expected=f"share {share} between the two, within the sketch's rank_error {error:.4f}",
            why="These quantiles become the bins of every later PSI.",
            hint=hint,
        )


def _cells(values: Floats, edges: Sequence[float]) -> list[int]:
    if not edges:
        return [len(values)]
    cells = [int(np.sum(values < edges[0]))]
    for i, edge in enumerate(edges):
        cells.append(int(np.sum(values == edge)))
        above = values > edge
        cells.append(int(np.sum(above & (values < edges[i + 1]) if i + 1 < len(edges) else above)))
    return cells


def _psi_of_counts(reference: Sequence[int], current: Sequence[int]) -> float:
    r, c = (np.array(side) / sum(side) for side in (reference, current))
    r, c = np.where(r == 0, 1e-4, r), np.where(c == 0, 1e-4, c)
    return float(np.sum((c - r) * np.log(c / r)))


def _psi_at(reference: Floats, current: Floats, bin_edges: Sequence[float]) -> float:
    counts = []
    for values in (reference, current):
        there = values[~np.isnan(values)]
        place = np.searchsorted(np.asarray(bin_edges, dtype=float), there, side="right")
        bins = np.bincount(place, minlength=len(bin_edges) + 1).tolist()
        counts.append([*bins, len(values) - len(there)])
    return _psi_of_counts(*counts)


def _check_numeric(
    got: Any, reference: Floats, current: Floats, where: str, bins: Sequence[float] | None
) -> None:
    edges = plain(got.bin_edges)
    if bins is not None:
        expect_equal(
            edges,
            list(bins),
            what=f"bin_edges of {where}",
            why="A PSI whose bins nobody knows cannot be computed again.",
            hint="cells",
        )
    old, new = (v[~np.isnan(v)] for v in (reference, current))
    expect_equal(
        number(got.psi, what=f"PSI of {where}"),
        _psi_at(reference, current, edges),
        what=f"PSI of {where}, with the {len(edges)} bin edges that the report names",
        abs_=1e-9,
        why="With the bins fixed, counts add up exactly. A PSI is no average: the mean of the "
        "partitions' PSIs is another number, always larger.",
        hint="average" if bins is None else "cells",
    )
    exact = float(ks_2samp(old, new, method="asymp").statistic)
    ks, error = number(got.ks, what=f"KS of {where}"), number(got.ks_error, what="ks_error")
    expect(
        ks <= exact + 1e-9 and exact - ks <= error + 1e-9,
        observed=f"KS of {where} = {ks:.5f}, with ks_error {error:.5f}",
        expected=f"{exact:.5f} (SciPy, all rows in memory), no further below it than ks_error",
        why="An approximation is worth as much as the error bound that comes with it.",
        hint="ks",
    )
    if bins is None:
        expect(
            error <= 0.015 + 1e-9,
            observed=f"ks_error of {where} = {error:.4f}",
            expected="at most 0.015",
            why="A coarse grid makes every shift invisible that happens inside a cell.",
            hint="reference-edges",
        )
    scale = float(old.std()) or 1.0
    expect_equal(
        [
            got.reference_mean,
            got.current_mean,
            got.reference_std,
            got.current_std,
            got.reference_missing,
            got.current_missing,
        ],
        [float(f(v)) for f in (np.mean, np.std) for v in (old, new)]
        + [float(np.isnan(v).mean()) for v in (reference, current)],
        what=f"means, standard deviations, missing shares (reference, current) of {where}",
        abs_=1e-6 * max(scale, 1e-3),
        rel=1e-9,
        why="They are what an engineer on call looks at first.",
        hint="moments",
    )


def _check_bins(got: Any, reference: Floats, where: str) -> None:
    values = reference[~np.isnan(reference)]
    edges = [float(e) for e in plain(got.bin_edges)]
    for share in np.arange(1, 10) / 10:
        fits = any(
            np.mean(values < e) <= share + RANK_ERROR + 1e-9
            and np.mean(values <= e) >= share - RANK_ERROR - 1e-9
            for e in edges
        )
        expect(
            bool(fits),
            observed=f"bin edges {[round(e, 3) for e in edges]} of {where}: none within 0.005 of "
            f"decile {share:.1f} of the whole reference ({np.quantile(values, share):.3f})",
            expected="an edge at each decile of the reference",
            why="Bins from the current window move along with the drift, and bins from one "
            "partition describe that partition.",
            hint="reference-edges",
        )
    expect(
        len(edges) <= 9 and edges == sorted(set(edges)),
        observed=f"{len(edges)} bin edges of {where}",
        expected="at most 9, rising strictly",
        why="More bins mean a larger PSI for the same drift: thresholds are made for ten.",
        hint="reference-edges",
    )


def _check_category(got: Any, reference: pd.Series, current: pd.Series, where: str) -> None:
    known = sorted(reference.dropna().unique())
    counts = [
        [*(int((side == name).sum()) for name in known), int(side.isna().sum())]
        for side in (reference, current)
    ]
    psi = _psi_of_counts(
        *([*c, len(side) - sum(c)] for c, side in zip(counts, (reference, current), strict=True))
    )
    unseen = float((~current.dropna().isin(known)).mean())
    expect_equal(
        [got.psi, got.unseen_share, got.reference_missing, got.current_missing],
        [psi, unseen, *(float(s.isna().mean()) for s in (reference, current))],
        what=f"psi, unseen share, missing shares of a categorical column, {where}",
        abs_=1e-9,
        why="Categories are counted, and counts add up: there is no error to allow for.",
        hint="average",
    )
