"""Gives the ratio of the sums of squares, without the root.

caught-by: test_output_error_uses_the_limit_it_is_given
hint: root-of-squares
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CLIP_RATIOS = tuple(n / 100 for n in range(1, 101))
"""Reaches that `mse_limit` tries, as shares of the largest magnitude."""

ALPHAS = tuple(n / 10 for n in range(11))
"""Strengths of smoothing that `choose_alpha` tries unless told otherwise."""

WEIGHT_BITS = 8


def fake_quantize(values: ArrayLike, limit: ArrayLike, bits: int) -> Floats:
    """The values rounded to a symmetric grid that ends at `limit`, as floats: float64.

    The grid has ``2**(bits - 1) - 1`` steps on each side of 0. Values beyond it go to its end. A
    limit of 0 leaves nothing but 0. `limit` may be an array that broadcasts, such as one a row.
    """
    exact = np.asarray(values, dtype=np.float64)
    steps = 2 ** (bits - 1) - 1
    scale = np.asarray(limit, dtype=np.float64) / steps
    codes = np.rint(exact / np.where(scale > 0, scale, 1.0))
    return np.asarray(np.clip(codes, -steps, steps) * scale)


class ActivationObserver:
    """Sees one layer's activations batch by batch, and proposes how far their grid should reach.

    It keeps no batch: whatever it has seen, it holds at most 1 MiB. The order of the batches, and
    where one ends, make no difference.

    What the rules promise holds for magnitudes from 1e-30 to 1e30 in one stream (smaller ones may
    count as 0), so bins of equal width will not do. One way to get there: count values in bins
    whose width is a fixed share of the magnitude. The upper 16 bits of a float32 magnitude, which
    are those of a bfloat16, number 128 such bins for each power of two, 32,640 in all.
    """

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self._counts = np.zeros(len(_edges()) - 1, dtype=np.int64)
        self._channel_max: Floats | None = None

    def update(self, batch: ArrayLike) -> None:
        """Take a batch into account.

        Args:
            batch: (tokens, in_features), any float type. One without tokens changes nothing, and
                is never refused, whatever its number of features.

        Raises:
            ValueError: a value is NaN or infinite, or the number of features is not that of the
                batches before (the message names both numbers). The observer stays as it was.
        """
        magnitudes = np.abs(np.asarray(batch, dtype=np.float32))
        if magnitudes.ndim != 2:
            raise ValueError(f"a batch is (tokens, in_features), not {magnitudes.shape}")
        if not np.isfinite(magnitudes).all():
            raise ValueError("a batch holds values that are not finite")
        if not len(magnitudes):
            return
        self._take_max(magnitudes.max(axis=0).astype(np.float64))
        numbers = magnitudes.ravel().view(np.uint32) >> 16
        self._counts += np.bincount(numbers, minlength=len(self._counts))

    def merge(self, other: ActivationObserver) -> None:
        """Take into account all that `other` has seen, which itself does not change.

        Raises:
            ValueError: the numbers of features differ; the message names both. Nothing has changed.
        """
        if other._channel_max is None:
            return
        self._take_max(other._channel_max)
        self._counts += other._counts

    def channel_max(self) -> Floats:
        """The largest magnitude of each input channel: (in_features,).

        Raises:
            ValueError: nothing has been seen.
        """
        if self._channel_max is None:
            raise ValueError("nothing has been observed yet")
        return self._channel_max.copy()

    def max_limit(self) -> float:
        """The largest magnitude of all.

        Raises:
            ValueError: nothing has been seen.
        """
        return float(self.channel_max().max())

    def percentile_limit(self, percentile: float) -> float:
        """The least magnitude that `percentile` per cent of all values do not exceed.

        Of n values seen, whichever batch they came in, it is the magnitude at place
        ``percentile / 100 * n``, rounded up, in rising order, within 1 % of it. The place is that
        of exact arithmetic: 7 per cent of 100 values are 7, though floats make it a little more.

        Raises:
            ValueError: nothing has been seen, or `percentile` is not above 0 and at most 100.
        """
        largest = self.max_limit()
        if not 0 < percentile <= 100:
            raise ValueError(f"a percentile is above 0 and at most 100, not {percentile}")
        reached = np.cumsum(self._counts)
        # A whole number may come out a little larger, and would be rounded up to the next.
        place = math.ceil(round(percentile * int(reached[-1]) / 100, 6))
        index = int(np.searchsorted(reached, max(place, 1)))
        return min(float(_within_bins(1)[index, 0]), largest)

    def mse_limit(self, bits: int) -> float:
        """The limit that rounds all values seen with the least mean squared error.

        Candidates are `CLIP_RATIOS` times `max_limit`. The error of each counts both what is
        rounded (`fake_quantize`, `bits`) and what is cut off beyond the limit. The error of what is
        returned is at most 5 % above the best candidate's.

        Raises:
            ValueError: nothing has been seen.
        """
        largest = self.max_limit()
        held = np.flatnonzero(self._counts)
        # Several places in each bin: with 8 bits, a step of the grid can be as narrow as a bin.
        values = np.minimum(_within_bins(4)[held], largest)
        counts = self._counts[held, None]
        limits = [ratio * largest for ratio in CLIP_RATIOS]
        errors = [
            ((fake_quantize(values, limit, bits) - values) ** 2 * counts).sum() for limit in limits
        ]
        return limits[int(np.argmin(errors))]

    def _take_max(self, channel_max: Floats) -> None:
        before = self._channel_max
        if before is not None and len(before) != len(channel_max):
            raise ValueError(f"{len(channel_max)} features after batches of {len(before)}")
        self._channel_max = channel_max if before is None else np.maximum(before, channel_max)


def smoothing_scales(channel_max: ArrayLike, weight: ArrayLike, alpha: float) -> Floats:
    """How much of each input channel's size moves into the weights: SmoothQuant's scales.

    ``channel_max[j] ** alpha / max |weight[:, j]| ** (1 - alpha)``: with alpha 1 all channels of
    the inputs become equally large, with alpha 0 all columns of the weight. A channel whose inputs
    or whose weights are all 0 has the scale 1.

    Args:
        channel_max: (in_features,), from `ActivationObserver.channel_max`.
        weight: (out_features, in_features).
        alpha: 0 to 1.

    Returns:
        (in_features,): positive and finite.

    Raises:
        ValueError: alpha is not from 0 to 1.

    Source: Xiao et al., SmoothQuant, 2023, equation 4.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is from 0 to 1, not {alpha}")
    inputs = np.asarray(channel_max, dtype=np.float64)
    weights = np.abs(np.asarray(weight, dtype=np.float64)).max(axis=0)
    alive = (inputs > 0) & (weights > 0)
    inputs, weights = np.where(alive, inputs, 1.0), np.where(alive, weights, 1.0)
    return np.asarray(inputs**alpha / weights ** (1 - alpha))


def migrate(inputs: ArrayLike, weight: ArrayLike, scales: ArrayLike) -> tuple[Floats, Floats]:
    """Inputs and weight after smoothing: other numbers, the same output.

    The inputs are divided by the scales, channel by channel; the weight makes up for it.

    Returns:
        Smoothed inputs and smoothed weight, of the shapes given.
    """
    factors = np.asarray(scales, dtype=np.float64)
    return np.asarray(inputs) / factors, np.asarray(weight) * factors


def output_error(
    inputs: ArrayLike,
    weight: ArrayLike,
    limit: float,
    *,
    bits: int = 8,
    scales: ArrayLike | None = None,
) -> float:
    """How wrong a layer's output is once it computes on grids: a relative error.

    The norm (root of the sum of squares) of the difference between both outputs, divided by that of
    the exact one; 0 where the exact one is 0 throughout.

    On grids, the inputs are rounded with `bits` up to `limit`, whatever they hold; each row of the
    weight is rounded with `WEIGHT_BITS` up to its own largest magnitude. With `scales`, inputs and
    weight are smoothed first, and `limit` is that of the smoothed inputs.
    """
    exact = np.asarray(inputs, dtype=np.float64) @ np.asarray(weight, dtype=np.float64).T
    size = float(np.linalg.norm(exact))
    if size == 0:
        return 0.0
    ones = np.ones(np.shape(weight)[1])
    smooth, turned = migrate(inputs, weight, ones if scales is None else scales)
    rows = np.abs(turned).max(axis=1, keepdims=True)
    rounded = fake_quantize(smooth, limit, bits) @ fake_quantize(turned, rows, WEIGHT_BITS).T
    return (float(np.linalg.norm(rounded - exact)) / size) ** 2


@dataclass(frozen=True)
class AlphaChoice:
    """What came of trying strengths of smoothing.

    Attributes:
        alpha: the strength to use; None: do not smooth.
        unsmoothed: `output_error` without smoothing.
        errors: alpha to `output_error` with it, for every alpha tried.
    """

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
    """Choose how strongly to smooth, by the output's error on tokens not calibrated on.

    The last batch is set aside to measure on. All others are observed, for the largest magnitude of
    each channel; from these come the scales, and the limits: without smoothing the largest of them,
    with smoothing the largest of what they become. (On tokens that were observed nothing is cut
    off, and every strength looks better than it is.)

    Chosen is the alpha with the least `output_error` on the last batch, or None where not one has
    less than no smoothing.

    Args:
        batches: at least two, each (tokens, in_features).
        weight: (out_features, in_features).
        bits: of the activations.

    Raises:
        ValueError: there are fewer than two batches.
    """
    if len(batches) < 2:
        raise ValueError("one batch to observe and one to measure on are needed")
    observer = ActivationObserver()
    for batch in batches[:-1]:
        observer.update(batch)
    unseen, largest = batches[-1], observer.channel_max()
    unsmoothed = output_error(unseen, weight, float(largest.max()), bits=bits)
    errors = {}
    for alpha in alphas:
        scales = smoothing_scales(largest, weight, alpha)
        limit = float((largest / scales).max())
        errors[alpha] = output_error(unseen, weight, limit, bits=bits, scales=scales)
    best = min(errors, key=errors.__getitem__, default=None)
    if best is not None and errors[best] >= unsmoothed:
        best = None
    return AlphaChoice(best, unsmoothed, errors)


def _edges() -> Floats:
    """Where an observer's bins begin; the last edge is the end of the last bin."""
    bits = np.arange(0x7F80 + 1, dtype=np.uint32) << 16
    edges = bits.view(np.float32).astype(np.float64)
    edges[-1] = np.finfo(np.float32).max
    return edges


def _within_bins(places: int) -> Floats:
    """So many magnitudes spread evenly in each bin: (bins, places). The first bin counts as 0."""
    edges = _edges()
    spread = edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(places) + 0.5) / places
    spread[0] = 0.0
    return spread
