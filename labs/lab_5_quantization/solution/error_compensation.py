"""Error compensation: quantize a layer so that its outputs stay close, not its weights.

Rounding to nearest treats each weight alone. But a layer's output is a sum over columns, and the
inputs of a real layer are strongly correlated: the error made in one column can be taken back by
the columns that are not rounded yet. GPTQ does that, column after column, with one matrix that is
measured on calibration texts. The grid stays the same: not a bit more is stored.

Shapes: a layer's weight is (out_features, in_features), its inputs are (tokens, in_features), and
its outputs are `inputs @ weight.T`. A column belongs to one input feature.

Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv:2210.17323; Frantar and Alistarh 2022, "Optimal Brain Compression",
arXiv:2208.11580.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int8]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Where quantized weights may lie: on multiples of a scale that a group of columns shares.

    Attributes:
        bits: codes are integers from -2^(bits-1) to 2^(bits-1) - 1; at most 8.
        group_size: columns that share a scale, in each row. It divides in_features.
    """

    bits: int = 4
    group_size: int = 32


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """A layer's weight on a grid.

    Attributes:
        codes: int8, (out_features, in_features).
        scales: float32, (out_features, in_features / group_size). Column j has the scales of its
            group, which is number j // group_size.
    """

    codes: Codes
    scales: Floats

    def dequantize(self) -> Floats:
        """The weight that the codes stand for: float32, (out_features, in_features)."""
        return (self.codes * column_scales(self.scales, self.codes.shape[1])).astype(np.float32)


def group_scales(weight: Floats, grid: Grid) -> Floats:
    """The scales of a weight: in each row and group, the largest magnitude over (2^bits - 1) / 2.

    A group of zeros has the scale 1.

    Returns:
        float32, (out_features, in_features / group_size).

    Raises:
        ValueError: `grid.group_size` does not divide in_features.
    """
    rows, columns = weight.shape
    if columns % grid.group_size:
        raise ValueError(f"group_size {grid.group_size} does not divide {columns} columns")
    largest = np.abs(weight).reshape(rows, -1, grid.group_size).max(axis=2)
    return np.where(largest > 0, largest / ((2**grid.bits - 1) / 2), 1).astype(np.float32)


def column_scales(scales: Floats, columns: int) -> Doubles:
    """Each column's scales, in the order of the weight's columns: float64, (rows, columns)."""
    return np.repeat(scales.astype(np.float64), columns // scales.shape[1], axis=1)


def nearest_codes(values: Doubles, scales: Doubles, bits: int) -> Codes:
    """The codes of the grid's points nearest to `values`; `scales` broadcasts against them."""
    top = 2 ** (bits - 1)
    return np.clip(np.rint(values / scales), -top, top - 1).astype(np.int8)


def round_to_nearest(weight: Floats, grid: Grid) -> QuantizedLayer:
    """Quantize each weight by itself: what there is to beat."""
    scales = group_scales(weight, grid)
    wide = column_scales(scales, weight.shape[1])
    return QuantizedLayer(nearest_codes(weight.astype(np.float64), wide, grid.bits), scales)


class Hessian:
    """How the error in a layer's output depends on errors in a row of its weight.

    Half the second derivative of the mean squared output error is sum over tokens of x x^T / N:
    the same for every row of the weight, so one matrix serves the whole layer. It is gathered
    batch by batch, because the inputs of a large model do not fit into memory together.
    """

    def __init__(self, in_features: int) -> None:
        """Nothing seen yet.

        Attributes to work with:
            total: float64, (in_features, in_features), zeros.
            tokens: 0.
        """
        self.total: Doubles = np.zeros((in_features, in_features))
        self.tokens = 0

    def add(self, inputs: Floats) -> None:
        """Take in one batch.

        Args:
            inputs: float32, (tokens, in_features) or with more axes in front, as in (sequences,
                tokens, in_features). A single axis, (in_features,), is one token. Batches need not
                be of one size.

        Raises:
            ValueError: the last axis is not in_features, or a value is not finite. What was
                gathered before then stays as it was.
        """
        features = len(self.total)
        if inputs.shape[-1] != features:
            raise ValueError(f"inputs have {inputs.shape[-1]} features, the layer {features}")
        if not np.isfinite(inputs).all():
            raise ValueError("inputs are not finite")
        flat = inputs.reshape(-1, features).astype(np.float64)
        self.total += flat.T @ flat
        self.tokens += len(flat)

    def matrix(self) -> Doubles:
        """H = 2/N * sum of x x^T over all tokens seen: float64, (in_features, in_features).

        N is the number of tokens, whatever batches they came in. What was gathered stays as it
        was: more batches may follow, and the matrix, an array of its own, may be asked for again.

        Raises:
            ValueError: no token was seen.
        """
        if not self.tokens:
            raise ValueError("no inputs were added")
        return 2 / self.tokens * self.total


def inverse_factor(hessian: Doubles, damping: float = 0.01) -> Doubles:
    """The upper triangular U with U^T U = (H + d I)^-1, which holds all that compensation needs.

    With fewer tokens than columns, or with features that always go together, H is singular. So
    something is added to its whole diagonal: d is `damping` times the mean of H's diagonal over the
    live columns. A column is dead if its diagonal entry is 0: its input was never anything but 0.

    Args:
        hessian: float64, (in_features, in_features), as `Hessian.matrix` gives it. Not changed.
        damping: share of the mean of the diagonal.

    Returns:
        float64, (in_features, in_features), with a positive diagonal.

    Raises:
        ValueError: every column is dead.
        numpy.linalg.LinAlgError: H + d I is not positive definite.
    """
    diagonal = np.diag(hessian)
    live = diagonal > 0
    if not live.any():
        raise ValueError("every column is dead: the layer was given nothing but zeros")
    damped = hessian + damping * diagonal[live].mean() * np.eye(len(hessian))
    half = np.linalg.inv(np.linalg.cholesky(damped))
    return np.linalg.cholesky(half.T @ half).T


def quantize_layer(
    weight: Floats,
    hessian: Doubles,
    grid: Grid,
    *,
    damping: float = 0.01,
    block_size: int = 128,
    act_order: bool = False,
) -> QuantizedLayer:
    """Quantize column after column, and let the columns still to come make up for each error.

    The grid is that of `round_to_nearest`: the scales are those of the weight as it is given, and
    each column keeps the scales of its own group, however far its values have moved meanwhile.
    Dead columns (see `inverse_factor`) count for the scales like all others. Then they are set to
    0, before the first column is quantized, so that their codes are 0 and leave no error.
    With U of `inverse_factor`, columns taken in order, column j:

    1. is quantized as it is by now: q = scale * nearest code;
    2. leaves the error e = (w_j - q) / U[j, j] for each row;
    3. of which every later column k takes over its part: w_k -= e * U[j, k].

    Moving all later columns for each column is slow, because it writes the whole weight again
    each time. So columns go in blocks: within a block they are moved at once, and the columns
    behind the block once, when it is done. `block_size` decides speed and nothing else.

    Args:
        weight: float32, (out_features, in_features). Not changed.
        hessian: float64, (in_features, in_features), of the layer's inputs. Not changed.
        grid: bits and group size.
        damping: as for `inverse_factor`.
        block_size: columns a block; any positive number, the last block may be smaller.
        act_order: take columns by falling diagonal of H (equal ones in their own order) instead of
            from left to right: the inputs that matter most then have most columns left to make
            up for their errors. The result has its columns in the weight's own order in any case.

    Returns:
        Codes and scales.

    Raises:
        ValueError: the Hessian is not (in_features, in_features), `block_size` is below 1, or as
            for `group_scales` and `inverse_factor`.
    """
    rows, columns = weight.shape
    if hessian.shape != (columns, columns):
        raise ValueError(f"the Hessian is {hessian.shape}, the weight has {columns} columns")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, not {block_size}")
    scales = group_scales(weight, grid)
    importance = np.diag(hessian)
    order = np.argsort(-importance, kind="stable") if act_order else np.arange(columns)

    moved = np.where(importance > 0, weight, 0).astype(np.float64)[:, order]
    wide = column_scales(scales, columns)[:, order]
    factor = inverse_factor(hessian[np.ix_(order, order)], damping)
    codes = np.zeros((rows, columns), dtype=np.int8)
    for start in range(0, columns, block_size):
        end = min(start + block_size, columns)
        errors = np.zeros((rows, end - start))
        for j in range(start, end):
            codes[:, j] = nearest_codes(moved[:, j], wide[:, j], grid.bits)
            error = (moved[:, j] - codes[:, j] * wide[:, j]) / factor[j, j]
            moved[:, j + 1 : end] -= np.outer(error, factor[j, j + 1 : end])
            errors[:, j - start] = error
        moved[:, end:] -= errors @ factor[start:end, end:]
    in_place = np.empty_like(codes)
    in_place[:, order] = codes
    return QuantizedLayer(in_place, scales)


def output_error(weight: Floats, approximation: Floats, inputs: Floats) -> float:
    """How far a layer's outputs move: ||X (W - W')^T||^2 / ||X W^T||^2, sums of squares.

    Args:
        weight, approximation: float32, (out_features, in_features).
        inputs: float32, (tokens, in_features). What it says of new texts, it says only if the
            layer was not calibrated on them.

    Raises:
        ValueError: the original's outputs are all 0.
    """
    before = inputs.astype(np.float64) @ weight.astype(np.float64).T
    size = np.sum(before**2)
    if not size:
        raise ValueError("the layer's outputs are all 0")
    moved = inputs.astype(np.float64) @ (weight.astype(np.float64) - approximation).T
    return float(np.sum(moved**2) / size)
