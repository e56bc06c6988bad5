"""Finds the documents that may answer a question, with MiniLM.

A document's score is the mean of two cosines with the question: that of the whole document, and
that of its best sentence. Each text is read with the document's title before it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shared.assistant.records import Document
from shared.models.embed import DIMENSIONS, Embedder, Vectors, embedder
from shared.models.to_onnx import CONVERSION
from shared.paths import STATE

_KEPT = STATE / "vectors"
_WORTH_A_FILE = 100
_seen: dict[str, Vectors] = {}


@dataclass(frozen=True)
class Hit:
    """A document that was found, and how much it resembles the question."""

    document: Document
    score: float


@dataclass(frozen=True)
class Passage:
    """A sentence of a document, and how much it resembles the question."""

    document: str
    text: str
    score: float


class Index:
    """The documents' vectors.

    Args:
        documents: what may be found, at least one, no id twice.
        model: turns texts into vectors; by default the process's own `Embedder`.

    Raises:
        ValueError: no document, or an id twice.
    """

    def __init__(self, documents: Sequence[Document], model: Embedder | None = None) -> None:
        self.documents = tuple(documents)
        ids = [d.id for d in self.documents]
        if not ids:
            raise ValueError("an index needs at least one document")
        if len(set(ids)) < len(ids):
            twice = sorted({i for i in ids if ids.count(i) > 1})
            raise ValueError(f"documents with the same id: {', '.join(twice)}")
        self._model = model or embedder()
        whole = [f"{d.title}. {d.text}" for d in self.documents]
        sentences = [f"{d.title}. {s}" for d in self.documents for s in d.sentences]
        vectors = _vectors((*whole, *sentences), self._model)
        self._whole, self._sentences = np.split(vectors, [len(whole)])
        counts = [len(d.sentences) for d in self.documents]
        self._starts = np.cumsum([0, *counts[:-1]])

    def search(self, question: str, top_k: int = 3) -> tuple[Hit, ...]:
        """The `top_k` documents with the highest scores, best first; ties keep their order.

        Raises:
            ValueError: `top_k` below 1.
        """
        if top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1")
        (query,) = _vectors((question,), self._model)
        best = np.maximum.reduceat(self._sentences @ query, self._starts)
        scores = (self._whole @ query + best) / 2
        order = np.argsort(-scores, kind="stable")[:top_k]
        return tuple(Hit(self.documents[i], float(scores[i])) for i in order)

    def passages(self, question: str, hits: Sequence[Hit], count: int) -> tuple[Passage, ...]:
        """The sentences of `hits` that are nearest to the question, best last.

        The best one of each document, and more of any of them until there are `count`.
        """
        (query,) = _vectors((question,), self._model)
        places = {d.id: n for n, d in enumerate(self.documents)}
        found: list[Passage] = []
        for document in (h.document for h in hits):
            start = self._starts[places[document.id]]
            cosines = self._sentences[start : start + len(document.sentences)] @ query
            found += map(Passage, (document.id,) * len(cosines), document.sentences, cosines)
        found.sort(key=lambda p: -p.score)
        first = {p.document: p for p in reversed(found)}
        more = [p for p in found if p not in first.values()]
        chosen = [*first.values(), *more][: max(count, len(first))]
        return tuple(sorted(chosen, key=lambda p: p.score))


@lru_cache(maxsize=16)
def index_of(documents: tuple[Document, ...]) -> Index:
    """The index of these documents, made once a process."""
    return Index(documents)


def _vectors(texts: tuple[str, ...], model: Embedder) -> Vectors:
    """Vectors of `texts`, each computed once a process, and kept in `.labs` between processes.

    Most indexes differ by one document from one that was there before, and most questions are
    asked of many assistants.
    """
    missing = [t for t in dict.fromkeys(texts) if t not in _seen]
    if len(missing) >= _WORTH_A_FILE:
        _seen.update(zip(missing, _from_disk(tuple(missing), model), strict=True))
    elif missing:
        _seen.update(zip(missing, model.encode(missing), strict=True))
    stacked: Vectors = np.stack([_seen[t] for t in texts])
    return stacked


def _from_disk(texts: tuple[str, ...], model: Embedder) -> Vectors:
    """Vectors of `texts`, from the file that an earlier process left, if it could write one."""
    key = "\0".join((str(CONVERSION), *texts))
    path = _KEPT / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    with suppress(OSError, ValueError):
        kept: Vectors = np.load(path, allow_pickle=False)
        if kept.shape == (len(texts), DIMENSIONS):
            return kept
    vectors = model.encode(texts)
    with suppress(OSError):
        _KEPT.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        with scratch.open("wb") as file:
            np.save(file, vectors)
        scratch.replace(path)
    return vectors
