"""Models for checks: quick to fit, on any domain's columns."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from shared.domains.tabular import TabularData


def fit_logistic(
    rows: pd.DataFrame, data: TabularData, columns: Sequence[str] | None = None
) -> Pipeline:
    """Fit a logistic regression to `rows` on `columns` (all features by default)."""
    wanted = list(data.features if columns is None else columns)
    numeric = [c for c in wanted if c in data.numeric]
    categorical = [c for c in wanted if c in data.categorical]
    model = make_pipeline(
        make_column_transformer(
            (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numeric),
            (OneHotEncoder(handle_unknown="ignore"), categorical),
        ),
        LogisticRegression(max_iter=500),
    )
    return model.fit(rows[wanted], rows[data.target])
