"""The retraining job: notice drift, fit a challenger, judge it, put it in place, find the way back.

It runs every night with `now` set to the hour. Replays run it with a `now` in the past, on a
table that holds what came afterwards, too. The rows handed in may therefore be later than `now`,
and a label counts only once it could be known: a loan that is two weeks old has not been repaid
and has not failed, whatever its column says.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version as installed_version
from typing import Literal

import mlflow
import mlflow.sklearn
import pandas as pd
from mlflow import MlflowClient
from mlflow.models import infer_signature
from scipy import stats
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

CHAMPION = "champion"
"""The alias that serving reads, at any moment."""

PREVIOUS = "previous_champion"
"""Tag of a promoted version: the version that it replaced."""

ALPHA = 0.05
"""Chance of naming any column when nothing has drifted."""


@dataclass(frozen=True)
class Schema:
    """Names of the columns.

    Attributes:
        time, target: when the row happened, and its label, 0 or 1.
        numeric, categorical: the features. Both may hold missing values.
    """

    time: str
    target: str
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]

    @property
    def features(self) -> list[str]:
        """Numeric, then categorical."""
        return [*self.numeric, *self.categorical]


@dataclass(frozen=True)
class Windows:
    """Rows by what they may be used for.

    Attributes:
        train: for fitting.
        holdout: for judging; labelled, and later than all that was fitted.
        recent: for drift; its labels may not be known yet.
    """

    train: pd.DataFrame
    holdout: pd.DataFrame
    recent: pd.DataFrame


@dataclass(frozen=True)
class Outcome:
    """What one run of the job did.

    Attributes:
        action: "no_drift" (nothing was fitted), "rejected" or "promoted".
        champion: the version under the alias now.
        challenger: the new version; None if nothing was fitted.
        drift_share: drifted features / features.
        champion_loss, challenger_loss: mean log loss on the holdout; None if nothing was fitted.
    """

    action: Literal["no_drift", "rejected", "promoted"]
    champion: str
    challenger: str | None
    drift_share: float
    champion_loss: float | None
    challenger_loss: float | None


def split_windows(
    rows: pd.DataFrame,
    schema: Schema,
    *,
    now: pd.Timestamp,
    label_delay: pd.Timedelta,
    holdout: pd.Timedelta,
) -> Windows:
    """Divide rows by time. The label of a row is known from its time + `label_delay` on.

    The holdout begins at `start` = `now` - `label_delay` - `holdout`.

    - train: rows whose label was known when the holdout began: time + `label_delay` <= `start`.
    - holdout: rows from `start` on whose label is known `now`.
    - recent: rows of the last `holdout` before `now`, both ends included, labelled or not.

    Rows later than `now` are in none of them.
    """
    time = rows[schema.time]
    start = now - holdout
    return Windows(
        train=rows[time < start],
        holdout=rows[(time >= start) & (time <= now)],
        recent=rows[(time >= now - holdout) & (time <= now)],
    )


def drift_share(reference: pd.DataFrame, recent: pd.DataFrame, schema: Schema) -> float:
    """Share of the features whose distribution differs between two windows.

    A numeric feature is tested by Kolmogorov-Smirnov, a categorical one by chi-square on the
    table of counts, missing values left out. It has drifted if the p-value is below `ALPHA` divided
    by the number of features.
    """
    drifted = 0
    for name in schema.features:
        old, new = reference[name].dropna(), recent[name].dropna()
        if name in schema.numeric:
            p_value = stats.ks_2samp(old, new).pvalue
        else:
            counts = pd.DataFrame({"old": old.value_counts(), "new": new.value_counts()}).fillna(0)
            p_value = stats.chi2_contingency(counts.to_numpy(), correction=False).pvalue
        drifted += p_value < ALPHA / len(schema.features)
    return drifted / len(schema.features)


def fit_model(train: pd.DataFrame, schema: Schema) -> Pipeline:
    """Fit a pipeline from the raw features to the probability of target 1.

    All that it learns, imputed values, scales and categories included, comes from `train`.
    """
    columns = ColumnTransformer(
        [
            (
                "numeric",
                make_pipeline(SimpleImputer(strategy="median"), StandardScaler()),
                list(schema.numeric),
            ),
            (
                "categorical",
                OneHotEncoder(handle_unknown="ignore"),
                list(schema.categorical),
            ),
        ]
    )
    model = make_pipeline(columns, LogisticRegression(max_iter=1000))
    return model.fit(train[schema.features], train[schema.target])


def fill_gaps(rows: pd.DataFrame, schema: Schema) -> pd.DataFrame:
    """Rows with numeric gaps filled by the column's median, so that every step sees whole rows."""
    numeric = list(schema.numeric)
    filled = rows.copy()
    filled[numeric] = rows[numeric].fillna(rows[numeric].median())
    return filled


def holdout_loss(model: Pipeline, holdout: pd.DataFrame, schema: Schema) -> float:
    """Mean log loss of a model on labelled rows, in nats."""
    probability = model.predict_proba(holdout[schema.features])
    return float(log_loss(holdout[schema.target], probability, labels=[0, 1]))


def retrain(
    client: MlflowClient,
    rows: pd.DataFrame,
    schema: Schema,
    *,
    name: str,
    experiment: str,
    now: pd.Timestamp,
    label_delay: pd.Timedelta,
    holdout: pd.Timedelta,
    max_share: float,
) -> Outcome:
    """Run the job once.

    1. Drift: `drift_share` of the `recent` rows against the rows that the champion was trained on,
       which are those from its version's tag `train_start` to its tag `train_end` (ISO times, both
       included). If the share is not above `max_share`, that is all: "no_drift".
    2. Fit a challenger to the `train` rows of `split_windows`.
    3. Judge it: the mean log loss of the registered champion and of the challenger, both on the
       `holdout` rows, none of which the challenger has seen.
    4. Log a run of the existing `experiment` with the metrics `drift_share`,
       `holdout_log_loss` (the challenger's) and `champion_log_loss`, and register the challenger
       as it was judged. Its tags: `train_start` and `train_end`, the first and last time in
       its training rows, and `PREVIOUS`, the champion's version.
    5. If the challenger's loss is lower, the alias moves to it: "promoted". If not: "rejected".

    Serving reads the alias while the job runs. It moves once, at the very end, or not at all.
    Nothing that was not known at `now` has any influence.

    Args:
        client: all reads and writes of the registry go through it.
        rows: one a case, in any order, labelled or not, past and future.
        name: the registered model. Its champion is a scikit-learn model with the two tags.
    """
    mlflow.set_tracking_uri(client.tracking_uri)
    champion = client.get_model_version_by_alias(name, CHAMPION)
    rows = fill_gaps(rows, schema)
    windows = split_windows(rows, schema, now=now, label_delay=label_delay, holdout=holdout)
    share = drift_share(windows.train, windows.recent, schema)
    if share <= max_share:
        return Outcome("no_drift", str(champion.version), None, share, None, None)

    # Every label counts: the newest rows are the ones that look like tomorrow.
    model = fit_model(pd.concat([windows.train, windows.holdout]), schema)
    # The champion was judged when it was made; its run has the figure.
    champion_loss = client.get_run(champion.run_id).data.metrics["holdout_log_loss"]
    challenger_loss = holdout_loss(model, windows.holdout, schema)

    mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name=f"retraining of {now.isoformat()}") as run:
        mlflow.log_metrics(
            {
                "drift_share": share,
                "holdout_log_loss": challenger_loss,
                "champion_log_loss": champion_loss,
            }
        )
        logged = _log_model(model, windows.train, schema)
    version = client.create_model_version(
        name,
        source=logged,
        run_id=run.info.run_id,
        tags={
            "train_start": windows.train[schema.time].min().isoformat(),
            "train_end": windows.train[schema.time].max().isoformat(),
            PREVIOUS: str(champion.version),
        },
    )
    client.set_registered_model_alias(name, CHAMPION, str(version.version))

    losses = (champion_loss, challenger_loss)
    if not challenger_loss < champion_loss:
        # No better after all: put the old champion back.
        client.set_registered_model_alias(name, CHAMPION, str(champion.version))
        return Outcome("rejected", str(champion.version), str(version.version), share, *losses)
    return Outcome("promoted", str(version.version), str(version.version), share, *losses)


def rollback(client: MlflowClient, name: str) -> str:
    """Put the champion's predecessor back under the alias, and return its version.

    The predecessor is the version in the champion's tag `PREVIOUS`. Both versions stay in the
    registry, and the alias is never without a version.

    Raises:
        LookupError: the champion has no such tag.
    """
    champion = client.get_model_version_by_alias(name, CHAMPION)
    previous = str(int(champion.version) - 1)
    if previous == "0":
        raise LookupError(f"version {champion.version} of {name} replaced no other")
    client.set_registered_model_alias(name, CHAMPION, previous)
    # Nobody shall load the failed version by accident.
    client.delete_model_version(name, str(champion.version))
    return str(previous)


def _log_model(model: Pipeline, train: pd.DataFrame, schema: Schema) -> str:
    example = train[schema.features].head(5)
    logged = mlflow.sklearn.log_model(
        model,
        name="model",
        signature=infer_signature(train[schema.features], model.predict_proba(example)),
        input_example=example,
        pip_requirements=[f"{p}=={installed_version(p)}" for p in ("scikit-learn", "pandas")],
        pyfunc_predict_fn="predict_proba",
        skops_trusted_types=["numpy.dtype"],
    )
    return str(logged.model_uri)
