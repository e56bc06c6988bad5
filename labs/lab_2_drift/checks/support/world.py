"""A world that changes: made-up loans in time, and a champion that was trained in the old one.

Two things can change, each on its own: what the applicants look like (covariates), and what
trouble comes from (the relation of features and label).
"""

from __future__ import annotations

from collections.abc import Sequence

import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

NUMERIC = ("income", "debt", "age")
CATEGORICAL = ("channel",)
FEATURES = [*NUMERIC, *CATEGORICAL]
BEGIN = pd.Timestamp("2018-01-01")


def world(
    rng: np.random.Generator, eras: Sequence[tuple[int, str, str]], rows_a_day: int = 4
) -> pd.DataFrame:
    """Rows of consecutive eras, each (days, covariates, relation) with "old" or "new" for both.

    The rows are shuffled, as a table without an ORDER BY returns them.
    """
    parts, day = [], 0
    for days, covariates, relation in eras:
        rows = days * rows_a_day
        new = covariates == "new"
        seconds = rng.integers(day * 86_400, (day + days) * 86_400, rows)
        debt = rng.normal(0.6 if new else 0.0, 1, rows)
        age = rng.normal(38 if new else 46, 10, rows)
        channel = rng.choice(
            ["app", "web", "branch"], rows, p=[0.6, 0.3, 0.1] if new else [0.2, 0.3, 0.5]
        )
        logit = 1.6 * debt - 0.04 * (age - 42) + 0.5 * (channel == "web")
        if relation == "new":
            logit = -logit
        parts.append(
            pd.DataFrame(
                {
                    "time": BEGIN + pd.to_timedelta(seconds, unit="s"),
                    "income": rng.lognormal(1.3 if new else 1.0, 0.4, rows),
                    "debt": np.where(rng.random(rows) < 0.1, np.nan, debt),
                    "age": np.where(rng.random(rows) < 0.1, np.nan, age),
                    "channel": pd.Series(channel, dtype="str"),
                    "default": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype("int64"),
                }
            )
        )
        day += days
    frame = pd.concat(parts, ignore_index=True)
    return frame.iloc[rng.permutation(len(frame))].reset_index(drop=True)


def fit(
    rows: pd.DataFrame,
    target: str = "default",
    numeric: Sequence[str] = NUMERIC,
    categorical: Sequence[str] = CATEGORICAL,
) -> Pipeline:
    """A champion's model."""
    model = make_pipeline(
        make_column_transformer(
            (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), list(numeric)),
            (OneHotEncoder(handle_unknown="ignore"), list(categorical)),
        ),
        LogisticRegression(max_iter=1000),
    )
    return model.fit(rows[[*numeric, *categorical]], rows[target])


def crown(
    uri: str, name: str, experiment: str, model: Pipeline, rows: pd.DataFrame, others: int = 0
) -> Pipeline:
    """Register `model`, trained on `rows`, as champion; then `others` versions that lost.

    Its run claims a splendid log loss, from the easy days.
    """
    client = MlflowClient(uri, uri)
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment)
    with mlflow.start_run() as run:
        mlflow.log_metric("holdout_log_loss", 0.15)
        logged = mlflow.sklearn.log_model(
            model,
            name="model",
            pip_requirements=["scikit-learn"],
            skops_trusted_types=["numpy.dtype"],
        )
    client.create_registered_model(name)
    tags = {
        "train_start": rows["time"].min().isoformat(),
        "train_end": rows["time"].max().isoformat(),
    }
    version = client.create_model_version(
        name, source=logged.model_uri, run_id=run.info.run_id, tags=tags
    )
    client.set_registered_model_alias(name, "champion", str(version.version))
    for _ in range(others):
        client.create_model_version(name, source="file:///nowhere", tags=tags)
    return model


def load(uri: str, name: str, version: str) -> Pipeline:
    """A registered model."""
    mlflow.set_tracking_uri(uri)
    return mlflow.sklearn.load_model(f"models:/{name}/{version}")
