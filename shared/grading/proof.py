"""`make proof`: show that the graders are right.

For every task the untouched starter fails, the solution passes, every right variant passes, and
every wrong variant fails first at the check, and with the hint, that its docstring names.
"""

from __future__ import annotations

import ast
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from shared.errors import UserError
from shared.grading.check import Request, build_engine_environment
from shared.grading.feedback import SilentWatcher
from shared.grading.lab import Lab, Task, lab_folders, load_lab
from shared.grading.results import TaskResult
from shared.grading.runner import Runner
from shared.grading.starters import derive

_CAUGHT_BY = re.compile(r"^caught-by:\s*(\S+)\s*$", re.MULTILINE)
_HINT = re.compile(r"^hint:\s*(\S+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Plan:
    """One file to grade, and what must come of it.

    Attributes:
        kind: starter, solution, right or wrong.
        caught_by, hint: for a wrong one, the check that must fail first and the hint it shows.
    """

    task: Task
    kind: str
    target: str
    caught_by: str = ""
    hint: str = ""

    @property
    def name(self) -> str:
        """What to call it in a report."""
        return Path(self.target).stem if self.kind in ("right", "wrong") else self.kind

    def fault(self, result: TaskResult) -> str:
        """What is not as planned; empty when all is."""
        if result.status == "not_graded":
            return f"was not graded: {result.message}"
        if self.kind in ("solution", "right"):
            if result.status == "passed":
                return ""
            return f"should pass, but {result.status}: {_first(result)}"
        if result.status == "passed":
            return "should fail, but passes"
        if self.kind == "starter":
            return ""
        failure = result.first_failure
        check = failure.check if failure is not None else "?"
        if check != self.caught_by:
            return f"should be caught by {self.caught_by}, but was by {_first(result)}"
        shown = result.hint or ("none" if result.status == "failed" else self.hint)
        if shown != self.hint:
            return f"should show the hint {self.hint!r}, but shows {shown!r}"
        return ""


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
        if path.name.startswith("right_"):
            yield Plan(task, "right", str(path))
        elif path.name.startswith("wrong_"):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            caught, hint = _CAUGHT_BY.search(doc), _HINT.search(doc)
            if caught is None or hint is None:
                raise UserError(
                    f"{path.name}: its docstring must say `caught-by: <check>` and `hint: <id>`."
                )
            yield Plan(task, "wrong", str(path), caught[1], hint[1])
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


def prove(console: Console, only: str, task_id: str, domain: str, engine: str, seed: str) -> int:
    """Run the proof and print what is not as planned; 0 when nothing is."""
    faults: list[str] = []
    count = 0
    labs = [load_lab(only)] if only else [load_lab(n) for n in lab_folders()]
    if task_id and not only:
        labs = [load_lab(task_id.split(".")[0])]
    with Runner() as runner:
        for lab in labs:
            console.print(f"[bold]Lab {lab.number}: {lab.title}[/]")
            with pristine_starter(lab) as starter:
                tasks = [lab.task(task_id)] if task_id else lab.tasks
                for plan in [p for task in tasks for p in plans(lab, task, starter)]:
                    fault, seconds = try_plan(runner, console, lab, plan, domain, engine, seed)
                    count += 1
                    mark = "[red]✘[/]" if fault else "[green]✔[/]"
                    console.print(
                        f" {mark} {plan.task.id} {plan.kind:<8} {plan.name:<44} {seconds:5.1f} s"
                    )
                    if fault:
                        faults.append(f"{plan.task.id} {plan.name} {fault}")
                        console.print(f"     {escape(fault)}", style="red")
    console.print()
    if not faults:
        console.print(f"[green]All {count} as planned.[/]")
        return 0
    console.print(f"[red]{len(faults)} of {count} not as planned:[/]")
    for fault in faults:
        console.print(f" • {escape(fault)}")
    return 1


def try_plan(
    runner: Runner, console: Console, lab: Lab, plan: Plan, domain: str, engine: str, seed: str
) -> tuple[str, float]:
    """Grade one planned file; what is not as planned (or nothing), and the seconds it took."""
    request = Request.of(
        str(lab.number),
        task=plan.task.id,
        target=plan.target,
        domain=domain,
        engine=engine if lab.engine != "none" else "",
        seed=seed,
    )
    build_engine_environment(request)
    grading = request.grading(console, None)
    grading.stop_at_first_failure = plan.kind in ("starter", "wrong")
    result = runner.grade(grading, SilentWatcher())
    return plan.fault(result.tasks[0]), result.seconds


def _first(result: TaskResult) -> str:
    failure = result.first_failure
    if failure is None:
        return result.message
    return f"{failure.check} ({failure.observed})"
