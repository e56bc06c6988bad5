"""Checks of task 5.6: the review of the benchmark."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from support.benchmarked import (
    SUBMITTING,
    FakeBackend,
    Machine,
    batches,
    bigram_model,
    save,
    small_model,
    text_splits,
)

from shared.grading.expect import expect, expect_equal, expect_raises, fail, number, plain


def test_each_output_feature_has_a_scale_of_its_own(learner, rng):
    # Output features of very different size: where rows share a scale, the small ones vanish.
    sizes = np.geomspace(0.01, 10, 12)
    weight = (rng.uniform(0.2, 1, (9, 12)) * rng.choice([-1, 1], (9, 12))).astype(np.float32)
    weight *= rng.permutation(sizes).astype(np.float32)
    weight[:, int(rng.integers(12))] = 0
    values, scale = learner.quantize_weight(weight.copy())
    largest = np.abs(weight).max(axis=0)
    want = np.where(largest > 0, largest / 127, 1)
    expect(
        values.dtype == np.int8 and values.shape == weight.shape and scale.shape == (12,),
        observed=f"{values.dtype} of shape {values.shape}, scales of shape {scale.shape} for a "
        "weight of 9 input and 12 output features",
        expected="int8 of shape (9, 12), and 12 scales",
        why="A kernel sums over the input features in integers. Only a scale that all terms of a "
        "sum share can be multiplied in afterwards.",
        hint="axis",
    )
    expect_equal(
        scale,
        want,
        rel=1e-5,
        what="scales of the output features",
        why="One large feature must not decide about the steps of a small one.",
        hint="axis",
    )
    expect_equal(
        values,
        np.rint(weight / want.astype(np.float32)).astype(int),
        abs_=1,
        what="integers",
        why="Rounded to the nearest step, -127 to 127.",
        hint="axis",
    )


def test_the_int8_copy_computes_what_the_model_computes(learner, rng):
    model = small_model(rng)
    data = batches(learner, rng, [(4, 12), (3, 9)])
    ranges = plain(learner.activation_ranges(model, data))
    hidden = np.concatenate(
        [_outputs(model, ["embedded", "hidden"], b.tokens)[1].ravel() for b in data]
    )
    expect_equal(
        ranges["hidden"],
        [0.0, float(hidden.max())],
        rel=1e-4,
        what="range of the hidden layer over all batches",
        why="What lies outside is cut off.",
        hint="ranges",
    )
    before = model.SerializeToString()
    copy = learner.quantize_model(model, ranges)
    expect(
        model.SerializeToString() == before,
        observed="a model that was changed",
        expected="a copy",
        why="The float model is what the copy is compared with.",
        hint="ranges",
    )
    for reader in _readers(copy):
        axis = next((a.i for a in reader.attribute if a.name == "axis"), 1)
        expect(
            axis == 1,
            observed=f"a DequantizeLinear of a weight along axis {axis}",
            expected="axis 1: a MatMul's weight is (input features, output features)",
            why="Scales along the input features can't be used by an integer kernel, and let large "
            "output features swallow small ones.",
            hint="axis",
        )
    (want,), (got,) = (_outputs(m, ["logits"], data[0].tokens) for m in (model, copy))
    error = float(np.abs(got - want).mean() / np.abs(want).mean())
    expect(
        error < 0.05,
        observed=f"logits that are off by {error:.1%} on average",
        expected="at most 5 %",
        why="Eight bits with the right scales lose about one per cent here.",
        hint="axis",
    )


def test_exporting_again_leaves_the_same_bytes(learner, rng, tmp_path):
    path = tmp_path / "model.onnx"
    learner.export(small_model(rng, hidden=60), path)
    learner.export(small_model(rng, hidden=44), path)
    once = {f.name: f.stat().st_size for f in tmp_path.iterdir()}
    learner.export(small_model(rng, hidden=44), path)
    again = {f.name: f.stat().st_size for f in tmp_path.iterdir()}
    alone = tmp_path / "alone"
    alone.mkdir()
    model = small_model(rng, hidden=44)
    learner.export(model, alone / "model.onnx")
    fresh = {f.name: f.stat().st_size for f in alone.iterdir()}
    expect(
        once == again == fresh,
        observed=f"{fresh} in an empty folder, {once} over another model, {again} once more",
        expected="the same files with the same sizes",
        why="The job runs every night. A file that grows by a model each time fills the disk, and "
        "makes every size in the report wrong.",
        hint="again",
    )
    tokens = np.array([[1, 2, 3]])
    session = onnxruntime.InferenceSession(
        str(alone / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(["logits"], {"tokens": tokens})
    expect_equal(
        got,
        _outputs(model, ["logits"], tokens)[0],
        rel=1e-4,
        abs_=1e-5,
        what="logits of the exported model",
        why="What is shipped is what was measured.",
        hint="again",
    )
    expect_equal(
        sorted(fresh),
        ["model.onnx", "model.onnx.data"],
        what="files of an export",
        why="Whoever ships the model looks for them by these names.",
        hint="again",
    )


def test_size_counts_everything_that_is_shipped(learner, rng, tmp_path):
    model = small_model(rng, vocabulary=int(rng.integers(9, 30)), hidden=63)
    (tmp_path / "one").mkdir()
    whole = save(model, tmp_path / "one" / "whole.onnx")
    (tmp_path / "one" / "notes.data").write_bytes(b"not a part of the model")
    split = tmp_path / "split" / "model.onnx"
    split.parent.mkdir()
    # A copy: onnx.save empties the tensors of the model that it writes so.
    onnx.save(
        onnx.ModelProto.FromString(model.SerializeToString()),
        split,
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=0,
    )
    (split.parent / "model.onnx.data").write_bytes(b"left over from somebody else's export")
    parts = [split, *(split.parent / w.name for w in model.graph.initializer)]
    exported = tmp_path / "exported" / "model.onnx"
    exported.parent.mkdir()
    learner.export(model, exported)
    for path, want, about in (
        (exported, sum(f.stat().st_size for f in exported.parent.iterdir()), "an export"),
        (whole, whole.stat().st_size, "a model in one file"),
        (split, sum(p.stat().st_size for p in parts), "a model with a file for each tensor"),
    ):
        expect_equal(
            learner.artefact_bytes(path),
            want,
            what=f"bytes of {about}",
            why="Beside a graph of a few kilobytes lie the weights. Without them every model is "
            "small, and a compressed one no smaller.",
            hint="size",
        )


def test_perplexity_gives_every_token_the_same_weight(learner, rng):
    data = batches(learner, rng, [(1, 3), (6, 20), (2, 8)])
    known = {id(b): rng.normal(0, 3, (*b.tokens.shape, 7)).astype(np.float32) for b in data}
    machine = Machine()
    backend = FakeBackend(
        machine, "model", lambda n, now: 0.01, logits=lambda b: known[id(b)].copy()
    )
    got = number(learner.perplexity(backend, data), what="perplexity", hint="every-token")
    losses = [_losses(known[id(b)], b) for b in data]
    want = math.exp(np.concatenate(losses).mean())
    right = math.isclose(got, want, rel_tol=1e-4)
    by_batch = math.exp(np.mean([part.mean() for part in losses]))
    # A mask that is not shifted with the tokens predicts the first place of the padding, too.
    for about, mask in (
        ("padding counted as tokens", lambda b: np.ones_like(b.mask)),
        ("the place after the end of a text predicted, too", lambda b: np.roll(b.mask, 1, axis=1)),
    ):
        padded = np.concatenate(
            [_losses(known[id(b)], learner.Batch(b.tokens, mask(b))) for b in data]
        )
        expect(
            right or not math.isclose(got, math.exp(padded.mean()), rel_tol=1e-4),
            observed=f"a perplexity of {got:.4f}: {about}, {len(padded)} losses",
            expected=f"{want:.4f}, of the {sum(map(len, losses))} tokens that are predicted",
            why="Nobody wrote the padding. With it the figure is of the batches' shapes: sort the "
            "texts by length, and the same model looks better or worse.",
            hint="padding-predicted",
        )
    expect(
        right,
        observed=f"a perplexity of {got:.4f} over batches with {[len(x) for x in losses]} tokens"
        + (", the mean over batches" if math.isclose(got, by_batch, rel_tol=1e-4) else ""),
        expected=f"{want:.4f}: exp of the mean over all {sum(map(len, losses))} predicted tokens",
        why="A mean of batches' means changes when the same texts are batched in another way, and "
        "no two reports can be compared.",
        hint="every-token",
    )
    expect(
        machine.open == 0,
        observed=f"{machine.open} requests that nobody waited for",
        expected="an answer to each",
        why="They go on in the background, into whatever is measured next.",
        hint="not-finished",
    )
    short = learner.Batch(np.ones((2, 1), np.int64), np.ones((2, 1), np.int64))
    expect_raises(
        ValueError,
        lambda: learner.perplexity(FakeBackend(Machine(), "model", lambda n, now: 0.01), [short]),
        doing="texts of one token, of which none is predicted",
        why="A figure that is NaN passes every comparison with a limit, or none.",
        hint="every-token",
    )


def test_a_latency_ends_when_the_answer_is_there(learner, rng):
    data = batches(learner, rng, [(2, 5), (1, 4), (3, 6)])
    costs = [float(c) for c in rng.uniform(0.01, 0.05, 9)]
    machine = Machine()
    got = _measure(learner, machine, {"model": lambda n, now: costs[n]}, data, rounds=9)
    expect_equal(
        got["model"],
        [c + SUBMITTING for c in costs],
        rel=1e-6,
        what="latencies of 9 requests",
        why="Handing over a request takes microseconds; the customer waits for the answer. A timer "
        "that stops too early finds every model equally fast.",
        hint="not-finished",
    )
    expect(
        machine.overlaps == 0 and machine.open == 0,
        observed=f"{machine.overlaps} requests submitted while another was under way",
        expected="one request at a time",
        why="Two requests share the cores, and each looks slow for the other's sake.",
        hint="not-finished",
    )


def test_warm_up_comes_first_and_does_not_count(learner, rng):
    data = batches(learner, rng, [(2, 5), (1, 4)])
    warm_up = int(rng.integers(2, 6))
    machine = Machine()
    cold = {
        "float32": lambda n, now: 0.010 if n >= warm_up else 2.0,
        "int8": lambda n, now: 0.005 if n >= warm_up else 5.0,
    }
    got = _measure(learner, machine, cold, data, warm_up=warm_up, rounds=6)
    expect(
        max(map(max, got.values())) < 1,
        observed=f"latencies up to {max(map(max, got.values())):.2f} s, of models whose first "
        f"{warm_up} requests take seconds, with warm_up={warm_up}",
        expected="latencies of warm models only, at most 0.01 s",
        why="First requests allocate memory and choose kernels. They are paid once a start, not "
        "once a customer.",
        hint="warm-up",
    )
    expect_equal(
        {name: len(times) for name, times in got.items()},
        {"float32": 6, "int8": 6},
        what="latencies of 6 rounds",
        why="Warm-up requests come in addition to the rounds.",
        hint="warm-up",
    )
    expect(
        machine.overlaps == 0 and len(machine.asked) == 2 * (warm_up + 6),
        observed=f"{len(machine.asked)} requests, {machine.overlaps} of them submitted while "
        "another was under way",
        expected=f"{2 * (warm_up + 6)}, one at a time",
        why="A warm-up that nobody waits for is still running when the clock starts.",
        hint="warm-up",
    )
    none = Machine()
    _measure(learner, none, cold, data, warm_up=0, rounds=2)
    expect_equal(
        len(none.asked),
        4,
        what="requests of 2 rounds without warm-up",
        why="Who asks for a cold start must get one.",
        hint="warm-up",
    )


def test_a_machine_that_slows_down_slows_all_alike(learner, rng):
    data = batches(learner, rng, [(2, 5), (1, 4), (3, 6)])
    machine = Machine()

    # The same model twice, on a machine that heats up: 1 % slower with each second.
    def heated(n, now):
        return 0.5 * (1 + (now - 1000) / 100)

    got = _measure(learner, machine, {"a": heated, "b": heated}, data, rounds=8)
    ratio = float(np.median(got["a"]) / np.median(got["b"]))
    expect(
        0.99 < ratio < 1.01,
        observed=f"a ratio of {ratio:.3f} between a model and itself, on a machine "
        "that gets slower",
        expected="1, within a hundredth",
        why="Whatever is measured last gets the hot processor, the full disk and the neighbour's "
        "backup. The report then praises the order.",
        hint="order",
    )
    names = [name for name, _ in machine.asked]
    want = ["a", "b", "b", "a"] * 4
    expect_equal(
        names,
        want,
        what="order of the requests of 8 rounds",
        why="Taking turns is not enough: whoever is always second is always a little later.",
        hint="order",
    )
    asked = [next(i for i, b in enumerate(data) if b is batch) for _, batch in machine.asked]
    expect_equal(
        asked,
        [r % 3 for r in range(8) for _ in range(2)],
        what="batches of the requests of 8 rounds",
        why="A comparison is of the same work.",
        hint="order",
    )


def test_percentiles_and_rate_leave_nothing_out(learner, rng):
    data = batches(learner, rng, [(4, 30), (2, 6), (1, 9)])
    times = [float(t) for t in rng.uniform(0.010, 0.012, 40)]
    for place in rng.choice(40, 3, replace=False):
        times[place] = float(rng.uniform(2, 3))
    given = list(times)
    got = plain(learner.summarise(times, data))
    p50, p95 = np.percentile(given, [50, 95])
    expect_equal(
        got[:2],
        [p50, p95],
        rel=1e-6,
        what="p50 and p95 of 40 latencies, 3 of which are of seconds",
        why="The slow requests are what p95 is for. Customers had to wait for them, too.",
        hint="slow-ones",
    )
    tokens = sum(int(data[r % 3].mask.sum()) for r in range(40))
    padded = sum(int(data[r % 3].mask.size) for r in range(40))
    expect_equal(
        got[2],
        tokens / sum(given),
        rel=1e-6,
        what=f"tokens a second of {tokens} tokens in {padded} places",
        why="Nobody asked for the padding. With it, the batch with the most waste is the fastest.",
        hint="real-tokens",
    )


def test_ranges_come_from_the_calibration_split(learner, rng, tmp_path):
    source = save(small_model(rng), tmp_path / "source.onnx")
    model = onnx.load(source)
    # Token 6 drives the activations far out. The calibration texts do not hold it. Of theirs, only
    # the first batch holds the largest value, and only the last one the smallest.
    table = np.clip(numpy_helper.to_array(model.graph.initializer[0]), -2, 2)
    table[4], table[5], table[6] = 4, -5, 9 * np.sign(table[6])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(table, "table"))
    save(model, source)
    split = batches(learner, rng, [(3, 8), (2, 6), (4, 5), (1, 7), (2, 9)], vocabulary=4)
    split[0].tokens[0, 0], split[-1].tokens[0, 0] = 4, 5
    data = learner.Splits(
        split,
        tuple(learner.Batch(np.full((2, 5), 6), np.ones((2, 5), np.int64)) for _ in range(3)),
    )
    machine = Machine()
    _benchmark(learner, machine, source, data, tmp_path)
    copy = onnx.load(tmp_path / "int8.onnx")
    seen = np.concatenate(
        [_outputs(model, ["embedded"], b.tokens)[0].ravel() for b in data.calibration]
    )
    want = (max(seen.max(), 0) - min(seen.min(), 0)) / 255
    node = next(
        n for n in copy.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "embedded"
    )
    got = float(
        numpy_helper.to_array(next(i for i in copy.graph.initializer if i.name == node.input[1]))
    )
    expect(
        bool(got > want * 0.999),
        observed=f"a step of {got:.5f} for the activations of the first product, less than all "
        f"{len(split)} batches of the calibration split need",
        expected=f"{want:.5f}: the range over the whole calibration split / 255",
        why="A value that no chosen batch holds is cut off in service, and a few batches hold few "
        "of the large ones.",
        hint="whole-split",
    )
    expect(
        math.isclose(got, want, rel_tol=1e-3),
        observed=f"a step of {got:.5f} for the activations of the first product",
        expected=f"{want:.5f}: the range over the calibration split / 255",
        why="Ranges that were fitted to the test texts fit them better than any text of tomorrow. "
        "The loss in the report is then too small, and nobody can tell by how much.",
        hint="calibration",
    )
    measured = [batch for _, batch in machine.asked]
    expect(
        all(any(batch is b for b in data.test) for batch in measured) and len(measured) > 0,
        observed="requests with batches that are not of the test split",
        expected="measurements on the test split only",
        why="What was tuned on a split looks good on it.",
        hint="calibration",
    )


def test_both_models_get_the_same_threads(learner, rng, tmp_path):
    source = save(small_model(rng), tmp_path / "source.onnx")
    data = _splits(learner, rng)
    for threads in (1, 3):
        machine = Machine()
        report, made = _benchmark(learner, machine, source, data, tmp_path, threads=threads)
        expect_equal(
            [(path.name, given) for path, given, _ in made],
            [("float32.onnx", threads), ("int8.onnx", threads)],
            what=f"models loaded, and their threads, for threads={threads}",
            why="Twice the cores, and any copy is faster. The report would compare machines.",
            hint="threads",
        )
        expect_equal(
            (report["float32"]["threads"], report["int8"]["threads"]),
            (threads, threads),
            what="threads in the report",
            why="A latency without its number of threads says nothing.",
            hint="threads",
        )


def test_the_report_says_what_was_measured(learner, rng, tmp_path):
    source = save(small_model(rng), tmp_path / "source.onnx")
    data = _splits(learner, rng)
    machine = Machine()
    report, made = _benchmark(learner, machine, source, data, tmp_path, warm_up=2, rounds=10)
    requests = [data.test[r % len(data.test)] for r in range(10)]
    tokens = sum(int(b.mask.sum()) for b in requests)
    for name, cost, vocabulary in (("float32", 0.03, 7), ("int8", 0.01, 9)):
        want = {
            "bytes": sum(f.stat().st_size for f in tmp_path.glob(f"{name}.onnx*")),
            "perplexity": float(vocabulary),
            "p50": cost,
            "p95": cost,
            "tokens_per_second": tokens / (10 * cost),
            "threads": 1,
        }
        expect_equal(
            report[name],
            want,
            rel=1e-3,
            what=f"figures of {name}",
            why="Each figure is what its docstring says, of the model whose name stands above it.",
            hint="report",
        )
    expect_equal(
        report["speed_up"],
        3.0,
        rel=1e-3,
        what="speed-up of a copy that takes a third of the time",
        why="This number decides.",
        hint="report",
    )
    expect(
        all(backend.closed for _, _, backend in made),
        observed="backends that are still open",
        expected="both closed",
        why="Each holds a model in memory, and a thread.",
        hint="closed",
    )
    broken: list[Any] = []

    def breaks(path, threads):
        if broken:
            raise RuntimeError("the copy does not load")
        broken.append(FakeBackend(Machine(), "float32", lambda n, now: 0.01))
        return broken[0]

    expect_raises(
        RuntimeError,
        lambda: learner.benchmark(
            source, data, tmp_path, threads=1, make_backend=breaks, clock=Machine().clock
        ),
        doing="a copy that does not load",
        why="A report on half of the comparison is none.",
        hint="closed",
    )
    expect(
        broken[0].closed,
        observed="a float32 backend that is still open after the int8 one failed to load",
        expected="it is closed",
        why="The nightly job goes on to the next model, with this one in memory.",
        hint="closed",
    )


def test_a_real_model_end_to_end(learner, domain, figure, tmp_path):
    source = save(bigram_model(domain), tmp_path / "source.onnx")
    data = text_splits(learner, domain)
    folder = tmp_path / "out"
    folder.mkdir()
    report = plain(learner.benchmark(source, data, folder, threads=1, warm_up=2, rounds=8))
    for name in ("float32", "int8"):
        path, got = folder / f"{name}.onnx", report[name]
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        losses = [_losses(session.run(["logits"], {"tokens": b.tokens})[0], b) for b in data.test]
        want = {
            "bytes": sum(f.stat().st_size for f in folder.glob(f"{name}.onnx*")),
            "perplexity": math.exp(np.concatenate(losses).mean()),
            "threads": 1,
        }
        expect_equal(
            {key: got[key] for key in want},
            want,
            rel=1e-3,
            what=f"figures of {name} on the texts of the {domain} desk",
            why="This is the report that the branch gets.",
            hint="report",
        )
        expect(
            0 < got["p50"] <= got["p95"] and got["tokens_per_second"] > 0,
            observed=f"{ {k: got[k] for k in ('p50', 'p95', 'tokens_per_second')} }",
            expected="0 < p50 <= p95, and a rate",
            why="This is the report that the branch gets.",
            hint="report",
        )
    small, whole = report["int8"], report["float32"]
    figure("size of int8 / float32", small["bytes"] / whole["bytes"])
    figure("perplexity of float32", whole["perplexity"])
    figure("perplexity of int8", small["perplexity"])
    figure("speed-up of int8 (one thread)", report["speed_up"])
    expect(
        small["bytes"] < 0.4 * whole["bytes"]
        and abs(small["perplexity"] / whole["perplexity"] - 1) < 0.02,
        observed=f"{small['bytes']:,} bytes instead of {whole['bytes']:,}, perplexity "
        f"{small['perplexity']:.3f} instead of {whole['perplexity']:.3f}",
        expected="less than 40 % of the bytes, and a perplexity within 2 %",
        why="With a scale for each output and ranges that hold, 8 bits cost this model nearly "
        "nothing.",
        hint="axis",
    )


def _splits(learner, rng) -> Any:
    return learner.Splits(
        batches(learner, rng, [(3, 8), (2, 6)]), batches(learner, rng, [(2, 9), (5, 4), (1, 7)])
    )


def _measure(learner, machine: Machine, costs, data, *, warm_up: int = 0, rounds: int):
    backends = {name: FakeBackend(machine, name, cost) for name, cost in costs.items()}
    return plain(
        learner.measure(backends, data, warm_up=warm_up, rounds=rounds, clock=machine.clock)
    )


def _benchmark(
    learner, machine: Machine, source, data, folder, *, threads=1, warm_up=1, rounds=4
) -> tuple[dict[str, Any], list[Any]]:
    """Run the benchmark with backends on a machine of ours: its report, and what was loaded."""
    made: list[Any] = []

    def make(path, given):
        if not path.is_file():
            fail(
                observed=f"a backend for {path.name}, which is not there",
                expected="an exported model",
                why="What is measured is what is shipped.",
                hint="report",
            )
        int8 = path.stem == "int8"
        backend = FakeBackend(
            machine,
            path.stem,
            lambda n, now: 0.01 if int8 else 0.03,
            threads=given,
            vocabulary=9 if int8 else 7,
        )
        made.append((path, given, backend))
        return backend

    report = learner.benchmark(
        source,
        data,
        folder,
        threads=threads,
        warm_up=warm_up,
        rounds=rounds,
        make_backend=make,
        clock=machine.clock,
    )
    return plain(asdict(report)), made


def _outputs(model: onnx.ModelProto, names: list[str], tokens) -> list[Any]:
    """Tensors of a model on some tokens, computed by the check itself."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(names, {"tokens": tokens})


def _readers(copy: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that turn the weights' integers into floats."""
    matrices = {
        i.name
        for i in copy.graph.initializer
        if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 2
    }
    found = [
        n for n in copy.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in matrices
    ]
    expect_equal(
        len(found),
        2,
        what="matrices of 8 bits that a DequantizeLinear reads",
        why="Both products were to be quantized.",
        hint="axis",
    )
    return found


def _losses(logits, batch):
    """Negative log-likelihood of each predicted token, in nats, computed by the check itself."""
    guess = logits.astype(np.float64)
    logs = guess - np.log(np.exp(guess).sum(axis=-1, keepdims=True))
    rows, places = np.nonzero(batch.mask[:, 1:])
    return -logs[rows, places, batch.tokens[rows, places + 1]]
