"""Canaries: checks whose outcome is known beforehand, among those whose outcome is asked.

Each of a task's checks has a twin under the same name, in the same process, at a place in the
order that is drawn anew. Most twins must fail, each in its own way and with a word that was drawn
for it; the others must pass. Who turns failures into passes, or reports in the checks' place,
turns the wrong ones.

What this cannot exclude: the learner's code and the checks share a process, so a program that
reads the process's own memory finds the twins, their words and the seal of the event lines, and
can play all of them as planned. It takes work aimed at this very grader, and it leaves a file
that a person who reads it recognises at once. What such a program reports is still only the
outcome of checks of its own task: other tasks, other learners and the host are behind walls.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

Twin = Literal["expectation", "assertion", "comparison", "passes"]
_MUST_FAIL: tuple[Twin, ...] = ("expectation", "assertion", "comparison")


class Step(BaseModel):
    """One check to run: the real one, or its twin.

    Attributes:
        twin: what the twin does; None for the real check.
        word: what a twin that must fail has to say.
    """

    check: str
    twin: Twin | None = None
    word: str = ""


class Plan(BaseModel):
    """What a run has to do, in order.

    Attributes:
        seal: what every event line must carry.
    """

    seal: str
    steps: list[Step]


def draw_plan(checks: Sequence[str]) -> Plan:
    """Draw twins and their places for these checks, which stay in their order.

    At least one twin must fail, and the last step is a twin that must: what a real check's
    learner code has put in place by then is still there.
    """
    draw = random.SystemRandom()
    steps = [Step(check=name) for name in checks]
    twins = [_twin(name, draw.choice((*_MUST_FAIL, "passes"))) for name in checks]
    last = draw.randrange(len(twins))
    twins[last] = _twin(checks[last], draw.choice(_MUST_FAIL))
    for number, twin in enumerate(twins):
        if number != last:
            steps.insert(draw.randrange(len(steps) + 1), twin)
    return Plan(seal=secrets.token_hex(16), steps=[*steps, twins[last]])


def _twin(check: str, kind: Twin) -> Step:
    return Step(check=check, twin=kind, word="" if kind == "passes" else secrets.token_hex(8))
