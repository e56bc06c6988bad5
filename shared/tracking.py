"""The learner's own MLflow store: one SQLite file in `.labs`, shown by `make ui`."""

from __future__ import annotations

import os

from shared.paths import STATE

STORE = STATE / "mlflow.db"
ARTIFACTS = STATE / "mlartifacts"


def store_uri() -> str:
    """The tracking URI of the learner's own store: `MLFLOW_TRACKING_URI` if set, else `STORE`."""
    STATE.mkdir(exist_ok=True)
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE}"
