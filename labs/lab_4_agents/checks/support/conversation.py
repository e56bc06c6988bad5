"""One conversation with a learner's support agent, and what came of it in plain values."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from shared.agents.scripted import ScriptedChatModel
from shared.grading.expect import fail, plain, show


@dataclass(frozen=True)
class Waiting:
    """A proposal as it was when it was shown; `shown` is the agent's own object."""

    id: str
    tool: str
    arguments: dict[str, Any]
    shown: Any


@dataclass(frozen=True)
class Answer:
    """A turn, in plain values."""

    text: str
    waiting: list[Waiting]


class Desk:
    """An agent, and the scripted model behind it."""

    def __init__(self, agent: Any, model: ScriptedChatModel) -> None:
        self.agent = agent
        self.model = model

    def ask(self, request: str) -> Answer:
        """What the agent makes of a request."""
        return _answer(self.agent.ask(request), "ask")

    def decide(self, proposal: Waiting, *, approve: bool) -> Answer:
        """What the agent makes of a reviewer's decision."""
        return _answer(self.agent.decide(proposal.id, approve=approve), "decide")

    def shown(self) -> list[BaseMessage]:
        """All messages that the model was ever given, each once."""
        found: dict[int, BaseMessage] = {}
        for messages in self.model.asked:
            found |= {id(m): m for m in messages}
        return list(found.values())

    def told(self) -> str:
        """All that the model was given but its own replies, as one text."""
        return "\n".join(str(m.content) for m in self.shown() if not isinstance(m, AIMessage))

    def tool_answers(self) -> dict[str, str]:
        """The tool message for each call, by the call's id."""
        return {m.tool_call_id: str(m.content) for m in self.shown() if isinstance(m, ToolMessage)}


def _answer(turn: Any, method: str) -> Answer:
    try:
        text, waiting = plain(turn.text), tuple(turn.waiting)
        found = [Waiting(p.id, p.tool, dict(p.arguments), p) for p in waiting]
        good = isinstance(text, str) and all(type(p.id) is str for p in found)
    except (AttributeError, TypeError, ValueError):
        good = False
    if not good:
        fail(
            observed=f"{method} returned a {type(turn).__name__}: {show(turn)}",
            expected="a Turn: a text, and the proposals that wait",
            why="The chat page and the reviewer's console read it.",
            hint="line-by-line",
        )
    return Answer(text, found)


def first_waiting(turn: Answer) -> Waiting:
    """The first proposal that waits; there must be one."""
    if not turn.waiting:
        fail(
            observed=f"no proposal, and the text {turn.text!r}",
            expected="a proposal of the risky call that the model asked for",
            why="A risky call that nobody sees is either made unseen or never made.",
            hint="who-approves",
        )
    return turn.waiting[0]


@dataclass(frozen=True)
class Line:
    """One line of a log, with its traceback if it has one."""

    logger: str
    level: int
    text: str


@contextmanager
def all_logs() -> Iterator[list[Line]]:
    """Everything that is logged meanwhile, at any level, by anybody."""
    lines: list[Line] = []
    form = logging.Formatter()

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not getattr(record, "kept", False):
                record.kept = True
                lines.append(Line(record.name, record.levelno, form.format(record)))

    keeper, loggers = Keeper(), [logging.getLogger(), logging.getLogger("support_agent")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.addHandler(keeper)
        each.setLevel(1)
    try:
        yield lines
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.removeHandler(keeper)
            each.setLevel(level)
