"""The learner's own MLflow store: one SQLite file in `.labs`, shown by `make ui`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.paths import STATE


@dataclass(frozen=True)
class Store:
    """An MLflow store: `mlflow.db` and the artifacts beside it, in one folder."""

    folder: Path

    @property
    def uri(self) -> str:
        """What MLflow calls the tracking URI."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        """Where the runs' files go."""
        return self.folder / "mlartifacts"


def own_store() -> Store:
    """The store of this checkout."""
    folder = STATE / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    return Store(folder)
