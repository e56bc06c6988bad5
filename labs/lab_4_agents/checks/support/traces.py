"""A scratch MLflow store, and what a check reads from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Span, Trace

from shared.grading.expect import expect, fail
from shared.tracking import make_empty_store


@contextmanager
def scratch_store(folder: Path) -> Iterator[str]:
    """MLflow writes to a store in `folder`; gives the URI of its artifacts."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(make_empty_store(folder / "traces.db"))
    try:
        yield (folder / "artifacts").as_uri()
    finally:
        mlflow.flush_trace_async_logging()
        mlflow.set_tracking_uri(before)


class Traces:
    """The traces of one check, in an experiment of their own."""

    def __init__(self, name: str, artifacts: str) -> None:
        self._experiment = mlflow.create_experiment(name, artifact_location=artifacts)
        mlflow.set_experiment(experiment_id=self._experiment)

    def all(self) -> list[Trace]:
        """All traces so far. They are written by a thread of MLflow's; this waits for it."""
        mlflow.flush_trace_async_logging()
        found: list[Trace] = mlflow.search_traces(
            locations=[self._experiment], return_type="list", max_results=200
        )
        return found

    def one(self, *, doing: str) -> Trace:
        """The one trace that there must be."""
        found = self.all()
        if len(found) != 1:
            names = [s.name for t in found for s in t.data.spans]
            fail(
                observed=f"{len(found)} traces after {doing}; their spans: {names[:12]}",
                expected="one trace, a tree with everything in it",
                why="A run in pieces: nobody can tell which tool call belonged to which run.",
                hint="one-tree",
            )
        return found[0]


def root_of(trace: Trace) -> Span:
    """The root of a trace."""
    roots = [s for s in trace.data.spans if s.parent_id is None]
    expect(
        len(roots) == 1,
        observed=f"{len(roots)} spans that have ended have no parent: {[s.name for s in roots]}",
        expected="one root, ended when the run has",
        why="The root is the run; everything else belongs under it.",
        hint="one-tree",
    )
    return roots[0]


def children(trace: Trace, kind: str) -> list[Span]:
    """Spans of a type, in the order in which they began."""
    return sorted(
        (s for s in trace.data.spans if s.span_type == kind), key=lambda s: s.start_time_ns
    )


def written(trace: Trace) -> str:
    """All that a trace tells, in lower case."""
    spans = [s.to_dict() for s in trace.data.spans]
    info = [trace.info.request_preview, trace.info.response_preview, trace.info.trace_metadata]
    text = json.dumps([spans, info, trace.info.tags], default=str, ensure_ascii=False)
    return text.lower()


def spans_text(trace: Trace) -> str:
    """What the spans tell: inputs, outputs, attributes, events, status."""
    return json.dumps([s.to_dict() for s in trace.data.spans], default=str, ensure_ascii=False)


def failed(span: Span) -> bool:
    """Whether a span's status is ERROR."""
    return str(span.status.status_code.value) == "ERROR"


def attribute(span: Span, name: str) -> Any:
    """An attribute of a span."""
    return span.get_attribute(name)
