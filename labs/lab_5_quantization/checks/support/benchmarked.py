"""What a benchmark is checked with: a machine whose clock is ours, and a small real model.

On the machine a request takes as long as the check says, so no figure depends on this computer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from shared.compression.texts import calibration_texts, held_out_texts

SUBMITTING = 1e-6
"""Seconds that it takes to hand a request over."""

HIDDEN = 512


class Machine:
    """A clock, and a record of what backends were asked, in order.

    Attributes:
        now: seconds.
        asked: name of the backend and batch, a request each.
        overlaps: requests that were submitted while another one was under way.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[tuple[str, Any]] = []
        self.open = 0
        self.overlaps = 0

    def clock(self) -> float:
        """Seconds on this machine."""
        return self.now


class FakeBackend:
    """Answers on a `Machine`.

    Args:
        cost: seconds that its request number n (from 0) takes, given n and the time.
        logits: what it answers to a batch; by default all tokens of a vocabulary are as likely.
    """

    def __init__(
        self,
        machine: Machine,
        name: str,
        cost: Callable[[int, float], float],
        *,
        threads: int = 1,
        logits: Callable[[Any], NDArray[np.float32]] | None = None,
        vocabulary: int = 7,
    ) -> None:
        self.threads = threads
        self.closed = False
        self._machine, self._name, self._cost = machine, name, cost
        self._logits = logits or (
            lambda batch: np.zeros((*batch.tokens.shape, vocabulary), np.float32)
        )
        self._requests = 0

    def submit(self, batch: Any) -> tuple[int, Any]:
        """Start; the answer takes until `wait`."""
        machine = self._machine
        machine.overlaps += machine.open > 0
        machine.open += 1
        machine.now += SUBMITTING
        machine.asked.append((self._name, batch))
        self._requests += 1
        return self._requests - 1, batch

    def wait(self, ticket: tuple[int, Any]) -> NDArray[np.float32]:
        """The answer, after the time that it costs."""
        number, batch = ticket
        self._machine.now += self._cost(number, self._machine.now)
        self._machine.open -= 1
        return self._logits(batch)

    def close(self) -> None:
        """Note it."""
        self.closed = True


def batches(
    learner, rng: np.random.Generator, shapes: list[tuple[int, int]], vocabulary: int = 7
) -> tuple[Any, ...]:
    """Random batches of (texts, length); each text but the first has padding at its end."""
    made = []
    for texts, length in shapes:
        tokens = rng.integers(0, vocabulary, (texts, length))
        kept = np.minimum(length, rng.integers(2, length + 1, (texts, 1)))
        kept[0] = length
        mask = (np.arange(length) < kept).astype(np.int64)
        made.append(learner.Batch(tokens * mask, mask))
    return tuple(made)


def small_model(
    rng: np.random.Generator, *, vocabulary: int = 7, width: int = 6, hidden: int = 40
) -> onnx.ModelProto:
    """tokens -> table -> MatMul -> Relu -> MatMul -> logits, with random weights.

    Output features differ in size by up to a hundred times, as those of real layers do.
    """
    sizes = np.geomspace(0.05, 5, hidden)
    return _language_model(
        rng.normal(0, 1, (vocabulary, width)),
        rng.normal(0, 1, (width, hidden)) * rng.permutation(sizes),
        rng.normal(0, 1, (hidden, vocabulary))
        / 10
        * rng.permutation(np.geomspace(0.05, 5, vocabulary)),
    )


@cache
def letters(domain: str) -> str:
    """The characters of a domain's texts; place 0 is padding."""
    return "\0" + "".join(sorted({c for t in calibration_texts(domain) for c in t}))


@cache
def bigram_model(domain: str) -> onnx.ModelProto:
    """A real model of the domain's texts: each character from the one before it.

    The hidden layer is random, the layer after it is solved for (least squares), so that nothing
    has to be trained. Perplexity is that of bigram counts with one added.
    """
    rng = np.random.default_rng(7)
    alphabet = letters(domain)
    counts = np.ones((len(alphabet), len(alphabet)))
    for text in calibration_texts(domain):
        ids = [alphabet.index(c) for c in text]
        np.add.at(counts, (ids[:-1], ids[1:]), 1)
    wanted = np.log(counts / counts.sum(axis=1, keepdims=True))
    table = rng.normal(0, 1, (len(alphabet), 64))
    inner = rng.normal(0, 1, (64, HIDDEN)) / 8 * np.geomspace(0.2, 2, HIDDEN)
    hidden = np.maximum(table @ inner, 0)
    return _language_model(table, inner, np.linalg.lstsq(hidden, wanted, rcond=1e-3)[0])


def text_splits(learner, domain: str) -> Any:
    """The domain's texts as batches of four: calibration texts, and texts that are held out."""
    alphabet = letters(domain)

    def cut(texts: tuple[str, ...]) -> tuple[Any, ...]:
        made = []
        for start in range(0, len(texts), 4):
            rows = [[max(alphabet.find(c), 1) for c in text] for text in texts[start : start + 4]]
            tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
            mask = np.zeros_like(tokens)
            for number, row in enumerate(rows):
                tokens[number, : len(row)], mask[number, : len(row)] = row, 1
            made.append(learner.Batch(tokens, mask))
        return tuple(made)

    return learner.Splits(cut(calibration_texts(domain)), cut(held_out_texts(domain)))


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model into one file."""
    onnx.save(model, path)
    return path


def _language_model(table, inner, outer) -> onnx.ModelProto:
    weights = {"table": table, "inner": inner, "outer": outer}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "tokens"], ["embedded"]),
            helper.make_node("MatMul", ["embedded", "inner"], ["raw"]),
            helper.make_node("Relu", ["raw"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "outer"], ["logits"]),
        ],
        "language-model",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["texts", "length"])],
        [
            helper.make_tensor_value_info(
                "logits", TensorProto.FLOAT, ["texts", "length", outer.shape[1]]
            )
        ],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
