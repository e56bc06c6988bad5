"""What a checks process tells the runner, one JSON line an event."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

Outcome = Literal[
    "passed",
    "failed",  # an expectation did not hold
    "raised",  # the learner's code raised
    "not_started",  # the starter's own NotImplementedError
    "error",  # the learner's file cannot be imported
    "engine",  # the model server could not be had
    "broken",  # the check itself is at fault
    "timed_out",  # set by the runner
]


class Frame(BaseModel):
    """One line of the learner's own code in a traceback."""

    file: str
    line: int
    function: str
    code: str = ""


class CheckOutcome(BaseModel):
    """How one check ended."""

    check: str = ""
    outcome: Outcome
    observed: str = ""
    expected: str = ""
    why: str = ""
    hint: str | None = None
    call: str = ""
    frames: list[Frame] = []
    detail: str = ""
    printed: str = ""
    seconds: float = 0.0
    figures: list[dict[str, Any]] = []
