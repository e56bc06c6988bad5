"""The parent's ear on a run of somebody else's code: it believes nothing that does not fit.

Every line must carry the run's seal and the next number, every result must follow its own start,
and the checks must come in the order that was drawn for this run, twins included (`canary`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import ValidationError

from shared.classroom.canary import Plan, Step
from shared.grading.events import CheckOutcome
from shared.grading.process import OUTPUT_LIMIT, Listener, Run, RunEnd
from shared.grading.target import Target

FORGED = "forged result lines"
CANARY = "a check that must fail did not"
REPLACED = "something of the checks or the grader was replaced"
EQUAL = "a value that equals anything"
LEFT = "the process ended itself, as if all were well"
INSIDE = "something that the checks hold was changed in place"
"""A sign of tampering in a file that reaches for the checks; else it may be a mistake."""
HEARD = "it asked for frames or objects that are not its own"
"""No sign of tampering by itself: something to look at."""

_LONGEST_TEXT = 8000
_MOST_FIGURES = 100
_MOST_FORGED = 50
_QUOTED = 200


class Sign(NamedTuple):
    """A sign that a run was tampered with: what kind, and what was seen."""

    kind: str
    evidence: str


class WallRun(Run):
    """A run behind the wall, which may be ended for using more than it may."""

    over_limit: str = ""
    """Which limit it was over, in words."""

    def settle(self) -> None:
        """Wait a moment for what the run itself has to say about its end."""


class StrictListener(Listener):
    """Follows one run's events against the plan.

    Args:
        longest: seconds that any of its checks may take, whatever the run says of them.

    Attributes:
        signs: what was noticed.
    """

    def __init__(
        self,
        run: WallRun,
        events_fd: int,
        output_fd: int,
        stack_fd: int,
        target: Target,
        plan: Plan,
        longest: float,
    ) -> None:
        super().__init__(run, events_fd, output_fd, stack_fd, target)
        self.signs: list[Sign] = []
        self._wall = run
        self._plan = plan
        self._longest = longest
        self._next = 0
        self._number = 0
        self._step: Step | None = None
        self._honest = False
        self._twins: list[tuple[Step, CheckOutcome]] = []
        self._forged = 0

    def listen(self, on_outcome: Callable[[CheckOutcome], None]) -> RunEnd:
        """Follow the run, then compare what it reported with what was to be reported."""
        end = super().listen(on_outcome)
        self._compare_twins(end)
        through = self._next == len(self._plan.steps) and self._step is None
        if self._done and not self._broken and not self._honest:
            self._sign(FORGED, "the run said that it was done without the last word of its watch")
        if end.exit_code == 0 and not self._done and not through:
            self._sign(
                LEFT,
                f"it exited with status 0 after {self._next} of {len(self._plan.steps)} steps",
            )
        return end

    def _wait_for_exit(self) -> int:
        self._wall.settle()
        return super()._wait_for_exit()

    def _take(self, line: bytes, on_outcome: Callable[[CheckOutcome], None]) -> None:
        event = self._opened(line)
        if event is None:
            return
        kind = event.pop("event")
        if self._done:
            self._sign(FORGED, f"a line after the last: {_quote(line)}")
        elif kind == "start":
            self._take_start(event)
        elif kind == "result":
            self._take_result(event, on_outcome)
        elif kind == "broken":
            self._broken = str(event.get("detail", ""))[-4000:]
        elif kind == "integrity":
            self._take_integrity(event)
        elif kind == "done":
            self._done = True
        else:
            self._sign(FORGED, f"a line that the grader never writes: {_quote(line)}")

    def _opened(self, line: bytes) -> dict[str, Any] | None:
        """The event in a line, or None with a sign where the seal is not right."""
        try:
            event = json.loads(line)
            seal, number, _ = event.pop("seal"), event.pop("number"), event["event"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._sign(FORGED, f"a line without this run's seal: {_quote(line)}")
            return None
        self._number += 1
        if seal != self._plan.seal or number != self._number:
            self._sign(FORGED, f"a line under a wrong seal or number: {_quote(line)}")
            return None
        cleaned = clean(event)
        assert isinstance(cleaned, dict)
        return cleaned

    def _take_start(self, event: dict[str, Any]) -> None:
        name = str(event.get("check"))
        expected = self._plan.steps[self._next] if self._next < len(self._plan.steps) else None
        if self._step is not None or expected is None or expected.check != name:
            self._sign(FORGED, f"the check {name[:_QUOTED]} began out of turn")
            return
        try:
            limit, printed = float(event["limit"]), int(event["printed_from"])
        except (KeyError, TypeError, ValueError):
            self._sign(FORGED, f"the check {name} began without its limit")
            return
        self._step, self._next = expected, self._next + 1
        self._running = name
        self._limit = min(max(limit, 1.0), self._longest)
        self._printed_from = max(0, printed)
        self._since = time.monotonic()

    def _take_result(
        self, event: dict[str, Any], on_outcome: Callable[[CheckOutcome], None]
    ) -> None:
        step = self._step
        try:
            outcome = CheckOutcome(**event)
        except (ValidationError, TypeError) as error:
            self._sign(FORGED, f"a result that is none: {str(error)[:_QUOTED]}")
            return
        if step is None or outcome.check != step.check:
            self._sign(FORGED, f"a result for {outcome.check[:_QUOTED]}, which was not running")
            return
        self._step, self._running = None, None
        self._limit, self._since = 90.0, time.monotonic()
        outcome.figures = outcome.figures[:_MOST_FIGURES]
        if step.twin is not None:
            self._twins.append((step, outcome))
            return
        outcome.printed = str(clean(self._printed()))
        self._outcomes.append(outcome)
        on_outcome(outcome)

    def _take_integrity(self, event: dict[str, Any]) -> None:
        lists = [event.get(key) for key in ("changed", "inside", "equal_to_all", "heard")]
        changed, inside, equal, heard = (v if isinstance(v, list) else [] for v in lists)
        if self._honest or not all(isinstance(value, list) for value in lists):
            self._sign(FORGED, "the last word of the run's watch is not as it writes it")
            return
        self._honest = True
        if changed:
            names = ", ".join(str(name) for name in changed[:10])
            self._sign(REPLACED, f"no longer what they were: {names}")
        if inside:
            names = ", ".join(str(name) for name in inside[:10])
            self._sign(INSIDE, f"no longer what they held: {names}")
        for text in equal:
            self._sign(EQUAL, str(text)[: 2 * _QUOTED])
        if heard:
            self._sign(HEARD, "; ".join(str(place)[:_QUOTED] for place in heard[:10]))

    def _compare_twins(self, end: RunEnd) -> None:
        real = [step for step in self._plan.steps if step.twin is None]
        all_passed = len(end.outcomes) == len(real) and all(
            outcome.outcome == "passed" for outcome in end.outcomes
        )
        for step, outcome in self._twins:
            must_fail = step.twin != "passes"
            if must_fail and outcome.outcome == "passed":
                self._sign(CANARY, f"{step.check} passed where it could only fail")
            elif all_passed and not _as_planned(step, outcome):
                self._sign(
                    CANARY,
                    f"{step.check} reported {outcome.outcome} ({outcome.observed[:_QUOTED]}) "
                    f"where something else was planned",
                )
        if all_passed and self._done and len(self._twins) < len(self._plan.steps) - len(real):
            self._sign(CANARY, "all checks passed, but some that must fail never reported")

    def _overrun(self) -> CheckOutcome | None:
        if self._wall.over_limit:
            return CheckOutcome(
                check=self._running or "",
                outcome="timed_out",
                observed=f"{self._wall.over_limit} and was stopped",
                expected="no more than a laptop gives it",
                why="On a shared machine, whoever takes everything stops everybody.",
                printed=str(clean(self._printed())),
                seconds=time.monotonic() - self._since,
            )
        if self._forged > _MOST_FORGED or os.fstat(self._stack_fd).st_size > OUTPUT_LIMIT:
            self._run.kill()
            return CheckOutcome(
                check=self._running or "",
                outcome="raised",
                observed="it wrote into the grader's own files and was stopped",
            )
        stopped = super()._overrun()
        if stopped is not None:
            stopped = CheckOutcome(**_cleaned(stopped))
        return stopped

    def _sign(self, kind: str, evidence: str) -> None:
        self._forged += kind == FORGED
        text = str(clean(evidence))
        if len(self.signs) < 20 and Sign(kind, text) not in self.signs:
            self.signs.append(Sign(kind, text))


def clean(value: object, depth: int = 0) -> object:
    """`value` with every text in it cut to a length, and fit to be written as UTF-8."""
    if isinstance(value, str):
        text = (
            value.encode("utf-8", "replace")
            .decode("utf-8")
            .replace("\0", "\N{REPLACEMENT CHARACTER}")
        )
        return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
    if depth > 8:
        return "…"
    if isinstance(value, list):
        return [clean(v, depth + 1) for v in value[:1000]]
    if isinstance(value, dict):
        return {str(clean(k)): clean(v, depth + 1) for k, v in list(value.items())[:1000]}
    return value


def _cleaned(outcome: CheckOutcome) -> dict[str, Any]:
    cleaned = clean(outcome.model_dump())
    assert isinstance(cleaned, dict)
    return cleaned


def _as_planned(step: Step, outcome: CheckOutcome) -> bool:
    planned = {"expectation": "failed", "comparison": "failed", "assertion": "broken"}
    if step.twin == "passes":
        return outcome.outcome == "passed"
    assert step.twin is not None
    return outcome.outcome == planned[step.twin] and step.word in outcome.observed


def _quote(line: bytes) -> str:
    return repr(line[:_QUOTED].decode("utf-8", "replace"))
