"""Layers to quantize with error compensation, and a second way to find what must come out."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Inputs = dict[str, NDArray[np.float32]]

REAL_LAYERS = (
    "model.layers.0.self_attn.v_proj",
    "model.layers.0.mlp.up_proj",
    "model.layers.2.self_attn.q_proj",
)
"""Layers of SmolLM2: early ones, because those are soon reached."""


def grid(bits: int = 4, group_size: int = 32) -> SimpleNamespace:
    """A grid as the learner's functions take it."""
    return SimpleNamespace(bits=bits, group_size=group_size)


def correlated_inputs(rng: np.random.Generator, tokens: int, features: int) -> NDArray[np.float32]:
    """Inputs whose features go together and differ in size, as those of real layers do."""
    shared = rng.normal(size=(tokens, max(2, features // 4)))
    mixed = shared @ rng.normal(size=(shared.shape[1], features))
    sizes = rng.lognormal(0, 0.7, features)
    return ((mixed + 0.5 * rng.normal(size=mixed.shape)) * sizes).astype(np.float32)


def layer(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    """A weight, with a few large entries."""
    return (rng.normal(size=(rows, columns)) * rng.lognormal(0, 0.5, columns)).astype(np.float32)


def hessian_of(inputs: NDArray[np.float32]) -> Array:
    """H of all tokens at once."""
    wide = inputs.astype(np.float64)
    return 2 / len(wide) * wide.T @ wide


def damped(hessian: Array, damping: float = 0.01) -> Array:
    """H with its diagonal raised."""
    diagonal = np.diag(hessian)
    return hessian + damping * diagonal[diagonal > 0].mean() * np.eye(len(hessian))


def nearest_scales(weight: NDArray[np.float32], group_size: int, bits: int) -> Array:
    """Each column's scales, from the largest magnitude of its group: (rows, columns)."""
    groups = np.abs(weight).reshape(len(weight), -1, group_size)
    largest = (groups.max(axis=2) / ((2**bits - 1) / 2)).astype(np.float32).astype(np.float64)
    return np.repeat(np.where(largest > 0, largest, 1), group_size, axis=1)


def nearest(values: Array, scales: Array, bits: int) -> NDArray[np.int64]:
    """Codes of the nearest points."""
    top = 2 ** (bits - 1)
    return np.clip(np.rint(values / scales), -top, top - 1).astype(np.int64)


def refitted(
    weight: NDArray[np.float32],
    hessian: Array,
    group_size: int,
    bits: int = 4,
    order: NDArray[np.int64] | None = None,
    damping: float = 0.01,
) -> NDArray[np.int64]:
    """Codes by brute force: before each column, all that are left are fitted anew.

    The columns done so far are off by D. Those left are set to what makes the damped output error
    smallest given D: they move by -D H[done, left] H[left, left]^-1. No factor, no running update.
    """
    columns = weight.shape[1]
    scales = nearest_scales(weight, group_size, bits)
    start = np.where(np.diag(hessian) > 0, weight, 0).astype(np.float64)
    full = damped(hessian, damping)
    order = np.arange(columns) if order is None else order
    codes = np.zeros(weight.shape, dtype=np.int64)
    for step, column in enumerate(order):
        done, left = order[:step], order[step:]
        off = codes[:, done] * scales[:, done] - start[:, done]
        pull = np.linalg.solve(full[np.ix_(left, left)], full[np.ix_(left, done)] @ off.T).T
        now = start[:, column] - pull[:, 0]
        codes[:, column] = nearest(now, scales[:, column], bits)
    return codes


@cache
def real_inputs(
    domain: str,
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """What the layers are given: on the texts to calibrate on, and on those held out."""
    from shared.compression.model import layer_inputs, token_windows
    from shared.compression.texts import calibration_texts, held_out_texts

    calibration = layer_inputs(REAL_LAYERS, token_windows(calibration_texts(domain)))
    return calibration, layer_inputs(REAL_LAYERS, token_windows(held_out_texts(domain)))
