"""Sentence embeddings: all-MiniLM-L6-v2 on onnxruntime, without PyTorch.

    vectors = Embedder().encode(["How much is the fee?", "The fee is GBP 5."])
    vectors @ vectors.T  # cosines: the vectors have length 1

Source: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (mean pooling, normalised).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from shared import offline
from shared.models.store import minilm_onnx
from shared.models.to_onnx import FILE

offline.apply()
import onnxruntime  # noqa: E402  it reports its use as soon as it is imported

DIMENSIONS = 384
MAX_PIECES = 256
"""Word pieces that are read of a text, the two marks at its ends among them; the rest is cut."""

Vectors = NDArray[np.float32]


class Embedder:
    """Turns texts into vectors.

    Args:
        folder: where model.onnx and tokenizer.json are; by default the models' cache, which
            makes the ONNX file when it is not there yet.
        threads: threads that one run may use.
        batch_size: texts in one run. Texts of similar length go together.

    Raises:
        ModelError: the model cannot be had.
        ValueError: `threads` or `batch_size` below 1.
    """

    def __init__(
        self, folder: Path | None = None, *, threads: int = 2, batch_size: int = 16
    ) -> None:
        if threads < 1 or batch_size < 1:
            raise ValueError(f"threads={threads} and batch_size={batch_size} must be at least 1")
        folder = folder or minilm_onnx()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Idle threads sleep: others need the cores between two texts.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(folder / FILE), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_PIECES)
        self._tokenizer.no_padding()
        self._batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length 1, one row a text: the mean over its word pieces, normalised.

        A text without any word (empty, or white space only) gets the zero vector, so it resembles
        nothing. No text gives an array of shape (0, 384).

        Raises:
            TypeError: `texts` is one string.
        """
        if isinstance(texts, str):
            raise TypeError("encode takes a sequence of texts, not one string")
        vectors = np.zeros((len(texts), DIMENSIONS), np.float32)
        pieces = {i: self._tokenizer.encode(t).ids for i, t in enumerate(texts) if t.strip()}
        order = sorted(pieces, key=lambda i: len(pieces[i]))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            vectors[batch] = self._run([pieces[i] for i in batch])
        return vectors

    def _run(self, pieces: list[list[int]]) -> Vectors:
        longest = max(len(p) for p in pieces)
        ids = np.zeros((len(pieces), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece)] = piece
            mask[row, : len(piece)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        (hidden,) = self._session.run(["last_hidden_state"], inputs)
        kept = mask[:, :, None].astype(np.float32)
        mean = (hidden * kept).sum(axis=1) / kept.sum(axis=1)
        normalised: Vectors = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return normalised


@lru_cache(maxsize=1)
def embedder() -> Embedder:
    """One `Embedder` for the whole process: loading it takes longer than a text."""
    return Embedder()
