"""Tells Weights & Biases by its argument alone that it is offline.

caught-by: test_weights_and_biases_has_the_same_run_offline
hint: mode-for-all
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path

import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
import wandb
from mlflow import MlflowClient
from mlflow.models import infer_signature
from numpy.typing import ArrayLike
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from shared.domains.tabular import TabularData

CHAMPION = "champion"
"""The alias that serving reads."""

BINS = 10
"""Equal-width bins of predicted probability for the calibration error."""


@dataclass(frozen=True)
class BaselineResult:
    """Where the baseline is on record, and how good it is.

    Attributes:
        run_id: the MLflow run.
        version: the registered version that this run made, e.g. "3".
        metrics: what `evaluate` says of the evaluation window.
        data_hash: `data_hash` of the training rows.
        wandb_id: id of the Weights & Biases run.
    """

    run_id: str
    version: str
    metrics: dict[str, float]
    data_hash: str
    wandb_id: str


def data_hash(frame: pd.DataFrame) -> str:
    """A fingerprint of a frame's content: SHA-256, 64 hexadecimal digits.

    It depends on the names of the columns, on every value, missing ones included, and on the
    order of the rows. It does not depend on the order of the columns nor on the index. It is the
    same in every process, on every machine, and for a copy.
    """
    digest = hashlib.sha256()
    for name in sorted(frame.columns):
        # Length first, so that no two lists of names and values run into the same bytes.
        digest.update(f"{len(name)}:{name}:{len(frame)}:".encode())
        digest.update(pd.util.hash_pandas_object(frame[name], index=False).to_numpy().tobytes())
    return digest.hexdigest()


def evaluate(outcome: ArrayLike, probability: ArrayLike) -> dict[str, float]:
    """Judge predicted probabilities by what happened.

    Args:
        outcome: (n,) 0 or 1.
        probability: (n,) predicted probability of 1.

    Returns:
        - `auc`: area under the ROC curve, how well the rows are ranked.
        - `log_loss`: mean log loss, in nats.
        - `brier`: mean squared difference of probability and outcome.
        - `calibration_error`: expected calibration error over `BINS` equal-width bins of [0, 1],
          a probability of 1 in the last: the sum over bins of (share of the rows in the bin) x
          |mean probability in the bin - event rate in the bin|.
        - `event_rate`: share of outcomes that are 1.
        - `mean_probability`: mean of the predictions.

    Source: https://scikit-learn.org/stable/modules/model_evaluation.html; Guo et al. 2017, On
    Calibration of Modern Neural Networks, section 2.
    """
    happened = np.asarray(outcome, dtype=float)
    predicted = np.asarray(probability, dtype=float)
    bins = np.minimum((predicted * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=predicted - happened, minlength=BINS)
    return {
        "auc": float(roc_auc_score(happened, predicted)),
        "log_loss": float(log_loss(happened, predicted)),
        "brier": float(brier_score_loss(happened, predicted)),
        "calibration_error": float(np.abs(gaps).sum() / len(happened)),
        "event_rate": float(happened.mean()),
        "mean_probability": float(predicted.mean()),
    }


def train_baseline(
    data: TabularData,
    *,
    tracking_uri: str,
    experiment: str,
    model_name: str,
    wandb_dir: Path,
) -> BaselineResult:
    """Train on the reference period, judge on the first later window, log, register, crown.

    The model is a scikit-learn pipeline of your choice that predicts `data.target` from
    `data.features` and nothing else. It takes missing values and categories that it has never
    seen, and the same rows give the same model. All that it learns, imputation and scaling
    included, it learns from `data.reference_frame`. Its metrics are `evaluate` on the first of
    `data.windows()`.

    On record, in one finished MLflow run of the existing `experiment`:

    - Parameters: `train_window` and `evaluation_window`, each as the ISO dates
      "1990-01-01/1997-01-01" (first day in, first day after), `train_rows`, `evaluation_rows`.
    - Metrics: those of `evaluate`, by the same names.
    - Tags: `domain` (of `data`) and `data_hash`, of `data.reference_frame` as it is.
    - A dataset input named `data.domain`, with context "training" and the first 32 digits of
      the data hash for its digest.
    - The model, named "model", that answers with `predict_proba` when it is loaded as a pyfunc; a
      signature of the features and of that answer; an input example of 5 training rows; its
      pip requirements given, not inferred (inferring makes `log_model` many times slower), with
      scikit-learn and pandas pinned to the versions that are installed.

    The model is registered as a new version of `model_name`, whatever versions there are, and
    the alias `CHAMPION` points at that very version.

    The same parameters, metrics and data hash go to an offline Weights & Biases run of project
    `model_name`, under `wandb_dir` (made if need be): parameters, `data_hash` and
    `mlflow_run_id` in its config, the metrics logged once, the run finished. Nothing asks the
    network: the environment variable WANDB_MODE must say "offline" before the run starts.

    Args:
        data: a domain's data.
        tracking_uri: MLflow's tracking store and registry, e.g. "sqlite:///mlflow.db".
        experiment: name of an existing experiment.
        model_name: name of the registered model.
        wandb_dir: where the Weights & Biases run is written.
    """
    train = data.reference_frame
    label, start, end = data.current[0]
    later = data.window(start, end)
    features = list(data.features)
    model = _pipeline(data).fit(train[features], train[data.target])
    metrics = evaluate(later[data.target], model.predict_proba(later[features])[:, 1])
    fingerprint = data_hash(train)
    params = {
        "train_window": _days(*data.reference),
        "evaluation_window": _days(start, end),
        "train_rows": len(train),
        "evaluation_rows": len(later),
    }

    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name=f"baseline, judged on {label}") as run:
        mlflow.log_params(params)
        mlflow.log_metrics(metrics)
        mlflow.set_tags({"domain": data.domain, "data_hash": fingerprint})
        dataset = mlflow.data.from_pandas(
            train, name=data.domain, targets=data.target, digest=fingerprint[:32]
        )
        mlflow.log_input(dataset, context="training")
        example = train[features].head(5)
        logged = mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(train[features], model.predict_proba(example)),
            input_example=example,
            pip_requirements=[f"{p}=={installed_version(p)}" for p in ("scikit-learn", "pandas")],
            pyfunc_predict_fn="predict_proba",
            # Models are saved with skops, which loads only types it is told to trust; a one-hot
            # encoder holds a numpy dtype.
            skops_trusted_types=["numpy.dtype"],
            registered_model_name=model_name,
        )
    # The version that this run made: the highest number may be a colleague's by now.
    version = str(logged.registered_model_version)
    MlflowClient(tracking_uri).set_registered_model_alias(model_name, CHAMPION, version)

    wandb_id = _log_to_wandb(
        model_name,
        {**params, "data_hash": fingerprint, "mlflow_run_id": run.info.run_id},
        metrics,
        wandb_dir,
    )
    return BaselineResult(run.info.run_id, version, metrics, fingerprint, wandb_id)


def _pipeline(data: TabularData) -> Pipeline:
    numeric = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    categorical = OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer(
        [
            ("numeric", numeric, list(data.numeric)),
            ("categorical", categorical, list(data.categorical)),
        ]
    )
    return make_pipeline(columns, LogisticRegression(max_iter=1000))


def _days(start: pd.Timestamp, end: pd.Timestamp) -> str:
    return f"{start.date().isoformat()}/{end.date().isoformat()}"


def _log_to_wandb(
    project: str, config: dict[str, object], metrics: dict[str, float], folder: Path
) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True
    )
    with wandb.init(
        project=project, dir=str(folder), config=config, mode="offline", settings=settings
    ) as run:
        run.log(metrics)
        return str(run.id)
