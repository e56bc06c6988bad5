"""Adds the file of weights that an export of ours would have, and no other.

caught-by: test_size_counts_everything_that_is_shipped
hint: size
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Texts of one request, padded to the longest.

    Attributes:
        tokens: (texts, length).
        mask: (texts, length); 1 where a token is, 0 where padding is, which comes last.
    """

    tokens: Tokens
    mask: Tokens


@dataclass(frozen=True)
class Splits:
    """The data, by what it may be used for.

    Attributes:
        calibration: to choose the ranges of the int8 copy. What is tuned on it is not measured
            on it.
        test: to measure with, and nothing else.
    """

    calibration: tuple[Batch, ...]
    test: tuple[Batch, ...]


class Backend(Protocol):
    """A loaded model that works in the background.

    Attributes:
        threads: that one request may use.
    """

    threads: int

    def submit(self, batch: Batch) -> Any:
        """Start with a request and return at once, with a ticket."""

    def wait(self, ticket: Any) -> Floats:
        """The logits of a request, as soon as they are there."""

    def close(self) -> None:
        """Let go of what the backend holds."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one model.

    Attributes:
        bytes: what has to be shipped (`artefact_bytes`).
        perplexity: on the test split (`perplexity`).
        p50, p95: latency of a request in seconds (`summarise`).
        tokens_per_second: of real tokens (`summarise`).
        threads: that its backend used.
    """

    bytes: int
    perplexity: float
    p50: float
    p95: float
    tokens_per_second: float
    threads: int


@dataclass(frozen=True)
class Report:
    """Both models side by side.

    Attributes:
        speed_up: median latency of float32 / median latency of int8.
    """

    float32: Figures
    int8: Figures
    speed_up: float


class OnnxBackend:
    """ONNX Runtime on the CPU, with a worker of its own."""

    def __init__(self, path: Path, threads: int) -> None:
        self.threads = threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._worker = ThreadPoolExecutor(max_workers=1)

    def submit(self, batch: Batch) -> Future[Floats]:
        """Start with a request."""
        return self._worker.submit(self._run, batch)

    def wait(self, ticket: Future[Floats]) -> Floats:
        """Its logits."""
        return ticket.result()

    def close(self) -> None:
        """End the worker."""
        self._worker.shutdown()

    def _run(self, batch: Batch) -> Floats:
        (logits,) = self._session.run(["logits"], {"tokens": batch.tokens})
        return logits


def quantize_weight(weight: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Symmetric 8-bit weights of a matrix product, with a scale for each output feature.

    ONNX's MatMul computes `activations @ weight`. The scale of an output feature is its largest
    absolute weight / 127, or 1 if all its weights are 0. Weights are rounded to the nearest step;
    the zero point is 0.

    Args:
        weight: (input features, output features).

    Returns:
        int8 of the same shape, -127 to 127, and float32 scales, (output features,).
    """
    scale = np.abs(weight).max(axis=0) / 127
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def activation_ranges(
    model: onnx.ModelProto, batches: Iterable[Batch]
) -> dict[str, tuple[float, float]]:
    """The smallest and largest value of what each matrix product with a constant weight is given.

    Returns:
        name of the tensor to its range over all batches, in which 0 is always contained.
    """
    names = [node.input[0] for node in constant_products(model)]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    ranges = dict.fromkeys(names, (0.0, 0.0))
    for batch in batches:
        for name, values in zip(names, session.run(names, {"tokens": batch.tokens}), strict=True):
            low, high = ranges[name]
            ranges[name] = min(low, float(values.min())), max(high, float(values.max()))
    return ranges


def constant_products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The model's MatMul nodes whose right-hand side is a constant matrix."""
    matrices = {w.name for w in model.graph.initializer if len(w.dims) == 2}
    return [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in matrices]


def quantize_model(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]
) -> onnx.ModelProto:
    """An int8 copy of a model, in ONNX's QDQ form.

    Each weight of `constant_products` is kept as `quantize_weight` gives it and read through a
    DequantizeLinear. Each activation goes through QuantizeLinear and DequantizeLinear to uint8,
    with the scale (high - low) / 255 of its range, or 1 if that is 0, and the zero point
    round(-low / scale).

    Args:
        ranges: of each activation, by the name of its tensor, as `activation_ranges` finds them.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    products = {node.output[0] for node in constant_products(copy)}
    weights = {w.name: w for w in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    for node in graph.node:
        if node.output[0] in products:
            activation, weight = node.input
            if activation not in done:
                nodes += _rounded_activation(graph, activation, *ranges[activation])
            if weight not in done:
                nodes.append(_stored_weight(graph, weights[weight]))
            done |= {activation, weight}
            node.input[:] = [f"{activation}.int8", f"{weight}.int8"]
        nodes.append(node)
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(ordered)
    # A weight that another node reads too, such as a table of embeddings, stays.
    read = {name for node in ordered for name in node.input}
    for name in done & weights.keys() - read:
        graph.initializer.remove(weights[name])
    onnx.checker.check_model(copy)
    return copy


def export(model: onnx.ModelProto, path: Path) -> None:
    """Write a model: the graph to `path`, its weights to `path` + ".data" beside it.

    What was there under these names is replaced: exporting again leaves the same bytes.
    """
    weights = path.with_name(path.name + ".data")
    # onnx.save appends to a file of weights that is there already.
    weights.unlink(missing_ok=True)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save(
        copy,
        path,
        save_as_external_data=True,
        location=weights.name,
        size_threshold=256,
    )


def artefact_bytes(path: Path) -> int:
    """Bytes that have to be shipped for the model to load: its file, and each file of weights
    that the tensors in it name."""
    weights = path.with_name(path.name + ".data")
    return path.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)


def perplexity(backend: Backend, batches: Iterable[Batch]) -> float:
    """exp of the mean negative log-likelihood a token, in nats.

    Each token but the first of its text is predicted from those before it. Every predicted token of
    every batch weighs the same; padding is not predicted.

    Raises:
        ValueError: there is no token to predict.
    """
    total, count = 0.0, 0
    for batch in batches:
        losses = _token_losses(backend.wait(backend.submit(batch)), batch)
        total += float(losses.sum())
        count += losses.size
    if not count:
        raise ValueError("there is no token to predict")
    return float(np.exp(total / count))


def measure(
    backends: Mapping[str, Backend],
    batches: Sequence[Batch],
    *,
    warm_up: int,
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Latencies of requests, of all backends side by side.

    First each backend answers `warm_up` requests, with any of `batches` and in any order; they are
    not in the result. Then come the rounds. In round r (from 0) each backend answers the batch r
    modulo the number of batches: in the order of `backends` in even rounds, in the reverse order in
    odd ones, so that nothing that changes while the benchmark runs falls on one of them. There is
    one request at a time, warm-up included: the next one is submitted when the answer of the last
    one is there.

    A latency is the time from the moment before a request is submitted to the moment when its
    answer is there.

    Args:
        clock: seconds; the differences count.

    Returns:
        name of the backend to its latencies in seconds, one a round.
    """
    for backend in backends.values():
        for number in range(warm_up):
            backend.wait(backend.submit(batches[number % len(batches)]))
    latencies: dict[str, list[float]] = {name: [] for name in backends}
    for number in range(rounds):
        batch = batches[number % len(batches)]
        order = list(backends) if number % 2 == 0 else list(reversed(list(backends)))
        for name in order:
            begin = clock()
            backends[name].wait(backends[name].submit(batch))
            latencies[name].append(clock() - begin)
    return latencies


def summarise(latencies: Sequence[float], batches: Sequence[Batch]) -> tuple[float, float, float]:
    """p50, p95 and tokens a second of the requests of `measure`.

    The percentiles are those of all latencies, by linear interpolation (`numpy.percentile`).
    Tokens a second are the tokens of all requests, padding not counted, over the sum of all
    latencies. Request r was of batch r modulo the number of batches.
    """
    p50, p95 = np.percentile(latencies, [50, 95])
    tokens = sum(int(batches[r % len(batches)].mask.sum()) for r in range(len(latencies)))
    return float(p50), float(p95), tokens / sum(latencies)


def benchmark(
    source: Path,
    data: Splits,
    folder: Path,
    *,
    threads: int,
    warm_up: int = 5,
    rounds: int = 40,
    make_backend: Callable[[Path, int], Backend] = OnnxBackend,
    clock: Callable[[], float] = time.perf_counter,
) -> Report:
    """Export the float32 model and its int8 copy, and compare them.

    The ranges of the copy come from all of the calibration split; all figures are measured on the
    test split. Both backends get the same number of threads and are closed in the end, also
    when something fails.

    Args:
        source: the float32 model.
        folder: where `float32.onnx` and `int8.onnx` are written (`export`).
        threads: for each backend.
        make_backend: loads a model from a path, with a number of threads.
    """
    model = onnx.load(source)
    paths = {"float32": folder / "float32.onnx", "int8": folder / "int8.onnx"}
    export(model, paths["float32"])
    export(quantize_model(model, activation_ranges(model, data.calibration)), paths["int8"])

    backends: dict[str, Backend] = {}
    try:
        for name, path in paths.items():
            backends[name] = make_backend(path, threads)
        latencies = measure(backends, data.test, warm_up=warm_up, rounds=rounds, clock=clock)
        figures = {}
        for name, backend in backends.items():
            p50, p95, tokens_per_second = summarise(latencies[name], data.test)
            figures[name] = Figures(
                bytes=artefact_bytes(paths[name]),
                perplexity=perplexity(backend, data.test),
                p50=p50,
                p95=p95,
                tokens_per_second=tokens_per_second,
                threads=backend.threads,
            )
    finally:
        for backend in backends.values():
            backend.close()
    speed_up = figures["float32"].p50 / figures["int8"].p50
    return Report(figures["float32"], figures["int8"], speed_up)


def _token_losses(logits: Floats, batch: Batch) -> NDArray[np.float64]:
    """Negative log-likelihood of each predicted token, in nats: (tokens,)."""
    guess = logits[:, :-1].astype(np.float64)
    wanted = batch.tokens[:, 1:]
    highest = guess.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(guess - highest).sum(axis=-1)) + highest[..., 0]
    losses = log_sum - np.take_along_axis(guess, wanted[..., None], axis=-1)[..., 0]
    return losses[batch.mask[:, 1:] == 1]


def _rounded_activation(
    graph: onnx.GraphProto, name: str, low: float, high: float
) -> list[onnx.NodeProto]:
    """The two nodes that put an activation on its grid; the result is called NAME.int8."""
    step = (high - low) / 255 or 1.0
    grid = [f"{name}.scale", f"{name}.zero"]
    _add_constant(graph, grid[0], np.float32(step))
    _add_constant(graph, grid[1], np.uint8(np.clip(round(-low / step), 0, 255)))
    return [
        helper.make_node("QuantizeLinear", [name, *grid], [f"{name}.grid"]),
        helper.make_node("DequantizeLinear", [f"{name}.grid", *grid], [f"{name}.int8"]),
    ]


def _stored_weight(graph: onnx.GraphProto, weight: onnx.TensorProto) -> onnx.NodeProto:
    """Add a weight's integers; the node that reads them, as NAME.int8."""
    name = weight.name
    values, scale = quantize_weight(numpy_helper.to_array(weight))
    _add_constant(graph, f"{name}.values", values)
    _add_constant(graph, f"{name}.scale", scale)
    _add_constant(graph, f"{name}.zero", np.zeros(scale.shape, np.int8))
    inputs = [f"{name}.{part}" for part in ("values", "scale", "zero")]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}.int8"], axis=1)


def _add_constant(graph: onnx.GraphProto, name: str, value: Any) -> None:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
