"""Bins by logarithm in a Counter, channel by channel smoothing, one matrix product an error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CLIP_RATIOS = tuple(n / 100 for n in range(1, 101))
ALPHAS = tuple(n / 10 for n in range(11))
WEIGHT_BITS = 8
_PER_OCTAVE = 120


def fake_quantize(values: ArrayLike, limit: ArrayLike, bits: int) -> Floats:
    exact = np.asarray(values, dtype=np.float64)
    steps = 2 ** (bits - 1) - 1
    scale = np.asarray(limit, dtype=np.float64) / steps
    codes = np.rint(exact / np.where(scale > 0, scale, 1.0))
    return np.asarray(np.clip(codes, -steps, steps) * scale)


class ActivationObserver:
    def __init__(self) -> None:
        self.zeros = 0
        self.bins: Counter[int] = Counter()
        self.largest: Floats = np.zeros(0)

    def update(self, batch: ArrayLike) -> None:
        values = np.abs(np.array(batch, dtype=np.float64))
        if np.isnan(values).any() or np.isinf(values).any():
            raise ValueError("not a number, or infinite")
        if not values.size:
            return
        self._require(values.shape[1])
        tops = values.max(axis=0)
        self.largest = np.maximum(self.largest, tops) if self.largest.size else tops
        there = values[values > 1e-37]
        self.zeros += values.size - there.size
        numbers, counts = np.unique(
            np.floor(np.log2(there) * _PER_OCTAVE).astype(int), return_counts=True
        )
        self.bins.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))

    def merge(self, other: ActivationObserver) -> None:
        if not other.largest.size:
            return
        self._require(other.largest.size)
        if self.largest.size:
            self.largest = np.maximum(self.largest, other.largest)
        else:
            self.largest = other.largest.copy()
        self.zeros += other.zeros
        self.bins.update(other.bins)

    def channel_max(self) -> list[float]:
        if not self.largest.size:
            raise ValueError("no batch so far")
        return self.largest.tolist()

    def max_limit(self) -> float:
        return max(self.channel_max())

    def percentile_limit(self, percentile: float) -> float:
        top = self.max_limit()
        if percentile <= 0 or percentile > 100:
            raise ValueError(f"no percentile: {percentile}")
        if percentile == 100:
            return top
        below = self.zeros
        wanted = percentile / 100 * (self.zeros + self.bins.total())
        if below >= wanted:
            return 0.0
        for index in sorted(self.bins):
            below += self.bins[index]
            if below >= wanted - 1e-9:
                return min(top, 2 ** ((index + 0.5) / _PER_OCTAVE))
        return top

    def mse_limit(self, bits: int) -> float:
        top = self.max_limit()
        if top == 0:
            return 0.0
        order = np.array(sorted(self.bins), dtype=float)
        counts = np.array([self.bins[int(i)] for i in order], dtype=float)
        places = (np.arange(5) + 0.5) / 5
        values = np.minimum(2 ** ((order[:, None] + places) / _PER_OCTAVE), top)
        scores = {}
        for ratio in reversed(CLIP_RATIOS):
            lost = values - fake_quantize(values, ratio * top, bits)
            scores[ratio * top] = float((counts * (lost**2).mean(axis=1)).sum())
        return min(scores, key=lambda limit: scores[limit])

    def _require(self, features: int) -> None:
        if self.largest.size and self.largest.size != features:
            raise ValueError(f"{features} features, but {self.largest.size} before")


def smoothing_scales(channel_max: ArrayLike, weight: ArrayLike, alpha: float) -> Floats:
    if alpha < 0 or alpha > 1:
        raise ValueError("alpha must be between 0 and 1")
    columns = np.abs(np.asarray(weight, dtype=np.float64)).max(axis=0)
    scales = []
    for x, w in zip(np.asarray(channel_max).tolist(), columns.tolist(), strict=True):
        both = x > 0 and w > 0
        scales.append(math.exp(alpha * math.log(x) - (1 - alpha) * math.log(w)) if both else 1.0)
    return np.array(scales)


def migrate(inputs: ArrayLike, weight: ArrayLike, scales: ArrayLike) -> tuple[Floats, Floats]:
    turn = np.diag(np.asarray(scales, dtype=np.float64))
    return np.asarray(inputs) / np.diag(turn)[None, :], np.asarray(weight) @ turn


def output_error(
    inputs: ArrayLike,
    weight: ArrayLike,
    limit: float,
    *,
    bits: int = 8,
    scales: ArrayLike | None = None,
) -> float:
    x, w = np.asarray(inputs, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    wanted = x @ w.T
    if not wanted.any():
        return 0.0
    if scales is not None:
        x, w = migrate(x, w, scales)
    w = np.stack([fake_quantize(row, np.abs(row).max(), WEIGHT_BITS) for row in w])
    got = np.einsum("ti,oi->to", fake_quantize(x, limit, bits), w, optimize=True)
    return math.sqrt(float(((got - wanted) ** 2).sum()) / float((wanted**2).sum()))


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
    *observed, aside = batches
    if not observed:
        raise ValueError("two batches at least")
    tops = np.max([np.abs(np.asarray(b)).max(axis=0) for b in observed], axis=0).astype(float)

    def error(alpha: float | None) -> float:
        scales = np.ones_like(tops) if alpha is None else smoothing_scales(tops, weight, alpha)
        return output_error(aside, weight, (tops / scales).max(), bits=bits, scales=scales)

    errors = {alpha: error(alpha) for alpha in alphas}
    plain = error(None)
    better = [alpha for alpha in alphas if errors[alpha] < plain]
    return AlphaChoice(min(better, key=lambda a: errors[a], default=None), plain, errors)
