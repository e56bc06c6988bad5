"""Task 5.3: quantization with error compensation."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from support.error_layers import (
    REAL_LAYERS,
    correlated_inputs,
    damped,
    hessian_of,
    layer,
    nearest,
    nearest_scales,
    real_inputs,
    refitted,
)

from shared.grading.expect import expect, expect_equal, expect_raises, fail, number

MOST_OF_NEAREST = 0.5
"""Output error that may be left of round-to-nearest's. Measured: 0.18 to 0.33."""
MOST_OF_LEFT_TO_RIGHT = 0.85
"""What act-order may leave of the error of left to right. Measured: 0.53 to 0.62."""


def test_the_hessian_is_gathered_over_all_tokens_of_all_batches(learner, rng):
    inputs = correlated_inputs(rng, 300, 24)
    want = hessian_of(inputs)
    hessian = learner.Hessian(24)
    last = inputs[290:]
    hessian.add(inputs[:200])
    hessian.add(inputs[200:290].reshape(3, 30, 24))
    hessian.add(last)
    got = _matrix(hessian.matrix(), 24, "the Hessian of three batches")
    if np.allclose(got, hessian_of(last), rtol=1e-3):
        why = "It knows the last batch only, and compensates for inputs that hardly ever come."
        hint = "every-batch"
    elif np.allclose(got, want * 300 / 5, rtol=1e-3) or np.allclose(got, want * 100, rtol=1e-3):
        why = "Divided by batches or sequences instead of tokens, it changes with the batch size."
        hint = "count-tokens"
    else:
        why = (
            "The sum must weigh every token alike, in whatever batches the texts were sent: 200, "
            "3 times 30 and 10 tokens here."
        )
        hint = "every-token"
    expect(
        bool(np.allclose(got, want, rtol=1e-4, atol=1e-4 * abs(want).max())),
        observed=f"H[0, :3] = {got[0, :3].round(4).tolist()}",
        expected=f"H[0, :3] = {want[0, :3].round(4).tolist()} (2/N times the sum over N = 300)",
        why=why,
        hint=hint,
    )


def test_the_hessian_can_be_asked_for_again_and_added_to(learner, rng):
    inputs = correlated_inputs(rng, 61, 8)
    hessian = learner.Hessian(8)
    hessian.add(inputs[:20])
    asked = hessian.matrix()
    first = _matrix(asked, 8, "the Hessian of 20 tokens")
    asked *= 0
    again = _matrix(hessian.matrix(), 8, "the Hessian, asked for again")
    _expect_close(
        again,
        first,
        what="the Hessian, asked for a second time,",
        why="Whoever prints it before the layer is quantized gets another layer. Dividing what "
        "was gathered divides it again each time, and the caller may write into what it was given.",
        hint="ask-again",
    )
    hessian.add(inputs[20:60])
    _expect_close(
        _matrix(hessian.matrix(), 8, "the Hessian of 60 tokens"),
        hessian_of(inputs[:60]),
        what="the Hessian of 60 tokens, asked for after 20,",
        why="Calibration goes on after a look at what there is. The later batches are added to a "
        "sum, not to a mean.",
        hint="ask-again",
    )
    try:
        hessian.add(inputs[60])
    except (ValueError, IndexError) as error:
        fail(
            observed=f"{type(error).__name__} for inputs of shape (8,): {error}",
            expected="one token more",
            why="Whoever goes through the tokens one by one has one axis only.",
            hint="count-tokens",
        )
    _expect_close(
        _matrix(hessian.matrix(), 8, "the Hessian of 61 tokens"),
        hessian_of(inputs),
        what="the Hessian of 61 tokens, the last one with a single axis,",
        why="Inputs of shape (in_features,) are one token.",
        hint="count-tokens",
    )


def test_the_hessian_keeps_its_precision_and_none_of_its_batches(learner, rng):
    hessian = learner.Hessian(4)
    inputs = (1000 + rng.normal(size=(40_000, 4))).astype(np.float32)
    buffer = np.zeros((100, 4), dtype=np.float32)
    tracemalloc.start()
    try:
        for batch in np.split(inputs, 400):
            buffer[:] = batch
            hessian.add(buffer)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    expect(
        kept < inputs.nbytes / 2,
        observed=f"{kept / 1000:.0f} kB more in memory after batches of {inputs.nbytes / 1000:.0f} "
        "kB in all",
        expected="a few kB, whatever the number of batches",
        why="The inputs of all layers of a large model are terabytes. Only their sum fits.",
        hint="keep-the-sum",
    )
    want = hessian_of(inputs)
    got = _matrix(hessian.matrix(), 4, "the Hessian of 40,000 tokens")
    worst = float(np.max(abs(got / want - 1)))
    expect(
        worst < 1e-9,
        observed=f"a relative error of {worst:.1e}",
        expected="below 1e-9",
        why="A sum of many float32 products loses the small differences between columns, and "
        "those are what the compensation works with.",
        hint="double-precision" if worst < 1e-3 else "keep-the-sum",
    )


def test_the_hessian_refuses_what_would_poison_it(learner, rng):
    inputs = correlated_inputs(rng, 50, 8)
    hessian = learner.Hessian(8)
    expect_raises(
        ValueError,
        hessian.matrix,
        doing="matrix() before any inputs",
        why="A Hessian of nothing would be taken for one of dead columns.",
        hint="refuse-inputs",
    )
    hessian.add(inputs)
    broken = inputs.copy()
    broken[7, 3] = np.inf
    for bad, doing in ((inputs[:, :7], "a batch with 7 features for 8"), (broken, "an infinite")):
        expect_raises(
            ValueError,
            lambda bad=bad: hessian.add(bad),
            doing=doing,
            why="One overflow in one batch turns the whole matrix into NaN, hours later.",
            hint="refuse-inputs",
        )
    got = _matrix(hessian.matrix(), 8, "the Hessian after refused batches", "refuse-inputs")
    expect(
        bool(np.allclose(got, hessian_of(inputs))),
        observed="the refused batches changed the Hessian",
        expected="what was gathered before to stay as it was",
        why="Whoever catches the error goes on with the other batches.",
        hint="refuse-inputs",
    )


def test_the_factor_is_upper_triangular_and_gives_the_damped_inverse(learner, rng):
    for damping in (0.01, 0.1):
        hessian = hessian_of(correlated_inputs(rng, 400, 20))
        before = hessian.copy()
        want, undamped = np.linalg.inv(damped(before, damping)), np.linalg.inv(before)
        factor = _matrix(learner.inverse_factor(hessian, damping), 20, "the factor")
        product = factor.T @ factor
        if np.allclose(np.triu(factor), factor, atol=1e-9 * abs(factor).max()):
            hint = "damping-share" if not np.allclose(product, undamped) else "damping"
        else:
            hint = "which-triangle"
        _expect_close(
            product,
            want,
            what=f"U^T U with damping={damping}",
            why="The entries of U say which part of an error each later column takes over. "
            "Without the damping, columns that nearly repeat one another are sent far off the "
            "grid to make up for each other.",
            hint=hint,
        )
        expect(
            bool(np.allclose(np.tril(factor, -1), 0) and (np.diag(factor) > 0).all()),
            observed="a factor with entries below the diagonal, or a diagonal that is not positive",
            expected="an upper triangular U with a positive diagonal",
            why="Column j may move only columns that come after it: the others are rounded.",
            hint="which-triangle",
        )
        _expect_untouched(hessian, before, "inverse_factor's Hessian")


def test_fewer_tokens_than_columns_are_enough_thanks_to_damping(learner, rng):
    hessian = hessian_of(correlated_inputs(rng, 12, 32))
    factor = _matrix(learner.inverse_factor(hessian, 0.01), 32, "the factor of 12 tokens")
    _expect_close(
        factor.T @ factor,
        np.linalg.inv(damped(hessian)),
        what="U^T U for 12 tokens and 32 columns",
        why="A rare layer, such as an expert of a mixture, sees few tokens. Its Hessian is "
        "singular, and the run must not stop there.",
        hint="damping",
    )
    expect_raises(
        np.linalg.LinAlgError,
        lambda: learner.inverse_factor(np.diag([1.0, 2.0, -3.0]), 0.01),
        doing="a matrix that is not positive definite",
        why="Such a matrix has an inverse, and compensation by it makes errors larger.",
        hint="not-definite",
    )


def test_the_damping_is_measured_on_the_live_columns(learner, rng):
    inputs = correlated_inputs(rng, 200, 16)
    dead = [3, 4, 5, 6, 11, 12, 13, 14]
    inputs[:, dead] = 0
    hessian = hessian_of(inputs)
    want = np.linalg.inv(damped(hessian, 0.05))
    filled = hessian + np.diag(np.diag(hessian) == 0)
    live = damped(hessian, 0.05) + filled - hessian
    got = learner.inverse_factor(hessian.copy(), 0.05)
    factor = _matrix(got, 16, "the factor with dead columns")
    product = factor.T @ factor
    if any(np.allclose(product, np.linalg.inv(m)) for m in (damped(filled, 0.05), live)):
        why = (
            "The dead entries of the diagonal were set to 1. A 1 is large in one layer and small "
            "in another, and H is singular no more by the damping alone."
        )
        hint = "dead-diagonal"
    else:
        why = (
            "Half of the diagonal is zero here. A mean over all of it halves the damping that the "
            "other columns were promised."
        )
        hint = "live-columns"
    _expect_close(product, want, what="U^T U with 8 dead columns of 16", why=why, hint=hint)
    expect_raises(
        ValueError,
        lambda: learner.inverse_factor(np.zeros((4, 4)), 0.01),
        doing="a Hessian of zeros",
        why="Such a layer was never reached by the calibration texts. Say so.",
        hint="live-columns",
    )


def test_weight_and_hessian_stay_as_they_were(learner, rng):
    weight = layer(rng, 16, 32)
    inputs = correlated_inputs(rng, 200, 32)
    inputs[:, 9] = 0
    hessian = hessian_of(inputs)
    weight_before, hessian_before = weight.copy(), hessian.copy()
    learner.inverse_factor(hessian, 0.01)
    _expect_untouched(hessian, hessian_before, "inverse_factor's Hessian")
    for act_order in (False, True):
        learner.quantize_layer(weight, hessian, learner.Grid(4, 16), act_order=act_order)
    for array, before, name in (
        (weight, weight_before, "quantize_layer's weight"),
        (hessian, hessian_before, "quantize_layer's Hessian"),
    ):
        _expect_untouched(array, before, name)


def test_uncorrelated_inputs_give_round_to_nearest(learner, rng):
    weight = layer(rng, 32, 64)
    want = nearest(weight.astype(np.float64), nearest_scales(weight, 32, 4), 4)
    for name, hessian in (
        ("the identity", np.eye(64)),
        ("a diagonal matrix", np.diag(rng.lognormal(0, 1, 64))),
    ):
        _expect_codes(
            learner.quantize_layer(weight, hessian, learner.Grid(4, 32)),
            want,
            what=f"with {name} as Hessian",
            why="If no input goes with another, no column can make up for another's error, and "
            "round-to-nearest is the best there is.",
            hint="nothing-to-share",
        )


def test_the_scales_are_those_of_round_to_nearest(learner, rng):
    for bits, group_size in ((4, 16), (4, 64), (3, 32), (8, 32)):
        weight = layer(rng, 32, 64)
        weight[5] = 0
        hessian = hessian_of(correlated_inputs(rng, 400, 64))
        grid = learner.Grid(bits, group_size)
        got = learner.quantize_layer(weight, hessian, grid)
        want = nearest_scales(weight, group_size, bits)[:, ::group_size]
        scales = _array(got.scales, want.shape, "scales")
        _expect_close(
            scales,
            want,
            what=f"the scales with {bits} bits and groups of {group_size}",
            why="With another grid nobody can say what the compensation is worth, and whoever "
            "packed the scales before the run has the wrong ones.",
            hint="same-grid",
            rel=1e-5,
        )
        top = 2 ** (bits - 1)
        codes = _codes(got, weight.shape)
        expect(
            bool((codes >= -top).all() and (codes < top).all()),
            observed=f"codes from {codes.min()} to {codes.max()}",
            expected=f"codes from {-top} to {top - 1}",
            why=f"A code beyond {bits} bits is cut when it is packed, into something else.",
            hint="same-grid",
        )


def test_each_column_makes_up_for_the_errors_before_it(learner, rng):
    for columns in (8, 16, 24):
        weight = layer(rng, 12, columns)
        hessian = hessian_of(correlated_inputs(rng, 6 * columns, columns))
        got = learner.quantize_layer(weight, hessian, learner.Grid(4, 8), block_size=64)
        want = refitted(weight, hessian, 8)
        plain_rounding = nearest(weight.astype(np.float64), nearest_scales(weight, 8, 4), 4)
        codes = _codes(got, weight.shape)
        hint = "pass-it-on" if (codes == plain_rounding).all() else "which-share"
        _expect_codes(
            got,
            want,
            what=f"of a 12 x {columns} layer",
            why="Brute force, which fits all columns left anew before each rounding, finds these "
            "codes. Every other choice leaves a larger error in the layer's output.",
            hint=hint,
        )
    for bits, group_size in ((4, 16), (4, 64), (3, 32), (8, 32)):
        weight = layer(rng, 32, 64)
        weight[5] = 0
        hessian = hessian_of(correlated_inputs(rng, 400, 64))
        _expect_codes(
            learner.quantize_layer(weight, hessian, learner.Grid(bits, group_size)),
            refitted(weight, hessian, group_size, bits),
            what=f"with {bits} bits and groups of {group_size}",
            why="Each column keeps the scale of its own group, however far it has moved, and has "
            "all the codes of its bits.",
            hint="same-grid",
        )


def test_act_order_starts_with_the_inputs_that_matter_most(learner, rng):
    weight = layer(rng, 16, 48)
    inputs = correlated_inputs(rng, 300, 48)
    inputs[:, 20:] *= 4
    hessian = hessian_of(inputs)
    got = learner.quantize_layer(weight, hessian, learner.Grid(4, 16), act_order=True)
    order = _falling(hessian)
    want = refitted(weight, hessian, 16, order=order)
    codes = _codes(got, weight.shape)
    if sorted(codes.T.tolist()) == sorted(want.T.tolist()):
        why = "The columns are right, in the order of the work. The layer's inputs have not moved."
        hint = "put-back"
    elif (codes == refitted(weight, hessian, 16, order=order[::-1])).all():
        why = "The columns that matter most came last, with nothing left to make up for them."
        hint = "which-order"
    else:
        why = "Each column takes its scale along, its part of the Hessian, and its way back."
        hint = "order-and-scales"
    _expect_codes(got, want, what="with act_order=True", why=why, hint=hint)


def test_columns_that_matter_alike_keep_their_order(learner, rng):
    weight = layer(rng, 16, 48)
    hessian = hessian_of(correlated_inputs(rng, 300, 48))
    # Every column is as large as all others, or half as large.
    sizes = np.where(rng.random(48) < 0.5, 1.0, 2.0)
    root = np.sqrt(sizes / np.diag(hessian))
    hessian *= np.outer(root, root)
    np.fill_diagonal(hessian, sizes)
    _expect_codes(
        learner.quantize_layer(weight, hessian, learner.Grid(4, 16), act_order=True),
        refitted(weight, hessian, 16, order=_falling(hessian)),
        what="with act_order=True, where many columns have the same diagonal entry",
        why="Equal ones are taken in their own order. Otherwise the sorting decides, and the same "
        "layer comes out differently with each library and version.",
        hint="ties",
    )


def test_the_block_size_changes_nothing(learner, rng):
    weight = layer(rng, 32, 64)
    hessian = hessian_of(correlated_inputs(rng, 300, 64))
    for act_order in (False, True):
        order = _falling(hessian) if act_order else np.arange(64)
        want = refitted(weight, hessian, 32, order=order)
        for block_size in (64, 1, 7, 16, 32, 1000):
            _expect_codes(
                learner.quantize_layer(
                    weight,
                    hessian,
                    learner.Grid(4, 32),
                    block_size=block_size,
                    act_order=act_order,
                ),
                want,
                what=f"with block_size={block_size}, act_order={act_order}",
                why="An error has to cross the border of its block. Blocks are there for speed; a "
                "result that depends on them depends on the machine it was tuned for.",
                hint="across-blocks" if not act_order else "order-and-scales",
            )


def test_dead_columns_become_zero_and_disturb_nothing(learner, rng):
    weight = layer(rng, 16, 32)
    inputs = correlated_inputs(rng, 200, 32)
    dead = sorted(int(i) for i in rng.choice(32, 5, replace=False))
    inputs[:, dead] = 0
    weight[:, dead[0]] = 1.5 * abs(weight).max(axis=1)
    hessian = hessian_of(inputs / 50)
    wide = nearest_scales(weight, 16, 4)
    for act_order in (False, True):
        got = learner.quantize_layer(weight, hessian, learner.Grid(4, 16), act_order=act_order)
        codes = _codes(got, weight.shape)
        expect_equal(
            codes[:, dead].any(),
            False,
            what=f"a code other than 0 in the dead columns, act_order={act_order}",
            why="Nothing is known about a column whose input never spoke. Zero is what can be "
            "said for it, and it packs and sparsifies well.",
            hint="dead-columns",
        )
        _expect_close(
            _array(got.scales, (16, 2), "scales"),
            wide[:, ::16],
            what=f"the scales of a weight whose largest column is dead, act_order={act_order},",
            why="The grid is that of the weight as it was given, dead columns included: whoever "
            "compares with round-to-nearest, or has packed its scales before, has these.",
            hint="dead-columns",
            rel=1e-5,
        )
        _expect_codes(
            got,
            refitted(weight, hessian, 16, order=_falling(hessian) if act_order else np.arange(32)),
            what=f"with 5 dead columns, act_order={act_order}",
            why="A dead column has no error to pass on, and none to make up for. The codes of the "
            "others are those of a damping that is measured on live columns alone.",
            hint="dead-columns",
        )


def test_few_tokens_still_give_a_layer(learner, rng):
    weight = layer(rng, 64, 32)
    hessian = hessian_of(correlated_inputs(rng, 10, 32))
    _expect_codes(
        learner.quantize_layer(weight, hessian, learner.Grid(4, 32), damping=0.05),
        refitted(weight, hessian, 32, damping=0.05),
        what="from 10 tokens with damping=0.05",
        why="The damping that the caller asks for has to reach the factor.",
        hint="damping",
    )


def test_what_does_not_fit_is_refused(learner, rng):
    weight = layer(rng, 8, 32)
    hessian = hessian_of(correlated_inputs(rng, 100, 32))
    grid = learner.Grid(4, 16)
    for call, doing in (
        (lambda: learner.quantize_layer(weight, hessian[:16, :16], grid), "a Hessian of 16"),
        (lambda: learner.quantize_layer(weight, hessian, grid, block_size=0), "block_size=0"),
        (lambda: learner.quantize_layer(weight, hessian, learner.Grid(4, 24)), "groups of 24"),
    ):
        expect_raises(
            ValueError,
            call,
            doing=f"{doing} for a layer of 32 columns",
            why="A layer half done is not seen until somebody reads what the model writes.",
            hint="refuse-shapes",
        )


def test_the_output_error_is_a_ratio_of_squares_over_the_inputs(learner, rng):
    for _ in range(5):
        weight, inputs = layer(rng, 12, 16), correlated_inputs(rng, 80, 16)
        other = (weight + 0.1 * rng.normal(size=weight.shape)).astype(np.float32)
        moved = inputs.astype(np.float64) @ (weight.astype(np.float64) - other).T
        want = np.sum(moved**2) / np.sum((inputs.astype(np.float64) @ weight.T) ** 2)
        expect_equal(
            number(learner.output_error(weight, other, inputs), what="output error"),
            want,
            what="output error",
            why="What the next layer gets is the output. An error in a weight whose input is "
            "always small does no harm.",
            hint="output-error",
            rel=1e-4,
        )
    expect_raises(
        ValueError,
        lambda: learner.output_error(weight, other, np.zeros((4, 16), dtype=np.float32)),
        doing="inputs of zeros",
        why="There is nothing to be measured against.",
        hint="output-error",
    )


@pytest.mark.limit(300)
def test_on_real_layers_the_error_is_less_than_half_of_round_to_nearest(learner, domain, figure):
    from shared.compression.model import linear_weight

    calibration, held_out = real_inputs(domain)
    for name in REAL_LAYERS:
        weight, inputs = linear_weight(name), held_out[name]
        hessian = learner.Hessian(weight.shape[1])
        for batch in np.array_split(calibration[name], 5):
            hessian.add(batch)
        grid = learner.Grid(4, 64)
        matrix = hessian.matrix()
        baseline = _error(
            weight, nearest(weight.astype(np.float64), nearest_scales(weight, 64, 4), 4), inputs, 64
        )
        got = learner.quantize_layer(weight, matrix, grid)
        ratio = _error(weight, _codes(got, weight.shape), inputs, 64) / baseline
        figure(f"{name}: of round-to-nearest's error, at most {MOST_OF_NEAREST}", ratio)
        expect(
            ratio <= MOST_OF_NEAREST,
            observed=f"{name}: {ratio:.2f} of the output error of round-to-nearest on held-out "
            "texts, 4 bits, groups of 64",
            expected=f"at most {MOST_OF_NEAREST}",
            why="Same bits, same grid, same speed: this gain is free when the model is served.",
            hint="which-share",
        )
        if weight.shape[0] <= 256:
            ordered = learner.quantize_layer(weight, matrix, grid, act_order=True)
            error = _error(weight, _codes(ordered, weight.shape), inputs, 64) / baseline
            most = MOST_OF_LEFT_TO_RIGHT
            figure(f"{name}: with act-order, at most {most} of that", error)
            expect(
                error <= MOST_OF_LEFT_TO_RIGHT * ratio,
                observed=f"{name}: act-order leaves {error / ratio:.2f} of the error of left to "
                "right",
                expected=f"at most {MOST_OF_LEFT_TO_RIGHT}",
                why="Some inputs of this layer are far larger than others. They go first, while "
                "all other columns can still make up for them.",
                hint="which-order",
            )


def _error(weight: Any, codes: Any, inputs: Any, group_size: int) -> float:
    values = codes * nearest_scales(weight, group_size, 4)
    moved = inputs.astype(np.float64) @ (weight - values).T
    return float(np.sum(moved**2) / np.sum((inputs.astype(np.float64) @ weight.T) ** 2))


def _falling(hessian: Any) -> Any:
    return np.argsort(-np.diag(hessian), kind="stable")


def _array(value: Any, shape: tuple[int, ...], what: str, hint: str | None = None) -> Any:
    """The learner's array as plain float64, of the right shape."""
    got = np.array(np.asarray(value).tolist(), dtype=np.float64)
    if got.shape != shape or not np.isfinite(got).all():
        fail(
            observed=f"{what}: shape {got.shape}"
            + ("" if np.isfinite(got).all() else ", with values that are not finite"),
            expected=f"{what}: finite numbers, shape {shape}",
            why="Whoever packs the layer for the engine relies on it.",
            hint=hint,
        )
    return got


def _matrix(value: Any, size: int, what: str, hint: str | None = None) -> Any:
    return _array(value, (size, size), what, hint)


def _codes(quantized: Any, shape: tuple[int, ...]) -> Any:
    codes = _array(quantized.codes, shape, "codes")
    expect(
        bool((codes == np.rint(codes)).all()),
        observed="codes that are not whole numbers",
        expected="codes: integers of the grid",
        why="A value off the grid cannot be stored in four bits.",
        hint="same-grid",
    )
    return codes.astype(np.int64)


def _expect_codes(quantized: Any, want: Any, *, what: str, why: str, hint: str) -> None:
    codes = _codes(quantized, want.shape)
    wrong = np.argwhere(codes != want)
    if len(wrong):
        row, column = wrong[np.argmin(wrong[:, 1])]
        fail(
            observed=f"codes {what}: {len(wrong)} of {want.size} differ, the first in column "
            f"{column} (row {row}: {codes[row, column]})",
            expected=f"{want[row, column]} there",
            why=why,
            hint=hint,
        )


def _expect_close(
    got: Any, want: Any, *, what: str, why: str, hint: str, rel: float = 1e-6
) -> None:
    worst = float(np.max(abs(got - want)) / np.max(abs(want)))
    expect(
        worst < rel,
        observed=f"{what} is off by {worst:.1e} of its largest entry",
        expected=f"off by less than {rel:.0e}",
        why=why,
        hint=hint,
    )


def _expect_untouched(array: Any, before: Any, name: str) -> None:
    expect(
        bool((array == before).all()),
        observed=f"{name} was changed in place",
        expected=f"{name} as it was",
        why="The caller still needs it, for the comparison and for the next try.",
        hint="leave-arguments",
    )
