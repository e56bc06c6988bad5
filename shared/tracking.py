"""MLflow stores: the learner's own, shown by `make ui`, and empty ones in milliseconds."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from shared.paths import STATE


@dataclass(frozen=True)
class Store:
    """An MLflow store: `mlflow.db` and the artifacts beside it, in one folder."""

    folder: Path

    @property
    def file(self) -> Path:
        """The database."""
        return self.folder / "mlflow.db"

    @property
    def uri(self) -> str:
        """What MLflow calls the tracking URI."""
        return f"sqlite:///{self.file}"

    @property
    def artifacts(self) -> Path:
        """Where the runs' files go."""
        return self.folder / "mlartifacts"


def own_store() -> Store:
    """The store of this checkout."""
    folder = STATE / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    return Store(folder)


def make_empty_store(path: Path) -> str:
    """Put an empty SQLite store at `path`, unless there is a file; return its tracking URI.

    MLflow makes its tables by replaying all its migrations, which takes seconds. That is done
    once for each version of MLflow; from then on a file is copied.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        shutil.copyfile(_template(), new)
        new.replace(path)
    return f"sqlite:///{path}"


def _template() -> Path:
    folder = STATE / "cache"
    template = folder / f"mlflow-{version('mlflow')}-empty.db"
    if template.exists():
        return template
    from mlflow import MlflowClient

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "mlflow-empty.lock"):
        if not template.exists():
            logging.getLogger("mlflow").setLevel(logging.ERROR)
            new = template.with_suffix(f".{os.getpid()}.new")
            MlflowClient(f"sqlite:///{new}").search_experiments()
            new.replace(template)
    return template
