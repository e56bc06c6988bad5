"""MLflow stores for checks, and clients that misbehave."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mlflow import MlflowClient

from shared.tracking import make_empty_store

NAME = "fraud-scorer"

WRITES = (
    "create_model_version",
    "create_registered_model",
    "delete_model_version",
    "delete_model_version_tag",
    "delete_registered_model",
    "delete_registered_model_alias",
    "delete_registered_model_tag",
    "rename_registered_model",
    "set_model_version_tag",
    "set_registered_model_alias",
    "set_registered_model_tag",
    "transition_model_version_stage",
    "update_model_version",
    "update_registered_model",
)


class StoreDownError(RuntimeError):
    """What a failing client raises."""


def new_store(tmp_path: Path, name: str = "mlflow") -> str:
    """A tracking URI of an empty SQLite store of its own."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return make_empty_store(tmp_path / f"{name}.db")


def new_experiment(uri: str, tmp_path: Path, name: str = "monitoring") -> str:
    """Make an experiment whose artifacts lie below `tmp_path`; return its name."""
    MlflowClient(uri).create_experiment(name, artifact_location=(tmp_path / "artifacts").as_uri())
    return name


def own_experiment(uri: str, artifacts: Path, name: str) -> str:
    """Have an experiment in the store that `make ui` shows; return its name."""
    client = MlflowClient(uri)
    if client.get_experiment_by_name(name) is None:
        artifacts.mkdir(parents=True, exist_ok=True)
        client.create_experiment(name, artifact_location=artifacts.as_uri())
    return name


def keep_newest_run(uri: str, experiment: str, run_name: str) -> None:
    """Delete all runs of that name but the newest, files included: a page is 4 MB."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return
    runs = client.search_runs([found.experiment_id], order_by=["attributes.start_time DESC"])
    for run in [r for r in runs if r.info.run_name == run_name][1:]:
        folder = Path(unquote(urlparse(run.info.artifact_uri).path))
        client.delete_run(run.info.run_id)
        if folder.name == "artifacts" and folder.parent.name == run.info.run_id:
            shutil.rmtree(folder.parent, ignore_errors=True)


def keep_newest_report(folder: Path, project: str, name: str) -> None:
    """Delete all reports of that name from an Evidently workspace but the newest."""
    from evidently.ui.workspace import Workspace

    space = Workspace.create(str(folder))
    for home in space.search_project(project):
        named = []
        for snapshot_id in space.list_runs(home.id):
            snapshot = space.get_run(home.id, snapshot_id)
            if snapshot is not None and snapshot.name == name:
                named.append(str(snapshot_id))
        # Ids are UUIDs of version 7: they sort by the time of their making.
        for snapshot_id in sorted(named)[:-1]:
            space.delete_run(home.id, snapshot_id)


def register(client: MlflowClient, versions: int, champion: int | None = 1) -> None:
    """Register `versions` versions of `NAME` without artifacts; point the alias at `champion`."""
    client.create_registered_model(NAME)
    for _ in range(versions):
        client.create_model_version(NAME, source="file:///nowhere")
    if champion is not None:
        client.set_registered_model_alias(NAME, "champion", str(champion))


def champion_of(client: MlflowClient, name: str = NAME) -> str | None:
    """The version under the alias, or None where the alias is gone."""
    aliases = client.get_registered_model(name).aliases
    return str(aliases["champion"]) if "champion" in aliases else None


def versions_of(client: MlflowClient, name: str = NAME) -> list[str]:
    """All versions, lowest first."""
    return sorted((str(v.version) for v in client.search_model_versions(f"name='{name}'")), key=int)


class WatchedClient(MlflowClient):
    """An `MlflowClient` that remembers its writes, and can fail at one of them.

    Args:
        fail_at: the write (1 is the first) that raises `StoreDownError`; 0 for none.
        after: whether the failing write is carried out before it raises, as when the answer of
            the database gets lost.
        on_write: called with the method's name before each write.
    """

    def __init__(
        self,
        uri: str,
        *,
        fail_at: int = 0,
        after: bool = False,
        on_write: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(uri, uri)
        self.writes: list[tuple[str, tuple[Any, ...]]] = []
        self._fail_at, self._after, self._on_write = fail_at, after, on_write
        for method in WRITES:
            setattr(self, method, self._watch(method, getattr(self, method)))

    def _watch(self, method: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._on_write is not None:
                self._on_write(method)
            self.writes.append((method, (*args, *kwargs.values())))
            if len(self.writes) != self._fail_at:
                return call(*args, **kwargs)
            if self._after:
                call(*args, **kwargs)
            raise StoreDownError(f"the registry went away during {method}")

        return watched


class SlowClient(MlflowClient):
    """An `MlflowClient` whose answer about an alias takes a while to arrive."""

    seconds = 0.25

    def get_model_version_by_alias(self, *args: Any, **kwargs: Any) -> Any:
        """As in `MlflowClient`, slower."""
        answer = super().get_model_version_by_alias(*args, **kwargs)
        time.sleep(self.seconds)
        return answer

    def get_registered_model(self, *args: Any, **kwargs: Any) -> Any:
        """As in `MlflowClient`, slower."""
        answer = super().get_registered_model(*args, **kwargs)
        time.sleep(self.seconds)
        return answer
