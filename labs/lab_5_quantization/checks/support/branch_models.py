"""The original that device bundles are measured against: a small model that sorts texts by topic.

It is real and small: word vectors, one layer a word, the mean over the words, one layer more. It
is trained here, in a second, on the desk's documents, with numpy. Probes are the desk's questions,
its documents in other words, and its documents as somebody types who is in a hurry.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from shared.assistant.material import HERE, load_documents, load_golden
from shared.device.device import Probe

Array = npt.NDArray[np.float32]
RARE = "by letter"
"""A slice of six probes."""
RARE_PROBES = 6
WEAK = "by phone"
"""A slice in which the original is often wrong, and a model that goes out may be better."""
WEAK_PROBES = 40
WEAK_WRONG = 16
"""So many of them the original has wrong, or all that it has."""
_WORD = re.compile(r"\w+|[^\w\s]+")


@dataclass(frozen=True)
class Weights:
    """The model's parameters, in float32.

    Shapes: embedding (words, width), hidden (width, units), hidden_bias (units,), out (units,
    topics), out_bias (topics,).
    """

    embedding: Array
    hidden: Array
    hidden_bias: Array
    out: Array
    out_bias: Array

    def logits(self, ids: list[list[int]]) -> Array:
        """The topics' scores of some texts, (texts, topics)."""
        flat = np.concatenate([np.asarray(i) for i in ids])
        starts = np.cumsum([0, *(len(i) for i in ids)])[:-1]
        units = np.maximum(self.embedding[flat] @ self.hidden + self.hidden_bias, 0)
        pooled = np.add.reduceat(units, starts) / np.array([[len(i)] for i in ids], np.float32)
        return pooled @ self.out + self.out_bias


@dataclass(frozen=True, eq=False)
class Original:
    """What is to be made smaller, and the probes that it is measured on."""

    vocabulary: tuple[str, ...]
    topics: tuple[str, ...]
    weights: Weights
    better: Weights
    """The same, trained on the probes as well: what damage in one topic can hide behind."""
    probes: tuple[Probe, ...]

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The token ids of texts, as the right tokenizer makes them."""
        number = {word: i for i, word in enumerate(self.vocabulary)}
        return [[number.get(w, 0) for w in _WORD.findall(t.lower())] for t in texts]

    def right(self, weights: Weights) -> npt.NDArray[np.bool_]:
        """For each probe, whether a model of these weights answers it rightly."""
        return weights.logits(self._asked).argmax(axis=1) == self._wanted

    @cached_property
    def _asked(self) -> list[list[int]]:
        return self.ids([p.text for p in self.probes])

    @cached_property
    def _wanted(self) -> npt.NDArray[np.int64]:
        return np.array([self.topics.index(p.label) for p in self.probes])

    def losses(self, right: npt.NDArray[np.bool_]) -> dict[str, tuple[int, int]]:
        """By slice: how many probes less are right than with the original, and of how many."""
        before = self.right(self.weights)
        found: dict[str, tuple[int, int]] = {}
        for slice_ in sorted({p.slice for p in self.probes}):
            mine = np.array([p.slice == slice_ for p in self.probes])
            found[slice_] = int(before[mine].sum() - right[mine].sum()), int(mine.sum())
        return found


@lru_cache(maxsize=8)
def original(domain: str, seed: int, width: int, units: int) -> Original:
    """Train one on a domain's documents; the same seed gives the same one."""
    rng = np.random.default_rng(seed)
    taught = _sentences(domain)
    asked = [(q.question, q.topic) for q in load_golden(domain) if q.answerable]
    told = _paraphrases(domain)
    counts = Counter(w for text, _ in [*taught, *told, *asked] for w in _WORD.findall(text.lower()))
    vocabulary = ("[UNK]", *sorted(counts))
    topics = tuple(sorted({topic for _, topic in taught}))
    hurried = [(_hurried(text, rng), topic) for text, topic in taught]
    texts = [*asked, *told, *hurried]
    probes = tuple(
        Probe(texts[int(i)][0], texts[int(i)][1], texts[int(i)][1])
        for i in rng.permutation(len(texts))
    )
    bare = Original(vocabulary, topics, _blank(), _blank(), probes)
    ids = bare.ids([text for text, _ in [*taught, *told[::2]]])
    labels = np.array([topics.index(topic) for _, topic in [*taught, *told[::2]]])
    seen = bare.ids([p.text for p in probes])
    answers = np.array([topics.index(p.label) for p in probes])
    start = _fresh(len(vocabulary), len(topics), width, units, rng)
    with threadpool_limits(1):  # small products: threads would only wait for each other
        weights = _trained(start, ids, labels, steps=17)
        better = _trained(weights, ids + seen, np.concatenate([labels, answers]), steps=12)
    return replace(bare, weights=_with_an_idle_unit(weights), better=_with_an_idle_unit(better))


def _with_an_idle_unit(weights: Weights) -> Weights:
    """One hidden unit more, which never fires, as in many trained models: it can be left out."""
    return replace(
        weights,
        hidden=np.pad(weights.hidden, ((0, 0), (0, 1))),
        hidden_bias=np.append(weights.hidden_bias, np.float32(-1)),
        out=np.pad(weights.out, ((0, 1), (0, 0))),
    )


def _sentences(domain: str) -> list[tuple[str, str]]:
    return [(s, d.topic) for d in load_documents(domain) for s in d.sentences]


def _paraphrases(domain: str) -> list[tuple[str, str]]:
    topics = {d.id: d.topic for d in load_documents(domain)}
    lines = (HERE / "paraphrases" / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
    told = [json.loads(line) for line in lines]
    return [(t["paraphrase"], topics[t["document"]]) for t in told if t["document"] in topics]


def _hurried(text: str, rng: np.random.Generator) -> str:
    """The text with every third word left out."""
    words = text.split()
    kept = [w for w in words if rng.random() > 0.35]
    return " ".join(kept or words)


def _blank() -> Weights:
    nothing = np.zeros((1, 1), np.float32)
    return Weights(nothing, nothing, nothing[0], nothing, nothing[0])


def _fresh(words: int, topics: int, width: int, units: int, rng: np.random.Generator) -> Weights:
    values = [
        rng.normal(scale=0.3, size=(words, width)),
        rng.normal(scale=width**-0.5, size=(width, units)),
        np.zeros(units),
        rng.normal(scale=units**-0.5, size=(units, topics)),
        np.zeros(topics),
    ]
    return Weights(*(v.astype(np.float32) for v in values))


def _trained(
    start: Weights, ids: list[list[int]], labels: npt.NDArray[np.int64], *, steps: int
) -> Weights:
    """Some steps of Adam on the cross entropy of all texts."""
    flat = np.concatenate([np.asarray(i) for i in ids])
    lengths = np.array([len(i) for i in ids])
    starts = np.cumsum([0, *lengths])[:-1]
    text_of = np.repeat(np.arange(len(ids)), lengths)
    order = np.argsort(flat, kind="stable")
    present, firsts = np.unique(flat[order], return_index=True)
    share = (1 / lengths[text_of]).astype(np.float32)[:, None]
    values = [
        v.copy()
        for v in (start.embedding, start.hidden, start.hidden_bias, start.out, start.out_bias)
    ]
    first = [np.zeros_like(v) for v in values]
    second = [np.zeros_like(v) for v in values]
    for step in range(1, steps + 1):
        embedding, hidden, hidden_bias, out, out_bias = values
        looked_up = embedding[flat]
        raw = looked_up @ hidden + hidden_bias
        active = np.maximum(raw, 0)
        pooled = np.add.reduceat(active * share, starts)
        scores = pooled @ out + out_bias
        scores -= scores.max(axis=1, keepdims=True)
        error = np.exp(scores)
        error /= error.sum(axis=1, keepdims=True)
        error[np.arange(len(labels)), labels] -= 1
        error /= len(labels)
        back = (error @ out.T)[text_of] * share * (raw > 0)
        to_embedding = np.zeros_like(embedding)
        to_embedding[present] = np.add.reduceat((back @ hidden.T)[order], firsts)
        slopes = [
            to_embedding,
            looked_up.T @ back,
            back.sum(axis=0),
            pooled.T @ error,
            error.sum(axis=0),
        ]
        for v, slope, m, s in zip(values, slopes, first, second, strict=True):
            m += 0.1 * (slope - m)
            s += 0.001 * (slope**2 - s)
            v -= 0.03 * (m / (1 - 0.9**step)) / (np.sqrt(s / (1 - 0.999**step)) + 1e-8)
    return Weights(*values)
