"""The same with PyTorch, in blocks, as most implementations have it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Grid:
    bits: int = 4
    group_size: int = 32


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    codes: np.ndarray
    scales: np.ndarray

    def dequantize(self):
        size = self.codes.shape[1] // self.scales.shape[1]
        return (self.codes * np.repeat(self.scales, size, axis=1)).astype(np.float32)


def round_to_nearest(weight, grid):
    steps, scales = _on_grid(torch.tensor(weight), grid)
    return QuantizedLayer(_nearest(torch.tensor(weight).double() / steps, grid).numpy(), scales)


def _on_grid(weight, grid):
    if weight.shape[1] % grid.group_size:
        raise ValueError("group_size does not divide the columns")
    largest = weight.abs().unflatten(1, (-1, grid.group_size)).amax(2)
    scales = torch.where(largest > 0, largest / ((2**grid.bits - 1) / 2), 1.0)
    return scales.double().repeat_interleave(grid.group_size, 1), scales.numpy()


def _nearest(steps, grid):
    top = 2 ** (grid.bits - 1)
    return steps.round().clamp(-top, top - 1).to(torch.int8)


class Hessian:
    def __init__(self, in_features):
        self.total = torch.zeros(in_features, in_features, dtype=torch.float64)
        self.tokens = 0

    def add(self, inputs):
        batch = torch.as_tensor(np.array(inputs))
        if batch.shape[-1] != len(self.total) or not batch.isfinite().all():
            raise ValueError("inputs do not fit this layer")
        flat = batch.reshape(-1, len(self.total)).double()
        self.total.addmm_(flat.T, flat)
        self.tokens += flat.shape[0]

    def matrix(self):
        if not self.tokens:
            raise ValueError("no tokens")
        return (self.total * 2 / self.tokens).numpy()


def inverse_factor(hessian, damping=0.01):
    matrix = torch.tensor(hessian)
    diagonal = matrix.diagonal()
    live = diagonal[diagonal > 0]
    if not len(live):
        raise ValueError("all columns are dead")
    matrix.diagonal().add_(damping * live.mean())
    lower, bad = torch.linalg.cholesky_ex(matrix)
    if bad:
        raise np.linalg.LinAlgError("not positive definite")
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).numpy()


def quantize_layer(weight, hessian, grid, *, damping=0.01, block_size=128, act_order=False):
    left = torch.tensor(weight, dtype=torch.float64)
    columns = left.shape[1]
    if tuple(hessian.shape) != (columns, columns):
        raise ValueError("the Hessian is of another layer")
    if block_size < 1:
        raise ValueError("block_size")
    steps, scales = _on_grid(torch.tensor(weight), grid)
    diagonal = torch.tensor(hessian).diagonal()
    left[:, diagonal == 0] = 0
    order = torch.arange(columns)
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    left, steps = left[:, order], steps[:, order]
    factor = torch.tensor(inverse_factor(np.asarray(hessian)[order][:, order], damping))
    codes = torch.zeros(left.shape, dtype=torch.int8)
    for start in range(0, columns, block_size):
        block = left[:, start : start + block_size].clone()
        errors = torch.zeros_like(block)
        width = block.shape[1]
        part = factor[start : start + width, start : start + width]
        for i in range(width):
            step = steps[:, start + i]
            codes[:, start + i] = _nearest(block[:, i] / step, grid)
            errors[:, i] = (block[:, i] - codes[:, start + i] * step) / part[i, i]
            block[:, i:] -= errors[:, i : i + 1] * part[i : i + 1, i:]
        left[:, start + width :] -= errors @ factor[start : start + width, start + width :]
    return QuantizedLayer(codes[:, order.argsort()].numpy(), scales)


def output_error(weight, approximation, inputs):
    x = torch.tensor(inputs).double()
    whole = (x @ torch.tensor(weight).double().T).square().sum()
    if whole == 0:
        raise ValueError("no output")
    off = (torch.tensor(weight).double() - torch.tensor(approximation).double()).T
    return float((x @ off).square().sum() / whole)
