"""Takes columns at a distance for a group, and gives the scales out as if groups were runs.

caught-by: test_a_scale_belongs_to_the_matrix_a_row_or_a_group_within_a_row
hint: who-shares
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]
Bytes = NDArray[np.uint8]

LEAST_SCALE = float(np.finfo(np.float32).tiny)
"""No scale is smaller, so that nothing is divided by zero: the smallest normal float32."""


@dataclass(frozen=True)
class Scheme:
    """How weights are stored.

    Attributes:
        bits: 8 or 4, the size of a code.
        symmetric: True: the zero point is 0 and codes reach as far below 0 as above.
        strategy: which weights share a scale (and a zero point).
            "tensor": all of them; "channel": those of one output, which is one row (axis 0);
            "group": runs of `group_size` neighbours within a row, the first from column 0 on.
        group_size: for "group" only.
    """

    bits: Literal[8, 4]
    symmetric: bool
    strategy: Literal["tensor", "channel", "group"]
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in (8, 4):
            raise ValueError(f"bits must be 8 or 4, not {self.bits}")
        if self.strategy not in ("tensor", "channel", "group"):
            raise ValueError(f"no such strategy: {self.strategy!r}")
        if (self.strategy == "group") != (self.group_size is not None):
            raise ValueError('group_size goes with strategy "group", and with no other')
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, not {self.group_size}")


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as codes.

    Attributes:
        codes: int8, (out_features, in_features), also for 4 bits: packing is a step of its own.
        scale: float32, positive. (1, 1) for "tensor", (out_features, 1) for "channel",
            (out_features, in_features / group_size) for "group".
        zero_point: int8, shape of `scale`; all 0 where the scheme is symmetric.
        scheme: how it was made.
    """

    codes: Codes
    scale: Floats
    zero_point: Codes
    scheme: Scheme


def code_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """The lowest and the highest code.

    Codes are signed. Asymmetric ones use all that fit: -128 to 127 with 8 bits, -8 to 7 with 4.
    Symmetric ones leave out the lowest, which has no opposite: -127 to 127, and -7 to 7.
    """
    highest = 2 ** (bits - 1) - 1
    return (-highest if symmetric else -highest - 1), highest


def affine_parameters(
    low: ArrayLike, high: ArrayLike, *, bits: int, symmetric: bool
) -> tuple[Floats, Codes]:
    """Scales and zero points for weights that lie between `low` and `high`.

    The range always holds zero: a `low` above 0 counts as 0, and so does a `high` below 0.

    Symmetric: the larger magnitude of both ends takes the highest code; the zero point is 0.
    Asymmetric: the whole range, ``high - low``, is divided by the whole range of codes, and the
    zero point is the code of zero, ``lowest - low / scale`` rounded, so that zero is exact.

    No scale is below `LEAST_SCALE`; so a range of nothing but zero has one, too. Scales are rounded
    to float32 first, and whatever is computed with them uses the rounded ones: those are stored.
    Compute in float64, and round to the nearest integer, halves to the even one.

    Args:
        low, high: arrays of one shape, ``low <= high``; finite.

    Returns:
        scale (float32) and zero point (int8), both of the shape of `low`.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, 2018, section 2.1.
    """
    bottom = np.minimum(np.asarray(low, dtype=np.float64), 0.0)
    top = np.maximum(np.asarray(high, dtype=np.float64), 0.0)
    lowest, highest = code_range(bits, symmetric)
    exact = np.maximum(-bottom, top) / highest if symmetric else (top - bottom) / (highest - lowest)
    scale = np.maximum(exact, LEAST_SCALE).astype(np.float32)
    zero = np.zeros_like(bottom) if symmetric else lowest - bottom / scale.astype(np.float64)
    return scale, np.clip(np.rint(zero), lowest, highest).astype(np.int8)


def quantize(weight: ArrayLike, scheme: Scheme) -> QuantizedWeight:
    """The weight in codes: each one the code whose value is nearest.

    The range of a scale runs from the least to the greatest of the weights that share it. A code
    is ``x / scale`` rounded, plus the zero point, clipped to `code_range`; computed in float64.

    What follows, up to the rounding of float32: every weight comes back with an error of at most
    half its scale, zero comes back as exactly 0, and so does the one value of a constant row.

    Args:
        weight: (out_features, in_features), any float type; it is not changed.

    Raises:
        ValueError: the weight is not a matrix, or has no values; or it holds a NaN or an infinity
            (the message gives the place of the first as ``(row, column)``); or the group size does
            not divide in_features (the message names both numbers).
    """
    exact = np.array(weight, dtype=np.float64)
    if exact.ndim != 2 or exact.size == 0:
        raise ValueError(f"a weight has two dimensions and values, not the shape {exact.shape}")
    broken = np.argwhere(~np.isfinite(exact))
    if len(broken):
        row, column = broken[0].tolist()
        raise ValueError(
            f"{len(broken)} weights are not finite, the first at ({row}, {column}): "
            f"{exact[row, column]}"
        )
    groups = _by_group(exact, scheme)
    if scheme.strategy == "group":
        rows, across, size = groups.shape
        groups = exact.reshape(rows, size, across).transpose(0, 2, 1)
    scale, zero_point = affine_parameters(
        groups.min(axis=2), groups.max(axis=2), bits=scheme.bits, symmetric=scheme.symmetric
    )
    lowest, highest = code_range(scheme.bits, scheme.symmetric)
    steps = np.rint(groups / scale[..., None].astype(np.float64)) + zero_point[..., None]
    codes = np.clip(steps, lowest, highest).astype(np.int8).reshape(exact.shape)
    return QuantizedWeight(codes, scale, zero_point, scheme)


def dequantize(quantized: QuantizedWeight) -> Floats:
    """The weight that the codes stand for: float32, (out_features, in_features).

    Uses only what is stored: ``scale * (code - zero_point)``.
    """
    groups = _by_group(quantized.codes.astype(np.float64), quantized.scheme)
    values = (groups - quantized.zero_point[..., None]) * quantized.scale[..., None]
    result: Floats = values.astype(np.float32).reshape(quantized.codes.shape)
    return result


def pack_int4(codes: ArrayLike) -> Bytes:
    """Two codes a byte, as ONNX stores INT4.

    Codes are taken row by row. The first of a pair is in the low four bits, the second in the high
    four; each in two's complement (-1 is 0b1111). Where their number is odd, the last high half
    is 0.

    Args:
        codes: integers from -8 to 7, any shape.

    Returns:
        uint8, one dimension, half as many as there are codes, rounded up.

    Raises:
        ValueError: a code does not fit; the message names it.

    Source: https://onnx.ai/onnx/technical/int4.html
    """
    flat = np.asarray(codes).astype(np.int64).ravel()
    outside = flat[(flat < -8) | (flat > 7)]
    if len(outside):
        raise ValueError(f"{outside[0]} does not fit in four bits, which hold -8 to 7")
    halves = np.append(flat, 0) if len(flat) % 2 else flat
    halves = halves & 0xF
    packed: Bytes = (halves[0::2] | (halves[1::2] << 4)).astype(np.uint8)
    return packed


def unpack_int4(packed: ArrayLike, shape: tuple[int, ...]) -> Codes:
    """The codes that `pack_int4` packed: int8, of the given shape.

    Raises:
        ValueError: the number of bytes is not that of such a shape; the message names both.
    """
    data = np.asarray(packed, dtype=np.uint8)
    count = int(np.prod(shape))
    if len(data) != (count + 1) // 2:
        raise ValueError(f"{count} codes take {(count + 1) // 2} bytes, not {len(data)}")
    halves = np.stack([data & 0xF, data >> 4], axis=1).astype(np.int8).ravel()[:count]
    return np.where(halves > 7, halves - 16, halves).astype(np.int8).reshape(shape)


def stored_bytes(quantized: QuantizedWeight) -> int:
    """What a checkpoint needs for it, in bytes.

    The codes (4-bit ones packed), 4 bytes a scale, and 1 byte a zero point where the scheme is
    asymmetric: symmetric zero points are not stored.
    """
    count = quantized.codes.size
    codes = count if quantized.scheme.bits == 8 else (count + 1) // 2
    return codes + quantized.scale.size * (4 if quantized.scheme.symmetric else 5)


def _by_group(values: NDArray[np.float64], scheme: Scheme) -> NDArray[np.float64]:
    """A view of (scales down, scales across, values that share one)."""
    rows, columns = values.shape
    if scheme.strategy == "tensor":
        return values.reshape(1, 1, -1)
    size = columns if scheme.strategy == "channel" else scheme.group_size
    assert size is not None
    if columns % size:
        raise ValueError(f"groups of {size} do not divide the {columns} inputs of a row")
    return values.reshape(rows, columns // size, size)
