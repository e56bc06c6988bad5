"""Checks of task 2.1: the baseline on record."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import wandb
from mlflow import MlflowClient
from scipy import stats
from support.desk import desk
from support.registry import NAME, new_experiment, new_store, own_experiment
from support.wandb_file import read_run

from shared.domains.tabular import load_tabular
from shared.grading.expect import expect, expect_equal, fail, plain
from shared.paths import ROOT

METRICS = ("auc", "log_loss", "brier", "calibration_error", "event_rate", "mean_probability")
OTHERS = 10
"""Versions that colleagues have registered under the same name before."""


def test_evaluate_says_how_good_and_how_well_calibrated(learner, rng):
    for rows, shift in ((400, 0.0), (900, 1.5)):
        logit = rng.normal(0, 1.5, rows)
        outcome = (rng.random(rows) < _sigmoid(logit - shift)).astype(int)
        probability = _sigmoid(logit)
        probability[:2] = (0.0, 1.0)
        outcome[:2] = (0, 1)
        got = plain(learner.evaluate(outcome, probability))
        expect_equal(
            got,
            _metrics(outcome, probability),
            rel=1e-6,
            abs_=1e-9,
            what=f"evaluate on {rows} rows"
            + (" with predictions that are too high" if shift else ""),
            why="Ranking can stay good while probabilities drift away. Whoever prices a risk needs "
            "both figures.",
            hint="calibration",
        )


def test_the_data_hash_sees_every_value_and_nothing_else(learner, rng):
    frame = desk(rng, rows=500).frame.iloc[:200].reset_index(drop=True)
    first = plain(learner.data_hash(frame))
    expect(
        isinstance(first, str) and re.fullmatch(r"[0-9a-f]{64}", first) is not None,
        observed=f"{first!r}",
        expected="64 hexadecimal digits of a SHA-256",
        why="Python's hash() differs in every process: nobody could find the data again.",
        hint="hash",
    )
    copied = frame.copy(deep=True)
    copied["channel"] = ["".join(list(c)) for c in frame["channel"]]  # equal, not identical
    copied["channel"] = copied["channel"].astype(frame["channel"].dtype)
    same = {
        "a copy": copied,
        "the columns in another order": frame[list(frame.columns[::-1])],
        "another index": frame.set_axis(range(1000, 1200), axis=0),
    }
    for change, other in same.items():
        expect_equal(
            learner.data_hash(other),
            first,
            what=f"hash of {change}",
            why="The same data under two hashes looks like two data sets.",
            hint="hash",
        )
    middle = int(rng.integers(80, 120))
    changed = {name: frame.copy() for name in ("a number", "a string", "a gap", "a time")}
    changed["a number"].loc[middle, "income"] += 1e-6
    changed["a string"].loc[middle, "channel"] = "agent"
    changed["a gap"].loc[frame["debt"].first_valid_index() or 0, "debt"] = np.nan
    changed["a time"].loc[middle, "time"] += pd.Timedelta(seconds=1)
    changed["the order of the rows"] = frame.iloc[::-1].reset_index(drop=True)
    changed["the name of a column"] = frame.rename(columns={"debt": "debts"})
    changed["one row fewer"] = frame.iloc[:-1]
    swapped = {"income": "debt", "debt": "income"}
    changed["two columns' names exchanged"] = frame.rename(columns=swapped)
    for change, other in changed.items():
        expect(
            plain(learner.data_hash(other)) != first,
            observed=f"the same hash with another value in {change} (row {middle} of 200)"
            if change.startswith("a ")
            else f"the same hash with a change of {change}",
            expected="another hash",
            why="The hash is the proof that the data are those of the run. A change that it does "
            "not see makes the proof worthless.",
            hint="hash",
        )


@pytest.mark.limit(60)
def test_the_data_hash_is_the_same_in_another_process(learner, rng, target, tmp_path):
    frame = desk(rng, rows=300).frame
    frame.to_parquet(tmp_path / "frame.parquet")
    here = plain(learner.data_hash(pd.read_parquet(tmp_path / "frame.parquet")))
    script = Path(__file__).parent / "support" / "hasher.py"
    answer = subprocess.run(
        [sys.executable, str(script), str(target.path("baseline.py")), "frame.parquet"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    found = re.findall(r"^HASH (.*)$", answer.stdout, re.MULTILINE)
    if not found:
        raise RuntimeError(f"the other process gave no hash: {answer.stderr[-2000:]}")
    expect_equal(
        found[-1],
        here,
        what="hash of the same frame in another process",
        why="The one who checks the data next year does so in another process.",
        hint="hash",
    )


@pytest.mark.limit(60)
def test_the_model_sees_features_only_and_takes_what_comes(learner, rng, tmp_path):
    record = _trained(learner, rng, tmp_path)
    data = record["data"]
    signature = record["model"].metadata.signature
    if signature is None or signature.inputs is None or signature.outputs is None:
        fail(
            observed="a model without signature, or with half of one",
            expected="a signature of the features and of the answer",
            why="Without it a renamed or missing column reaches the model, and gets a prediction.",
            hint="signature",
        )
    names = [str(c.name) for c in signature.inputs]
    expect_equal(
        sorted(names),
        sorted(data.features),
        what="columns of the model's signature",
        why="The target, or a column written after the outcome, is not there when a prediction is "
        "needed. In the test it makes the model look like an oracle.",
        hint="features",
    )
    answer = np.asarray(record["model"].predict(data.reference_frame[names].head(7)))
    expect_equal(
        list(answer.shape),
        [7, 2],
        what="shape of the pyfunc's answer for 7 rows",
        why="With predict the service answers 0 or 1, and threshold, price and drift of the score "
        "are out of reach.",
        hint="signature",
    )
    strange = data.window(*data.current[0][1:]).head(40).copy()
    strange.loc[:10, "income"] = np.nan
    strange.loc[5:20, "channel"] = "carrier pigeon"
    strange.loc[21:30, "channel"] = None
    probability = _probability(record["model"], strange, data)
    expect(
        bool(np.all((probability >= 0) & (probability <= 1)) and len(probability) == 40),
        observed=f"{len(probability)} answers between {probability.min():.3f} and "
        f"{probability.max():.3f}",
        expected="40 probabilities",
        why="Thresholds, prices and drift of the score need the probability, not the class.",
        hint="signature",
    )


def test_metrics_are_those_of_the_later_window(learner, rng, tmp_path):
    record = _trained(learner, rng, tmp_path)
    data, run = record["data"], record["run"]
    later, early = data.window(*data.current[0][1:]), data.reference_frame
    everything = data.frame
    want = _score(record["model"], later, data)
    for where, got in (("result.metrics", record["metrics"]), ("MLflow", run.data.metrics)):
        missing = sorted(set(METRICS) - set(got))
        expect(
            not missing,
            observed=f"{where} without {', '.join(missing)}",
            expected=f"all of {', '.join(METRICS)}",
            why="A figure that was not logged cannot be compared next month.",
            hint="later",
        )
        which = ""
        for name, rows in (("training rows", early), ("rows of all years", everything)):
            if np.isclose(got["auc"], _score(record["model"], rows, data)["auc"], rtol=1e-6):
                which = f", which is the figure for the {name}"
        expect(
            all(np.isclose(got[m], want[m], rtol=1e-5, atol=1e-7) for m in METRICS),
            observed=f"auc {got['auc']:.4f}, log loss {got['log_loss']:.4f} in {where}{which}",
            expected=f"auc {want['auc']:.4f}, log loss {want['log_loss']:.4f}: the registered "
            f"model on the {len(later)} rows of the first later window",
            why="In production the model meets rows that come after those it has learned from. Any "
            "other rows flatter it.",
            hint="later",
        )


@pytest.mark.limit(60)
def test_the_model_learns_from_the_reference_period_only(learner, rng, tmp_path):
    record = _trained(learner, rng, tmp_path)
    data = record["data"]
    frame = data.frame.copy()
    after = frame["time"] >= data.reference[1]
    frame.loc[after, "income"] = frame.loc[after, "income"] * 50 + 7
    frame.loc[after, "default"] = 1 - frame.loc[after, "default"]
    other = _train(learner, replace(data, frame=frame), tmp_path / "other")
    probe = data.reference_frame.iloc[:200]
    one, two = (_probability(r["model"], probe, data) for r in (record, other))
    expect(
        bool(np.allclose(one, two, atol=1e-6)),
        observed="a model that answers differently (by up to "
        f"{float(np.abs(one - two).max()):.3f}) when only rows after the reference period change",
        expected="the same model: it has not seen those rows",
        why="A random split, or scaling fitted to all rows, lets the model see the future. Offline "
        "it shines; in production the future is missing.",
        hint="later",
    )


def test_the_run_says_where_it_all_came_from(learner, rng, tmp_path):
    record = _trained(learner, rng, tmp_path)
    data, run = record["data"], record["run"]
    experiment = record["client"].get_experiment_by_name("monitoring")
    expect_equal(
        (run.info.status, run.info.experiment_id),
        ("FINISHED", experiment.experiment_id),
        what="status and experiment of the run",
        why="A run in the wrong place, or without end, is not found again.",
        hint="record",
    )
    later = data.window(*data.current[0][1:])
    params = {
        "train_window": "2018-01-01/2022-01-01",
        "evaluation_window": "2022-01-01/2023-01-01",
        "train_rows": str(len(data.reference_frame)),
        "evaluation_rows": str(len(later)),
    }
    expect_equal(
        {k: run.data.params.get(k) for k in params},
        params,
        what="parameters of the run",
        why="A figure means something only together with the rows it was computed on.",
        hint="record",
    )
    fingerprint = plain(learner.data_hash(data.reference_frame))
    tags = {"domain": "finance", "data_hash": fingerprint}
    expect_equal(
        ({k: run.data.tags.get(k) for k in tags}, record["data_hash"]),
        (tags, fingerprint),
        what="tags of the run, and result.data_hash",
        why="They are what you search by when a customer asks which data decided.",
        hint="record",
    )
    inputs = [
        (i.dataset.name, i.dataset.digest, {t.key: t.value for t in i.tags})
        for i in run.inputs.dataset_inputs
    ]
    expect_equal(
        inputs,
        [("finance", fingerprint[:32], {"mlflow.data.context": "training"})],
        what="dataset inputs of the run (name, digest, tags)",
        why="MLflow's pages show lineage from dataset inputs.",
        hint="record",
    )


def test_the_logged_model_can_be_served_by_a_stranger(learner, rng, tmp_path):
    record = _trained(learner, rng, tmp_path)
    model = record["model"]
    folder = Path(
        mlflow.artifacts.download_artifacts(
            f"models:/{NAME}/{record['versions'][0]}", tracking_uri=record["uri"]
        )
    )
    example = model.metadata.load_input_example(str(folder))
    expect(
        example is not None
        and list(example.columns) == [c.name for c in model.metadata.signature.inputs]
        and len(example) == 5,
        observed="no input example"
        if example is None
        else f"an input example of {len(example)} rows with columns {list(example.columns)}",
        expected="an input example of 5 rows with the signature's columns",
        why="Whoever calls the model for the first time copies the example.",
        hint="signature",
    )
    requirements = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    for package in ("scikit-learn", "pandas"):
        wanted = f"{package}=={installed_version(package)}"
        expect(
            wanted in requirements,
            observed=f"requirements {requirements}",
            expected=f"{wanted} among them",
            why="Another version of the library may load the model and answer differently, "
            "or not load it at all.",
            hint="requirements",
        )


def test_the_champion_is_the_version_that_this_run_made(learner, rng, tmp_path):
    record = _trained(learner, rng, tmp_path)
    registered = record["client"].get_registered_model(NAME)
    champion = registered.aliases.get("champion")
    mine = record["versions"]
    expect_equal(
        mine,
        [str(OTHERS + 1)],
        what=f"versions of the run's model, with {OTHERS} versions there before",
        why="One training, one version.",
        hint="champion",
    )
    expect_equal(
        (None if champion is None else str(champion), record["version"]),
        (mine[0], mine[0]),
        what="version under the alias, and result.version",
        why="Serving loads what the alias names. Version 1, the highest number or the 'latest' may "
        "be a colleague's experiment.",
        hint="champion",
    )


def test_weights_and_biases_has_the_same_run_offline(learner, rng, tmp_path):
    record = _trained(learner, rng, tmp_path)
    run = record["wandb"]
    if run is None:
        fail(
            observed="no offline run below wandb_dir with the id that the result names",
            expected="a folder offline-run-... with that id",
            why="A run that is written elsewhere is not found. One that is not offline asks for a "
            "login.",
            hint="wandb",
        )
    config = {
        **{k: record["run"].data.params.get(k) for k in ("train_window", "evaluation_window")},
        "data_hash": record["data_hash"],
        "mlflow_run_id": record["run"].info.run_id,
    }
    expect_equal(
        {k: run["config"].get(k) for k in config},
        config,
        what="config of the Weights & Biases run",
        why="Two trackers are of use only if one leads to the other.",
        hint="wandb",
    )
    logged = [s for s in run["steps"] if "auc" in s]
    expect_equal(
        [{m: s.get(m) for m in METRICS} for s in logged],
        [{m: record["metrics"][m] for m in METRICS}],
        rel=1e-9,
        what="metrics logged to Weights & Biases",
        why="Two trackers that disagree are worse than one.",
        hint="wandb",
    )
    expect_equal(
        record["wandb_mode"],
        "offline",
        what="WANDB_MODE when the run starts",
        why="With the argument mode alone, Weights & Biases still opens a connection to its "
        "makers. A clinic's firewall notices.",
        hint="mode-for-all",
    )
    expect_equal(
        (run.get("project"), run["finished"]),
        (NAME, True),
        what="project, and whether the run is finished",
        why="A run that is not finished may lack its last lines, and counts as crashed.",
        hint="wandb",
    )


@pytest.mark.limit(60)
def test_the_baseline_of_the_domain(learner, domain, figure, store, tmp_path):
    data = load_tabular(domain)
    experiment = own_experiment(store.uri, store.artifacts, "lab 2: baseline")
    record = _train_in(
        learner,
        data,
        uri=store.uri,
        experiment=experiment,
        model_name=f"{domain}-baseline",
        wandb_dir=store.folder / "wandb-runs",
    )
    label, start, end = data.current[0]
    later = data.window(start, end)
    want = _score(record["model"], later, data)
    figure(f"AUC in {label}", want["auc"])
    figure(f"calibration error in {label}", want["calibration_error"])
    expect_equal(
        {m: record["metrics"].get(m) for m in METRICS},
        want,
        rel=1e-5,
        abs_=1e-7,
        what=f"metrics of {label}, {domain}",
        why="This is the figure that every later window is compared with.",
        hint="later",
    )
    expect(
        want["auc"] > 0.55,
        observed=f"AUC {want['auc']:.3f} in {label}, {domain}",
        expected="more than 0.55: logistic regression on all features has "
        f"{ {'finance': 0.63, 'healthcare': 0.73, 'climate': 0.79}[domain] }",
        why="A baseline that ranks like a coin makes every challenger look good.",
        hint="features",
    )
    champion = record["client"].get_registered_model(f"{domain}-baseline").aliases.get("champion")
    expect_equal(
        str(champion), record["versions"][0], what="champion", why="Serving loads the alias."
    )


_RECORDS: dict[str, dict[str, Any]] = {}


def _trained(learner, rng, tmp_path: Path) -> dict[str, Any]:
    """The baseline of a made-up desk; trained once for all checks that look at its record."""
    if "desk" not in _RECORDS:
        _RECORDS["desk"] = _train(learner, desk(rng), tmp_path)
    return _RECORDS["desk"]


def _train(learner, data, tmp_path: Path) -> dict[str, Any]:
    """Run the learner's training against a store of its own that holds versions of others."""
    tmp_path.mkdir(exist_ok=True)
    uri = new_store(tmp_path, "registry")
    client = MlflowClient(uri, uri)
    client.create_registered_model(NAME)
    for _ in range(OTHERS):
        client.create_model_version(NAME, source="file:///nowhere")
    return _train_in(
        learner,
        data,
        uri=uri,
        experiment=new_experiment(uri, tmp_path),
        model_name=NAME,
        wandb_dir=tmp_path / "wandb-runs",
    )


def _train_in(
    learner, data, *, uri: str, experiment: str, model_name: str, wandb_dir: Path
) -> dict[str, Any]:
    """Run the learner's training, and read back what it left."""
    client = MlflowClient(uri, uri)
    os.environ["WANDB_MODE"] = "disabled"  # not "offline": to set that is the learner's part
    try:
        with _modes_of_wandb() as modes:
            result = learner.train_baseline(
                data,
                tracking_uri=uri,
                experiment=experiment,
                model_name=model_name,
                wandb_dir=wandb_dir,
            )
    finally:
        _stop_wandb()
    result = plain(result)
    versions = [
        str(v.version)
        for v in client.search_model_versions(f"name='{model_name}'")
        if v.run_id and v.run_id == result["run_id"]
    ]
    if not versions:
        fail(
            observed=f"run_id {result['run_id']!r}, and no version of {model_name!r} from it",
            expected="a run whose model is registered under the name that was given",
            why="A model that is not registered cannot be served, compared or rolled back to.",
            hint="champion",
        )
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model(f"models:/{model_name}/{versions[0]}")
    except Exception as error:
        fail(
            observed=f"a registered model that does not load ({type(error).__name__}: "
            f"{str(error)[:200]})",
            expected="one that mlflow.pyfunc.load_model loads",
            why="Serving loads it the same way.",
            hint="trusted-types",
        )
    return {
        "data": data,
        "uri": uri,
        "client": client,
        "run": client.get_run(result["run_id"]),
        "versions": versions,
        "version": str(result["version"]),
        "metrics": result["metrics"],
        "data_hash": result["data_hash"],
        "model": model,
        "wandb": _wandb_run(wandb_dir, result["wandb_id"]),
        "wandb_mode": modes[0] if modes else os.environ.get("WANDB_MODE"),
    }


@contextmanager
def _modes_of_wandb() -> Iterator[list[str | None]]:
    """What WANDB_MODE says each time that a run starts."""
    modes: list[str | None] = []
    init = wandb.init

    def noted(*args: Any, **kwargs: Any) -> Any:
        modes.append(os.environ.get("WANDB_MODE"))
        return init(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wandb, "init", noted)
        yield modes


def _stop_wandb() -> None:
    """End the service process; it writes what it still holds."""
    wandb.teardown()


def _wandb_run(folder: Path, wandb_id: str) -> dict[str, Any] | None:
    files = list(folder.rglob(f"offline-run-*/run-{wandb_id}.wandb"))
    return read_run(files[0]) if files else None


def _probability(model: Any, rows: pd.DataFrame, data) -> np.ndarray:
    try:
        answer = np.asarray(model.predict(rows[list(data.features)]), dtype=float)
    except Exception as error:
        fail(
            observed=f"{type(error).__name__} from the registered model: {str(error)[:250]}",
            expected="an answer for rows that have the features, and nothing else",
            why="In production there is nothing else.",
            hint="features",
        )
    return answer[:, -1] if answer.ndim == 2 else answer


def _score(model: Any, rows: pd.DataFrame, data) -> dict[str, float]:
    return _metrics(rows[data.target].to_numpy(), _probability(model, rows, data))


def _metrics(outcome: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """The metrics by their definitions, without scikit-learn."""
    ranks = stats.rankdata(probability)
    events = int(outcome.sum())
    others = len(outcome) - events
    auc = (ranks[outcome == 1].sum() - events * (events + 1) / 2) / (events * others)
    p = np.clip(probability, np.finfo(float).eps, 1 - np.finfo(float).eps)
    error = 0.0
    for low in range(10):
        inside = (probability >= low / 10) & ((probability < (low + 1) / 10) | (low == 9))
        if inside.any():
            error += inside.mean() * abs(probability[inside].mean() - outcome[inside].mean())
    return {
        "auc": float(auc),
        "log_loss": float(-np.mean(np.where(outcome == 1, np.log(p), np.log(1 - p)))),
        "brier": float(np.mean((probability - outcome) ** 2)),
        "calibration_error": float(error),
        "event_rate": float(outcome.mean()),
        "mean_probability": float(probability.mean()),
    }


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
