"""`make progress`: how far the learner is, and how it went."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.grading.feedback import MARKS
from shared.grading.lab import Lab, all_labs
from shared.grading.results import LabResult, ResultStore


def show_progress(console: Console) -> None:
    """Draw each lab's tasks with their last status, number of gradings and course over time."""
    store = ResultStore()
    history = [h for h in store.history() if h.get("target") == "starter"]
    for lab in all_labs():
        console.print(_lab_table(lab, store.latest(lab.number), history))
        console.print()
    if not history:
        console.print("Nothing is graded yet. Begin with: make check-lab-1")


def _lab_table(lab: Lab, latest: LabResult | None, history: list[dict[str, Any]]) -> Table:
    results = {t.id: t for t in latest.tasks} if latest is not None else {}
    score = sum(r.points for r in results.values())
    bar = _bar(score / max(lab.max_score, 1))
    table = Table(
        title=f"Lab {lab.number}: {lab.title}   {bar} {score}/{lab.max_score}",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2),
    )
    table.add_column("task")
    table.add_column("")
    table.add_column("status")
    table.add_column("points", justify="right")
    table.add_column("graded", justify="right")
    table.add_column("course")
    for task in lab.tasks:
        result = results.get(task.id)
        mark, colour, word = MARKS[result.status if result else "not_started"]
        runs = [h["tasks"][task.id] for h in history if task.id in h.get("tasks", {})]
        course = Text()
        for status in runs[-20:]:
            symbol, style, _ = MARKS.get(status, MARKS["not_graded"])
            course.append(symbol, style)
        table.add_row(
            task.id,
            task.title,
            Text(f"{mark} {word}", colour),
            f"{result.points if result else 0}/{task.points}",
            f"{len(runs)}x",
            course,
        )
    return table


def _bar(share: float, width: int = 20) -> str:
    full = round(share * width)
    return "█" * full + "░" * (width - full)
