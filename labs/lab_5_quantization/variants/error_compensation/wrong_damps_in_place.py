"""Adds the damping to the caller's Hessian.

caught-by: test_the_factor_is_upper_triangular_and_gives_the_damped_inverse
hint: leave-arguments
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
    bits: int = 4
    group_size: int = 32


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    codes: Codes
    scales: Floats

    def dequantize(self) -> Floats:
        return (self.codes * column_scales(self.scales, self.codes.shape[1])).astype(np.float32)


def group_scales(weight: Floats, grid: Grid) -> Floats:
    rows, columns = weight.shape
    if columns % grid.group_size:
        raise ValueError(f"group_size {grid.group_size} does not divide {columns} columns")
    largest = np.abs(weight).reshape(rows, -1, grid.group_size).max(axis=2)
    return np.where(largest > 0, largest / ((2**grid.bits - 1) / 2), 1).astype(np.float32)


def column_scales(scales: Floats, columns: int) -> Doubles:
    return np.repeat(scales.astype(np.float64), columns // scales.shape[1], axis=1)


def nearest_codes(values: Doubles, scales: Doubles, bits: int) -> Codes:
    top = 2 ** (bits - 1)
    return np.clip(np.rint(values / scales), -top, top - 1).astype(np.int8)


def round_to_nearest(weight: Floats, grid: Grid) -> QuantizedLayer:
    scales = group_scales(weight, grid)
    wide = column_scales(scales, weight.shape[1])
    return QuantizedLayer(nearest_codes(weight.astype(np.float64), wide, grid.bits), scales)


class Hessian:
    def __init__(self, in_features: int) -> None:
        self.total: Doubles = np.zeros((in_features, in_features))
        self.tokens = 0

    def add(self, inputs: Floats) -> None:
        features = len(self.total)
        if inputs.shape[-1] != features:
            raise ValueError(f"inputs have {inputs.shape[-1]} features, the layer {features}")
        if not np.isfinite(inputs).all():
            raise ValueError("inputs are not finite")
        flat = inputs.reshape(-1, features).astype(np.float64)
        self.total += flat.T @ flat
        self.tokens += len(flat)

    def matrix(self) -> Doubles:
        if not self.tokens:
            raise ValueError("no inputs were added")
        return 2 / self.tokens * self.total


def inverse_factor(hessian: Doubles, damping: float = 0.01) -> Doubles:
    diagonal = np.diag(hessian)
    live = diagonal > 0
    if not live.any():
        raise ValueError("every column is dead: the layer was given nothing but zeros")
    hessian[np.diag_indices_from(hessian)] += damping * diagonal[live].mean()
    half = np.linalg.inv(np.linalg.cholesky(hessian))
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
    before = inputs.astype(np.float64) @ weight.astype(np.float64).T
    size = np.sum(before**2)
    if not size:
        raise ValueError("the layer's outputs are all 0")
    moved = inputs.astype(np.float64) @ (weight.astype(np.float64) - approximation).T
    return float(np.sum(moved**2) / size)
