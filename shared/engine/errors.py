"""What can go wrong with an engine, as sentences for a person."""

from __future__ import annotations

from collections.abc import Sequence


class EngineError(RuntimeError):
    """The engine cannot be had.

    Args:
        sentence: what happened and what to do, in plain words.
        log_lines: the lines of the engine's log that tell why.
    """

    def __init__(self, sentence: str, log_lines: Sequence[str] = ()) -> None:
        super().__init__(sentence, tuple(log_lines))
        self.sentence = sentence
        self.log_lines = tuple(log_lines)

    def __str__(self) -> str:
        if not self.log_lines:
            return self.sentence
        return "\n".join(
            [self.sentence, "The engine's log says:", *(f"  {x}" for x in self.log_lines)]
        )


class EngineUnavailable(EngineError):
    """This engine has no build for this machine; another engine can stand in."""
