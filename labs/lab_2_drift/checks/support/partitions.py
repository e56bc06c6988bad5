"""Tables and partitions for the checks of drift at scale. Cluster workers import this file too."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

Partition = Callable[[], pd.DataFrame]


class RowCount:
    """A summary that counts rows and remembers in which order partitions were merged."""

    def __init__(self) -> None:
        self.rows = 0
        self.order: list[int] = []

    def update(self, frame: pd.DataFrame) -> None:
        self.rows += len(frame)
        self.order.append(int(frame["part"].iloc[0]))

    def merge(self, other: RowCount) -> None:
        self.rows += other.rows
        self.order += other.order


class RemotePartition:
    """A partition that any process can make, and that leaves a note of who made it."""

    def __init__(self, folder: str, seed: int, index: int, shift: float = 0.0) -> None:
        self.folder, self.seed, self.index, self.shift = folder, seed, index, shift

    def __call__(self) -> pd.DataFrame:
        note = f"{self.index}-{os.getpid()}-{uuid.uuid4().hex}"
        Path(self.folder, note).touch()
        frame = make_table(np.random.default_rng([self.seed, self.index]), 500, self.shift)
        return frame.assign(part=self.index)


def make_table(rng: np.random.Generator, rows: int, shift: float) -> pd.DataFrame:
    amount = rng.lognormal(3 + shift, 1, rows)
    amount[rng.random(rows) < 0.03] = np.nan
    names = np.array(["a", "b", "c", "d", None], dtype=object)
    weights = np.array([0.4, 0.3, 0.2, 0.0 if shift == 0 else 0.05, 0.05])
    return pd.DataFrame(
        {
            "amount": amount,
            "age": rng.poisson(40 + 5 * shift, rows).astype(float),
            "kind": rng.choice(names, rows, p=weights / weights.sum()),
        }
    )
