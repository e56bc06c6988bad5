"""Task 3.1: how good is the retriever, by how much may that be luck, and where is it bad?

A ranking is a sequence of document ids, best first. `relevant` grades documents: 2 holds the
answer, 1 touches it, 0 was judged and does not help. Relevant are those with a grade above 0.

Conventions of all metrics at k:

- A document that comes twice counts once, at its first place; what follows moves up. After that
  the first k documents count, and fewer than k are fewer chances used, not a smaller k.
- Ids that `relevant` does not name are documents that do not help.
- Nothing relevant: there is no right ranking, so the metric is None; never 0, never 1.
- Nothing found, but something relevant: 0.
- ``k < 1`` raises `ValueError`, whatever else is given.

RAGAS has two metrics by the name of context precision. `IDBasedContextPrecision` looks at no
order: it is `precision_at_k` where k distinct documents were found. With fewer it divides by
what was found, and it is NaN where nothing was. `NonLLMContextPrecisionWithReference` looks at
the order: it is `context_precision_at_k` (to 1e-9: it adds 1e-10 to its denominator), where its
`threshold` is so high that only the same text is the same document. At its default, 0.5, a
superseded version passes for the one in force. `IDBasedContextRecall` and, with that threshold,
`NonLLMContextRecall` are `recall_at_k`. Where nothing is relevant, RAGAS's precision by id is 0
and its recall NaN.
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
    raise NotImplementedError("Task 3.1: write precision_at_k")


def context_precision_at_k(
    ranking: Sequence[str], relevant: Mapping[str, int], k: int
) -> float | None:
    """How early the relevant ones among the first k come.

    At the place of each relevant document found: the share of relevant ones down to that place.
    The mean of these shares over the relevant documents found; 0 if none was. It does not ask
    what was not found: that is recall's question.
    """
    raise NotImplementedError("Task 3.1: write context_precision_at_k")


def recall_at_k(ranking: Sequence[str], relevant: Mapping[str, int], k: int) -> float | None:
    """Relevant documents among the first k, divided by the number of relevant documents."""
    raise NotImplementedError("Task 3.1: write recall_at_k")


def reciprocal_rank_at_k(
    ranking: Sequence[str], relevant: Mapping[str, int], k: int
) -> float | None:
    """1 / place of the first relevant document among the first k; 0 if there is none.

    Its mean over questions is the mean reciprocal rank, MRR.
    """
    raise NotImplementedError("Task 3.1: write reciprocal_rank_at_k")


def ndcg_at_k(ranking: Sequence[str], relevant: Mapping[str, int], k: int) -> float | None:
    """Normalised discounted cumulative gain of the first k.

    A document of grade g at place i (1 is the first) gains ``(2**g - 1) / log2(i + 1)``. The sum
    over the first k, divided by the largest sum that any ranking could reach at this k: that of
    all relevant documents, found or not, the highest grades first.

    Source: Burges et al., "Learning to Rank using Gradient Descent" (2005).
    """
    raise NotImplementedError("Task 3.1: write ndcg_at_k")


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
    raise NotImplementedError("Task 3.1: write mean_interval")


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
    raise NotImplementedError("Task 3.1: write evaluate_retriever")


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
    raise NotImplementedError("Task 3.1: write log_evaluation")
