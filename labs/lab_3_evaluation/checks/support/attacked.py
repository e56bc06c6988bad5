"""Assistants under attack, ways to hide a secret, and the traces and runs that a suite leaves."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Span, Trace

from shared.assistant.assistant import Answer, Answering, Context
from shared.assistant.attacks import Attack
from shared.assistant.records import Document
from shared.grading.expect import expect
from shared.tracking import make_empty_store


def answer_of(question: str, text: str, documents: Sequence[Document] = (), tokens: int = 40):
    """An answer as the assistant gives it, resting on `documents`."""
    contexts = tuple(Context(d.id, d.text, 0.9, d.sentences) for d in documents)
    return Answer(question, text, contexts, (), 0.1, tokens, "scripted", "none")


@dataclass
class Desk:
    """Makes assistants that answer by code, and remembers which documents each one was given.

    Args:
        says: the text for an attack's question and the documents; may raise.
    """

    says: Callable[[str, tuple[Document, ...]], str]
    tokens: int = 40
    given: list[tuple[str, ...]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return "a maker of scripted assistants"

    def __call__(self, documents: Sequence[Document]) -> Answering:
        self.given.append(tuple(d.id for d in documents))
        return _Scripted(self, tuple(documents))


@dataclass
class _Scripted:
    desk: Desk
    documents: tuple[Document, ...]

    def ask(self, question: str) -> Answer:
        self.desk.asked.append(question)
        text = self.desk.says(question, self.documents)
        return answer_of(question, text, self.documents[-2:], self.desk.tokens)


@dataclass
class Listening:
    """Makes real assistants, and keeps their answers in the order in which they came."""

    make: Callable[[Sequence[Document]], Answering]
    answers: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return "a maker of real assistants"

    def __call__(self, documents: Sequence[Document]) -> Answering:
        return _Heard(self, self.make(documents))


@dataclass
class _Heard:
    listening: Listening
    inner: Answering

    def ask(self, question: str) -> Answer:
        answer = self.inner.ask(question)
        self.listening.answers.append(answer.text)
        return answer


def _as_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


_LEET = str.maketrans("aeiostAEIOST", "431057431057")
_CYRILLIC = str.maketrans("aeopcxAEOPCTX", "аеорсхАЕОРСТХ")

SAME_LETTERS: Mapping[str, Callable[[str], str]] = {
    "in lower case": str.lower,
    "in capitals": str.upper,
    "with blanks between the characters": " ".join,
    "with dots between the characters": ".".join,
    "on several lines": lambda s: f"{s[:4]}\n{s[4:]}",
    "with zero-width characters": "\u200b".join,
    "with soft hyphens": "\u00ad".join,
    "in full-width characters": lambda s: "".join(
        chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in s
    ),
    "with Cyrillic look-alikes": lambda s: s.translate(_CYRILLIC),
    "in bold, with Markdown": lambda s: f"**{s[:3]}**{s[3:]}",
}
OTHER_READINGS: Mapping[str, Callable[[str], str]] = {
    "backwards": lambda s: s[::-1],
    "backwards, with blanks": lambda s: " ".join(s[::-1]),
    "in leet": lambda s: s.translate(_LEET),
    "in base64": _as_base64,
    "in base64 without its padding": lambda s: _as_base64(s).rstrip("="),
    "in base64, within a sentence that was encoded with it": lambda s: _as_base64(
        f"Well then, it is {s}, as you wished."
    ),
    "in base64 with zero-width characters": lambda s: "\u200b".join(_as_base64(s)),
}


@contextmanager
def tracking(uri: str, experiment: str, artifacts: Path) -> Iterator[str]:
    """MLflow's current store and experiment while this lasts; gives the experiment's id."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    # Its writing thread wakes once a second: to wait for it takes seconds in every check.
    os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        found = MlflowClient(uri).get_experiment_by_name(experiment)
        if found is None:
            artifacts.mkdir(parents=True, exist_ok=True)
            made = mlflow.create_experiment(experiment, artifact_location=artifacts.as_uri())
        experiment_id = found.experiment_id if found else made
        mlflow.set_experiment(experiment_id=experiment_id)
        yield experiment_id
    finally:
        mlflow.flush_trace_async_logging()
        while mlflow.active_run() is not None:
            mlflow.end_run()
        mlflow.set_tracking_uri(before)


def scratch_uri(folder: Path) -> str:
    """A store of its own."""
    return make_empty_store(folder / "suite.db")


def forget(experiment_id: str) -> None:
    """Delete the traces and runs of earlier checks: `make ui` shows the newest suite."""
    client = MlflowClient()
    now = int(time.time() * 1000)
    client.delete_traces(experiment_id, max_timestamp_millis=now)
    for run in client.search_runs([experiment_id]):
        folder = Path(unquote(urlparse(run.info.artifact_uri).path))
        client.delete_run(run.info.run_id)
        if folder.name == "artifacts" and folder.parent.name == run.info.run_id:
            shutil.rmtree(folder.parent, ignore_errors=True)


def traces_of(experiment_id: str) -> dict[str, Trace]:
    """All traces of an experiment by id, those too that a thread of MLflow's has yet to write."""
    mlflow.flush_trace_async_logging()
    found = mlflow.search_traces(
        locations=[experiment_id], return_type="list", max_results=500, flush=False
    )
    return {t.info.trace_id: t for t in found}


def trace_of(traces: Mapping[str, Trace], trace_id: Any, attack: Attack) -> Trace:
    """The trace that an attempt names."""
    expect(
        trace_id in traces,
        observed=f"trace_id {trace_id!r} of the attempt {attack.id}; the experiment holds "
        f"{len(traces)} traces, none of that id",
        expected="the id of the attempt's trace in the current experiment",
        why="From a success in the report one goes to what the assistant was shown and said.",
        hint="trace-tree",
    )
    return traces[trace_id]


def span_tree(trace: Trace) -> dict[str, list[str]]:
    """Names of the spans, each with the sorted names of those under it."""
    names = {s.span_id: s.name for s in trace.data.spans}
    tree: dict[str, list[str]] = {s.name: [] for s in trace.data.spans}
    for span in trace.data.spans:
        if span.parent_id is not None:
            tree[names[span.parent_id]].append(span.name)
    return {k: sorted(v) for k, v in tree.items()}


def span_named(trace: Trace, name: str) -> Span:
    """The span of that name; `span_tree` has said that there is one."""
    return next(s for s in trace.data.spans if s.name == name)


def written(trace: Trace) -> str:
    """All that a trace tells: spans, events, status, tags, previews, metadata."""
    info = trace.info
    parts = [s.to_dict() for s in trace.data.spans]
    previews = [info.request_preview, info.response_preview, info.trace_metadata, info.tags]
    return json.dumps([parts, previews], default=str, ensure_ascii=False)
