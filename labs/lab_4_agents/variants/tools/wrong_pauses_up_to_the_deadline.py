"""Pauses right up to the deadline, and begins an attempt that has no time left.

caught-by: test_no_tool_can_take_longer_than_the_deadline
hint: what-is-left
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from shared.domains.worlds import PermanentError, ToolSpec, TransientError

Status = Literal["ok", "invalid", "refused", "unavailable", "unknown"]


@dataclass(frozen=True)
class Policy:
    """How patient a tool call is. All numbers are above 0.

    Attributes:
        deadline_s: for the call as a whole, attempts and pauses together.
        attempt_timeout_s: how long one attempt may wait for its answer.
        attempts: how many attempts at most.
        pause_s: before the second attempt; twice as long before each further one.
    """

    deadline_s: float = 20.0
    attempt_timeout_s: float = 5.0
    attempts: int = 3
    pause_s: float = 0.5


PATIENT = Policy()


@dataclass(frozen=True)
class ToolResult:
    """What came of a tool call.

    Attributes:
        status: ``"ok"``: it worked. ``"invalid"``: the arguments are wrong, nothing was called.
            ``"refused"``: nothing was done, and the same call will never work.
            ``"unavailable"``: nothing was changed, it may work later.
            ``"unknown"``: it may or may not have had its effect.
        content: the tool's answer when `status` is ``"ok"``, otherwise what the model should know.
        attempts: how often the tool was called.
    """

    status: Status
    content: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0


class InvalidArguments(ValueError):
    """A model gave arguments that the tool does not take.

    Attributes:
        problems: what is wrong with each field, by the field's name.
    """

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {text}" for name, text in problems.items()))
        self.problems = problems


def check_arguments(spec: ToolSpec, arguments: Mapping[str, Any]) -> BaseModel:
    """`arguments` as an instance of the tool's own model, exactly as they were given.

    Nothing is converted, completed or left out: a text is no number, a float no int, a bool no
    int, and a field that the model does not have is an error.

    Raises:
        InvalidArguments: `problems` holds each field that is wrong, and says what is wrong.
    """
    try:
        return spec.arguments.model_validate(dict(arguments), strict=True)
    except ValidationError as error:
        problems = {".".join(map(str, e["loc"])): e["msg"] for e in error.errors()}
        raise InvalidArguments(problems) from error


def idempotency_key(thread_id: str, call_id: str) -> str:
    """The key under which one tool call has its effect once, however often it is attempted.

    The same for the same thread and call, in every process and on every machine; different for
    any other thread or call. At most 64 characters, letters, digits, ``-`` and ``_``. It tells
    neither of the two ids.

    Args:
        thread_id: the conversation. Any text.
        call_id: the tool call's id, unique only within the thread. Any text.
    """
    return hashlib.sha256(json.dumps([thread_id, call_id]).encode()).hexdigest()


def may_repeat(spec: ToolSpec, error: Exception) -> bool:
    """Whether a call of this tool that ended in `error` may be made once more.

    It may when another attempt can work (`TransientError`) and can do no harm: the tool is
    idempotent. A `TransientError` does not tell whether the call had its effect.
    """
    return isinstance(error, TransientError) and spec.idempotent


def call_tool(
    spec: ToolSpec,
    arguments: Mapping[str, Any],
    *,
    thread_id: str,
    call_id: str,
    actor: str = "agent",
    policy: Policy = PATIENT,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> ToolResult:
    """Make one tool call as well as it can be made, and say what came of it.

    Arguments that `check_arguments` refuses are ``"invalid"``; the tool is not called. A write
    that takes an idempotency key is called with that of thread and call on every attempt; other
    tools get none. Each attempt gets `actor`, and as `timeout_s` the attempt's timeout or what
    is left of the deadline, whichever is less.

    After an error that `may_repeat` allows it pauses (`sleep`) and tries again, at most
    `policy.attempts` times in all: `policy.pause_s` before the second attempt, twice as long
    before each further one. It gives up instead when the deadline would be reached by the end
    of the pause. The deadline counts from the call of this function, on `clock`.

    A `PermanentError` is ``"refused"``. After the last `TransientError` a tool that reads is
    ``"unavailable"``, a tool that writes ``"unknown"``: nobody knows whether it happened. A write
    that met a `TransientError` and then a `PermanentError` is ``"unknown"`` too: the refusal is
    of the later attempt. Any other exception is a bug, not an answer, and goes through.

    Returns:
        a `ToolResult`. Unless its status is ``"ok"``, `content` is made for the model to act on;
        all its values are texts, but for `fields`:

        - ``"error"``: what is wrong, with the tool's name, and with the error's own text where
          there was an error;
        - ``"advice"``: what to do now. For ``"unknown"`` it contains ``"do not repeat"``;
        - ``"fields"``, for ``"invalid"`` only: the problem of each wrong field, by name.
    """
    until = clock() + policy.deadline_s
    try:
        checked = check_arguments(spec, arguments)
    except InvalidArguments as error:
        return _invalid(spec, error)
    how: dict[str, Any] = {"actor": actor}
    if spec.idempotent and not spec.reads:
        how["idempotency_key"] = idempotency_key(thread_id, call_id)
    attempt = 0
    while True:
        attempt += 1
        timeout_s = min(policy.attempt_timeout_s, until - clock())
        try:
            answer = spec.call(checked, timeout_s=timeout_s, **how)
        except PermanentError as error:
            in_doubt = attempt > 1 and not spec.reads
            return _failed("unknown" if in_doubt else "refused", spec, error, attempt)
        except TransientError as error:
            pause_s = policy.pause_s * 2 ** (attempt - 1)
            over = attempt >= policy.attempts or clock() + pause_s > until
            if over or not may_repeat(spec, error):
                status: Status = "unavailable" if spec.reads else "unknown"
                return _failed(status, spec, error, attempt)
            sleep(pause_s)
        else:
            return ToolResult("ok", answer, attempt)


_ADVICE: dict[Status, str] = {
    "invalid": "Correct the fields that are named and call the tool again.",
    "refused": "The same call will never work. Choose another way, or tell the customer why not.",
    "unavailable": "Nothing was changed. Go on without it, or tell the customer to try later.",
    "unknown": "It may have happened: do not repeat the call. Read the current state first, or "
    "let a person look.",
}


def _invalid(spec: ToolSpec, error: InvalidArguments) -> ToolResult:
    content = {
        "error": f"{spec.name} was not called, its arguments are invalid: {error}",
        "advice": _ADVICE["invalid"],
        "fields": error.problems,
    }
    return ToolResult("invalid", content)


def _failed(status: Status, spec: ToolSpec, error: Exception, attempts: int) -> ToolResult:
    content = {"error": f"{spec.name}: {error}", "advice": _ADVICE[status]}
    return ToolResult(status, content, attempts)
