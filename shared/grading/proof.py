"""`make proof`: show that the graders are right.

For every task the untouched starter fails, the solution passes, every right variant passes, and
every wrong variant fails first at the check, and with the hint, that its docstring names.
"""

from __future__ import annotations

import ast
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from shared.errors import UserError
from shared.grading.check import build_environments, wanted_engine
from shared.grading.jobs import wanted_jobs
from shared.grading.lab import Lab, Task, lab_folders, load_lab
from shared.grading.results import TaskResult
from shared.grading.starters import derive

_CAUGHT_BY = re.compile(r"^caught-by:\s*(\S+)\s*$", re.MULTILINE)
_HINT = re.compile(r"^hint:\s*(\S+)\s*$", re.MULTILINE)


class Verdict(Enum):
    """What came of grading one planned file, in the words of the matrix."""

    AS_PLANNED = "as planned"
    OTHER_CHECK = "caught by another check"
    OTHER_HINT = "caught with another hint"
    MISSED = "missed"
    REFUSED = "should pass, does not"
    NOT_GRADED = "not graded"


@dataclass(frozen=True)
class Outcome:
    """The verdict on one planned file; `detail` is a sentence when it is not as planned."""

    verdict: Verdict
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """One file to grade, and what must come of it.

    Attributes:
        kind: starter, solution, right or wrong.
        says: for a variant, what it does differently, in a line.
        caught_by, hint: for a wrong one, the check that must fail first and the hint it shows.
    """

    task: Task
    kind: str
    target: str
    says: str = ""
    caught_by: str = ""
    hint: str = ""

    @property
    def name(self) -> str:
        """What to call it in a report."""
        return Path(self.target).stem if self.kind in ("right", "wrong") else self.kind

    def outcome(self, result: TaskResult) -> Outcome:
        """Compare what came with what was planned."""
        if result.status == "not_graded":
            return Outcome(Verdict.NOT_GRADED, f"was not graded: {result.message}")
        if self.kind in ("solution", "right"):
            if result.status == "passed":
                return Outcome(Verdict.AS_PLANNED)
            return Outcome(Verdict.REFUSED, f"should pass, but {result.status}: {_first(result)}")
        if result.status == "passed":
            return Outcome(Verdict.MISSED, "should fail, but passes")
        if self.kind == "starter":
            return Outcome(Verdict.AS_PLANNED)
        failure = result.first_failure
        check = failure.check if failure is not None else "?"
        if check != self.caught_by:
            return Outcome(
                Verdict.OTHER_CHECK,
                f"should be caught by {self.caught_by}, but was by {_first(result)}",
            )
        shown = result.hint or ("none" if result.status == "failed" else self.hint)
        if shown != self.hint:
            return Outcome(
                Verdict.OTHER_HINT, f"should show the hint {self.hint!r}, but shows {shown!r}"
            )
        return Outcome(Verdict.AS_PLANNED)


Tried = list[tuple[Plan, Outcome]]
"""Planned files with what came of each, in the order of the plan."""


def plans(lab: Lab, task: Task, starter: Path) -> Iterator[Plan]:
    """Everything that the task's checks are tried on.

    Args:
        starter: a folder with the starter as derived, not as somebody may have edited it.

    Raises:
        UserError: a wrong variant does not say what must catch it.
    """
    yield Plan(task, "starter", str(starter))
    yield Plan(task, "solution", "solution")
    for path in sorted((lab.folder / "variants" / task.stem).glob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        says = " ".join(doc.split("\n\n")[0].split())
        if path.name.startswith("right_"):
            yield Plan(task, "right", str(path), says)
        elif path.name.startswith("wrong_"):
            caught, hint = _CAUGHT_BY.search(doc), _HINT.search(doc)
            if caught is None or hint is None:
                raise UserError(
                    f"{path.name}: its docstring must say `caught-by: <check>` and `hint: <id>`."
                )
            yield Plan(task, "wrong", str(path), says, caught[1], hint[1])
        else:
            raise UserError(f"{path.name}: a variant's name begins with right_ or wrong_.")


@contextmanager
def pristine_starter(lab: Lab) -> Iterator[Path]:
    """A folder with the lab's starter as it is derived."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "starter"
        folder.mkdir()
        for file, text in derive(lab).items():
            (folder / file).write_text(text, encoding="utf-8")
        yield folder


def prove(
    console: Console, only: str, task_id: str, domain: str, engine: str, seed: str, jobs: str = ""
) -> int:
    """Run the proof, print the matrix and what is not as planned; 0 when all is as planned.

    What was tried in the default domain gets its part of labs/PROOF.md anew.
    """
    from shared.grading.proof_page import write_page
    from shared.grading.proof_pool import ProofPool, Trial

    at_once = wanted_jobs(jobs)
    labs = [load_lab(only)] if only else [load_lab(n) for n in lab_folders()]
    if task_id and not only:
        labs = [load_lab(task_id.split(".")[0])]
    for lab in labs:
        vllm = lab.engine == "vllm"
        build_environments(lab, wanted_engine(engine, explicit=True) if vllm else None)
    outcomes: dict[int, Tried] = {lab.number: [] for lab in labs}
    with _starters(labs) as starters:
        trials = [
            Trial(lab, plan, domain, engine if lab.engine != "none" else "", seed)
            for lab in labs
            for task in ([lab.task(task_id)] if task_id else lab.tasks)
            for plan in plans(lab, task, starters[lab.number])
        ]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with (
            ProofPool(trials, at_once) as pool,
            Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar,
        ):
            shown = bar.add_task("proving", total=len(trials))
            for trial in trials:
                outcome = pool.outcome(trial)
                outcomes[trial.lab.number].append((trial.plan, outcome))
                bar.advance(shown)
                bar.console.print(_line(trial.plan, outcome))
                if outcome.detail:
                    bar.console.print(f"     {escape(outcome.detail)}", style="red")
    for lab in labs:
        console.print(_matrix(lab, outcomes[lab.number]))
        if domain in ("", "finance"):
            page = write_page(lab, outcomes[lab.number])
            console.print(f"written to {page}", style="bright_black", markup=False)
    return _conclusion(console, [pair for tried in outcomes.values() for pair in tried])


@contextmanager
def _starters(labs: list[Lab]) -> Iterator[dict[int, Path]]:
    with ExitStack() as stack:
        yield {lab.number: stack.enter_context(pristine_starter(lab)) for lab in labs}


def _line(plan: Plan, outcome: Outcome) -> str:
    mark = _MARKS[outcome.verdict]
    return f" {mark} {plan.task.id} {plan.kind:<8} {plan.name:<44} {outcome.seconds:5.1f} s"


_MARKS = {
    Verdict.AS_PLANNED: "[green]✔[/]",
    Verdict.OTHER_CHECK: "[red]c[/]",
    Verdict.OTHER_HINT: "[red]h[/]",
    Verdict.MISSED: "[red]✘[/]",
    Verdict.REFUSED: "[red]✘[/]",
    Verdict.NOT_GRADED: "[yellow]?[/]",
}


def _matrix(lab: Lab, outcomes: Tried) -> Table:
    """Tasks down, what they were tried on across: one mark for each file."""
    table = Table(
        title=f"Lab {lab.number}: {lab.title}",
        caption="✔ as planned   c by another check   h with another hint   ✘ missed or refused   "
        "? not graded",
        title_justify="left",
        caption_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for heading in ("task", "starter", "solution", "right", "wrong"):
        table.add_column(heading)
    table.add_column("as planned", justify="right")
    for task in lab.tasks:
        tried = [(p, o) for p, o in outcomes if p.task.id == task.id]
        if not tried:
            continue
        cells = [
            "".join(_MARKS[o.verdict] for p, o in tried if p.kind == kind)
            for kind in ("starter", "solution", "right", "wrong")
        ]
        good = sum(o.verdict is Verdict.AS_PLANNED for _, o in tried)
        table.add_row(task.id, *cells, f"{good} of {len(tried)}")
    return table


def _conclusion(console: Console, outcomes: Tried) -> int:
    faults = [(p, o) for p, o in outcomes if o.verdict is not Verdict.AS_PLANNED]
    console.print()
    if not faults:
        console.print(f"[green]All {len(outcomes)} as planned.[/]")
        return 0
    console.print(f"[red]{len(faults)} of {len(outcomes)} not as planned:[/]")
    for plan, outcome in faults:
        console.print(f" • {escape(f'{plan.task.id} {plan.name} {outcome.detail}')}")
    return 1


def _first(result: TaskResult) -> str:
    failure = result.first_failure
    if failure is None:
        return result.message
    return f"{failure.check} ({failure.observed})"
