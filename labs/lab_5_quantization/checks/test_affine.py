"""Checks of task 5.1: affine quantization, by what it promises for every single weight."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.stored_weights import stored_weight

from shared.grading.expect import expect, expect_equal, expect_raises, fail, plain, show

KINDS = ((8, True), (8, False), (4, True), (4, False))
TINY = float(np.finfo(np.float32).tiny)
FLOAT32 = 1e-3
"""Of a scale: room for the rounding of scale and result to float32 (in truth below 1e-4)."""

REAL = tuple(
    f"model.layers.{block}.{part}"
    for block in (0, 29)
    for part in ("self_attn.q_proj", "mlp.down_proj")
)


def test_symmetric_codes_leave_out_the_one_without_an_opposite(learner):
    wanted = {
        (8, True): (-127, 127),
        (8, False): (-128, 127),
        (4, True): (-7, 7),
        (4, False): (-8, 7),
    }
    for bits, symmetric in KINDS:
        expect_equal(
            learner.code_range(bits, symmetric),
            wanted[bits, symmetric],
            what=f"code_range({bits}, symmetric={symmetric})",
            why="-128 has no opposite among the signed bytes. With it, a weight and its negative "
            "get different errors, and kernels that negate a code overflow.",
            hint="opposite",
        )


def test_scale_and_zero_point_map_the_range_on_the_codes(learner, rng):
    low, high = -rng.gamma(2.0, 1.0, (5, 7)), rng.gamma(2.0, 1.5, (5, 7))
    ends = [(np.array(-1.0), np.array(3.0)), (low, high)]
    for bits, symmetric in KINDS:
        for bottom, top in ends:
            scale, zero = _parameters(learner, bottom, top, bits, symmetric)
            case = f"{_kind(bits, symmetric)}, range {_ends(bottom, top)}"
            _expect_scale(scale, bottom, top, bits, symmetric, case)
            _expect_zero_point(zero, scale, bottom, top, bits, symmetric, case)


def test_every_range_holds_zero_and_zero_is_exact(learner, rng):
    near, far = rng.uniform(0.5, 2.0, 40), rng.uniform(3.0, 5.0, 40)
    for bits, symmetric in KINDS:
        for bottom, top in ((near, far), (-far, -near), (np.zeros(1), far[:1])):
            scale, zero = _parameters(learner, bottom, top, bits, symmetric)
            case = f"{_kind(bits, symmetric)}, range {_ends(bottom, top)}"
            _expect_scale(
                scale,
                bottom,
                top,
                bits,
                symmetric,
                case,
                why="The range must be stretched to hold zero. Padding, dropped neurons and ReLU "
                "put exact zeros everywhere, and a grid without zero has no code for them.",
                hint="zero-in-range",
            )
            lowest, highest = _codes(bits, symmetric)
            expect(
                bool(((zero >= lowest) & (zero <= highest)).all()),
                observed=f"zero points from {zero.min()} to {zero.max()} ({case})",
                expected=f"the code of zero, from {lowest} to {highest}",
                why="Padding, dropped neurons and ReLU put exact zeros everywhere. A grid without "
                "zero adds the same small error to each of them, and they do not cancel.",
                hint="zero-in-range",
            )


def test_a_range_of_nothing_but_zero_has_a_scale(learner):
    for bits, symmetric in KINDS:
        nothing = np.zeros((2, 3))
        for bottom, top, what in (
            (nothing, nothing, "low and high are 0"),
            (nothing, nothing + 1e-44, "high is 1e-44"),
        ):
            with np.errstate(all="ignore"):
                scale, _ = _parameters(learner, bottom, top, bits, symmetric)
            expect(
                bool((np.isfinite(scale) & (scale >= np.float32(TINY))).all()),
                observed=f"scales {show(np.unique(scale).tolist())} where {what} "
                f"({_kind(bits, symmetric)})",
                expected=f"scales of at least LEAST_SCALE, {TINY:.3g}",
                why="Pruned rows are all zero. Divided by a scale of 0 they become NaN, and one "
                "NaN in a row makes every answer of the model NaN.",
                hint="nothing-but-zero",
            )


def test_a_range_of_almost_nothing_keeps_its_own_scale(learner, rng):
    why = (
        "Nothing is divided by zero here: 1e-12 is small, and still a weight. With a larger scale "
        "than its range needs, the whole row becomes zeros."
    )
    for size in (1e-9, 1e-15, 1e-30):
        low, high = -size * rng.uniform(0.5, 2.0, 6), size * rng.uniform(0.5, 2.0, 6)
        for bits, symmetric in KINDS:
            scale, _ = _parameters(learner, low, high, bits, symmetric)
            case = f"{_kind(bits, symmetric)}, range {_ends(low, high)}"
            _expect_scale(scale, low, high, bits, symmetric, case, why=why, hint="nothing-but-zero")


def test_a_scale_belongs_to_the_matrix_a_row_or_a_group_within_a_row(learner, rng):
    rows, columns, size = 6, 24, 8
    weight = _weight(rng, rows, columns) * rng.uniform(0.2, 5.0, (rows, 1))
    weight *= np.repeat(rng.uniform(0.3, 3.0, (rows, columns // size)), size, axis=1)
    for scheme in _schemes(learner, group=size):
        got = _quantized(learner, weight, scheme)
        blocks = _blocks(weight, scheme)
        bottom, top = blocks.min(axis=2), blocks.max(axis=2)
        wanted = _scale(bottom, top, scheme.bits, scheme.symmetric)
        expect(
            got.scale.shape == wanted.shape == got.zero_point.shape,
            observed=f"scale {got.scale.shape} and zero_point {got.zero_point.shape} for a weight "
            f"of {weight.shape} ({_name(scheme)})",
            expected=f"both of shape {wanted.shape}",
            why="The kernel finds a weight's scale by this shape.",
            hint="which-axis" if scheme.strategy == "channel" else "who-shares",
        )
        if np.allclose(got.scale, wanted, rtol=1e-5, atol=0):
            _expect_zero_point(
                got.zero_point, got.scale, bottom, top, scheme.bits, scheme.symmetric, _name(scheme)
            )
            continue
        columns_first = _columns_first(weight, scheme, wanted.shape)
        along = columns_first is not None and np.allclose(got.scale, columns_first, rtol=1e-5)
        cut = bool((got.scale <= wanted * (1 + 1e-5)).all())
        fail(
            observed=f"scales {_short(got.scale)} ({_name(scheme)})"
            + (", those of the columns" if along else ""),
            expected=f"scales {_short(wanted)}",
            why="One outlier makes the grid coarse for all that share its scale. Whoever asks for "
            "a scale a row and gets the matrix's has the error of one and pays for the other.",
            hint="which-axis" if along else "half-a-scale" if cut else "who-shares",
        )


def test_dequantize_uses_only_what_is_stored(learner, rng):
    codes = rng.integers(-128, 128, (3, 8)).astype(np.int8)
    codes[:, 0], codes[:, 1] = 127, -128
    for strategy, size, shape in (
        ("tensor", None, (1, 1)),
        ("channel", None, (3, 1)),
        ("group", 4, (3, 2)),
    ):
        scale = rng.uniform(0.01, 2.0, shape).astype(np.float32)
        zero = rng.integers(-128, 128, shape).astype(np.int8)
        zero[0, 0] = -128
        scheme = learner.Scheme(8, False, strategy, size)
        got = _values(learner, learner.QuantizedWeight(codes, scale, zero, scheme))
        if strategy == "group":
            scale, zero = np.repeat(scale, 4, axis=1), np.repeat(zero, 4, axis=1)
        difference = codes.astype(np.float64) - zero
        wrapped = (codes - zero).astype(np.float64)
        wanted = difference * scale
        room = FLOAT32 * scale
        if got.shape == wanted.shape and bool((abs(got - wanted) <= room).all()):
            continue
        wraps = got.shape == wanted.shape and bool((abs(got - wrapped * scale) <= room).all())
        fail(
            observed=f"{_short(got[0])} for codes {_short(codes[0])}, zero point {zero[0, 0]}, "
            f"scale {scale[0, 0]:.4g} ({strategy})",
            expected=_short(wanted[0]),
            why="127 - (-128) is 255, and no signed byte holds it. In int8 it is -1, without a "
            "warning, and the greatest weight becomes the least.",
            hint="wraps" if wraps else "as-stored",
        )


def test_zeros_come_back_as_exactly_zero(learner, rng):
    weight = np.where(rng.random((6, 32)) < 0.4, 0.0, rng.uniform(-1.0, 4.0, (6, 32)))
    for scheme in _schemes(learner, group=8):
        values = _values(learner, _quantized(learner, weight, scheme))
        wrong = values[weight == 0]
        wrong = wrong[wrong != 0]
        expect(
            len(wrong) == 0,
            observed=f"zeros come back as {show(wrong[:3].tolist())} ({_name(scheme)})",
            expected="exactly 0",
            why="A pruned weight that is not exactly 0 is no longer pruned. It counts as a weight "
            "again, and code that looks for zeros passes it by.",
            hint="exactly-zero",
        )


def test_every_weight_goes_to_the_nearest_code(learner, rng):
    weight = _weight(rng, 12, 64)
    for scheme in _schemes(learner, group=16):
        _expect_nearest(learner, weight, scheme, "random weights")
    halves = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 7.0, -7.0]])
    scheme = _scheme(learner, 4, True, "channel")
    expect_equal(
        _quantized(learner, halves, scheme).codes,
        [[0, 2, 2, 0, -2, -2, 7, -7]],
        what=f"codes of {halves[0].tolist()} with a scale of 1",
        why="Halves that always go up push every sum the same way. To the even neighbour they "
        "cancel, and all common kernels do it so.",
        hint="nearest",
    )


def test_outliers_do_not_leave_the_range_of_codes(learner, rng):
    # Zero point and highest weight both fall on a half, and both are rounded up.
    exact = np.concatenate([[-1.5, 253.5], rng.uniform(0, 250, 30)])
    for weight, bits in ((exact[None], 8), (np.array([[-1.5, 13.5, 3.0, 8.0]]), 4)):
        scheme = _scheme(learner, bits, False, "channel")
        got = _quantized(learner, weight, scheme)
        lowest, highest = _codes(bits, False)
        expect(
            bool((got.codes >= lowest).all() and (got.codes <= highest).all())
            and bool(abs(_values(learner, got) - weight).max() <= 0.5 + FLOAT32),
            observed=f"code {int(got.codes[0, 1])} for {weight[0, 1]}, the greatest weight of a "
            f"row from -1.5 to {weight[0, 1]}",
            expected=f"code {highest}: rounding up twice would be one code too many",
            why="A byte that overflows turns the greatest weight of a row into the least one.",
            hint="clipped",
        )
    weight = _weight(rng, 8, 64)
    weight[2, 5], weight[6, 40] = 400.0, -900.0
    for scheme in _schemes(learner, group=16):
        _expect_nearest(learner, weight, scheme, "weights with two outliers")


def test_what_is_stored_has_the_types_of_a_checkpoint(learner, rng):
    weight = _weight(rng, 4, 16)
    for kind in (np.float64, np.float32, np.float16):
        given = weight.astype(kind)
        before = given.copy()
        for scheme in _schemes(learner, group=8):
            got = _quantized(learner, given, scheme)
            types = {n: str(getattr(got, n).dtype) for n in ("codes", "scale", "zero_point")}
            types["dequantize"] = str(_values(learner, got).dtype)
            expect_equal(
                types,
                {
                    "codes": "int8",
                    "scale": "float32",
                    "zero_point": "int8",
                    "dequantize": "float32",
                },
                what=f"types for a {np.dtype(kind).name} weight ({_name(scheme)})",
                why="A float64 scale is rounded when it is saved, and the codes no longer belong "
                "to it.",
                hint="as-stored",
            )
            expect(
                got.scheme == scheme and got.codes.shape == weight.shape,
                observed=f"scheme {got.scheme} and codes of shape {got.codes.shape}",
                expected=f"{scheme} and {weight.shape}",
                why="Whoever loads the codes must know how to read them.",
                hint="as-stored",
            )
        expect(
            bool((given == before).all()),
            observed="the weight that was given has changed",
            expected="the weight as it was",
            why="The original is needed to measure what was lost.",
            hint="as-stored",
        )


def test_constant_rows_come_back_as_they_were(learner, rng):
    values = [0.0, 1.0, -0.37, float(rng.uniform(1e-6, 1e-5)), -float(rng.uniform(100, 1000))]
    weight = np.repeat(np.array(values)[:, None], 12, axis=1)
    for scheme in _schemes(learner, group=4):
        if scheme.strategy == "tensor":
            continue
        with np.errstate(all="ignore"):
            back = _values(learner, _quantized(learner, weight, scheme))
        for row, value in enumerate(values):
            expect(
                bool(np.allclose(back[row], value, rtol=1e-5, atol=0)),
                observed=f"a row of {value:.6g} comes back as {show(back[row, :3].tolist())} "
                f"({_name(scheme)})",
                expected=f"{value:.6g}",
                why="Biases, masks and freshly initialised norms are constant. With 0 in the "
                "range, one of its ends is the constant, and ends are exact.",
                hint="nothing-but-zero" if value == 0 else "constant",
            )


def test_what_cannot_be_quantized_is_refused(learner, rng):
    for bad in (np.nan, np.inf, -np.inf):
        weight = _weight(rng, 9, 48)
        row, column = int(rng.integers(1, 9)), int(rng.integers(10, 48))
        weight[row, column] = bad
        for scheme in _schemes(learner, group=16):
            expect_raises(
                ValueError,
                lambda weight=weight, scheme=scheme: _quiet(learner.quantize, weight, scheme),
                doing=f"a weight with {bad} at ({row}, {column}), {_name(scheme)}",
                mentions=f"({row}, {column})",
                why="A training run that diverged leaves one NaN. Rounded in silence it becomes a "
                "code like any other, and the model is wrong without an error.",
                hint="not-finite",
            )
    size = int(rng.choice([128, 100, 7]))
    error = expect_raises(
        ValueError,
        lambda: learner.quantize(_weight(rng, 4, 576), learner.Scheme(4, True, "group", size)),
        doing=f"groups of {size} in rows of 576",
        mentions=str(size),
        why="The usual group of 128 does not divide SmolLM2's 576. A last group that is shorter, "
        "or padded, is read at the wrong place by every kernel.",
        hint="divides",
    )
    expect(
        "576" in str(error),
        observed=f"{type(error).__name__}: {error}",
        expected="a message that names both numbers, the group's and the row's",
        why="Whoever reads it must choose another group, and needs to know of what.",
        hint="divides",
    )
    for shape in ((4,), (2, 3, 4), (0, 8), (3, 0)):
        expect_raises(
            ValueError,
            lambda shape=shape: learner.quantize(
                np.ones(shape), learner.Scheme(8, True, "channel")
            ),
            doing=f"a weight of shape {shape}",
            why="What is not a matrix with values has no rows to give a scale.",
            hint="not-finite",
        )


def test_two_codes_share_a_byte_low_half_first(learner, rng):
    for codes, data in (
        ([1, 2], [0x21]),
        ([-1, 0], [0x0F]),
        ([-8, 7, 3], [0x78, 0x03]),
        ([-3], [0x0D]),
        ([], []),
    ):
        got = _packed(learner, np.array(codes, dtype=np.int8))
        swapped = [((b & 15) << 4) | b >> 4 for b in data]
        expect(
            got.tolist() == data,
            observed=f"bytes {_hex(got)} for codes {codes}",
            expected=_hex(np.array(data, dtype=np.uint8)),
            why="The bytes are read by somebody else's kernel. With the halves swapped every "
            "weight is its neighbour's, and the model talks, but nonsense.",
            hint="which-half"
            if got.tolist() == swapped
            else "sign"
            if len(codes) % 2 == 0
            else "odd",
        )
    for shape in ((6, 10), (3, 5), (1, 1), (17,)):
        codes = rng.integers(-8, 8, shape).astype(np.int8)
        packed = _packed(learner, codes)
        expect_equal(
            len(packed),
            math.ceil(codes.size / 2),
            what=f"bytes of {codes.size} codes",
            why="4-bit weights are there to save memory.",
            hint="odd",
        )
        back = learner.unpack_int4(packed, shape)
        unsigned = np.asarray(back).shape == shape and bool(
            (np.asarray(back) == (codes & 15)).all()
        )
        expect_equal(
            back,
            codes,
            what=f"codes of shape {shape}, packed and unpacked",
            why="Without its sign, -1 comes back as 15: each negative weight becomes a large "
            "positive one.",
            hint="sign" if unsigned else "odd" if codes.size % 2 else "which-half",
        )
        expect_equal(
            str(np.asarray(back).dtype),
            "int8",
            what="type of unpacked codes",
            why="The next step subtracts a zero point, and unsigned bytes wrap around.",
            hint="sign",
        )


def test_onnx_reads_your_bytes(learner, rng):
    codes = rng.integers(-8, 8, (5, 9)).astype(np.int8)
    packed = _packed(learner, codes)
    tensor = onnx.TensorProto(
        data_type=onnx.TensorProto.INT4, dims=codes.shape, raw_data=packed.tobytes()
    )
    expect_equal(
        numpy_helper.to_array(tensor).astype(np.int8),
        codes,
        what="what the onnx package reads",
        why="A format of one's own is read by nobody.",
        hint="which-half",
    )


def test_packing_refuses_what_does_not_fit(learner):
    for kind, codes, why in (
        (
            np.int64,
            (8, -9, 15, 127),
            "15 cut to four bits is -1. Eight-bit codes would be packed without a word.",
        ),
        (
            np.int64,
            (257, -255, 65_537),
            "257 as a signed byte is 1, and that fits. Look at a code before its type changes.",
        ),
        (
            np.uint8,
            (255, 249),
            "255 as a signed byte is -1, and that fits. Look at a code before its type changes.",
        ),
    ):
        for code in codes:
            expect_raises(
                ValueError,
                lambda code=code, kind=kind: learner.pack_int4(np.array([1, code, 0, 2], kind)),
                doing=f"the code {code}, in an array of {np.dtype(kind).name}",
                mentions=str(code),
                why=why,
                hint="fits",
            )
    packed = _packed(learner, np.array([1, 2, 3, 4], dtype=np.int8))
    for shape in ((2, 3), (1, 2), (7,)):
        expect_raises(
            ValueError,
            lambda shape=shape: learner.unpack_int4(packed, shape),
            doing=f"2 bytes for codes of shape {shape}",
            mentions="2",
            why="A file that was cut off must not load as a smaller weight.",
            hint="fits",
        )


def test_stored_bytes_counts_codes_scales_and_zero_points(learner, rng):
    weight = _weight(rng, 7, 24)
    for scheme in _schemes(learner, group=8):
        got = _quantized(learner, weight, scheme)
        scales = {"tensor": 1, "channel": 7, "group": 21}[scheme.strategy]
        codes = 168 if scheme.bits == 8 else 84
        expect_equal(
            learner.stored_bytes(got),
            codes + scales * (4 if scheme.symmetric else 5),
            what=f"bytes of a 7 x 24 weight ({_name(scheme)})",
            why="Small groups are not free: with one scale for 8 weights, 4 bits are 8. Whoever "
            "counts the codes only buys too little memory.",
            hint="what-is-stored",
        )
    odd = _quantized(learner, _weight(rng, 3, 5), _scheme(learner, 4, True, "channel"))
    expect_equal(
        learner.stored_bytes(odd),
        8 + 12,
        what="bytes of a 3 x 5 weight (4 bits, symmetric, channel)",
        why="15 codes need 8 bytes.",
        hint="what-is-stored",
    )


@pytest.mark.limit(120)  # a loop over each group in plain Python is slow, not wrong
def test_the_weights_of_smollm2_lose_what_theory_says(learner, figure):
    weights = {name: stored_weight(name) for name in REAL}
    for bits, symmetric, strategy, size in (
        (8, True, "tensor", None),
        (8, True, "channel", None),
        (8, True, "group", 64),
        (4, True, "tensor", None),
        (4, True, "channel", None),
        (4, True, "group", 64),
        # The model comes from a file with a scale and an offset for each 32 weights of a row.
        (4, False, "group", 32),
    ):
        scheme = learner.Scheme(bits, symmetric, strategy, size)
        got, wanted, stored = zip(
            *(_measure(learner, name, weight, scheme) for name, weight in weights.items()),
            strict=True,
        )
        what = f"{bits} bits, a scale for each {_whom(strategy, size)}"
        what += "" if symmetric else ", asymmetric"
        figure(f"relative error: {what}", float(np.mean(got)), reference=float(np.mean(wanted)))
        count = sum(weight.size for weight in weights.values())
        figure(f"stored: {what}", 8 * sum(stored) / count, unit="bits/weight")


def _measure(learner: Any, name: str, weight: np.ndarray, scheme: Any) -> tuple[float, float, int]:
    """Relative error, that of the reference, and bytes."""
    quantized = _quantized(learner, weight, scheme)
    got = _relative(_values(learner, quantized), weight)
    wanted = _relative(_reference(weight, scheme), weight)
    expect(
        math.isclose(got, wanted, rel_tol=0.01),
        observed=f"a relative error of {got:.4f} on {name} ({_name(scheme)})",
        expected=f"{wanted:.4f}, within 1 %",
        why="This is what the branch's model loses before it has answered anything.",
        hint="real-weights",
    )
    return got, wanted, int(learner.stored_bytes(quantized))


def _expect_nearest(learner: Any, weight: np.ndarray, scheme: Any, what: str) -> None:
    """Every value that comes back is the nearest its scale and zero point allow."""
    got = _quantized(learner, weight, scheme)
    back = _values(learner, got).astype(np.float64)
    lowest, highest = _codes(scheme.bits, scheme.symmetric)
    blocks = _blocks(weight, scheme)
    expect(
        got.scale.shape == blocks.shape[:2] == got.zero_point.shape,
        observed=f"scale of shape {got.scale.shape} for a weight of {weight.shape} "
        f"({_name(scheme)})",
        expected=f"shape {blocks.shape[:2]}",
        why="The kernel finds a weight's scale by this shape.",
        hint="which-axis" if scheme.strategy == "channel" else "who-shares",
    )
    scale = got.scale.astype(np.float64)[..., None]
    zero = got.zero_point.astype(np.int64)[..., None]
    codes, values = _blocks(got.codes, scheme), _blocks(back, scheme)
    stored = (codes - zero) * scale
    apart = abs(values - stored)
    at = np.unravel_index(int(np.argmax(apart / scale)), apart.shape)
    expect(
        bool((apart <= FLOAT32 * scale).all()),
        observed=f"{values[at]:.5g} for the code {int(codes[at])} ({what}, {_name(scheme)})",
        expected=f"{stored[at]:.5g}: scale * (code - zero_point)",
        why="Whoever loads the file has codes, scales and zero points, and not the weights that "
        "they were made from.",
        hint="as-stored",
    )
    levels = (np.arange(lowest, highest + 1) - zero) * scale
    best = abs(blocks[..., None] - levels[:, :, None, :]).min(axis=3)
    error = abs(values - blocks)
    worse = error - best
    at = np.unravel_index(int(np.argmax(worse / scale)), worse.shape)
    expect(
        bool((worse <= FLOAT32 * scale).all()),
        observed=f"an error of {(error / scale)[at]:.2f} scales for {blocks[at]:.5g} ({what}, "
        f"{_name(scheme)})",
        expected=f"{(best / scale)[at]:.2f} scales: the nearest code",
        why="Rounded towards zero, all weights shrink together: the errors do not cancel, they "
        "add up over the 576 inputs of a layer.",
        hint="nearest",
    )
    expect(
        bool((error <= (0.5 + FLOAT32) * scale).all()),
        observed=f"an error of {float((error / scale).max()):.2f} scales ({what}, {_name(scheme)})",
        expected="at most half a scale for every weight",
        why="The range runs from the least to the greatest weight, so none is beyond the grid. "
        "Half a scale is the bound that everything else is planned with.",
        hint="half-a-scale",
    )


def _expect_scale(
    scale: np.ndarray,
    bottom: np.ndarray,
    top: np.ndarray,
    bits: int,
    symmetric: bool,
    case: str,
    why: str | None = None,
    hint: str | None = None,
) -> None:
    wanted = _scale(bottom, top, bits, symmetric)
    expect(
        scale.shape == wanted.shape and bool(np.allclose(scale, wanted, rtol=1e-5, atol=0)),
        observed=f"scale {_short(scale)} ({case})",
        expected=_short(wanted),
        why=why
        or "A scale that is too large wastes codes. One that is too small cuts off the largest "
        "weights, and those matter most.",
        hint=hint or ("opposite" if symmetric else "range-on-codes"),
    )


def _expect_zero_point(
    zero: np.ndarray,
    scale: np.ndarray,
    bottom: np.ndarray,
    top: np.ndarray,
    bits: int,
    symmetric: bool,
    case: str,
) -> None:
    lowest, _ = _codes(bits, symmetric)
    exact = np.zeros_like(bottom) if symmetric else lowest - np.minimum(bottom, 0) / scale
    expect(
        zero.shape == exact.shape and bool((abs(zero - exact) <= 0.5 + FLOAT32).all()),
        observed=f"zero point {_short(zero)} ({case})",
        expected=f"{_short(np.rint(exact))}, the code of zero",
        why="A zero point that is off by one shifts every weight of the row by a whole scale, "
        "always in the same direction.",
        hint="zero-point",
    )


def _parameters(
    learner: Any, bottom: np.ndarray, top: np.ndarray, bits: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray]:
    returned = learner.affine_parameters(bottom, top, bits=bits, symmetric=symmetric)
    if type(returned) is not tuple or len(returned) != 2:
        fail(
            observed=f"affine_parameters returned {show(returned)}",
            expected="scale and zero point, two arrays",
            why="Its callers take the two apart.",
        )
    scale, zero = (np.asarray(part) for part in returned)
    expect(
        str(scale.dtype) == "float32" and str(zero.dtype) == "int8",
        observed=f"scale as {scale.dtype}, zero point as {zero.dtype}",
        expected="float32 and int8",
        why="These are the types that are stored. What is rounded later no longer fits the codes.",
        hint="as-stored",
    )
    return scale.astype(np.float64), zero.astype(np.int64)


def _quantized(learner: Any, weight: np.ndarray, scheme: Any) -> Any:
    got = learner.quantize(weight, scheme)
    expect(
        type(got).__name__ == "QuantizedWeight"
        and all(type(getattr(got, n)) is np.ndarray for n in ("codes", "scale", "zero_point")),
        observed=f"quantize returned {type(got).__name__}",
        expected="a QuantizedWeight of arrays",
        why="Whoever stores it takes its parts by name.",
    )
    return got


def _values(learner: Any, quantized: Any) -> np.ndarray:
    back = np.asarray(learner.dequantize(quantized))
    expect(
        back.shape == quantized.codes.shape,
        observed=f"dequantize gives shape {back.shape} for codes of {quantized.codes.shape}",
        expected="the shape of the codes",
        why="The layer multiplies with it.",
        hint="as-stored",
    )
    return back


def _packed(learner: Any, codes: np.ndarray) -> np.ndarray:
    packed = np.asarray(learner.pack_int4(codes))
    expect(
        packed.dtype == np.uint8 and packed.ndim == 1,
        observed=f"{packed.dtype} of {packed.ndim} dimensions",
        expected="uint8, one dimension",
        why="A file is a row of bytes.",
        hint="odd",
    )
    return packed


def _schemes(learner: Any, group: int) -> list[Any]:
    return [
        learner.Scheme(bits, symmetric, strategy, group if strategy == "group" else None)
        for bits, symmetric in KINDS
        for strategy in ("tensor", "channel", "group")
    ]


def _scheme(learner: Any, bits: int, symmetric: bool, strategy: str) -> Any:
    return learner.Scheme(bits, symmetric, strategy)


def _codes(bits: int, symmetric: bool) -> tuple[int, int]:
    highest = 2 ** (bits - 1) - 1
    return -highest - (not symmetric), highest


def _scale(bottom: np.ndarray, top: np.ndarray, bits: int, symmetric: bool) -> np.ndarray:
    lowest, highest = _codes(bits, symmetric)
    bottom, top = np.minimum(bottom, 0), np.maximum(top, 0)
    exact = np.maximum(-bottom, top) / highest if symmetric else (top - bottom) / (highest - lowest)
    return np.asarray(np.maximum(exact, TINY))


def _blocks(weight: np.ndarray, scheme: Any) -> np.ndarray:
    """(scales down, scales across, weights that share one), float64."""
    rows, columns = weight.shape
    weight = weight.astype(np.float64)
    if scheme.strategy == "tensor":
        return weight.reshape(1, 1, -1)
    return weight.reshape(rows, -1, scheme.group_size or columns)


def _columns_first(weight: np.ndarray, scheme: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """The scales of somebody who takes columns for rows, where their number fits."""
    if scheme.strategy == "tensor" or weight.size % (shape[0] * shape[1]):
        return None
    turned = weight.T.reshape(shape[0], shape[1], -1)
    return _scale(turned.min(axis=2), turned.max(axis=2), scheme.bits, scheme.symmetric)


def _reference(weight: np.ndarray, scheme: Any) -> np.ndarray:
    blocks = _blocks(weight, scheme)
    bottom, top = blocks.min(axis=2, keepdims=True), blocks.max(axis=2, keepdims=True)
    lowest, highest = _codes(scheme.bits, scheme.symmetric)
    scale = _scale(bottom, top, scheme.bits, scheme.symmetric)
    zero = 0 if scheme.symmetric else np.rint(lowest - np.minimum(bottom, 0) / scale)
    codes = np.clip(np.rint(blocks / scale) + zero, lowest, highest)
    return np.asarray(((codes - zero) * scale).reshape(weight.shape))


def _relative(values: np.ndarray, weight: np.ndarray) -> float:
    exact = weight.astype(np.float64)
    return float(np.linalg.norm(values - exact) / np.linalg.norm(exact))


def _weight(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Weights whose rows differ in size, and are not centred."""
    spread = rng.uniform(0.2, 3.0, (rows, 1))
    return rng.normal(rng.uniform(-0.5, 0.5, (rows, 1)), spread, (rows, columns))


def _quiet(call: Any, *args: Any) -> Any:
    with np.errstate(all="ignore"):
        return call(*args)


def _kind(bits: int, symmetric: bool) -> str:
    return f"{bits} bits, {'symmetric' if symmetric else 'asymmetric'}"


def _name(scheme: Any) -> str:
    group = f" of {scheme.group_size}" if scheme.group_size else ""
    return f"{_kind(scheme.bits, scheme.symmetric)}, {scheme.strategy}{group}"


def _whom(strategy: str, size: int | None) -> str:
    return {"tensor": "matrix", "channel": "row"}.get(strategy, f"{size} of a row")


def _ends(bottom: np.ndarray, top: np.ndarray) -> str:
    return f"{float(bottom.flat[0]):.4g} to {float(top.flat[0]):.4g}"


def _short(values: np.ndarray) -> str:
    return show([float(f"{v:.5g}") for v in np.asarray(plain(values), dtype=float).ravel()[:4]])


def _hex(data: np.ndarray) -> str:
    return "[" + ", ".join(f"0x{int(b):02X}" for b in data) + "]"
