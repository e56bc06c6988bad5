"""Optimal brain compression as it was: the inverse itself, one column eliminated at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular


@dataclass(frozen=True)
class Grid:
    bits: int = 4
    group_size: int = 32


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    codes: np.ndarray
    scales: np.ndarray

    def dequantize(self):
        return (self.codes * np.repeat(self.scales, _group_size(self), axis=1)).astype(np.float32)


def _group_size(layer):
    return layer.codes.shape[1] // layer.scales.shape[1]


def round_to_nearest(weight, grid):
    scales = _scales(weight, grid)
    wide = np.repeat(scales, grid.group_size, axis=1).astype(np.float64)
    return QuantizedLayer(_round(weight / wide, grid), scales)


def _scales(weight, grid):
    if weight.shape[1] % grid.group_size:
        raise ValueError("group_size")
    parts = np.split(np.abs(weight), weight.shape[1] // grid.group_size, axis=1)
    largest = np.stack([p.max(axis=1) for p in parts], axis=1)
    largest = largest / (2 ** (grid.bits - 1) - 0.5)
    largest[largest == 0] = 1
    return largest.astype(np.float32)


def _round(steps, grid):
    top = 2 ** (grid.bits - 1)
    return np.round(steps).clip(-top, top - 1).astype(np.int8)


class Hessian:
    def __init__(self, in_features):
        self.columns = in_features
        self.mean = np.zeros((in_features, in_features))
        self.tokens = 0

    def add(self, inputs):
        if inputs.shape[-1] != self.columns or np.isnan(inputs).any() or np.isinf(inputs).any():
            raise ValueError("these inputs do not fit")
        flat = inputs.astype(np.float64).reshape(-1, self.columns)
        seen = self.tokens + len(flat)
        if seen:
            self.mean = self.mean * (self.tokens / seen) + np.einsum("ti,tj->ij", flat, flat) / seen
        self.tokens = seen

    def matrix(self):
        if self.tokens == 0:
            raise ValueError("nothing was added")
        return 2 * self.mean


def inverse_factor(hessian, damping=0.01):
    # A Cholesky factor from the last row up is upper triangular: H = V V^T, and U = V^-1.
    flipped = _damped(hessian, damping)[::-1, ::-1]
    upper = np.linalg.cholesky(flipped)[::-1, ::-1]
    return solve_triangular(upper, np.eye(len(hessian)), lower=False)


def _damped(hessian, damping):
    diagonal = np.diag(hessian)
    if not diagonal.any():
        raise ValueError("all columns are dead")
    return hessian + np.eye(len(hessian)) * damping * diagonal[diagonal != 0].mean()


def quantize_layer(weight, hessian, grid, *, damping=0.01, block_size=128, act_order=False):
    columns = weight.shape[1]
    if hessian.shape != (columns, columns) or block_size < 1:
        raise ValueError("this does not fit")
    scales = _scales(weight, grid)
    inverse = np.linalg.inv(_damped(hessian, damping))
    left = weight.astype(np.float64)
    diagonal = np.diag(hessian)
    left[:, diagonal == 0] = 0
    codes = np.zeros(weight.shape, dtype=np.int8)
    order = range(columns)
    if act_order:
        order = sorted(order, key=lambda column: -diagonal[column])
    for column in order:
        scale = scales[:, column // grid.group_size].astype(np.float64)
        codes[:, column] = _round(left[:, column] / scale, grid)
        error = left[:, column] - codes[:, column] * scale
        row = inverse[column] / inverse[column, column]
        left -= np.outer(error, row)
        inverse -= np.outer(inverse[:, column], row)
        inverse[column, :] = inverse[:, column] = 0
        inverse[column, column] = 1
    return QuantizedLayer(codes, scales)


def output_error(weight, approximation, inputs):
    gram = inputs.astype(np.float64).T @ inputs.astype(np.float64)
    off = weight.astype(np.float64) - approximation
    whole = np.einsum("oi,ij,oj->", weight.astype(np.float64), gram, weight.astype(np.float64))
    if whole == 0:
        raise ValueError("no outputs")
    return float(np.einsum("oi,ij,oj->", off, gram, off) / whole)
