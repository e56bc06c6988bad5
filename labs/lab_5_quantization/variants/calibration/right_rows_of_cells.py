"""A row of cells for each power of two that has occurred, from frexp; a batch is merged in."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CLIP_RATIOS = tuple(n / 100 for n in range(1, 101))
ALPHAS = tuple(n / 10 for n in range(11))
WEIGHT_BITS = 8
_CELLS = 256


def fake_quantize(values: ArrayLike, limit: ArrayLike, bits: int) -> Floats:
    exact = np.asarray(values, dtype=np.float64)
    steps = 2 ** (bits - 1) - 1
    scale = np.asarray(limit, dtype=np.float64) / steps
    codes = np.rint(exact / np.where(scale > 0, scale, 1.0))
    return np.asarray(np.clip(codes, -steps, steps) * scale)


class ActivationObserver:
    """A row of cells for each power of two that has occurred; rows come as they are needed."""

    def __init__(self) -> None:
        self._rows: dict[int, NDArray[np.int64]] = {}
        self._zeros = 0
        self._max: Floats | None = None

    def update(self, batch: ArrayLike) -> None:
        values = np.asarray(batch, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("NaN or infinity in a batch")
        if len(values) == 0:
            return
        fresh = ActivationObserver()
        fresh._max = np.abs(values).max(axis=0)
        mantissa, exponent = np.frexp(np.abs(values).ravel())
        present = mantissa > 0
        fresh._zeros = int((~present).sum())
        cells = ((mantissa[present] - 0.5) * 2 * _CELLS).astype(int)
        for power in np.unique(exponent[present]).tolist():
            fresh._rows[power] = np.bincount(
                cells[exponent[present] == power], minlength=_CELLS
            ).astype(np.int64)
        self.merge(fresh)

    def merge(self, other: ActivationObserver) -> None:
        if other._max is None:
            return
        if self._max is not None and self._max.shape != other._max.shape:
            raise ValueError(f"{self._max.shape[0]} features here, {other._max.shape[0]} there")
        other = deepcopy(other)
        self._max = other._max if self._max is None else np.maximum(self._max, other._max)
        self._zeros += other._zeros
        for power, row in other._rows.items():
            self._rows[power] = self._rows.get(power, 0) + row

    def channel_max(self) -> Floats:
        if self._max is None:
            raise ValueError("has seen nothing")
        return self._max.copy()

    def max_limit(self) -> float:
        return float(np.max(self.channel_max()))

    def percentile_limit(self, percentile: float) -> float:
        largest = self.max_limit()
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile {percentile}")
        values, counts = self._table(0.5)
        reached = self._zeros + np.cumsum(counts)
        total = self._zeros + int(counts.sum())
        place = -int(-Fraction(str(percentile)) * total // 100)
        if place <= self._zeros:
            return 0.0
        return float(min(values[int(np.argmax(reached >= place))], largest))

    def mse_limit(self, bits: int) -> float:
        largest = self.max_limit()
        tables = [self._table(place) for place in (0.25, 0.75)]

        def error(ratio: float) -> float:
            return sum(
                float(counts @ (fake_quantize(values, ratio * largest, bits) - values) ** 2)
                for values, counts in tables
            )

        return largest * min(CLIP_RATIOS, key=error)

    def _table(self, place: float) -> tuple[Floats, NDArray[np.int64]]:
        powers = sorted(self._rows)
        cells = 0.5 + (np.arange(_CELLS) + place) / (2 * _CELLS)
        if not powers:
            return np.zeros(1), np.zeros(1, dtype=np.int64)
        values = np.concatenate([np.ldexp(cells, power) for power in powers])
        return values, np.concatenate([self._rows[power] for power in powers])


def smoothing_scales(channel_max: ArrayLike, weight: ArrayLike, alpha: float) -> Floats:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha}")
    inputs = np.array(channel_max, dtype=float)
    columns = np.array([np.abs(column).max() for column in np.asarray(weight, dtype=float).T])
    scales = np.ones_like(inputs)
    alive = np.flatnonzero(inputs * columns)
    scales[alive] = inputs[alive] ** alpha * columns[alive] ** (alpha - 1)
    return scales


def migrate(inputs: ArrayLike, weight: ArrayLike, scales: ArrayLike) -> tuple[Floats, Floats]:
    return np.divide(inputs, scales), np.multiply(weight, scales)


def output_error(
    inputs: ArrayLike,
    weight: ArrayLike,
    limit: float,
    *,
    bits: int = 8,
    scales: ArrayLike | None = None,
) -> float:
    exact = np.matmul(inputs, np.transpose(weight))
    if scales is not None:
        inputs, weight = migrate(inputs, weight, scales)
    tops = np.max(np.abs(weight), axis=1)[:, None]
    rough = fake_quantize(inputs, limit, bits) @ fake_quantize(weight, tops, WEIGHT_BITS).T
    size = np.linalg.norm(exact)
    return float(np.linalg.norm(rough - exact) / size) if size else 0.0


@dataclass(frozen=True)
class AlphaChoice:
    alpha: float | None
    unsmoothed: float
    errors: dict[float, float]


def choose_alpha(
    batches: Sequence[ArrayLike],
    weight: ArrayLike,
    *,
    alphas: Sequence[float] = ALPHAS,
    bits: int = 8,
) -> AlphaChoice:
    if len(batches) <= 1:
        raise ValueError(f"{len(batches)} batches are too few")
    tops = reduce(np.maximum, (np.abs(b).max(axis=0) for b in batches[:-1])).astype(float)
    kept = np.asarray(batches[-1], dtype=float)
    best: tuple[float, float | None] = (output_error(kept, weight, tops.max(), bits=bits), None)
    unsmoothed, errors = best[0], {}
    for alpha in alphas:
        scales = smoothing_scales(tops, weight, alpha)
        reach = float(np.max(tops / scales))
        errors[alpha] = output_error(kept, weight, reach, bits=bits, scales=scales)
        if errors[alpha] < best[0]:
            best = (errors[alpha], alpha)
    return AlphaChoice(best[1], unsmoothed, errors)
