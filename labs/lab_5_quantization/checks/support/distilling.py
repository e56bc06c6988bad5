"""What distillation is checked with: small models that keep a record, and the desk's real texts."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from shared.assistant.material import HERE, in_force, load_documents, load_golden, load_labelled
from shared.models.embed import DIMENSIONS, embedder
from shared.paths import STATE

TOY_VOCABULARY = 40
TOY_TOPICS = 3

Labelled = tuple[tuple[str, int], ...]


class ToyStudent(nn.Module):
    """A mean of word vectors and one layer; notes the mode in which it was called."""

    def __init__(self, rng: np.random.Generator, dropout: float = 0.0) -> None:
        super().__init__()
        self.table = nn.Embedding(TOY_VOCABULARY, 8)
        self.dropout = nn.Dropout(dropout)
        self.layer = nn.Linear(8, TOY_TOPICS)
        self.modes: list[bool] = []
        self.rows: list[Tensor] = []
        for parameter in self.parameters():
            values = rng.normal(0, 0.3, tuple(parameter.shape)).astype(np.float32)
            parameter.data = torch.from_numpy(values)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        self.modes.append(self.training)
        self.rows.append(ids[:, 0].detach().clone())
        vectors = self.table(ids) * mask[..., None]
        mean = vectors.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return self.layer(self.dropout(mean))


class ToyTeacher(nn.Module):
    """Knows the rule of `toy_texts`; has dropout and batch statistics, and notes its calls.

    Attributes:
        calls: for each call the number of texts, whether it trained, and whether gradients were on.
        rows: the first piece of each text shown, call by call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Embedding(TOY_VOCABULARY, TOY_TOPICS)
        groups = torch.arange(TOY_VOCABULARY) % TOY_TOPICS
        self.scores.weight.data = 4 * F.one_hot(groups, TOY_TOPICS).float()
        self.dropout = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(TOY_TOPICS))
        self.norm = nn.BatchNorm1d(TOY_TOPICS)
        self.calls: list[tuple[int, bool, bool]] = []
        self.rows: list[Tensor] = []

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        training = self.training or self.dropout.training or self.norm.training
        self.calls.append((len(ids), training, torch.is_grad_enabled()))
        self.rows.append(ids[:, 0].clone())
        scores = (self.scores(ids) * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return self.norm(self.dropout(scores * self.scale))


def toy_texts(rng: np.random.Generator, count: int, pieces: int = 6) -> tuple[Tensor, Tensor]:
    """Ids and mask of random texts of 2 to `pieces` pieces. First pieces tell texts apart by 40."""
    ids = rng.integers(0, TOY_VOCABULARY, (count, pieces))
    ids[:, 0] = np.arange(count) % TOY_VOCABULARY
    mask = (np.arange(pieces) < rng.integers(2, pieces + 1, (count, 1))).astype(np.int64)
    return torch.from_numpy(ids * mask), torch.from_numpy(mask)


class PlainStudent(nn.Module):
    """Like `ToyStudent`, without a record: it can be exported."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.table = nn.Embedding(TOY_VOCABULARY, 8)
        self.dropout = nn.Dropout(0.5)
        self.layer = nn.Linear(8, TOY_TOPICS)
        for parameter in self.parameters():
            values = rng.normal(0, 0.5, tuple(parameter.shape)).astype(np.float32)
            parameter.data = torch.from_numpy(values)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        vectors = self.table(ids) * mask[..., None]
        return self.layer(self.dropout(vectors.sum(dim=1) / mask.sum(dim=1, keepdim=True)))


def save_router(rng: np.random.Generator, path: Path) -> Path:
    """An ONNX model like a student's: a table, the mean over a text's pieces, and two layers."""
    sizes = {"table": (4000, 32), "inner": (32, 48), "outer": (48, 5)}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["vectors"]),
            helper.make_node("Cast", ["mask"], ["kept"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["kept", "last"], ["weight"]),
            helper.make_node("Mul", ["vectors", "weight"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "middle"], ["sum"], keepdims=0),
            helper.make_node("MatMul", ["sum", "inner"], ["raw"]),
            helper.make_node("Relu", ["raw"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "outer"], ["logits"]),
        ],
        "router",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "pieces"])
            for name in ("ids", "mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["texts", 5])],
        [
            *(
                numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)
                for name, shape in sizes.items()
            ),
            numpy_helper.from_array(np.array([2], np.int64), "last"),
            numpy_helper.from_array(np.array([1], np.int64), "middle"),
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along the last axis, in float64."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along the last axis, in float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class Desk:
    """A desk's texts for the routing task.

    Attributes:
        topics: their names; a label is a place in it.
        labelled: sorted by hand: the titles of the pages, and the open golden questions.
        unsorted: sentences of the pages and questions from the log, as they come. Some of the
            held-out questions are among them.
        held_out: the held-out golden questions, and sentences of the pages in other words.
    """

    topics: tuple[str, ...]
    labelled: Labelled
    unsorted: tuple[str, ...]
    held_out: Labelled


@cache
def desk(domain: str) -> Desk:
    """The desk of a domain."""
    pages = in_force(load_documents(domain))
    topics = tuple(sorted({page.topic for page in pages}))
    place = {page.id: topics.index(page.topic) for page in pages}
    asked = {
        split: tuple(
            (q.question, topics.index(q.topic))
            for q in load_golden(domain)
            if q.split == split and q.topic in topics
        )
        for split in ("open", "held_out")
    }
    lines = (HERE / "paraphrases" / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    said = tuple((r["paraphrase"], place[r["document"]]) for r in rows if r["document"] in place)
    log = dict.fromkeys(answer.question for answer in load_labelled(domain))
    return Desk(
        topics,
        tuple((page.title, place[page.id]) for page in pages) + asked["open"],
        tuple(s for page in pages for s in page.sentences) + tuple(log),
        asked["held_out"] + said,
    )


class MiniLMTeacher(nn.Module):
    """MiniLM with a linear head; the encoder is ONNX Runtime's and stays as it is.

    Args:
        vectors: what the encoder makes of texts that are known beforehand, by their pieces.
    """

    def __init__(self, topics: int, vectors: dict[tuple[int, ...], NDArray[np.float32]]) -> None:
        super().__init__()
        self.head = nn.Linear(DIMENSIONS, topics)
        self._vectors = vectors

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        kept = [tuple(row[: int(m.sum())].tolist()) for row, m in zip(ids, mask, strict=True)]
        return self.head(torch.from_numpy(np.stack([self._vectors[k] for k in kept])))


def fit_teacher(learner, the_desk: Desk) -> MiniLMTeacher:
    """Fit the head to the labelled texts (full batches, from zero: the same each time)."""
    texts = [t for t, _ in the_desk.labelled]
    every = [*texts, *the_desk.unsorted, *(t for t, _ in the_desk.held_out)]
    vectors = dict(zip(map(_key, _rows(learner, every)), _vectors(tuple(every)), strict=True))
    teacher = MiniLMTeacher(len(the_desk.topics), vectors)
    inputs = torch.from_numpy(np.stack([vectors[_key(r)] for r in _rows(learner, texts)]))
    labels = torch.tensor([label for _, label in the_desk.labelled])
    # The head's inputs have length 1: a head on top of ten times as much learns as fast.
    weight = torch.zeros(len(the_desk.topics), DIMENSIONS, requires_grad=True)
    bias = torch.zeros(len(the_desk.topics), requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.01)
    for _ in range(300):
        loss = F.cross_entropy(10 * inputs @ weight.T + bias, labels) + 1e-3 * weight.pow(2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    teacher.head.weight.data = 10 * weight.detach()
    teacher.head.bias.data = bias.detach()
    return teacher.eval()


def _rows(learner, texts: list[str]) -> list[list[int]]:
    pieces = learner.to_pieces(texts)
    return [r[: int(m.sum())].tolist() for r, m in zip(pieces.ids, pieces.mask, strict=True)]


def _key(row: list[int]) -> tuple[int, ...]:
    return tuple(row)


def _vectors(texts: tuple[str, ...]) -> NDArray[np.float32]:
    """MiniLM's vectors, computed once a machine: they are 10 s of a core."""
    key = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]
    path = STATE / "vectors" / f"{key}.npy"
    with suppress(OSError, ValueError):
        kept: NDArray[np.float32] = np.load(path, allow_pickle=False)
        if kept.shape == (len(texts), DIMENSIONS):
            return kept
    vectors = embedder().encode(texts)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        with scratch.open("wb") as file:
            np.save(file, vectors)
        scratch.replace(path)
    return vectors
