"""The result of a grading: what it says, and how it is kept so that nothing is lost."""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from shared.grading.events import CheckOutcome
from shared.paths import STATE

Status = Literal["passed", "failed", "not_started", "error", "timed_out", "not_graded"]


class TaskResult(BaseModel):
    """One task's verdict."""

    id: str
    title: str
    points: int
    max_points: int
    status: Status
    message: str
    hint: str | None
    seconds: float
    sha256: str | None
    checks: list[CheckOutcome]
    expected_checks: int
    engine: str | None = None
    """What its live checks talked to; None where they did not run."""
    seed: int | None = None
    not_proven: list[str] = []

    @property
    def passed_checks(self) -> int:
        """How many of the task's checks passed."""
        return sum(c.outcome == "passed" for c in self.checks)

    @property
    def first_failure(self) -> CheckOutcome | None:
        """The failure to show: the first check that did not pass."""
        return next((c for c in self.checks if c.outcome != "passed"), None)

    @property
    def figures(self) -> list[dict[str, Any]]:
        """Numbers that the checks measured."""
        return [f for c in self.checks for f in c.figures]


class LabResult(BaseModel):
    """A grading of one lab, whole or in part."""

    lab: int
    title: str
    target: str
    files: dict[str, str | None]
    domain: str | None
    engine: str | None
    not_proven: list[str]
    seed: int
    score: int
    max_score: int
    tasks: list[TaskResult]
    started_at: str
    seconds: float
    complete: bool

    @property
    def passed(self) -> bool:
        """Whether every task that was graded passed, and there was one."""
        return self.complete and bool(self.tasks) and all(t.status == "passed" for t in self.tasks)


class ResultStore:
    """Results on disk: the latest per lab, an unfinished one, and the history of all."""

    def __init__(self, folder: Path = STATE) -> None:
        self._results = folder / "results"
        self._history = folder / "history.jsonl"

    def path(self, lab: int, target: str) -> Path:
        """Where the latest result of a lab is: the learner's own, or a solution's, apart."""
        kind = {"starter": "", "solution": ".solution"}.get(target, ".other")
        return self._results / f"lab_{lab}{kind}.json"

    def latest(self, lab: int, target: str = "starter") -> LabResult | None:
        """The last finished result, if there is a readable one."""
        return _read(self.path(lab, target))

    def unfinished(self, lab: int, target: str) -> LabResult | None:
        """What a grading that was cut off had finished."""
        return _read(self._partial(lab, target))

    def keep_partial(self, result: LabResult) -> None:
        """Write down what is finished so far."""
        write_atomically(self._partial(result.lab, result.target), result.model_dump_json(indent=1))

    def keep(self, result: LabResult) -> None:
        """Write a finished result down: merged into the latest, and appended to the history."""
        merged = self._merge(result)
        write_atomically(self.path(result.lab, result.target), merged.model_dump_json(indent=1))
        self._history.parent.mkdir(parents=True, exist_ok=True)
        with self._history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_history_line(result)) + "\n")
        self._partial(result.lab, result.target).unlink(missing_ok=True)

    def history(self) -> list[dict[str, Any]]:
        """Every finished grading, oldest first; a line that a crash cut off is left out."""
        try:
            lines = self._history.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def _partial(self, lab: int, target: str) -> Path:
        return self.path(lab, target).with_suffix(".partial.json")

    def _merge(self, result: LabResult) -> LabResult:
        before = self.latest(result.lab, result.target)
        if before is None or before.domain != result.domain:
            return result
        tasks = {t.id: t for t in before.tasks}
        tasks |= {t.id: t for t in result.tasks if not _says_nothing_new(t, tasks.get(t.id))}
        ordered = sorted(tasks.values(), key=lambda t: tuple(map(int, t.id.split("."))))
        return result.model_copy(
            update={
                "tasks": ordered,
                "files": before.files | result.files,
                "score": sum(t.points for t in ordered),
                "max_score": sum(t.max_points for t in ordered),
                "engine": engines_of(ordered),
                "not_proven": not_proven_of(ordered),
            }
        )


def engines_of(tasks: Iterable[TaskResult]) -> str | None:
    """The engines that live checks talked to, each once: tasks may stem from several runs."""
    return ", ".join(dict.fromkeys(t.engine for t in tasks if t.engine is not None)) or None


def not_proven_of(tasks: Iterable[TaskResult]) -> list[str]:
    """All that these tasks leave unproven, each once."""
    return list(dict.fromkeys(text for t in tasks for text in t.not_proven))


def _says_nothing_new(new: TaskResult, before: TaskResult | None) -> bool:
    """Whether a grading that did not come about must leave the verdict on the very same files."""
    if before is None or new.status != "not_graded":
        return False
    return before.status != "not_graded" and before.sha256 == new.sha256


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content in one step: after a crash the old or the new is there, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        # Not mkstemp: its files are closed to everybody else, and the result keeps that.
        with new.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            new.chmod(stat.S_IMODE(path.stat().st_mode))
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(path: Path) -> LabResult | None:
    try:
        return LabResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def _history_line(result: LabResult) -> dict[str, Any]:
    return {
        "at": result.started_at,
        "lab": result.lab,
        "target": result.target,
        "domain": result.domain,
        "engine": result.engine,
        "seed": result.seed,
        "seconds": round(result.seconds, 2),
        "tasks": {t.id: t.status for t in result.tasks},
        "points": {t.id: t.points for t in result.tasks},
    }
