"""A model server that answers at once, with a clock of its own, and rows as if measured."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np


class FakeServer:
    """Scores prompts by a fixed rule; its memory grows with each thing that is asked of it."""

    def __init__(self, seconds_a_token: float = 0.01) -> None:
        self.now = 0.0
        self.sent: list[tuple[str, int]] = []
        self.scored: list[list[int]] = []
        self._asked = 0
        self._seconds = seconds_a_token
        self._lock = threading.Lock()

    def clock(self) -> float:
        return self.now

    def prompt_logprobs(self, tokens: list[int]) -> list[dict[str, Any] | None]:
        with self._lock:
            self._asked += 1
            self.scored.append(list(tokens))
        return entries_of(tokens)

    def generate(self, prompt: str, max_tokens: int) -> int:
        with self._lock:
            self._asked += 1
            self.sent.append((prompt, max_tokens))
            self.now += max_tokens * self._seconds
        return max_tokens

    def memory_bytes(self) -> int:
        return 1_000_000 + self._asked


def entries_of(tokens: list[int]) -> list[dict[str, Any] | None]:
    """What the fake model says: of an even token that it is the likeliest, of an odd one not."""
    found: list[dict[str, Any] | None] = [None]
    for place, token in enumerate(tokens[1:], start=1):
        own = {"logprob": -0.25 * (1 + token % 5), "decoded_token": f"t{token}"}
        other = {"logprob": own["logprob"] + (0.125 if token % 2 else -0.125)}
        found.append({str(token + place): other, str(token): own})
    return found


def random_scores(rng: np.random.Generator, learner: Any, lengths: list[int]) -> list[Any]:
    """Scores of texts of these lengths."""
    scores = []
    for length in lengths:
        tokens = tuple(int(t) for t in rng.integers(0, 100, length))
        logprobs = tuple(float(p) for p in -rng.exponential(2.0, length - 1))
        likeliest = tuple(int(t) for t in rng.integers(0, 4, length - 1))
        scores.append(learner.Scores(tokens, (None, *logprobs), (None, *likeliest)))
    return scores


def row(learner: Any, name: str, **figures: Any) -> Any:
    """A row, measured as said."""
    given = SimpleNamespace(
        **({"weights": 100, "perplexity": 10.0, "speed": (20, 200), "memory": 1000} | figures)
    )
    return learner.Row(
        name=name,
        weight_bytes=given.weights,
        perplexity=given.perplexity,
        tokens_per_s={1: given.speed[0], 16: given.speed[1]},
        memory_bytes=given.memory,
        scores=figures.get("scores", ()),
    )


def comparison(learner: Any, name: str, **figures: Any) -> Any:
    """A row beside an original of 100 bytes, 1000 of memory, 20 and 200 tokens a second."""
    made = row(learner, name, **{k: v for k, v in figures.items() if k not in ("ratio", "agree")})
    return learner.Comparison(
        row=made,
        size=made.weight_bytes / 100,
        perplexity=figures.get("ratio", 1.0),
        memory=made.memory_bytes / 1000,
        speed={1: made.tokens_per_s[1] / 20, 16: made.tokens_per_s[16] / 200},
        agreement=figures.get("agree", 1.0),
    )


def right_choice(comparisons: list[Any], budget: Any) -> tuple[str | None, dict[str, list[str]]]:
    """The choice, found by looking at every pair."""
    reasons: dict[str, list[str]] = {}
    for c in comparisons:
        limits = [
            ("disk", c.row.weight_bytes, budget.disk_bytes, 1),
            ("memory", c.row.memory_bytes, budget.memory_bytes, 1),
            ("perplexity", c.perplexity, budget.perplexity, 1),
            ("agreement", c.agreement, budget.agreement, -1),
        ]
        found = [word for word, value, limit, sign in limits if not sign * value <= sign * limit]
        if found:
            reasons[c.row.name] = found
    fit = [c for c in comparisons if c.row.name not in reasons]
    speeds = {c.row.name: c.row.tokens_per_s[budget.concurrency] for c in fit}
    fast = [c for c in fit if speeds[c.row.name] >= (1 - budget.noise) * max(speeds.values())]
    if not fast:
        return None, reasons
    best = fast[0]
    for c in fast[1:]:
        if c.row.memory_bytes < best.row.memory_bytes:
            best = c
    for c in fit:
        if c is not best:
            reasons[c.row.name] = ["larger" if c in fast else "slower"]
    return best.row.name, reasons
