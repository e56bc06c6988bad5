"""The class as an MLflow experiment: a run a learner and lab, to compare and to query.

    mlflow ui --backend-store-uri sqlite:///<OUT>/mlflow/mlflow.db

A run is found again by its learner and lab. One that says the same already stays as it is; one
that says something else, or that a crash left unfinished, is replaced. So there is one active run
for each learner and lab, however often it is logged, and none of who is no longer of the class.

A run's status and name say in MLflow's list of runs what came of it: FINISHED with the points where
the lab is graded, KILLED where nothing was handed in, FAILED where it could not be graded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared import offline
from shared.classroom.records import ClassResult, GradedLab, Learner
from shared.classroom.text import encodable, one_line
from shared.classroom.verdicts import Labs, Verdict, lab_problems, score, verdicts
from shared.tracking import Store, make_empty_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "classroom"
_PAGE = 1000
_STATUS = {"graded": "FINISHED", "missing": "KILLED", "not_graded": "FAILED"}
_OUTCOME = {"missing": "not handed in", "not_graded": "NOT GRADED"}
_TIMES = frozenset({"seconds", "started_at"})


def log_class(result: ClassResult, labs: Labs, folder: Path, pages: dict[str, str]) -> int:
    """Log every verdict of the class.

    Args:
        folder: where the store is or is to be: `mlflow.db` and `mlartifacts`.
        pages: a learner's id to their feedback page (HTML).

    Returns:
        How many runs were written; the others said the same already.
    """
    offline.apply()  # MLflow would report usage, whoever the caller is
    store = Store(folder)
    make_empty_store(store.file)
    from mlflow import MlflowClient  # two seconds; whoever wants no tracking does not pay them

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    client = MlflowClient(store.uri)
    experiment = _experiment(client, store)
    there = _runs(client, experiment)
    written = 0
    people = {learner.id for learner in result.learners}
    for (who, _), runs in there.items():
        for run in runs if who and who not in people else ():
            client.delete_run(run.info.run_id)
    for learner in result.learners:
        for lab in result.labs:
            graded = result.of(learner.id, lab)
            if graded is None or graded.state == "not_asked":
                continue
            page = pages.get(learner.id, "")
            fingerprint = _fingerprint(result, learner, graded, page)
            before = there.get((learner.id, str(lab)), [])
            status = _STATUS[graded.state]
            if len(before) == 1 and _says(before[0], status, fingerprint):
                continue
            _log(client, experiment, result, learner, graded, labs, page, fingerprint)
            for run in before:
                client.delete_run(run.info.run_id)
            written += 1
    return written


def _experiment(client: MlflowClient, store: Store) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    place = (store.artifacts / EXPERIMENT).resolve().as_uri()
    return str(client.create_experiment(EXPERIMENT, artifact_location=place))


def _runs(client: MlflowClient, experiment: str) -> dict[tuple[str, str], list[Run]]:
    found: dict[tuple[str, str], list[Run]] = {}
    token = None
    while True:
        page = client.search_runs([experiment], max_results=_PAGE, page_token=token)
        for run in page:
            key = (run.data.tags.get("learner", ""), run.data.tags.get("lab", ""))
            found.setdefault(key, []).append(run)
        token = page.token
        if not token:
            return found


def _says(run: Run, status: str, fingerprint: str) -> bool:
    return run.info.status == status and run.data.tags.get("fingerprint") == fingerprint


def _fingerprint(result: ClassResult, learner: Learner, graded: GradedLab, page: str) -> str:
    """What a run says, as a hash. Times are not part of it: they differ at each grading."""
    what = [learner.model_dump(), graded.model_dump(), result.domain, result.seed, page]
    text = json.dumps(encodable(_without_times(what)), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in _TIMES}
    if isinstance(value, list | tuple):
        return [_without_times(v) for v in value]
    return value


def _log(
    client: MlflowClient,
    experiment: str,
    result: ClassResult,
    learner: Learner,
    graded: GradedLab,
    labs: Labs,
    page: str,
    fingerprint: str,
) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    tasks = verdicts(graded, labs.get(graded.lab))
    name = f"{learner.id}, lab {graded.lab}: {_outcome(result, graded)}"
    tags = _tags(result, learner, graded, tasks) | {"fingerprint": fingerprint}
    run = client.create_run(experiment, run_name=name, tags=tags)
    params = {"seed": str(result.seed), "domain": result.domain or "none", "lab": str(graded.lab)}
    params |= {f"status {t.id}": t.status for t in tasks}
    if graded.result is not None:
        params["engine"] = graded.result.engine or "none"
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(k, v, now, 0) for k, v in _metrics(result, graded, tasks).items()],
        params=[Param(key, one_line(value, 400)) for key, value in params.items()],
        tags=[],
    )
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch)
        (files / "feedback.html").write_text(page, encoding="utf-8")
        verdict = json.dumps(encodable(graded.model_dump(mode="python")), indent=1, default=str)
        (files / "verdict.json").write_text(verdict, encoding="utf-8")
        client.log_artifacts(run.info.run_id, scratch)
    client.set_terminated(run.info.run_id, _STATUS[graded.state])


def _outcome(result: ClassResult, graded: GradedLab) -> str:
    points = score(graded)
    if points is None:
        return _OUTCOME.get(graded.state, "NOT GRADED")
    return f"{points} of {result.max_scores.get(graded.lab, 0)}"


def _tags(
    result: ClassResult, learner: Learner, graded: GradedLab, tasks: list[Verdict]
) -> dict[str, str]:
    tags = {
        "learner": learner.id,
        "name": learner.name,
        "section": learner.section,
        "lab": str(graded.lab),
        "state": graded.state,
        "sandbox": result.sandbox,
        "tampered": ", ".join(t.id for t in tasks if t.status == "tampered"),
        "problems": "; ".join(lab_problems(result, learner.id, graded.lab)),
    }
    return {key: one_line(value, 400) for key, value in tags.items() if value}


def _metrics(result: ClassResult, graded: GradedLab, tasks: list[Verdict]) -> dict[str, float]:
    points = score(graded)
    if points is None:
        return {}
    maximum = result.max_scores.get(graded.lab, 0)
    found = {"score": float(points), "max_score": float(maximum)}
    if maximum:
        found["percent"] = 100 * points / maximum
    for task in tasks:
        found[f"points {task.id}"] = float(task.points)
        found[f"checks passed {task.id}"] = float(task.passed_checks)
    return found
