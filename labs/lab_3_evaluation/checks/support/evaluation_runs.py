"""Runs of MLflow's evaluation: an assistant that is watched, and what the store holds then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mlflow import MlflowClient
from mlflow.entities import Feedback, Run, Trace
from mlflow.genai.evaluation import base, harness

from shared.assistant.assistant import Answer, Answering
from shared.assistant.records import GoldenQuestion


class Watched:
    """An assistant whose answers are kept, and which may fail at some questions."""

    def __init__(self, assistant: Answering, fails_at: Sequence[str] = ()) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, Answer] = {}
        self._assistant = assistant
        self._fails_at = fails_at
        self._lock = threading.Lock()

    def ask(self, question: str) -> Answer:
        """The assistant's answer."""
        with self._lock:  # MLflow asks from several threads
            self.asked.append(question)
            if question in self._fails_at:
                raise ConnectionError("the engine went away")
            self.answers[question] = self._assistant.ask(question)
            return self.answers[question]


@dataclass(frozen=True)
class Stored:
    """What the store holds of a run.

    Attributes:
        traces: by the question that its root span was asked.
        count: all traces of the run.
    """

    run: Run
    traces: dict[str, Trace]
    count: int


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Without MLflow's progress bar and its advice to open a page."""
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            patch.object(harness, "tqdm", None),
            patch.object(base, "display_evaluation_output", lambda run_id: None),
        ):
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def scoring_fails_at(question: str) -> Iterator[None]:
    """No scorer gets to see this question: the store is too busy, as it is with ten workers."""
    call = harness._invoke_scorer

    def invoke(scorer_func: Any, eval_item: Any) -> Any:
        if eval_item.inputs["question"] == question:
            raise TimeoutError("QueuePool limit reached, connection timed out")
        return call(scorer_func, eval_item)

    with patch.object(harness, "_invoke_scorer", invoke):
        yield


def experiment_in(uri: str, artifacts: Path, name: str) -> str:
    """Have an experiment; return its name."""
    client = MlflowClient(uri)
    if client.get_experiment_by_name(name) is None:
        artifacts.mkdir(parents=True, exist_ok=True)
        client.create_experiment(name, artifact_location=artifacts.as_uri())
    return name


def runs_of(uri: str, experiment: str) -> list[Run]:
    """The experiment's runs, the newest first."""
    client = MlflowClient(uri)
    home = client.get_experiment_by_name(experiment).experiment_id
    return list(client.search_runs([home], order_by=["attributes.start_time DESC"]))


def stored(uri: str, run_id: str) -> Stored:
    """Read a run and its traces back."""
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    traces = list(
        client.search_traces(locations=[run.info.experiment_id], run_id=run_id, max_results=100)
    )
    return Stored(run, {_asked(t): t for t in traces}, len(traces))


def keep_newest(uri: str, experiment: str, run_name: str) -> None:
    """Delete all runs of that name but the newest, traces included."""
    client = MlflowClient(uri)
    for run in [r for r in runs_of(uri, experiment) if r.info.run_name == run_name][1:]:
        home = run.info.experiment_id
        old = client.search_traces(locations=[home], run_id=run.info.run_id, include_spans=False)
        if old:
            client.delete_traces(home, trace_ids=[t.info.trace_id for t in old])
        client.delete_run(run.info.run_id)


def feedback_of(trace: Trace) -> dict[str, Any]:
    """Names and values of a trace's feedback."""
    return {a.name: a.value for a in trace.info.assessments if isinstance(a, Feedback)}


def some_of_each(
    questions: Sequence[GoldenQuestion], kinds: Sequence[str], rng: Any
) -> list[GoldenQuestion]:
    """A question drawn for each of `kinds`, no question twice."""
    drawn: list[GoldenQuestion] = []
    for kind in kinds:
        left = [q for q in questions if q.kind == kind and q not in drawn]
        drawn.append(left[int(rng.integers(len(left)))])
    return drawn


def _asked(trace: Trace) -> str:
    roots = [s for s in trace.data.spans if s.parent_id is None]
    given = roots[0].inputs if roots else None
    return str(given.get("question")) if isinstance(given, dict) else ""
