"""What is to be graded: each different piece of work once, whoever handed it in.

Two submissions of a task are the same piece of work when every file that the task's code can
reach is the same, byte for byte, and so is everything they are graded with. Then they get the
same verdict, flags included: the unfinished starter is the most common file of a class.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from shared.classroom.records import Submission
from shared.grading.lab import Lab, Task
from shared.grading.runner import RunningEngine
from shared.paths import ROOT

_RULES = 2
"""Counts up when this package grades differently than before, so that nothing old is reused."""
_REACHES_ANYTHING = re.compile(
    rb"__import__|importlib(?!\.(metadata|resources))|runpy|pkgutil|\bexec\b|\beval\b|__file__"
    rb"|__loader__|__spec__|sys\.modules|sys\.path"
)


@dataclass(frozen=True)
class GradedWith:
    """A lab, and what its submissions are graded with.

    Attributes:
        domain: None where the lab has only one world.
        engine: the name of the wanted model server; empty if the lab needs none.
    """

    lab: Lab
    seed: int
    domain: str | None = None
    engine: str = ""
    start_engine: Callable[[], RunningEngine] | None = None
    not_proven: tuple[str, ...] = ()


@dataclass
class Work:
    """One piece of work on a task, and who handed it in.

    Attributes:
        key: equal for equal work that is graded with the same.
        files: what the task's code can reach: file names and contents.
    """

    graded_with: GradedWith
    task: Task
    key: str
    files: dict[str, bytes]
    learners: list[str] = field(default_factory=list)

    @property
    def lab(self) -> Lab:
        """The task's lab."""
        return self.graded_with.lab


def all_work(
    submissions: Iterable[Submission], labs: Iterable[GradedWith], walled: bool
) -> list[Work]:
    """Every different piece of work, task by task, in the order of labs and tasks.

    Args:
        walled: whether it is graded in a sandbox; without, the verdict is another one's.
    """
    submissions = list(submissions)
    found: list[Work] = []
    for graded_with in labs:
        lab = graded_with.lab
        grader = grader_hash(lab)
        folders = [
            (s.learner.id, _read(s.labs[lab.number])) for s in submissions if lab.number in s.labs
        ]
        for task in lab.tasks:
            by_key: dict[str, Work] = {}
            for learner, folder in folders:
                files = reachable(lab, task, folder)
                key = _key(graded_with, task, files, grader, walled)
                work = by_key.setdefault(key, Work(graded_with, task, key, files))
                work.learners.append(learner)
            found.extend(by_key.values())
    return found


def reachable(lab: Lab, task: Task, folder: dict[str, bytes]) -> dict[str, bytes]:
    """The files that a task's code can reach: its own, all that are no task's, and what it names.

    Other tasks' files are left out unless something that can be reached imports them by name, or
    could reach any file (by `importlib`, `open`, `exec` and the like). Files that the lab gives
    and the learner did not hand in are taken from the starter.
    """
    task_files = {t.file for t in lab.tasks}
    here = _given(lab) | folder
    taken = {name: here[name] for name in here if name not in task_files or name == task.file}
    todo = list(taken)
    while todo:
        source = taken[todo.pop()]
        names = set(here) if _REACHES_ANYTHING.search(source) else _imported(source)
        for name in names & set(here) - set(taken):
            taken[name] = here[name]
            todo.append(name)
    return dict(sorted(taken.items()))


def _imported(source: bytes) -> set[str]:
    """Names of the files that a module's imports could mean."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    modules = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").split(".")[0])
            modules.update(alias.name for alias in node.names)
    return {f"{module}.py" for module in modules}


def _given(lab: Lab) -> dict[str, bytes]:
    """The starter's files that are no task's."""
    tasks = {task.file for task in lab.tasks}
    return {n: c for n, c in _read(lab.folder / "starter").items() if n not in tasks}


def _read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.py")) if path.is_file()}


def _key(
    graded_with: GradedWith, task: Task, files: dict[str, bytes], grader: str, walled: bool
) -> str:
    live = any(graded_with.lab.expected_checks(task).values())
    words = {
        "rules": _RULES,
        "grader": grader,
        "task": task.model_dump(mode="json"),
        "seed": graded_with.seed,
        "domain": graded_with.domain,
        "engine": graded_with.engine if live else "",
        "walled": walled,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()


def grader_hash(lab: Lab) -> str:
    """SHA-256 over the lab's checks and over what they stand on."""
    digest = hashlib.sha256(_shared_hash().encode())
    for path in sorted(p for p in (lab.folder / "checks").rglob("*") if _counts(p)):
        digest.update(f"{path.relative_to(lab.folder)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@cache
def _shared_hash() -> str:
    shared, digest = ROOT / "shared", hashlib.sha256()
    left_out = (shared / "classroom", shared / "review", shared / "setup")
    for path in sorted(shared.rglob("*")):
        if _counts(path) and not any(path.is_relative_to(folder) for folder in left_out):
            digest.update(f"{path.relative_to(shared)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _counts(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
