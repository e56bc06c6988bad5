"""Where decisions are logged: the experiment, and what a run of it holds."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from shared.grading.expect import fail
from shared.tracking import Store

EXPERIMENT = "lab 3: release gate"


def gate_experiment(store: Store) -> str:
    """Have the experiment in a store; return its name."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    client = MlflowClient(store.uri)
    if client.get_experiment_by_name(EXPERIMENT) is None:
        store.artifacts.mkdir(parents=True, exist_ok=True)
        client.create_experiment(EXPERIMENT, artifact_location=store.artifacts.as_uri())
    return EXPERIMENT


def logged_run(store: Store, run_id: Any) -> Run:
    """The run that the learner's code says it has made."""
    try:
        return MlflowClient(store.uri).get_run(str(run_id))
    except MlflowException as error:
        fail(
            observed=f"run_id {run_id!r}, of which the tracking store says: {str(error)[:150]}",
            expected="the id of a run in the store at tracking_uri",
            why="Whoever asks why a release was stopped looks the run up by its id.",
            hint="record",
        )


def logged_table(run: Run, name: str) -> dict[str, list[Any]]:
    """The columns of a table among the run's artifacts; empty where there is none."""
    file = _artifacts(run) / name
    if not file.is_file():
        return {}
    table = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(table, dict) or "columns" not in table:
        return {}
    rows = zip(*table["data"], strict=True) if table["data"] else ([] for _ in table["columns"])
    return {column: list(row) for column, row in zip(table["columns"], rows, strict=True)}


def keep_newest(store: Store, run_name: str) -> None:
    """Delete all runs of that name but the newest, files included."""
    client = MlflowClient(store.uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        return
    runs = client.search_runs([found.experiment_id], order_by=["attributes.start_time DESC"])
    for run in [r for r in runs if r.info.run_name == run_name][1:]:
        forget(store, run)


def forget(store: Store, run: Run) -> None:
    """Delete a run, files included."""
    MlflowClient(store.uri).delete_run(run.info.run_id)
    folder = _artifacts(run)
    if folder.name == "artifacts" and folder.parent.name == run.info.run_id:
        shutil.rmtree(folder.parent, ignore_errors=True)


def _artifacts(run: Run) -> Path:
    return Path(unquote(urlparse(run.info.artifact_uri).path))
