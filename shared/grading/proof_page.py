"""labs/PROOF.md: every file that the graders were tried on, and what came of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from shared.grading.lab import Lab
from shared.grading.proof import Outcome, Plan, Tried, Verdict
from shared.paths import LABS

PAGE = LABS / "PROOF.md"
_HEAD = """# What the graders were tried on

`make proof` grades the starter, the solution and every variant of every task, and writes this
page. A **right** variant solves the task in another way and must pass. A **wrong** one makes a
mistake that a capable person makes; it must fail, first at the check named here, and the learner
must see the hint named here. Spoilers: these are the mistakes that you are meant to make yourself.
"""
_SECTION = re.compile(r"^## Lab (\d+): ", re.MULTILINE)


def write_page(lab: Lab, tried: Tried, page: Path = PAGE) -> Path:
    """Replace the lab's part of the page; the other labs' parts stay."""
    text = page.read_text(encoding="utf-8") if page.is_file() else _HEAD
    parts = _parts(text)
    parts[lab.number] = "\n".join(_section(lab, tried)) + "\n"
    page.write_text(
        "\n".join([_HEAD, *(parts[number] for number in sorted(parts))]), encoding="utf-8"
    )
    return page


def listed(lab: Lab, page: Path = PAGE) -> set[tuple[str, str]]:
    """Task and name of every variant on the page's part of a lab."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    section = _parts(text).get(lab.number, "")
    found, task = set(), ""
    for line in section.splitlines():
        if heading := re.match(r"### (\d+\.\d+) ", line):
            task = heading[1]
        elif row := re.match(r"\| `(\w+)` \|", line):
            found.add((task, row[1]))
    return found


def _parts(text: str) -> dict[int, str]:
    starts = [(int(m[1]), m.start()) for m in _SECTION.finditer(text)]
    ends = [*(start for _, start in starts[1:]), len(text)][: len(starts)]
    return {
        number: text[start:end].rstrip("\n") + "\n"
        for (number, start), end in zip(starts, ends, strict=True)
    }


def _section(lab: Lab, tried: Tried) -> Iterator[str]:
    yield f"## Lab {lab.number}: {lab.title}"
    yield ""
    good = sum(o.verdict is Verdict.AS_PLANNED for _, o in tried)
    wrong = [o for p, o in tried if p.kind == "wrong"]
    caught = sum(o.verdict is Verdict.AS_PLANNED for o in wrong)
    right = [o for p, o in tried if p.kind == "right"]
    taken = sum(o.verdict is Verdict.AS_PLANNED for o in right)
    yield (
        f"{good} of {len(tried)} as planned: {caught} of {len(wrong)} wrong variants caught by the "
        f"intended check with the intended hint, {taken} of {len(right)} right variants accepted."
    )
    for task in lab.tasks:
        mine = [(p, o) for p, o in tried if p.task.id == task.id]
        yield ""
        yield f"### {task.id} {task.title}"
        yield ""
        for plan, outcome in mine:
            if plan.kind in ("starter", "solution"):
                must = "fails" if plan.kind == "starter" else "passes"
                yield f"- the {plan.kind} {must}: {outcome.verdict.value}"
        yield ""
        yield "| variant | what it does | must be caught by | hint | outcome |"
        yield "| --- | --- | --- | --- | --- |"
        for plan, outcome in mine:
            if plan.kind in ("right", "wrong"):
                yield _row(plan, outcome)


def _row(plan: Plan, outcome: Outcome) -> str:
    says = plan.says.replace("|", "\\|")
    check = f"`{plan.caught_by}`" if plan.caught_by else "nothing, it is right"
    hint = f"`{plan.hint}`" if plan.hint else ""
    return f"| `{plan.name}` | {says} | {check} | {hint} | {outcome.verdict.value} |"
