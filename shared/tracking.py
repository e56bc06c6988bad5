"""MLflow stores: the learner's own, shown by `make ui`, and empty ones in milliseconds."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from shared.paths import STATE

_CACHE = STATE / "cache"


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
        _CACHE.mkdir(parents=True, exist_ok=True)
        with FileLock(_CACHE / "mlflow-empty.lock"):  # two gradings may begin in one new checkout
            if not path.exists():
                new = path.with_name(f"{path.name}.new")
                shutil.copyfile(_template(), new)
                _move_default_experiment(new, path.parent / "mlartifacts" / "0")
                new.replace(path)
    return f"sqlite:///{path}"


def _template() -> Path:
    template = _CACHE / f"mlflow-{version('mlflow')}-empty.db"
    if not template.exists():
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        new = template.with_suffix(".new")
        new.unlink(missing_ok=True)  # of a run that was cut off
        MlflowClient(f"sqlite:///{new}").search_experiments()
        new.replace(template)
    return template


def _move_default_experiment(store: Path, artifacts: Path) -> None:
    """Without this, its files would go to the folder in which the template happened to be made."""
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0",
            (artifacts.as_uri(),),
        )
