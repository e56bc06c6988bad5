"""What a person reads after a grading."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from shared.grading.events import CheckOutcome
from shared.grading.lab import Lab, Task
from shared.grading.results import LabResult, Status, TaskResult

MARKS: dict[Status, tuple[str, str, str]] = {
    "passed": ("✔", "green", "passed"),
    "failed": ("✘", "red", "failed"),
    "not_started": ("·", "bright_black", "not started"),
    "error": ("✘", "red", "cannot be imported"),
    "timed_out": ("⧖", "red", "timed out"),
    "not_graded": ("?", "yellow", "NOT GRADED"),
}
_PRINTED_LINES = 20
_OTHERS = 6


class ConsoleWatcher:
    """Shows a grading as it goes on: one line a task, and what it is busy with."""

    def __init__(self, console: Console, lab: Lab) -> None:
        self._console = console
        self._lab = lab
        self._status = console.status("")
        self._busy_with: dict[str, str] = {}

    def __enter__(self) -> ConsoleWatcher:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def task_started(self, task: Task) -> None:
        """Show what is being checked."""
        self._busy_with[task.id] = task.title
        self._show_busy()

    def task_waiting(self, task: Task) -> None:
        """Show what is still being checked."""
        self._busy_with.pop(task.id, None)
        self._show_busy()

    def engine_starting(self) -> None:
        """Show that the model server is being started or found."""
        self.busy("finding or starting the model server …")

    def busy(self, text: str) -> None:
        """Show what takes time."""
        self._status.update(f"[bright_black]{escape(text)}[/]")

    def task_finished(self, result: TaskResult, *, reused: bool) -> None:
        """Show the task's verdict in one line."""
        self._busy_with.pop(result.id, None)
        self._show_busy()
        mark, colour, word = MARKS[result.status]
        line = Text.assemble(
            (f" {mark} ", colour),
            (f"{result.id}  ", "bold"),
            f"{result.title:<28.28}",
            (f" {result.points:>3}/{result.max_points:<3} ", "bright_black"),
            (word, colour),
        )
        if result.status in ("failed", "timed_out"):
            line.append(
                f" ({result.passed_checks} of {result.expected_checks} checks pass)", "bright_black"
            )
        line.append(f"  {result.seconds:.1f} s", "bright_black")
        if reused:
            line.append("  (kept from the run that was cut off)", "bright_black")
        self._console.print(line, soft_wrap=True)

    def _show_busy(self) -> None:
        tasks = ", ".join(f"{id_} {title}" for id_, title in sorted(self._busy_with.items()))
        self.busy(f"checking {tasks} …" if tasks else "")


class SilentWatcher(ConsoleWatcher):
    """Hears everything and shows nothing."""

    def __init__(self) -> None:
        pass

    def task_started(self, task: Task) -> None:
        """Show nothing."""

    def task_waiting(self, task: Task) -> None:
        """Show nothing."""

    def engine_starting(self) -> None:
        """Show nothing."""

    def task_finished(self, result: TaskResult, *, reused: bool) -> None:
        """Show nothing."""


def show_result(console: Console, lab: Lab, result: LabResult, command: str) -> None:
    """Print what follows the tasks' lines: the first failure in full, the score, what was run.

    Args:
        command: how the reader would grade one task again, e.g. ``"make check-lab-1"``.
    """
    first = next((t for t in result.tasks if t.status != "passed"), None)
    if first is not None:
        console.print()
        console.print(_in_full(lab, lab.task(first.id), first, result.target, command))
    figures = [(t.id, f) for t in result.tasks for f in t.figures]
    if figures:
        console.print()
        console.print(_figures(figures))
    console.print()
    console.print(_summary(lab, result))


def _in_full(lab: Lab, task: Task, result: TaskResult, target: str, command: str) -> RenderableType:
    _, colour, word = MARKS[result.status]
    parts: list[RenderableType] = []
    failure = result.first_failure
    if result.status == "not_started":
        parts.append(_not_started(lab, task, target))
    elif result.status == "not_graded" or failure is None:
        parts.append(Text(printable(result.message)))
    else:
        parts.extend(_failure(failure))
    others = [c for c in result.checks if c.outcome != "passed" and c is not failure]
    if others and result.status in ("failed", "timed_out"):
        parts.append(Text(""))
        parts.extend(Text(f"also: {sentence(c)}", "bright_black") for c in others[:_OTHERS])
        if len(others) > _OTHERS:
            parts.append(Text(f"also: {len(others) - _OTHERS} more", "bright_black"))
    reported = {c.check for c in result.checks}
    waiting = sum(v for name, v in lab.expected_checks(task).items() if name not in reported)
    if waiting and result.status == "failed":
        checks = "1 live check" if waiting == 1 else f"{waiting} live checks"
        parts.append(Text(f"not run: {checks}, until the others pass", "bright_black"))
    parts.append(Text(""))
    parts.append(_where_next(task, result, command))
    return Panel(
        Group(*parts),
        title=f"[bold]{task.id} {escape(task.title)}[/] [{colour}]{word}[/]",
        title_align="left",
        border_style=colour,
    )


def _failure(failure: CheckOutcome) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(sentence(failure), "bold"), Text("")]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in (
        ("called", failure.call),
        ("observed", failure.observed),
        ("expected", failure.expected),
        ("why", failure.why),
    ):
        if text:
            table.add_row(label, Text(printable(text)))
    parts.append(table)
    if failure.frames:
        parts.append(Text(""))
        for frame in failure.frames[-5:]:
            place = f"{frame.file}, line {frame.line}"
            parts.append(Text(place + (f", in {frame.function}" if frame.function else "")))
            if frame.code:
                parts.append(Padding(Text(printable(frame.code), "cyan"), (0, 0, 0, 4)))
    printed = printable(failure.printed).rstrip().splitlines()
    if printed:
        parts.append(Text("\nyour code printed:", "bright_black"))
        if len(printed) > _PRINTED_LINES:
            parts.append(Text(f"  … {len(printed) - _PRINTED_LINES} lines before", "bright_black"))
        parts.extend(Text(f"  {line}") for line in printed[-_PRINTED_LINES:])
    return parts


def _not_started(lab: Lab, task: Task, target: str) -> Text:
    here = target in ("starter", "solution")
    place = f"labs/{lab.folder.name}/{target}/{task.file}" if here else task.file
    symbols = ", ".join(task.symbols)
    return Text(
        f"You have not written this yet. Open {place}, read the docstring of {symbols}, and "
        f"replace the line that raises NotImplementedError. The story behind it is in "
        f"labs/{lab.folder.name}/README.md."
    )


def _where_next(task: Task, result: TaskResult, command: str) -> Text:
    number = task.id.split(".")[0]
    text = Text(style="bright_black")
    hint = task.hint(result.hint) if result.hint else None
    if hint is not None:
        text.append("hint   ", "yellow")
        text.append(hint.text + "\n", "default")
    text.append(f"again  {command} TASK={task.id}\n")
    text.append(f"stuck  make hint-lab-{number} TASK={task.id}")
    return text


def _figures(figures: list[tuple[str, dict[str, Any]]]) -> Table:
    table = Table(title="measured", title_justify="left", title_style="bold", box=None)
    table.add_column("task", style="bright_black")
    table.add_column("")
    table.add_column("yours", justify="right")
    table.add_column("reference", justify="right", style="bright_black")
    for task_id, figure in figures:
        unit = f" {figure['unit']}" if figure.get("unit") else ""
        reference = figure.get("reference")
        table.add_row(
            task_id,
            str(figure["name"]),
            f"{_number(figure['value'])}{unit}",
            "" if reference is None else f"{_number(reference)}{unit}",
        )
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _summary(lab: Lab, result: LabResult) -> RenderableType:
    colour = "green" if result.passed else "red" if result.score == 0 else "yellow"
    lines = [
        Text.assemble(
            (f"Lab {result.lab}, {result.title}: ", "bold"),
            (f"{result.score} of {result.max_score} points", f"bold {colour}"),
            (f"  ({result.seconds:.1f} s)", "bright_black"),
        )
    ]
    if any(t.status == "not_graded" for t in result.tasks):
        lines.append(Text("Some tasks were NOT GRADED. That is neither pass nor fail.", "yellow"))
    live = any(any(lab.expected_checks(lab.task(t.id)).values()) for t in result.tasks)
    engine = result.engine or ("was not asked" if live else "no model server was needed")
    details = [f"graded {result.target}", f"engine {engine}", f"SEED={result.seed}"]
    if result.domain:
        details.append(f"DOMAIN={result.domain}")
    lines.append(Text("; ".join(details), "bright_black"))
    files = [f"{name} {(digest or 'missing')[:12]}" for name, digest in result.files.items()]
    lines.append(Text("files (SHA-256): " + ", ".join(files), "bright_black"))
    lines.extend(Text(f"not proven: {text}", "yellow") for text in result.not_proven)
    return Group(*lines)


def printable(text: str) -> str:
    """`text` without control characters: what learners print must not steer the terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def sentence(outcome: CheckOutcome) -> str:
    """A check's name as the sentence it is."""
    words = outcome.check.removeprefix("test_").replace("_", " ").strip()
    return (words[:1].upper() + words[1:]) if words else "The run as a whole"
