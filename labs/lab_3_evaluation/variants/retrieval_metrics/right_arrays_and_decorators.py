"""Grades as arrays, weightings as gaps of sorted numbers, decorators, a scorer for each metric."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Document, SpanType, Trace
from mlflow.genai.scorers import scorer

from shared.assistant.assistant import Answer
from shared.assistant.records import GoldenQuestion

DRAWS = 10_000
EVALUATION_SETTINGS = {
    "MLFLOW_GENAI_EVAL_SKIP_TRACE_VALIDATION": "true",
    "MLFLOW_GENAI_EVAL_MAX_WORKERS": "2",
}


@dataclass(frozen=True)
class Mean:
    """A mean over questions and the interval around it: ``0 <= low <= value <= high <= 1``."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class QuestionScores:
    """One question of an evaluation."""

    id: str
    kind: str
    ranking: tuple[str, ...]
    scores: Mapping[str, float] | None


@dataclass(frozen=True)
class Slice:
    """Some questions together."""

    scored: int
    excluded: int
    means: Mapping[str, Mean]


@dataclass(frozen=True)
class RetrievalReport:
    """A retriever's worth."""

    k: int
    questions: tuple[QuestionScores, ...]
    overall: Slice
    by_kind: Mapping[str, Slice]
    unknown: tuple[str, ...]


def precision_at_k(ranking: Sequence[str], relevant: Mapping[str, int], k: int) -> float | None:
    """Share of the k places that hold a relevant document."""
    grades = _grades(ranking, relevant, k)
    return None if grades is None else float((grades > 0).mean())


def context_precision_at_k(
    ranking: Sequence[str], relevant: Mapping[str, int], k: int
) -> float | None:
    """Mean precision at the places of the hits."""
    grades = _grades(ranking, relevant, k)
    if grades is None:
        return None
    hits = grades > 0
    running = hits.cumsum() / np.arange(1, k + 1)
    return float(running[hits].mean()) if hits.any() else 0.0


def recall_at_k(ranking: Sequence[str], relevant: Mapping[str, int], k: int) -> float | None:
    """Share of the relevant documents that the k places hold."""
    grades = _grades(ranking, relevant, k)
    if grades is None:
        return None
    return float((grades > 0).sum() / sum(g > 0 for g in relevant.values()))


def reciprocal_rank_at_k(
    ranking: Sequence[str], relevant: Mapping[str, int], k: int
) -> float | None:
    """The largest 1 / place of a hit."""
    grades = _grades(ranking, relevant, k)
    if grades is None:
        return None
    return float(((grades > 0) / np.arange(1, k + 1)).max())


def ndcg_at_k(ranking: Sequence[str], relevant: Mapping[str, int], k: int) -> float | None:
    """Gain over ideal gain, as scalar products with the discounts."""
    grades = _grades(ranking, relevant, k)
    if grades is None:
        return None
    ideal = np.zeros(k)
    best = sorted(relevant.values(), reverse=True)[:k]
    ideal[: len(best)] = best
    discounts = 1 / np.log2(np.arange(2, k + 2))
    return min(1.0, float((np.exp2(grades) - 1) @ discounts / ((np.exp2(ideal) - 1) @ discounts)))


METRICS: dict[str, Callable[[Sequence[str], Mapping[str, int], int], float | None]] = {
    "precision": precision_at_k,
    "context_precision": context_precision_at_k,
    "recall": recall_at_k,
    "reciprocal_rank": reciprocal_rank_at_k,
    "ndcg": ndcg_at_k,
}


def mean_interval(values: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> Mean:
    """As the reference; n sorted random numbers cut [0, 1] into n + 1 weights."""
    scores = np.array(values, dtype=float)
    if not len(scores) or np.isnan(scores).any() or scores.min() < 0 or scores.max() > 1:
        raise ValueError("no scores, or scores that are none")
    cuts = np.sort(np.random.default_rng(seed).random((DRAWS, len(scores))), axis=1)
    edges = np.hstack([np.zeros((DRAWS, 1)), cuts, np.ones((DRAWS, 1))])
    weights = np.diff(edges, axis=1)
    means = [weights @ np.append(scores, extra) for extra in (0.0, 1.0)]
    beyond = 100 * (1 - confidence) / 2
    mean = float(scores.mean())
    return Mean(
        value=mean,
        low=min(mean, float(np.percentile(means[0], beyond))),
        high=max(mean, float(np.percentile(means[1], 100 - beyond))),
    )


def evaluate_retriever(
    retrieve: Callable[[str], Sequence[str]],
    questions: Sequence[GoldenQuestion],
    k: int,
    *,
    documents: Collection[str],
    seed: int = 0,
) -> RetrievalReport:
    """One pass over the questions, which sorts their scores into slices as it goes."""
    known = frozenset(documents)
    for q in questions:
        for name, grade in q.relevant.items():
            if grade > 0 and name not in known:
                raise ValueError(f"golden question {q.id}: there is no document {name}")
    if not questions:
        raise ValueError("no questions")
    rows: list[QuestionScores] = []
    slices: dict[str | None, list[Mapping[str, float] | None]] = {None: []}
    for q in questions:
        ranking = list(retrieve(q.question))
        scores: dict[str, float] | None = {}
        for name, metric in METRICS.items():
            value = metric(ranking, q.relevant, k)
            if value is None:
                scores = None
                break
            assert scores is not None
            scores[name] = value
        rows.append(QuestionScores(q.id, q.kind, tuple(_cut(ranking, k)), scores))
        slices[None].append(scores)
        slices.setdefault(q.kind, []).append(scores)
    parts = {kind: _part(scores, seed) for kind, scores in slices.items()}
    return RetrievalReport(
        k=k,
        questions=tuple(rows),
        overall=parts[None],
        by_kind={kind: part for kind, part in parts.items() if kind is not None},
        unknown=tuple(sorted(set().union(*(r.ranking for r in rows)) - known)),
    )


@contextmanager
def mlflow_at(tracking_uri: str) -> Iterator[None]:
    """As given."""
    uri, environment = mlflow.get_tracking_uri(), dict(os.environ)
    mlflow.set_tracking_uri(tracking_uri)
    os.environ.update(EVALUATION_SETTINGS)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        mlflow.set_tracking_uri(uri)


def log_evaluation(
    ask: Callable[[str], Answer],
    questions: Sequence[GoldenQuestion],
    k: int,
    *,
    documents: Collection[str],
    tracking_uri: str,
    experiment: str,
    run_name: str,
) -> str:
    """Keeps the rankings as they are made, and who was scored by what."""
    answers: dict[str, Answer] = {}
    scored: set[tuple[str, str]] = set()

    @mlflow.trace(name="assistant", span_type=SpanType.CHAIN)
    def predict(question: str) -> str:
        answer = ask(question)

        @mlflow.trace(name="retrieve", span_type=SpanType.RETRIEVER)
        def retrieve(question: str) -> list[Document]:
            return [
                Document(c.text, {"doc_uri": c.id, "score": c.score}, c.id) for c in answer.contexts
            ]

        retrieve(question)
        answers[question] = answer
        return answer.text

    with mlflow_at(tracking_uri):
        home = mlflow.get_experiment_by_name(experiment)
        if home is None:
            raise LookupError(experiment)
        with mlflow.start_run(run_name=run_name, experiment_id=home.experiment_id) as run:
            mlflow.genai.evaluate(
                data=[
                    {
                        "inputs": {"question": q.question},
                        "expectations": {"relevant": {**q.relevant}},
                        "tags": {"question_id": q.id, "kind": q.kind},
                    }
                    for q in questions
                ],
                predict_fn=predict,
                scorers=[_scorer(name, k, scored) for name in METRICS],
            )
            silent = [q.id for q in questions if q.question not in answers]
            if silent:
                raise RuntimeError(f"no answer to {silent}")
            wanted = {
                (q.question, m): q.id
                for q in questions
                if any(q.relevant.values())
                for m in METRICS
            }
            unscored = sorted({i for pair, i in wanted.items() if pair not in scored})
            if unscored:
                raise RuntimeError(f"no score for {unscored}")
            report = evaluate_retriever(
                lambda q: [c.id for c in answers[q].contexts], questions, k, documents=documents
            )
            figures: dict[str, float] = {
                "scored": report.overall.scored,
                "excluded": report.overall.excluded,
            }
            for name, mean in report.overall.means.items():
                figures[f"{name}/low"], figures[f"{name}/high"] = mean.low, mean.high
            for kind, part in report.by_kind.items():
                for name, mean in part.means.items():
                    figures[f"{name}/mean/{kind}"] = mean.value
            mlflow.log_params({"k": k})
            mlflow.log_metrics(figures)
            mlflow.flush_trace_async_logging()
    return str(run.info.run_id)


def _cut(ranking: Sequence[str], k: int) -> list[str]:
    kept: list[str] = []
    for name in ranking:
        if name not in kept and len(kept) < k:
            kept.append(name)
    return kept


def _grades(ranking: Sequence[str], relevant: Mapping[str, int], k: int) -> Any:
    """The grade at each of k places, 0 where there is no document; None where nothing helps."""
    if k < 1:
        raise ValueError("k must be positive")
    if not any(g > 0 for g in relevant.values()):
        return None
    grades = np.zeros(k)
    for place, name in enumerate(_cut(ranking, k)):
        grades[place] = relevant.get(name, 0)
    return grades


def _part(scores: Sequence[Mapping[str, float] | None], seed: int) -> Slice:
    there = [s for s in scores if s]
    return Slice(
        scored=len(there),
        excluded=len(scores) - len(there),
        means={m: mean_interval([s[m] for s in there], seed=seed) for m in METRICS if there},
    )


def _scorer(metric: str, k: int, done: set[tuple[str, str]]) -> Any:
    @scorer(name=metric)
    def scored(inputs: dict[str, Any], expectations: dict[str, Any], trace: Trace) -> float | None:
        span = next(s for s in trace.data.spans if s.span_type == SpanType.RETRIEVER)
        value = METRICS[metric]([d["id"] for d in span.outputs], expectations["relevant"], k)
        done.add((inputs["question"], metric))
        return value

    return scored
