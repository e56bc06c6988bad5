"""Takes a seed, and draws every interval with that of `mean_interval`.

caught-by: test_a_question_weighs_the_same_whatever_its_kind
hint: other-seed
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Document, Feedback, Span, SpanType, Trace
from mlflow.genai.scorers import scorer

from shared.assistant.assistant import Answer
from shared.assistant.records import GoldenQuestion

DRAWS = 10_000
"""Random weightings behind an interval."""

EVALUATION_SETTINGS = {
    # Otherwise MLflow asks the first question once more, to see whether there is a trace.
    "MLFLOW_GENAI_EVAL_SKIP_TRACE_VALIDATION": "true",
    # With its ten workers a SQLite store runs out of connections, and feedback gets lost.
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
    """One question of an evaluation.

    Attributes:
        ranking: the documents that counted: distinct, the first k.
        scores: by name of the metric; None where nothing is relevant.
    """

    id: str
    kind: str
    ranking: tuple[str, ...]
    scores: Mapping[str, float] | None


@dataclass(frozen=True)
class Slice:
    """Some questions together.

    Attributes:
        scored: questions that the means rest on.
        excluded: questions without a relevant document.
        means: by name of the metric; empty where no question was scored.
    """

    scored: int
    excluded: int
    means: Mapping[str, Mean]


@dataclass(frozen=True)
class RetrievalReport:
    """A retriever's worth.

    Attributes:
        questions: in the order in which they were given.
        by_kind: a slice for each kind of question that was given, kinds without a scored
            question included.
        unknown: ids that no document has, among the first k of the rankings, sorted, each once:
            the index and the documents are out of step.
    """

    k: int
    questions: tuple[QuestionScores, ...]
    overall: Slice
    by_kind: Mapping[str, Slice]
    unknown: tuple[str, ...]


def precision_at_k(ranking: Sequence[str], relevant: Mapping[str, int], k: int) -> float | None:
    """Relevant documents among the first k, divided by k."""
    hits = _hits(ranking, relevant, k)
    return None if hits is None else sum(hits) / k


def context_precision_at_k(
    ranking: Sequence[str], relevant: Mapping[str, int], k: int
) -> float | None:
    """How early the relevant ones among the first k come.

    At the place of each relevant document found: the share of relevant ones down to that place.
    The mean of these shares over the relevant documents found; 0 if none was. It does not ask
    what was not found: that is recall's question.
    """
    hits = _hits(ranking, relevant, k)
    if hits is None:
        return None
    places = [i for i, hit in enumerate(hits, 1) if hit]
    return sum(n / i for n, i in enumerate(places, 1)) / len(places) if places else 0.0


def recall_at_k(ranking: Sequence[str], relevant: Mapping[str, int], k: int) -> float | None:
    """Relevant documents among the first k, divided by the number of relevant documents."""
    hits = _hits(ranking, relevant, k)
    return None if hits is None else sum(hits) / len(_gains(relevant))


def reciprocal_rank_at_k(
    ranking: Sequence[str], relevant: Mapping[str, int], k: int
) -> float | None:
    """1 / place of the first relevant document among the first k; 0 if there is none.

    Its mean over questions is the mean reciprocal rank, MRR.
    """
    hits = _hits(ranking, relevant, k)
    if hits is None:
        return None
    return 1 / (hits.index(True) + 1) if any(hits) else 0.0


def ndcg_at_k(ranking: Sequence[str], relevant: Mapping[str, int], k: int) -> float | None:
    """Normalised discounted cumulative gain of the first k.

    A document of grade g at place i (1 is the first) gains ``(2**g - 1) / log2(i + 1)``. The sum
    over the first k, divided by the largest sum that any ranking could reach at this k: that of
    all relevant documents, found or not, the highest grades first.

    Source: Burges et al., "Learning to Rank using Gradient Descent" (2005).
    """
    gains = _gains(relevant)
    found = [gains.get(i, 0.0) for i in _first(ranking, k)]
    ideal = sorted(gains.values(), reverse=True)[:k]
    return _discounted(found) / _discounted(ideal) if ideal else None


METRICS: dict[str, Callable[[Sequence[str], Mapping[str, int], int], float | None]] = {
    "precision": precision_at_k,
    "context_precision": context_precision_at_k,
    "recall": recall_at_k,
    "reciprocal_rank": reciprocal_rank_at_k,
    "ndcg": ndcg_at_k,
}
"""What an evaluation computes for each question, and by which names."""


def mean_interval(values: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> Mean:
    """The mean of scores in [0, 1], with an interval for the mean of all such questions.

    A bootstrap that also expects a question which it has not seen. Draw `DRAWS` weightings of
    n + 1 questions: n given ones and one more; each weighting is uniform over all that sum to 1
    (Dirichlet, all parameters 1). `low` is the ``(1 - confidence) / 2`` quantile of the weighted
    means with the additional question at 0, `high` the ``(1 + confidence) / 2`` quantile with it
    at 1.

    For scores that are all 0 or 1 this is the exact interval of Clopper and Pearson; for others
    that it holds the true mean often enough is a conjecture which simulations support. It has a
    width where all scores are the same: ten of ten is no proof of always. The ordinary bootstrap
    has none there.

    Args:
        seed: the same seed gives the same interval, another seed draws other weightings.

    Raises:
        ValueError: no score, or one outside [0, 1] (NaN included).

    Source: Learned-Miller and Thomas (2019), https://arxiv.org/abs/1905.06208
    """
    scores = np.asarray(values, dtype=float)
    if scores.size == 0 or not np.all((scores >= 0) & (scores <= 1)):
        raise ValueError("an interval needs scores, each in [0, 1]")
    weights = np.random.default_rng(seed).dirichlet(np.ones(scores.size + 1), size=DRAWS)
    at_worst = weights[:, :-1] @ scores
    at_best = at_worst + weights[:, -1]
    value = float(scores.mean())
    low = float(np.quantile(at_worst, (1 - confidence) / 2))
    high = float(np.quantile(at_best, (1 + confidence) / 2))
    return Mean(value, low=min(low, value), high=min(max(high, value), 1.0))


def evaluate_retriever(
    retrieve: Callable[[str], Sequence[str]],
    questions: Sequence[GoldenQuestion],
    k: int,
    *,
    documents: Collection[str],
    seed: int = 0,
) -> RetrievalReport:
    """Ask a retriever every question, and score what it finds with `METRICS`.

    Each question is asked once, in the given order, those that no document answers too. What is
    relevant decides who is scored, not what kind a question has. A mean over questions gives each
    scored question the same weight, whatever its kind; intervals are those of `mean_interval`
    with `seed`. An error of the retriever is let through: an evaluation without the question that
    broke it would be a better one.

    Args:
        retrieve: takes the text of a question, returns a ranking, of any length.
        documents: ids of the documents that can be found.

    Raises:
        ValueError: no question; ``k < 1``; or a question names a relevant document that is not
            among `documents`, which no retriever could find. The message names both ids.
    """
    if not questions:
        raise ValueError("an evaluation needs at least one question")
    for question in questions:
        gone = sorted(set(_gains(question.relevant)) - set(documents))
        if gone:
            raise ValueError(f"{question.id} wants {', '.join(gone)}: no such document")
    scored = tuple(_scored(q, retrieve(q.question), k) for q in questions)
    kinds = dict.fromkeys(q.kind for q in questions)
    return RetrievalReport(
        k=k,
        questions=scored,
        overall=_slice(scored),
        by_kind={kind: _slice([s for s in scored if s.kind == kind]) for kind in kinds},
        unknown=tuple(sorted({i for s in scored for i in s.ranking} - set(documents))),
    )


@contextmanager
def mlflow_at(tracking_uri: str) -> Iterator[None]:
    """Within it MLflow's functions use this store and `EVALUATION_SETTINGS`; then as before."""
    uri = mlflow.get_tracking_uri()
    settings = {name: os.environ.get(name) for name in EVALUATION_SETTINGS}
    mlflow.set_tracking_uri(tracking_uri)
    os.environ.update(EVALUATION_SETTINGS)
    try:
        yield
    finally:
        for name, value in settings.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
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
    """Trace an assistant's answers, have MLflow score its retrieval, and keep both in a run.

    `mlflow.genai.evaluate` asks and scores, inside `mlflow_at`, in a new run named `run_name` of
    the existing `experiment`. Its data are one row a question: `inputs` ``{"question": text}``,
    `expectations` ``{"relevant": {id: grade}}``, `tags` ``{"question_id": ..., "kind": ...}``.

    - `predict_fn` calls `ask` once a question and makes one trace of it: a root span `assistant`
      (type CHAIN) with the inputs ``{"question": text}`` and the answer's text as outputs, and
      in it a span `retrieve` (type RETRIEVER) with the same inputs and, as outputs, the answer's
      contexts in their order, each an `mlflow.entities.Document` with `id`, `page_content` and
      the metadata ``{"doc_uri": id, "score": score}``. (The assistant returns both at once, so
      this span says what was found, not how long it took.)
    - Scorers read the ranking from the RETRIEVER span and give each trace one feedback for each
      of `METRICS`, under its name; a question without a relevant document gets none.
    - The run also holds the parameter `k` and, from `evaluate_retriever` on the rankings that the
      traces hold, the metrics `scored`, `excluded` and, for each metric m, ``m/low``, ``m/high``
      and ``m/mean/<kind>`` for each kind with a scored question. MLflow itself logs ``m/mean``.
    - On return all traces are in the store: `mlflow.flush_trace_async_logging`.

    MLflow leaves a question whose answer or scorer failed out of its means, and goes on. Here
    that ends the run as FAILED.

    Returns:
        The run's id.

    Raises:
        LookupError: there is no such experiment.
        RuntimeError: a question was not answered, or got no feedback though it should have; the
            message names the ids of such questions.
    """
    by_text = {q.question: q for q in questions}
    with mlflow_at(tracking_uri):
        found = mlflow.get_experiment_by_name(experiment)
        if found is None:
            raise LookupError(f"there is no experiment {experiment!r}")
        home = found.experiment_id
        with mlflow.start_run(experiment_id=home, run_name=run_name) as run:
            mlflow.log_param("k", k)
            mlflow.genai.evaluate(
                data=[_row(q) for q in questions],
                scorers=[_retrieval_scorer(k)],
                predict_fn=_traced(ask),
            )
            mlflow.flush_trace_async_logging()
            traces = mlflow.search_traces(
                locations=[home],
                run_id=run.info.run_id,
                return_type="list",
                max_results=len(questions),
            )
            rankings = {_question(t): _ranking(t) for t in traces if _is_scored(t, by_text)}
            lost = [q.id for q in questions if q.question not in rankings]
            if lost:
                raise RuntimeError(f"not answered, or not scored: {', '.join(lost)}")
            report = evaluate_retriever(rankings.__getitem__, questions, k, documents=documents)
            mlflow.log_metrics(_figures(report))
        return str(run.info.run_id)


def _first(ranking: Sequence[str], k: int) -> list[str]:
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    return list(dict.fromkeys(ranking))[:k]


def _gains(relevant: Mapping[str, int]) -> dict[str, float]:
    return {i: 2.0**grade - 1 for i, grade in relevant.items() if grade > 0}


def _hits(ranking: Sequence[str], relevant: Mapping[str, int], k: int) -> list[bool] | None:
    """For each of the first k whether it is relevant; None where nothing is."""
    first, gains = _first(ranking, k), _gains(relevant)
    return [i in gains for i in first] if gains else None


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / float(np.log2(i + 1)) for i, gain in enumerate(gains, 1))


def _scored(question: GoldenQuestion, ranking: Sequence[str], k: int) -> QuestionScores:
    scores = {name: metric(ranking, question.relevant, k) for name, metric in METRICS.items()}
    known = {name: score for name, score in scores.items() if score is not None}
    return QuestionScores(question.id, question.kind, tuple(_first(ranking, k)), known or None)


def _slice(questions: Sequence[QuestionScores]) -> Slice:
    scores = [q.scores for q in questions if q.scores is not None]
    by_metric = {name: [s[name] for s in scores] for name in METRICS} if scores else {}
    means = {name: mean_interval(values) for name, values in by_metric.items()}
    return Slice(scored=len(scores), excluded=len(questions) - len(scores), means=means)


def _row(question: GoldenQuestion) -> dict[str, Any]:
    return {
        "inputs": {"question": question.question},
        "expectations": {"relevant": dict(question.relevant)},
        "tags": {"question_id": question.id, "kind": question.kind},
    }


def _traced(ask: Callable[[str], Answer]) -> Callable[[str], str]:
    def predict(question: str) -> str:
        with mlflow.start_span("assistant", span_type=SpanType.CHAIN) as root:
            root.set_inputs({"question": question})
            answer = ask(question)
            with mlflow.start_span("retrieve", span_type=SpanType.RETRIEVER) as span:
                span.set_inputs({"question": question})
                span.set_outputs(
                    [
                        Document(
                            id=c.id,
                            page_content=c.text,
                            metadata={"doc_uri": c.id, "score": c.score},
                        )
                        for c in answer.contexts
                    ]
                )
            root.set_outputs(answer.text)
        return answer.text

    return predict


def _retrieval_scorer(k: int) -> Any:
    @scorer
    def retrieval(expectations: dict[str, Any], trace: Trace) -> list[Feedback]:
        ranking, relevant = _ranking(trace), expectations["relevant"]
        scores = {name: metric(ranking, relevant, k) for name, metric in METRICS.items()}
        return [Feedback(name=n, value=s) for n, s in scores.items() if s is not None]

    return retrieval


def _question(trace: Trace) -> str:
    return str(next(s for s in trace.data.spans if s.parent_id is None).inputs["question"])


def _retrievals(trace: Trace) -> list[Span]:
    return [s for s in trace.data.spans if s.span_type == SpanType.RETRIEVER]


def _ranking(trace: Trace) -> list[str]:
    (span,) = _retrievals(trace)
    return [document["id"] for document in span.outputs]


def _is_scored(trace: Trace, questions: Mapping[str, GoldenQuestion]) -> bool:
    """Whether a trace holds a ranking and all feedback that it should have."""
    given = {a.name for a in trace.info.assessments if isinstance(a, Feedback) and not a.error}
    wanted = set(METRICS) if _gains(questions[_question(trace)].relevant) else set()
    return bool(_retrievals(trace)) and given >= wanted


def _figures(report: RetrievalReport) -> dict[str, float]:
    figures: dict[str, float] = {
        "scored": report.overall.scored,
        "excluded": report.overall.excluded,
    }
    for name, mean in report.overall.means.items():
        figures |= {f"{name}/low": mean.low, f"{name}/high": mean.high}
    for kind, part in report.by_kind.items():
        figures |= {f"{name}/mean/{kind}": mean.value for name, mean in part.means.items()}
    return figures
