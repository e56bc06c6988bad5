"""Scales blown up to the weight's own shape, ranges by reduceat, packing in a byte view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]
Bytes = NDArray[np.uint8]

LEAST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Scheme:
    bits: Literal[8, 4]
    symmetric: bool
    strategy: Literal["tensor", "channel", "group"]
    group_size: int | None = None


@dataclass(frozen=True)
class QuantizedWeight:
    codes: Codes
    scale: Floats
    zero_point: Codes
    scheme: Scheme


def code_range(bits: int, symmetric: bool) -> tuple[int, int]:
    return {
        (8, True): (-127, 127),
        (8, False): (-128, 127),
        (4, True): (-7, 7),
        (4, False): (-8, 7),
    }[bits, symmetric]


def affine_parameters(
    low: ArrayLike, high: ArrayLike, *, bits: int, symmetric: bool
) -> tuple[Floats, Codes]:
    bottom = np.clip(np.array(low, dtype=float), None, 0)
    top = np.clip(np.array(high, dtype=float), 0, None)
    lowest, highest = code_range(bits, symmetric)
    if symmetric:
        top = np.maximum(top, -bottom)
        bottom = -top
    scale = ((top - bottom) / (highest - lowest)).clip(LEAST_SCALE).astype(np.float32)
    zero = np.round(lowest - bottom / np.float64(scale))
    if symmetric:
        zero = zero * 0
    return np.asarray(scale), np.asarray(zero.clip(lowest, highest)).astype(np.int8)


def quantize(weight: ArrayLike, scheme: Scheme) -> QuantizedWeight:
    matrix = np.array(weight, dtype=np.float64, ndmin=1)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"no matrix with values: shape {matrix.shape}")
    for place in zip(*np.where(~np.isfinite(matrix)), strict=True):
        row, column = map(int, place)
        raise ValueError(f"weight ({row}, {column}) is {matrix[row, column]}, not finite")
    width = _width(matrix.shape, scheme)
    starts = np.arange(0, matrix.shape[1], width)
    low = np.minimum.reduceat(matrix, starts, axis=1)
    high = np.maximum.reduceat(matrix, starts, axis=1)
    if scheme.strategy == "tensor":
        low, high = low.min(keepdims=True), high.max(keepdims=True)
    scale, zero = affine_parameters(low, high, bits=scheme.bits, symmetric=scheme.symmetric)
    every_scale, every_zero = _spread(scale, matrix.shape), _spread(zero, matrix.shape)
    codes = np.round(matrix / every_scale) + every_zero
    codes = np.clip(codes, *code_range(scheme.bits, scheme.symmetric))
    return QuantizedWeight(codes.astype(np.int8), scale, zero, scheme)


def dequantize(quantized: QuantizedWeight) -> Floats:
    shape = quantized.codes.shape
    steps = quantized.codes - _spread(quantized.zero_point, shape)
    return (steps * _spread(quantized.scale, shape)).astype(np.float32)


def pack_int4(codes: ArrayLike) -> Bytes:
    flat = np.array(codes, dtype=np.int64).reshape(-1)
    wrong = [int(c) for c in flat if c < -8 or c > 7]
    if wrong:
        raise ValueError(f"no signed 4-bit integers: {wrong[:5]}")
    padded = np.zeros(-(-len(flat) // 2) * 2, dtype=np.uint8)
    padded[: len(flat)] = flat.astype(np.int8).view(np.uint8) & 0x0F
    pairs = padded.reshape(-1, 2)
    return pairs[:, 0] | pairs[:, 1] << 4


def unpack_int4(packed: ArrayLike, shape: tuple[int, ...]) -> Codes:
    data = np.asarray(packed, dtype=np.uint8)
    count = 1
    for side in shape:
        count *= side
    if len(data) != -(-count // 2):
        raise ValueError(f"{len(data)} bytes for {count} codes")
    codes = np.zeros(2 * len(data), dtype=np.int8)
    codes[0::2], codes[1::2] = data & 15, data >> 4
    codes[codes >= 8] -= 16
    return codes[:count].reshape(shape)


def stored_bytes(quantized: QuantizedWeight) -> int:
    total = quantized.scale.nbytes
    if not quantized.scheme.symmetric:
        total += quantized.zero_point.nbytes
    if quantized.scheme.bits == 4:
        return total + pack_int4(quantized.codes).nbytes
    return total + quantized.codes.nbytes


def _width(shape: tuple[int, ...], scheme: Scheme) -> int:
    width = shape[1] if scheme.group_size is None else scheme.group_size
    if shape[1] % width:
        raise ValueError(f"group_size {width} does not divide in_features {shape[1]}")
    return width


def _spread(values: NDArray, shape: tuple[int, ...]) -> NDArray[np.float64]:
    wide = np.repeat(values.astype(np.float64), shape[1] // values.shape[1], axis=1)
    return np.repeat(wide, shape[0] // values.shape[0], axis=0)
