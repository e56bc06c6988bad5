"""`lab.toml`: the one list of a lab's tasks."""

from __future__ import annotations

import ast
import threading
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import UserError
from shared.paths import LABS

_PARSING = threading.Lock()
"""Python 3.11 may fail with a SystemError where two threads make a syntax tree at once."""


class LabError(UserError):
    """There is no such lab or task, or `lab.toml` is wrong; the message says what to do."""


class Hint(BaseModel):
    """One step towards the solution, never the solution."""

    model_config = ConfigDict(extra="forbid")

    id: str
    text: str


class Task(BaseModel):
    """One task: what the learner writes, and where."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=r"^\d+\.\d+$")
    title: str
    kind: Literal["build", "review", "specify"]
    file: str
    symbols: list[str]
    points: int = Field(gt=0)
    minutes: int = Field(gt=0)
    hints: list[Hint] = Field(min_length=1)
    preload: list[str] = []
    draft: bool = False

    @property
    def stem(self) -> str:
        """The file's name without `.py`; names its checks and variants too."""
        return self.file.removesuffix(".py")

    def hint(self, hint_id: str) -> Hint | None:
        """The hint of that id, if there is one."""
        return next((h for h in self.hints if h.id == hint_id), None)


class Lab(BaseModel):
    """One lab, as `lab.toml` describes it."""

    model_config = ConfigDict(extra="forbid")

    number: int
    title: str
    engine: Literal["vllm", "portable", "none"]
    domains: bool
    extra: Literal["", "compress"] = ""
    tasks: list[Task]
    folder: Path

    @cached_property
    def max_score(self) -> int:
        """Points of all tasks."""
        return sum(t.points for t in self.tasks)

    def task(self, task_id: str) -> Task:
        """The task of that id.

        Raises:
            LabError: there is none; the message lists those there are.
        """
        for task in self.tasks:
            if task.id == task_id:
                return task
        raise LabError(
            f"Lab {self.number} has no task {task_id}. It has: "
            f"{', '.join(f'{t.id} ({t.title})' for t in self.tasks)}."
        )

    def check_file(self, task: Task) -> Path:
        """The module that holds the task's checks."""
        return self.folder / "checks" / f"test_{task.stem}.py"

    def expected_checks(self, task: Task) -> dict[str, bool]:
        """Names of the checks that must report, in order, and whether each is a live one.

        Read from the module's text, so that nothing a learner's code does can shorten the list.

        Raises:
            LabError: the task has no checks.
        """
        file = self.check_file(task)
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise LabError(f"Task {task.id} has no checks: {file.name} is missing.") from error
        tree = parsed(text)
        found = {
            node.name: "engine" in {a.arg for a in node.args.args}
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        }
        if not found:
            raise LabError(f"Task {task.id} has no checks: {file.name} defines none.")
        return dict(sorted(found.items(), key=lambda item: item[1]))


def parsed(text: str | bytes) -> ast.Module:
    """A module's syntax tree, in any thread."""
    with _PARSING:
        return ast.parse(text)


def lab_folders() -> dict[int, Path]:
    """The labs that exist: number and folder."""
    found = {}
    for path in sorted(LABS.glob("lab_*_*/lab.toml")):
        number = path.parent.name.split("_")[1]
        if number.isdigit():
            found[int(number)] = path.parent
    return found


def load_lab(number: int | str) -> Lab:
    """Read a lab's `lab.toml`.

    Raises:
        LabError: there is no such lab, or its `lab.toml` is malformed.
    """
    folders = lab_folders()
    if not str(number).isdigit() or int(number) not in folders:
        known = ", ".join(f"{n} ({p.name})" for n, p in folders.items())
        raise LabError(f"There is no lab {number}. The labs here: {known}.")
    folder = folders[int(number)]
    try:
        raw = tomllib.loads((folder / "lab.toml").read_text(encoding="utf-8"))
        lab = Lab(**raw.get("lab", {}), tasks=raw.get("task", []), folder=folder)
    except (tomllib.TOMLDecodeError, ValidationError, TypeError) as error:
        raise LabError(f"{folder.name}/lab.toml cannot be read: {error}") from error
    lab.tasks.sort(key=lambda t: tuple(map(int, t.id.split("."))))
    return lab


def all_labs() -> list[Lab]:
    """Every lab that exists, in order."""
    return [load_lab(n) for n in lab_folders()]
