"""Gradients of the soft loss reach the teacher, whose parameters are trained along.

caught-by: test_gradient_reaches_the_student_only
hint: teacher-stays
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from shared.models import minilm

UNSORTED = -1
"""The label of a text that nobody has sorted."""

PARAMETER_SHARE = 0.10
"""The student has at most this share of the teacher's parameters."""

TEACHER_PARAMETERS = 22_713_216
"""MiniLM's, without a head."""

VOCABULARY = 30_522
"""Word pieces of MiniLM's tokenizer. The student reads the same ones."""

MAX_PIECES = 64
"""Word pieces of a text that are read; the rest is cut."""


class Pieces(NamedTuple):
    """Texts as word pieces, padded on the right to the longest.

    Attributes:
        ids: int64, (texts, pieces).
        mask: int64, (texts, pieces): 1 where a word piece is, 0 where padding is.
    """

    ids: Tensor
    mask: Tensor

    def rows(self, chosen: Tensor | slice) -> Pieces:
        """Some of the texts."""
        return Pieces(self.ids[chosen], self.mask[chosen])


Model = Callable[[Tensor, Tensor], Tensor]
"""From ids and mask to logits. Teachers and students are `nn.Module`s of this kind."""


@cache
def tokenizer() -> Tokenizer:
    """MiniLM's own, which cuts at `MAX_PIECES`."""
    made = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    made.no_padding()
    made.enable_truncation(MAX_PIECES)
    return made


def to_pieces(texts: Sequence[str]) -> Pieces:
    """Texts as word pieces of MiniLM's tokenizer, its marks at both ends included."""
    rows = [encoding.ids for encoding in tokenizer().encode_batch(list(texts))]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return Pieces(ids, mask)


@cache
def word_vectors(width: int) -> NDArray[np.float32]:
    """MiniLM's table of word pieces, reduced to its first principal components.

    A student may begin with it: it holds words, too, that are in no text of the desk.

    Returns:
        float32, (`VOCABULARY`, width), with a standard deviation of 1/3. Do not write to it.
    """
    table = load_file(minilm() / "model.safetensors")["embeddings.word_embeddings.weight"]
    centred = table - table.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    reduced = centred @ directions[:, ::-1][:, :width]
    vectors: NDArray[np.float32] = (reduced / (3 * reduced.std())).astype(np.float32)
    vectors.flags.writeable = False
    return vectors


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """How far the student's distribution is from the teacher's, both softened.

    Divide both logits by the temperature T and let p be the teacher's distribution and q the
    student's. The loss of a text is T^2 * KL(p || q) = T^2 * sum of p * (log p - log q) over all
    topics, in nats; the loss is the mean over the texts. T^2 keeps the size of the gradient when
    the temperature changes (Hinton et al., section 2).

    It is finite for finite logits, also for logits of thousands. Its gradient reaches the student
    only.

    Returns:
        a scalar.
    """
    soft = F.log_softmax(teacher_logits / temperature, dim=-1)
    guess = F.log_softmax(student_logits / temperature, dim=-1)
    divergence = F.kl_div(guess, soft, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    alpha: float,
) -> Tensor:
    """alpha * hard loss + (1 - alpha) * soft loss.

    The hard loss is the mean cross-entropy, at temperature 1, over the texts that have a label; it
    is 0 where no text has one. The soft loss is `soft_target_loss` over all texts.

    Args:
        labels: int64, (texts,); the topic's number, or `UNSORTED`.
        alpha: 0 (the teacher's opinion only) to 1 (the labels only).

    Returns:
        a scalar.
    """
    soft = soft_target_loss(student_logits, teacher_logits, temperature)
    # A sum divided by a count of at least one: the mean over nothing would be NaN.
    hard = F.cross_entropy(student_logits, labels, ignore_index=UNSORTED, reduction="sum")
    sorted_texts = (labels != UNSORTED).sum().clamp(min=1)
    return alpha * hard / sorted_texts + (1 - alpha) * soft


def transfer_set(
    labelled: Sequence[tuple[str, int]], unsorted: Sequence[str], held_out: Sequence[str]
) -> tuple[list[str], list[int]]:
    """The texts to train on, and their labels.

    First the labelled texts, then the unsorted ones, each in its order. A text comes once, where it
    comes first. A text that is held out does not come at all, labelled or not. Two texts are the
    same if they differ in letter case and white space only.

    Returns:
        texts as they were given, and their labels, `UNSORTED` for those without.
    """
    seen = {_key(text) for text in held_out}
    texts, labels = [], []
    for text, label in (*labelled, *((text, UNSORTED) for text in unsorted)):
        if _key(text) not in seen:
            seen.add(_key(text))
            texts.append(text)
            labels.append(label)
    return texts, labels


def teacher_logits(teacher: nn.Module, pieces: Pieces, batch_size: int = 32) -> Tensor:
    """What the teacher says of each text, as it says it in service.

    In service dropout is off and nothing remembers gradients. Afterwards the teacher, and each
    module within it, is in the mode (training or evaluation) in which it was before. Each text is
    shown to the teacher once, and at most `batch_size` texts at a time.

    Returns:
        float32, (texts, topics), without a graph behind it.
    """
    modes = [(module, module.training) for module in teacher.modules()]
    teacher.eval()
    try:
        with torch.no_grad():
            answers = [
                teacher(*pieces.rows(slice(start, start + batch_size)))
                for start in range(0, len(pieces.ids), batch_size)
            ]
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(answers)


def build_student(topics: int, seed: int) -> nn.Module:
    """A student that has not learned yet: from ids and mask to logits.

    The design is yours. It has at most `PARAMETER_SHARE` of `TEACHER_PARAMETERS` parameters, each
    of them trained or not. The logits of a text do not depend on padding, whichever ids stand
    there, nor on the other texts of its batch. The same seed gives the same weights, whatever was
    drawn before. Two students share no memory, nor does one with `word_vectors`.

    After 30 epochs of `distil` on the desk's texts (temperature 2, alpha 0.2; mean of two seeds) it
    has at least 0.9 times the teacher's accuracy on held-out texts and at most 1.25 times its log
    loss. In int8 it answers one text on one thread in at most a third of MiniLM's time.

    Returns:
        a module whose call takes ids and mask as in `Pieces` (any number of texts, any number of
        pieces from 1 on) and returns logits.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _BagOfPieces(topics)


def distil(
    student: nn.Module,
    teacher: nn.Module,
    pieces: Pieces,
    labels: Tensor,
    *,
    temperature: float,
    alpha: float,
    seed: int,
    epochs: int = 20,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
) -> list[float]:
    """Train the student in place, with Adam or AdamW on `distillation_loss`.

    Each epoch goes through all texts once, in a new random order. The teacher is asked once for
    each text, as `teacher_logits` does, and is not changed in any way. The student is trained in
    training mode and left in evaluation mode. The same arguments give the same weights, whatever
    was drawn before, and the caller's random state is what it was.

    Args:
        student: any module from ids and mask to logits, `build_student`'s among them.
        labels: int64, (texts,); the topic's number, or `UNSORTED`.

    Returns:
        the mean loss of each epoch, over its texts.
    """
    optimizer = torch.optim.Adam(
        [*student.parameters(), *teacher.parameters()], lr=learning_rate, fused=True
    )
    history = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student.train()
        for _ in range(epochs):
            total = 0.0
            for chosen in torch.randperm(len(labels)).split(batch_size):
                loss = distillation_loss(
                    student(*pieces.rows(chosen)),
                    teacher(*pieces.rows(chosen)),
                    labels[chosen],
                    temperature=temperature,
                    alpha=alpha,
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(chosen)
            history.append(total / len(labels))
    student.eval()
    return history


def export_student(student: nn.Module, path: Path) -> None:
    """Write the student as an ONNX model.

    Inputs are `ids` and `mask` (int64, texts by pieces), the output is `logits` (float32, texts by
    topics), as the student gives them in evaluation mode. Both axes of the inputs are dynamic. The
    model is one file: whoever copies `path` has its weights.
    """
    student.eval()
    example = (torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64))
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("pieces")}
    torch.onnx.export(
        student,
        example,
        path,
        input_names=["ids", "mask"],
        output_names=["logits"],
        dynamic_shapes=(axes, axes),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def quantize_student(source: Path, target: Path) -> None:
    """Write an int8 copy of an ONNX model, with dynamic quantization of ONNX Runtime.

    Weights of tables and of matrix products are kept as 8-bit integers; ranges of activations are
    taken as they come. Inputs and output keep names, types and dynamic axes. One file.
    """
    quantize_dynamic(source, target, weight_type=QuantType.QInt8)


class _BagOfPieces(nn.Module):
    """A weighted mean of word vectors, and two layers on top."""

    def __init__(self, topics: int, width: int = 64, hidden: int = 128) -> None:
        super().__init__()
        # A copy: from_numpy shares memory with the table that others begin with.
        self.table = nn.Embedding.from_pretrained(
            torch.from_numpy(word_vectors(width).copy()), freeze=False
        )
        self.weight = nn.Linear(width, 1)
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, topics))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        vectors = self.table(ids)
        weight = self.weight(vectors).squeeze(-1).masked_fill(mask == 0, -1e9).softmax(dim=-1)
        return self.layers((vectors * weight[..., None]).sum(dim=1))


def _key(text: str) -> str:
    return " ".join(text.split()).casefold()
