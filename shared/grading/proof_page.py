"""labs/PROOF.md: every file that the graders were tried on, and what came of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from shared.grading.lab import Lab, Task
from shared.grading.proof import Outcome, Plan, Tried, Verdict
from shared.paths import LABS

PAGE = LABS / "PROOF.md"
_HEAD = """# What the graders were tried on

`make proof` grades the starter, the solution and every variant of every task, and writes this
page. A **right** variant solves the task in another way and must pass. A **wrong** one makes a
mistake that a capable person makes; it must fail, first at the check named here, and the learner
must see the hint named here. Spoilers: these are the mistakes that you are meant to make yourself.
"""
_LAB = re.compile(r"^## Lab (\d+): ", re.MULTILINE)
_TASK = re.compile(r"^### (\d+\.\d+) ", re.MULTILINE)
_ROW = re.compile(r"^\| `((right|wrong)_\w+)` \|.*\| ([\w ,]+) \|$", re.MULTILINE)
_ITEM = re.compile(r"^- the \w+ (?:fails|passes): ([\w ,]+)$", re.MULTILINE)


def write_page(lab: Lab, tried: Tried, page: Path = PAGE) -> Path:
    """Replace the parts of the tasks that were tried, and count anew; the others' parts stay."""
    text = page.read_text(encoding="utf-8") if page.is_file() else _HEAD
    labs = _parts(text, _LAB)
    tasks = _parts(labs.get(str(lab.number), ""), _TASK)
    for task in lab.tasks:
        mine = [(plan, outcome) for plan, outcome in tried if plan.task.id == task.id]
        if mine:
            tasks[task.id] = "\n".join(_task_part(task, mine)) + "\n"
    known = [tasks[task.id] for task in lab.tasks if task.id in tasks]
    labs[str(lab.number)] = "\n".join([_lab_head(lab, "".join(known)), *known])
    page.write_text("\n".join([_HEAD, *(labs[n] for n in sorted(labs, key=int))]), encoding="utf-8")
    return page


def listed(lab: Lab, page: Path = PAGE) -> set[tuple[str, str]]:
    """Task and name of every variant on the page's part of a lab."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    tasks = _parts(_parts(text, _LAB).get(str(lab.number), ""), _TASK)
    return {(task, row[1]) for task, part in tasks.items() for row in _ROW.finditer(part)}


def _parts(text: str, heading: re.Pattern[str]) -> dict[str, str]:
    """What stands below each heading, itself included."""
    starts = [(m[1], m.start()) for m in heading.finditer(text)]
    ends = [*(start for _, start in starts[1:]), len(text)][: len(starts)]
    return {
        number: text[start:end].rstrip("\n") + "\n"
        for (number, start), end in zip(starts, ends, strict=True)
    }


def _lab_head(lab: Lab, tasks: str) -> str:
    planned = Verdict.AS_PLANNED.value
    items = _ITEM.findall(tasks)
    rows = [(kind, outcome) for _, kind, outcome in _ROW.findall(tasks)]
    good = (items + [outcome for _, outcome in rows]).count(planned)
    wrong = [outcome for kind, outcome in rows if kind == "wrong"]
    right = [outcome for kind, outcome in rows if kind == "right"]
    return (
        f"## Lab {lab.number}: {lab.title}\n\n"
        f"{good} of {len(items) + len(rows)} as planned: {wrong.count(planned)} of {len(wrong)} "
        "wrong variants caught by the intended check with the intended hint, "
        f"{right.count(planned)} of {len(right)} right variants accepted.\n"
    )


def _task_part(task: Task, tried: Tried) -> Iterator[str]:
    yield f"### {task.id} {task.title}"
    yield ""
    for plan, outcome in tried:
        if plan.kind in ("starter", "solution"):
            must = "fails" if plan.kind == "starter" else "passes"
            yield f"- the {plan.kind} {must}: {outcome.verdict.value}"
    yield ""
    yield "| variant | what it does | must be caught by | hint | outcome |"
    yield "| --- | --- | --- | --- | --- |"
    for plan, outcome in tried:
        if plan.kind in ("right", "wrong"):
            yield _row(plan, outcome)


def _row(plan: Plan, outcome: Outcome) -> str:
    says = plan.says.replace("|", "\\|")
    check = f"`{plan.caught_by}`" if plan.caught_by else "nothing, it is right"
    hint = f"`{plan.hint}`" if plan.hint else ""
    return f"| `{plan.name}` | {says} | {check} | {hint} | {outcome.verdict.value} |"
