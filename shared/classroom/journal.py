"""Verdicts on disk, as they come: what a run that was cut off had found is never lost.

One file for each learner and lab, replaced in one step at each verdict, so that a crash at any
moment leaves the old or the new one, whole. A verdict carries the key of the work that it is on
(`work`), so the same command reuses what still holds and grades the rest.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from shared.classroom.records import Flag, Note, Record
from shared.errors import UserError
from shared.grading.results import TaskResult, write_atomically


class Verdict(Record):
    """One task's verdict, and the work it is on.

    Attributes:
        domain: what it was graded in; None where the lab has only one world.
    """

    key: str
    result: TaskResult
    flags: tuple[Flag, ...] = ()
    notes: tuple[Note, ...] = ()
    domain: str | None = None


class Settings(BaseModel):
    """What a class is graded with, drawn or chosen at the first run and kept.

    Attributes:
        labs: numbers of the labs that were ever asked for, for the whole class.
        some: numbers of those that were only ever asked for with some learners' names.
    """

    seed: int
    domain: str = ""
    labs: list[int] = []
    some: list[int] = []

    def with_labs(self, numbers: Iterable[int], *, whole_class: bool) -> Settings:
        """The same, with labs that are asked for now."""
        labs = {*self.labs, *numbers} if whole_class else {*self.labs}
        some = {*self.some, *numbers} - labs
        return self.model_copy(update={"labs": sorted(labs), "some": sorted(some)})


class _Page(BaseModel):
    tasks: dict[str, Verdict] = {}


class Journal:
    """The verdicts below `out`. Use it as a context manager: only one run may hold it.

    Raises:
        UserError: another run is at it, or the folder cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self._folder = out / "journal"
        self._settings = out / "grading.json"
        self._out = out
        self._pages: dict[tuple[str, int], _Page] = {}
        self._writing = threading.Lock()

    def __enter__(self) -> Journal:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._out / ".lock", timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"Another make grade is at work in {self._out}. Wait for it, or give another OUT=."
            ) from error
        except OSError as error:
            raise UserError(f"OUT={self._out} cannot be written: {error}") from error
        for left in (*self._folder.rglob("*.tmp"), *self._out.glob("grading.json.*.tmp")):
            with suppress(OSError):
                left.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def settings(self) -> Settings | None:
        """What earlier runs were graded with, if there were any."""
        try:
            return Settings.model_validate_json(self._settings.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None

    def keep_settings(self, settings: Settings) -> None:
        """Write down what this run is graded with."""
        write_atomically(self._settings, settings.model_dump_json(indent=1) + "\n")

    def is_empty(self) -> bool:
        """Whether there is no verdict at all."""
        return next(self._folder.glob("*/lab_*.json"), None) is None

    def forget_all(self) -> None:
        """Take every verdict out, those too of learners who are no longer there."""
        with self._writing:
            clear(self._folder)
            self._pages.clear()

    def verdicts(self, learner: str, lab: int) -> dict[str, Verdict]:
        """The verdicts on a learner's lab, by task."""
        with self._writing:
            return dict(self._page(learner, lab).tasks)

    def keep(self, learner: str, lab: int, task: str, verdict: Verdict) -> None:
        """Write a verdict down, on the disk when this returns.

        Raises:
            OSError: it could not be written; the earlier ones are there as they were.
        """
        with self._writing:
            page = self._page(learner, lab)
            new = _Page(tasks=page.tasks | {task: verdict})
            write_atomically(self._path(learner, lab), new.model_dump_json(indent=1) + "\n")
            self._pages[learner, lab] = new

    def forget(self, learner: str, lab: int) -> None:
        """Take a learner's lab out, to be graded anew."""
        with self._writing:
            self._path(learner, lab).unlink(missing_ok=True)
            self._pages.pop((learner, lab), None)

    def _page(self, learner: str, lab: int) -> _Page:
        if (learner, lab) not in self._pages:
            page = _Page()
            with suppress(OSError, ValidationError, json.JSONDecodeError):
                text = self._path(learner, lab).read_text(encoding="utf-8")
                page = _Page.model_validate_json(text)
            self._pages[learner, lab] = page
        return self._pages[learner, lab]

    def _path(self, learner: str, lab: int) -> Path:
        return self._folder / learner / f"lab_{lab}.json"


def clear(folder: Path) -> None:
    """Remove a folder of working files, and make it again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
