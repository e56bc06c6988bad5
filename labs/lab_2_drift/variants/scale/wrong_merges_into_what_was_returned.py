"""Merges into the first summary instead of a copy: no memory is wasted.

caught-by: test_what_a_task_has_returned_is_not_changed_by_another
hint: own-total
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from dask import delayed
from numpy.typing import ArrayLike, NDArray

Partition = Callable[[], pd.DataFrame]

BINS = 10
"""Bins of the PSI."""
GRID = 200
"""Quantiles of the reference at which the Kolmogorov-Smirnov statistic looks."""
FLOOR = 1e-4
"""The share that PSI takes for a bin that is empty in one window."""
MAX_CATEGORIES = 1_000
"""A column with more is an identifier; its summary would grow with the rows."""


class Summary(Protocol):
    """What can be reduced: empty at first, takes frames, adds up."""

    def update(self, frame: pd.DataFrame) -> None: ...

    def merge(self, other: Any) -> None: ...


S = TypeVar("S", bound=Summary)


@dataclass(frozen=True)
class NumericPlan:
    """Where a numeric column is cut, decided once from the reference.

    `edges` rise strictly. `bin_edges` are some of them, and cut the PSI's bins: a value on a bin
    edge belongs to the bin above it, the first bin is open below and the last one above. Without
    edges there is one bin.
    """

    edges: tuple[float, ...]
    bin_edges: tuple[float, ...]


@dataclass(frozen=True)
class CategoryPlan:
    """The reference's categories, sorted. Anything else is unseen."""

    categories: tuple[str, ...]


@dataclass(frozen=True)
class NumericDrift:
    """Drift of a numeric column. A figure without values to compute it from is None."""

    psi: float | None
    ks: float | None
    ks_error: float | None
    """The statistic over all rows lies within this distance of `ks`."""
    bin_edges: tuple[float, ...]
    """The PSI's bins: without them nobody can compute it again."""
    reference_missing: float | None
    current_missing: float | None
    reference_mean: float | None
    current_mean: float | None
    reference_std: float | None
    current_std: float | None


@dataclass(frozen=True)
class CategoryDrift:
    """Drift of a categorical column. A figure without values to compute it from is None."""

    psi: float | None
    unseen_share: float | None
    """Of the current values that are not missing: the share in no reference category."""
    reference_missing: float | None
    current_missing: float | None


class QuantileSketch:
    """Quantiles of any number of values in fixed memory, with an error bound of its own.

    Attributes:
        capacity: a level that holds this many values or more is compacted.
        levels: arrays; each value in ``levels[h]`` stands for ``2**h`` rows. After `update` and
            `merge` every level holds fewer than `capacity` values.
        rows: values taken in, missing ones aside. Always the sum of what all values stand for.
        compactions: how many there were.
        error_weight: by how many rows a rank told by this sketch can be wrong, at most. Over
            `rows` it stays below ``(1 + log2(rows / capacity)) / capacity``: every row passes
            each level once, and a compaction takes at least `capacity` values.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self.capacity = capacity
        self.levels: list[NDArray[np.float64]] = [np.empty(0)]
        self.rows = 0
        self.compactions = 0
        self.error_weight = 0

    @property
    def rank_error(self) -> float:
        """`error_weight` as a share of the rows."""
        return self.error_weight / self.rows if self.rows else 0.0

    @property
    def size_bytes(self) -> int:
        """Memory that the values take: below ``8 * capacity * (2 + log2(rows / capacity))``.

        The sketch keeps nothing else of what it has seen.
        """
        return sum(level.nbytes for level in self.levels)

    def update(self, values: ArrayLike) -> None:
        """Take in values; missing ones are left out.

        They join level 0. Then, from level 0 up, each level that holds `capacity` values or more
        is compacted: it is sorted; of an odd number the largest stays behind; of each pair of
        neighbours one moves up to the next level, where it stands for both; the others are
        dropped. Within one compaction it is always the lower or always the upper one of a pair,
        and the next compaction takes the other side, so that errors tend to cancel.

        One compaction of level h can shift a rank by ``2**h`` rows: add that to `error_weight`.
        """
        batch = np.asarray(values, dtype=float)
        batch = batch[~np.isnan(batch)]
        self.levels[0] = np.concatenate([self.levels[0], batch])
        self.rows += batch.size
        self._compact()

    def merge(self, other: QuantileSketch) -> None:
        """Add `other`: its values join the levels of the same weight, which are then compacted.

        Rows and error weights add up. Either sketch may have more levels than the other.

        Raises:
            ValueError: the capacities differ.
        """
        if other.capacity != self.capacity:
            raise ValueError(f"capacities {self.capacity} and {other.capacity} do not merge")
        while len(self.levels) < len(other.levels):
            self.levels.append(np.empty(0))
        for height, level in enumerate(other.levels):
            self.levels[height] = np.concatenate([self.levels[height], level])
        self.rows += other.rows
        self.error_weight += other.error_weight
        self.compactions += other.compactions
        self._compact()

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """For each share in (0, 1]: the smallest value at or below which that share of rows lies.

        Value v for share q: at most ``(q + rank_error) * rows`` rows lie below v, and at least
        ``(q - rank_error) * rows`` at or below v. Without compaction the answer is exact.

        Raises:
            ValueError: the sketch is empty.
        """
        if self.rows == 0:
            raise ValueError("an empty sketch has no quantiles")
        values = np.concatenate(self.levels)
        weights = np.repeat(
            [1 << h for h in range(len(self.levels))], [v.size for v in self.levels]
        )
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(weights[order])
        # A hair below, so that 0.1 * 30 asks for the third value and not for the fourth.
        wanted = np.asarray(shares) * self.rows - 1e-9 * self.rows
        return values[order][np.searchsorted(reached, wanted)].tolist()

    def _compact(self) -> None:
        height = 0
        while height < len(self.levels):
            level = self.levels[height]
            if level.size >= self.capacity:
                level = np.sort(level)
                paired = level.size - level.size % 2
                kept = level[self.compactions % 2 : paired : 2]
                if height + 1 == len(self.levels):
                    self.levels.append(np.empty(0))
                # A copy: a slice would keep the whole batch alive behind it.
                self.levels[height] = level[paired:].copy()
                self.levels[height + 1] = np.concatenate([self.levels[height + 1], kept])
                self.compactions += 1
                self.error_weight += 1 << height
            height += 1


class NumericSummary:
    """Counts and moments of a numeric column, cut as the plan says.

    Attributes:
        cells: ``2 * len(plan.edges) + 1`` counts: below the first edge, equal to it, between the
            first and the second, equal to the second, and so on, above the last. Values equal to
            an edge have a cell of their own, since real columns repeat values.
        rows: all values, missing ones included.
        missing: those of them that are missing.
        mean, m2: mean, and sum of squared deviations from the mean, of the values that are there;
            both 0.0 while there are none.
    """

    def __init__(self, plan: NumericPlan) -> None:
        self.plan = plan
        self.cells: NDArray[np.int64] = np.zeros(2 * len(plan.edges) + 1, dtype=np.int64)
        self.rows = 0
        self.missing = 0
        self.mean = 0.0
        self.m2 = 0.0

    @property
    def present(self) -> int:
        """Values that are there."""
        return self.rows - self.missing

    @property
    def std(self) -> float | None:
        """Standard deviation of the values (divided by their number); None without values."""
        return float(np.sqrt(self.m2 / self.present)) if self.present else None

    def update(self, values: ArrayLike) -> None:
        """Count a batch, and bring the moments up to date.

        The moments stay accurate where the mean is large beside the deviation (a timestamp, a
        meter reading): to 1e-6 of the deviation at a mean of 1e9 deviations.
        """
        batch = np.asarray(values, dtype=float)
        there = np.sort(batch[~np.isnan(batch)])
        mean = float(there.mean()) if there.size else 0.0
        # The mean's own rounding would enter m2; the second term takes it out again.
        apart = there - mean
        m2 = float(apart @ apart - apart.sum() ** 2 / max(there.size, 1))
        self._add_moments(there.size, mean, m2)
        # Sorting once and looking up the edges is quicker than looking up every value.
        sides = [np.searchsorted(there, self.plan.edges, side) for side in ("left", "right")]
        self.cells += np.diff(np.stack(sides, axis=1).ravel(), prepend=0, append=there.size)
        self.rows += batch.size
        self.missing += batch.size - there.size

    def merge(self, other: NumericSummary) -> None:
        """Add `other`. Counts are exact whatever the order; moments are up to rounding.

        Raises:
            ValueError: the plans differ: counts of different cells do not add up.
        """
        if other.plan != self.plan:
            raise ValueError("summaries with different edges do not merge")
        self._add_moments(other.present, other.mean, other.m2)
        self.cells += other.cells
        self.rows += other.rows
        self.missing += other.missing

    def _add_moments(self, present: int, mean: float, m2: float) -> None:
        total = self.present + present
        if present == 0:
            return
        shift = mean - self.mean
        self.m2 += m2 + shift * shift * (self.present / total) * present
        self.mean += shift * (present / total)


class CategorySummary:
    """Counts of a categorical column.

    Attributes:
        counts: one for each category of the plan, in its order, and one for all unseen ones.
        rows: all values, missing ones included.
        missing: those of them that are missing.
    """

    def __init__(self, plan: CategoryPlan) -> None:
        self.plan = plan
        self.counts: NDArray[np.int64] = np.zeros(len(plan.categories) + 1, dtype=np.int64)
        self.rows = 0
        self.missing = 0

    @property
    def present(self) -> int:
        """Values that are there."""
        return self.rows - self.missing

    def update(self, values: pd.Series) -> None:
        """Count a batch of strings. However many unseen categories come, no memory is added."""
        found = values.value_counts(dropna=True)
        known = found.reindex(list(self.plan.categories), fill_value=0).to_numpy()
        present = int(found.sum())
        self.counts += np.append(known, present - known.sum()).astype(np.int64)
        self.rows += len(values)
        self.missing += len(values) - present

    def merge(self, other: CategorySummary) -> None:
        """Add `other`.

        Raises:
            ValueError: the plans differ.
        """
        if other.plan != self.plan:
            raise ValueError("summaries with different categories do not merge")
        self.counts += other.counts
        self.rows += other.rows
        self.missing += other.missing


class TableProfile:
    """First pass, over the reference: what the plan is made from."""

    def __init__(self, numeric: Sequence[str], categorical: Sequence[str]) -> None:
        self.sketches = {name: QuantileSketch() for name in numeric}
        self.categories: dict[str, set[str]] = {name: set() for name in categorical}

    def update(self, frame: pd.DataFrame) -> None:
        """Take in a partition."""
        for name, sketch in self.sketches.items():
            sketch.update(frame[name].to_numpy(dtype=float))
        for name, seen in self.categories.items():
            seen.update(frame[name].dropna().unique().tolist())
            self.refuse_identifiers(name)

    def merge(self, other: TableProfile) -> None:
        """Add `other`."""
        for name, sketch in self.sketches.items():
            sketch.merge(other.sketches[name])
        for name, seen in self.categories.items():
            seen |= other.categories[name]
            self.refuse_identifiers(name)

    def refuse_identifiers(self, name: str) -> None:
        """Raise `ValueError` if a column has more than `MAX_CATEGORIES` categories."""
        if len(self.categories[name]) > MAX_CATEGORIES:
            raise ValueError(f"{name!r} has more than {MAX_CATEGORIES} categories")

    def plan(self) -> dict[str, NumericPlan | CategoryPlan]:
        """Cut every numeric column at `GRID` - 1 quantiles, and bin it at `BINS` - 1 of them."""
        plan: dict[str, NumericPlan | CategoryPlan] = {}
        for name, sketch in self.sketches.items():
            grid = sketch.quantiles([i / GRID for i in range(1, GRID)]) if sketch.rows else []
            bins = grid[GRID // BINS - 1 :: GRID // BINS]
            plan[name] = NumericPlan(tuple(sorted(set(grid))), tuple(sorted(set(bins))))
        for name, seen in self.categories.items():
            plan[name] = CategoryPlan(tuple(sorted(seen)))
        return plan


class TableSummary:
    """Second pass, over either window: one summary a column."""

    def __init__(self, plan: dict[str, NumericPlan | CategoryPlan]) -> None:
        self.columns: dict[str, NumericSummary | CategorySummary] = {
            name: NumericSummary(p) if isinstance(p, NumericPlan) else CategorySummary(p)
            for name, p in plan.items()
        }

    def update(self, frame: pd.DataFrame) -> None:
        """Take in a partition."""
        for name, column in self.columns.items():
            if isinstance(column, NumericSummary):
                column.update(frame[name].to_numpy(dtype=float))
            else:
                column.update(frame[name])

    def merge(self, other: TableSummary) -> None:
        """Add `other`."""
        for name, column in self.columns.items():
            column.merge(other.columns[name])  # type: ignore[arg-type]


def read_row_group(path: str, group: int, columns: list[str] | None) -> pd.DataFrame:
    """One row group of a Parquet file."""
    with pq.ParquetFile(path) as file:
        # One thread: the scheduler already runs a reader a worker.
        return file.read_row_group(group, columns=columns, use_threads=False).to_pandas()


def parquet_partitions(path: Path | str, columns: Sequence[str] | None = None) -> list[Partition]:
    """The row groups of a Parquet file, or of all Parquet files in a folder, as partitions."""
    files = sorted(Path(path).glob("*.parquet")) if Path(path).is_dir() else [Path(path)]
    wanted = None if columns is None else list(columns)
    return [
        partial(read_row_group, str(file), group, wanted)
        for file in files
        for group in range(pq.read_metadata(file).num_row_groups)
    ]


def reduce_partitions(
    partitions: Sequence[Partition], empty: S, *, workers: int = 2, address: str | None = None
) -> S:
    """Summarize each partition where the work runs, and merge the summaries into one.

    Each partition is called once, in a Dask task, and its frame is given to `update` of a deep
    copy of `empty` in the same task: a summary leaves the task, never the frame. `empty` itself
    is left as it was. Summaries are merged in the order of their partitions. A task must not
    change what another task returned: Dask may hand the same object out again when a worker is
    lost.

    Args:
        partitions: the table. With none, a copy of `empty` is returned.
        empty: an empty summary, with `update(frame)` and `merge(other)`.
        workers: threads of Dask's local scheduler; no more than that many frames are in work at
            once.
        address: a Dask scheduler's address, ``tcp://host:port``. All partitions are then called
            by that cluster's workers, and `workers` is not used. The connection is closed before
            returning.
    """
    start = delayed(empty, pure=False)
    parts = [delayed(_summarize, pure=False)(partition, start) for partition in partitions]
    if not parts:
        return deepcopy(empty)
    while len(parts) > 1:
        # A tree: no task waits for, or holds, more than a few summaries.
        parts = [
            delayed(_merged, pure=False)(parts[i : i + _FAN_IN])
            for i in range(0, len(parts), _FAN_IN)
        ]
    if address is None:
        with ThreadPoolExecutor(workers) as pool:
            return parts[0].compute(scheduler="threads", pool=pool)
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        return client.compute(parts[0]).result()


def numeric_drift(reference: NumericSummary, current: NumericSummary) -> NumericDrift:
    """Compare two summaries of a numeric column that share a plan.

    - `psi`: sum over the plan's bins, and one more for missing values, of
      ``(c - r) * ln(c / r)``, with c and r the bin's shares of all current and reference rows. A
      share of exactly 0 counts as `FLOOR`. It is the PSI of task 2.2, given the same bin edges.
    - `ks`: the largest distance between the two cumulative distributions of the values, looked
      for just below and at every edge.
    - `ks_error`: the largest share of the reference in one cell between two neighbouring edges
      (or beyond the first or last): inside a cell the distance grows by no more than that.
    - missing: share of all rows. Mean, standard deviation: of the values.

    None: psi where either side has no rows; ks and ks_error where either side has no values; a
    mean or standard deviation where its side has no values; a missing share where its side has
    no rows.

    Raises:
        ValueError: the plans differ.
    """
    if reference.plan != current.plan:
        raise ValueError("summaries with different edges cannot be compared")
    plan = reference.plan
    # A bin begins with the cell of the values that equal its lower edge.
    starts = [0, *(2 * plan.edges.index(edge) + 1 for edge in plan.bin_edges)]
    psi = _psi(
        reference, current, *(np.add.reduceat(s.cells, starts) for s in (reference, current))
    )
    ks = ks_error = None
    if reference.present and current.present:
        r, c = reference.cells / reference.present, current.cells / current.present
        ks = float(np.max(np.abs(np.cumsum(c) - np.cumsum(r))[:-1], initial=0.0))
        ks_error = float(r[::2].max())
    return NumericDrift(
        psi=psi,
        ks=ks,
        ks_error=ks_error,
        bin_edges=plan.bin_edges,
        reference_missing=_missing(reference),
        current_missing=_missing(current),
        reference_mean=reference.mean if reference.present else None,
        current_mean=current.mean if current.present else None,
        reference_std=reference.std,
        current_std=current.std,
    )


def category_drift(reference: CategorySummary, current: CategorySummary) -> CategoryDrift:
    """Compare two summaries of a categorical column that share a plan.

    `psi` as in `numeric_drift`, over the plan's categories, one bin for all unseen ones together,
    and one for missing values. (The PSI of task 2.2 gives each unseen value a bin of its own,
    which takes memory for each.)

    None: psi where either side has no rows, `unseen_share` where the current side has no values,
    a missing share where its side has no rows.

    Raises:
        ValueError: the plans differ.
    """
    if reference.plan != current.plan:
        raise ValueError("summaries with different categories cannot be compared")
    return CategoryDrift(
        psi=_psi(reference, current, reference.counts, current.counts),
        unseen_share=float(current.counts[-1] / current.present) if current.present else None,
        reference_missing=_missing(reference),
        current_missing=_missing(current),
    )


def drift_at_scale(
    reference: Sequence[Partition],
    current: Sequence[Partition],
    numeric: Sequence[str],
    categorical: Sequence[str],
    *,
    workers: int = 2,
    address: str | None = None,
) -> dict[str, NumericDrift | CategoryDrift]:
    """Drift of every column of a table in partitions, as if all rows were in memory.

    The plan comes from all of the reference, and from nothing else. Each reference partition is
    read twice, each current one once; `workers` and `address` as in `reduce_partitions`.

    How near to the in-memory answer: each PSI is exact for the `bin_edges` reported with it, and
    each of these lies within 0.005 of its decile of the reference, counted in rank. The in-memory
    KS statistic lies within `ks_error`, which is at most 0.015.
    """

    def reduced(partitions: Sequence[Partition], empty: S) -> S:
        return reduce_partitions(partitions, empty, workers=workers, address=address)

    plan = reduced(reference, TableProfile(numeric, categorical)).plan()
    before, after = (reduced(window, TableSummary(plan)) for window in (reference, current))
    drift: dict[str, NumericDrift | CategoryDrift] = {}
    for name, old in before.columns.items():
        new = after.columns[name]
        if isinstance(old, NumericSummary) and isinstance(new, NumericSummary):
            drift[name] = numeric_drift(old, new)
        elif isinstance(old, CategorySummary) and isinstance(new, CategorySummary):
            drift[name] = category_drift(old, new)
    return drift


_FAN_IN = 8


def _summarize(partition: Partition, empty: S) -> S:
    summary = deepcopy(empty)
    summary.update(partition())
    return summary


def _merged(summaries: list[S]) -> S:
    total = summaries[0]
    for summary in summaries[1:]:
        total.merge(summary)
    return total


def _psi(
    reference: NumericSummary | CategorySummary,
    current: NumericSummary | CategorySummary,
    reference_counts: NDArray[np.int64],
    current_counts: NDArray[np.int64],
) -> float | None:
    if not (reference.rows and current.rows):
        return None
    r, c = (
        np.append(counts, side.missing) / side.rows
        for counts, side in ((reference_counts, reference), (current_counts, current))
    )
    # Empty on both sides: FLOOR against FLOOR adds nothing.
    r, c = (np.where(shares == 0, FLOOR, shares) for shares in (r, c))
    return float(np.sum((c - r) * np.log(c / r)))


def _missing(summary: NumericSummary | CategorySummary) -> float | None:
    return summary.missing / summary.rows if summary.rows else None
