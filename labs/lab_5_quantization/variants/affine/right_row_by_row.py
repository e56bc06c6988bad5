"""Row by row and group by group in plain Python, packing through integers' own bytes."""

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
    half = 1 << (bits - 1)
    return (1 - half, half - 1) if symmetric else (-half, half - 1)


def affine_parameters(
    low: ArrayLike, high: ArrayLike, *, bits: int, symmetric: bool
) -> tuple[Floats, Codes]:
    lowest, highest = code_range(bits, symmetric)
    bottoms, tops = np.asarray(low), np.asarray(high)
    scales, zeros = [], []
    for bottom, top in zip(bottoms.ravel().tolist(), tops.ravel().tolist(), strict=True):
        bottom, top = min(bottom, 0.0), max(top, 0.0)
        if symmetric:
            scale = np.float32(max(-bottom, top, highest * LEAST_SCALE) / highest)
            zero = 0
        else:
            steps = highest - lowest
            scale = np.float32(max((top - bottom) / steps, LEAST_SCALE))
            zero = max(lowest, min(highest, round(lowest - bottom / float(scale))))
        scales.append(max(scale, np.float32(LEAST_SCALE)))
        zeros.append(zero)
    return (
        np.array(scales, dtype=np.float32).reshape(bottoms.shape),
        np.array(zeros, dtype=np.int8).reshape(bottoms.shape),
    )


def quantize(weight: ArrayLike, scheme: Scheme) -> QuantizedWeight:
    matrix = np.asarray(weight).astype(np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"expected (out_features, in_features), got {matrix.shape}")
    if not matrix.size:
        raise ValueError("a weight without values")
    if not np.isfinite(matrix).all():
        flat = int(np.flatnonzero(~np.isfinite(matrix))[0])
        place = divmod(flat, matrix.shape[1])
        raise ValueError(f"not finite at {place}")
    spans = _spans(matrix.shape, scheme)
    lows = np.array([[matrix[r, c].min() for r, c in line] for line in spans])
    highs = np.array([[matrix[r, c].max() for r, c in line] for line in spans])
    scale, zero = affine_parameters(lows, highs, bits=scheme.bits, symmetric=scheme.symmetric)
    lowest, highest = code_range(scheme.bits, scheme.symmetric)
    codes = np.empty(matrix.shape, dtype=np.int8)
    for i, line in enumerate(spans):
        for j, (r, c) in enumerate(line):
            nearest = np.round(matrix[r, c] / float(scale[i, j])) + int(zero[i, j])
            codes[r, c] = np.minimum(np.maximum(nearest, lowest), highest)
    return QuantizedWeight(codes, scale, zero, scheme)


def dequantize(quantized: QuantizedWeight) -> Floats:
    values = np.empty(quantized.codes.shape, dtype=np.float32)
    for i, line in enumerate(_spans(values.shape, quantized.scheme)):
        for j, (r, c) in enumerate(line):
            steps = quantized.codes[r, c].astype(np.int32) - int(quantized.zero_point[i, j])
            values[r, c] = steps * quantized.scale[i, j]
    return values


def pack_int4(codes: ArrayLike) -> Bytes:
    listed = np.asarray(codes).ravel().tolist()
    for code in listed:
        if not -8 <= code <= 7:
            raise ValueError(f"code {code} needs more than four bits")
    listed += [0] * (len(listed) % 2)
    pairs = zip(listed[::2], listed[1::2], strict=True)
    return np.array([(a % 16) + 16 * (b % 16) for a, b in pairs], dtype=np.uint8)


def unpack_int4(packed: ArrayLike, shape: tuple[int, ...]) -> Codes:
    data = np.asarray(packed)
    count = int(np.prod(shape))
    if data.size * 2 - count not in (0, 1):
        raise ValueError(f"{data.size} bytes cannot hold exactly {count} codes")
    low = (data << 4).astype(np.int8) >> 4
    high = data.astype(np.uint8).view(np.int8) >> 4
    return np.column_stack([low, high]).ravel()[:count].reshape(shape).astype(np.int8)


def stored_bytes(quantized: QuantizedWeight) -> int:
    scheme = quantized.scheme
    bits = quantized.codes.size * scheme.bits
    bits += bits % 8
    each = 4 if scheme.symmetric else 4 + 1
    return bits // 8 + quantized.scale.size * each


def _spans(shape: tuple[int, ...], scheme: Scheme) -> list[list[tuple[slice, slice]]]:
    rows, columns = shape
    if scheme.strategy == "tensor":
        return [[(slice(0, rows), slice(0, columns))]]
    size = scheme.group_size or columns
    if columns % size:
        raise ValueError(f"{columns} columns cannot be cut into groups of {size}")
    cuts = [slice(c, c + size) for c in range(0, columns, size)]
    return [[(slice(r, r + 1), cut) for cut in cuts] for r in range(rows)]
