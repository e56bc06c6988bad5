"""How much faster a class is graded than by starting pytest for each learner in turn."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from shared.classroom.grade import ClassRun, class_result, grade_class
from shared.classroom.journal import Journal, Settings
from shared.classroom.records import ClassResult, Learner, Submission
from shared.classroom.sandbox import find_wall
from shared.classroom.work import GradedWith
from shared.grading.jobs import usable_cores
from shared.grading.lab import Lab, load_lab
from shared.offline import OFFLINE_ENV
from shared.paths import ROOT

LAB = 2
SEED = 7
_PYTEST_LIMIT_S = 900


@dataclass(frozen=True)
class Kind:
    """Learners who are about equally far.

    Attributes:
        solved: the tasks that they have; the others are as the starter has them.
        wrong: tasks that they have tried, by the name of a wrong variant.
    """

    name: str
    learners: int
    solved: tuple[str, ...] = ()
    wrong: tuple[tuple[str, str], ...] = ()


THIRTY = (
    Kind("all of it", 1, ("2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "2.7", "2.8")),
    Kind("half", 2, ("2.1", "2.2", "2.5"), (("2.3", "wrong_swapped_windows"),)),
    Kind("the second task", 7, ("2.2",)),
    Kind("the second task, wrong", 8, (), (("2.2", "wrong_bins_from_current"),)),
    Kind("nothing yet", 12),
)
"""A class in the first week of Lab 2."""


@dataclass(frozen=True)
class Measured:
    """Seconds for the whole class, each way, in one run.

    Attributes:
        pytest_each: seconds of pytest for one learner of each kind.
    """

    grade: float
    pytest: float
    pytest_each: dict[str, float]
    cores: int
    result: ClassResult

    @property
    def ratio(self) -> float:
        """How many times faster the class is graded."""
        return self.pytest / self.grade


def measure_class(kinds: tuple[Kind, ...] = THIRTY, console: Console | None = None) -> Measured:
    """Grade a class of thirty, and run pytest on one learner of each kind, for all of its kind.

    No two learners hand in the same file, except what they left as the starter has it.

    Raises:
        UserError: there is no sandbox here.
    """
    console = console or Console(quiet=True)
    wall = find_wall()
    lab = load_lab(LAB)
    with tempfile.TemporaryDirectory(prefix="labs-bench-") as name:
        folder = Path(name)
        submissions, examples = _hand_in(lab, kinds, folder)
        run = ClassRun(
            submissions=submissions,
            labs=[GradedWith(lab, seed=SEED, domain="finance")],
            wall=wall,
            jobs=usable_cores(),
        )
        started = time.perf_counter()
        with Journal(folder / "out") as journal:
            grade_class(console, run, journal)
            result = class_result(run, journal, Settings(seed=SEED, labs=[LAB]))
        graded = time.perf_counter() - started
        each = {kind.name: _pytest(lab, examples[kind.name], folder) for kind in kinds}
    whole = sum(each[kind.name] * kind.learners for kind in kinds)
    return Measured(graded, whole, each, usable_cores(), result)


def _hand_in(
    lab: Lab, kinds: tuple[Kind, ...], folder: Path
) -> tuple[list[Submission], dict[str, Path]]:
    submissions: list[Submission] = []
    examples: dict[str, Path] = {}
    for kind in kinds:
        for n in range(kind.learners):
            learner = f"learner{len(submissions):02}"
            place = folder / "handed-in" / learner / lab.folder.name
            shutil.copytree(lab.folder / "starter", place)
            sources = {lab.task(t).file: lab.folder / "solution" for t in kind.solved}
            for task_id, variant in kind.wrong:
                task = lab.task(task_id)
                path = lab.folder / "variants" / task.stem / f"{variant}.py"
                (place / task.file).write_text(
                    path.read_text("utf-8") + f"\n# {learner}\n", "utf-8"
                )
            for file, source in sources.items():
                text = (source / file).read_text("utf-8")
                (place / file).write_text(f"{text}\n# {learner}\n", "utf-8")
            examples.setdefault(kind.name, place)
            submissions.append(
                Submission(
                    learner=Learner(id=learner, name=learner),
                    source=f"{kind.name} {n}",
                    labs={lab.number: place},
                )
            )
    return submissions, examples


def _pytest(lab: Lab, target: Path, folder: Path) -> float:
    """Seconds that one pytest takes on a learner's whole lab, without any sandbox."""
    environment = os.environ | OFFLINE_ENV
    environment |= {
        "LABS_TARGET": str(target),
        "LABS_LAB_FOLDER": str(lab.folder),
        "LABS_SEED": str(SEED),
        "DOMAIN": "finance",
        "MPLBACKEND": "Agg",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "pytest", str(lab.folder / "checks")]
    command += ["-p", "shared.grading.plugin", "-p", "no:cacheprovider", "--noconftest", "-q"]
    command += ["-c", str(ROOT / "shared" / "grading" / "checks.ini")]
    command += ["--rootdir", str(lab.folder), "--basetemp", str(folder / "tmp")]
    work = folder / "cwd"
    work.mkdir(exist_ok=True)
    started = time.perf_counter()
    subprocess.run(
        command,
        cwd=work,
        env=environment,
        capture_output=True,
        check=False,
        timeout=_PYTEST_LIMIT_S,
    )
    return time.perf_counter() - started
