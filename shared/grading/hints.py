"""`make hint-lab-N`: one more hint at each call."""

from __future__ import annotations

import json

from rich.console import Console
from rich.markup import escape

from shared.grading.lab import Hint, Lab, Task, load_lab
from shared.grading.results import ResultStore, TaskResult, write_atomically
from shared.paths import STATE

_SEEN = STATE / "hints.json"


def next_hint(console: Console, lab_number: str, task_id: str) -> None:
    """Show the next unseen hint of the given task, or of the first that has not passed."""
    lab = load_lab(lab_number)
    latest = ResultStore().latest(lab.number)
    results = {t.id: t for t in latest.tasks} if latest is not None else {}
    task = lab.task(task_id) if task_id else _first_open(lab, results)
    if task is None:
        console.print(f"Every task of lab {lab.number} passes. No hint is needed.")
        return
    seen = _load_seen()
    known = seen.setdefault(task.id, [])
    left = [h for h in ordered_hints(task, results.get(task.id)) if h.id not in known]
    if not left:
        console.print(
            f"{task.id} {task.title}: those were all {len(task.hints)} hints. Here they are again:",
            markup=False,
        )
        for hint in task.hints:
            console.print(f"  • {escape(hint.text)}")
        return
    known.append(left[0].id)
    write_atomically(_SEEN, json.dumps(seen, indent=1))
    console.print(f"[bold]{task.id} {escape(task.title)}[/]  ({len(left) - 1} more)")
    console.print(f"  {escape(left[0].text)}")


def ordered_hints(task: Task, result: TaskResult | None) -> list[Hint]:
    """The task's hints, the one that fits the last failure first."""
    fitting = task.hint(result.hint) if result is not None and result.hint else None
    rest = [h for h in task.hints if h is not fitting]
    return [fitting, *rest] if fitting is not None else rest


def _first_open(lab: Lab, results: dict[str, TaskResult]) -> Task | None:
    for task in lab.tasks:
        if task.id not in results or results[task.id].status != "passed":
            return task
    return None


def _load_seen() -> dict[str, list[str]]:
    try:
        seen = json.loads(_SEEN.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return seen if isinstance(seen, dict) else {}
