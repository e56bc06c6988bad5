"""Releases of which the truth is known: scores of two versions, drawn or counted out.

And the scores of real ones: golden questions put to an assistant, judged by their facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.assistant.assistant import NO_ANSWER, Answering
from shared.assistant.records import GoldenQuestion

Floats = NDArray[np.float64]
Scores = list[Any]
Release = tuple[Scores, Scores]


def scores(
    make: Callable[..., Any], values: Any, slices: Sequence[str] | str = "all", *, first: int = 0
) -> Scores:
    """Scores as the learner's module has them.

    Args:
        make: its `Score`.
        values: (questions,) or (questions, attempts).
        slices: one for each question, or one for all.
        first: number of the first question.
    """
    rows = np.asarray(values, dtype=float)
    rows = rows[:, None] if rows.ndim == 1 else rows
    names = [slices] * len(rows) if isinstance(slices, str) else slices
    return [
        make(f"Q{first + n:04d}", name, value, attempt)
        for n, (name, row) in enumerate(zip(names, rows.tolist(), strict=True))
        for attempt, value in enumerate(row)
    ]


def counted(*, lost: int, won: int, right: int = 0, wrong: int = 0) -> tuple[Floats, Floats]:
    """Old and new scores of 0 and 1: so many lost, won, and alike."""
    old = [1] * lost + [0] * won + [1] * right + [0] * wrong
    new = [0] * lost + [1] * won + [1] * right + [0] * wrong
    return np.array(old, dtype=float), np.array(new, dtype=float)


def binary(
    rng: np.random.Generator, questions: int, *, lost: float, won: float
) -> tuple[Floats, Floats]:
    """Old and new scores of 0 and 1; `lost` and `won` are chances of a question.

    Of the other questions half are too hard for both versions, half are easy for both.
    """
    draw = rng.random(questions)
    both = (rng.random(questions) < 0.5).astype(float)
    is_lost, is_won = draw < lost, (draw >= lost) & (draw < lost + won)
    old = np.where(is_lost, 1.0, np.where(is_won, 0.0, both))
    new = np.where(is_lost, 0.0, np.where(is_won, 1.0, both))
    return old, new


def graded(rng: np.random.Generator, questions: int, *, loss: float = 0.0) -> tuple[Floats, Floats]:
    """Old and new scores between 0 and 1, most of them high, some catastrophes."""
    ability = rng.beta(4, 1.5, questions)

    def version() -> Floats:
        fails = rng.random(questions) < 0.03
        noisy = np.clip(ability + rng.normal(0, 0.06, questions), 0, 1)
        return np.where(fails, 0.2 * noisy, noisy)

    old, new = version(), version()
    return old, np.clip(new - loss, 0, 1)


def own_luck(rng: np.random.Generator, questions: int, attempts: int) -> tuple[Floats, Floats]:
    """Equal versions, each with questions of its own that it always gets wrong.

    Asked again, a version says nearly the same, as models do at a low temperature.
    """

    def version() -> Floats:
        knows = rng.random(questions) < 0.6
        chance = np.where(knows, 0.97, 0.03)[:, None]
        return (rng.random((questions, attempts)) < chance).astype(float)

    return version(), version()


def golden_scores(
    make: Callable[..., Any], assistant: Answering, questions: Iterable[GoldenQuestion]
) -> Scores:
    """1 for an answer that holds all facts and nothing wrong, 0 for any other.

    A question that no document answers wants `NO_ANSWER`.
    """
    return [make(q.id, q.kind, float(_right(q, assistant.ask(q.question).text))) for q in questions]


def _right(question: GoldenQuestion, text: str) -> bool:
    if not question.answerable:
        return text == NO_ANSWER
    return not question.missing(text) and not question.wrong(text)
