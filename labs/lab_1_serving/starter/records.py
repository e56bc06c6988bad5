"""What a load test writes down about each request, and the promise it is held against.

Given to you as it is. Times are seconds on one monotonic clock that starts with the run: 0.0 is
the start, and `scheduled_s` of the first request is the first arrival's offset from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request, from the moment a user wanted it to its last byte.

    Attributes:
        scheduled_s: when the request was due, in seconds since the run's start.
        sent_s: when it was really sent. Later than `scheduled_s` if the client was behind.
        finished_s: when the last byte or the failure came.
        status: HTTP status of the answer; 0 when there was no connection or no answer.
        first_token_s: when the first content token came; None when none did.
        prompt_tokens: tokens in, as the server counted them.
        output_tokens: tokens out, as the server counted them.
        finish_reason: ``"stop"``, ``"length"``, ... as the server said; None when it said none,
            because the request failed or the stream broke off.
        error: what went wrong, in words; None when nothing did.
        attempts: how often the request was sent, retries included.
    """

    scheduled_s: float
    sent_s: float
    finished_s: float
    status: int
    first_token_s: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None
    attempts: int = 1

    @property
    def latency_s(self) -> float:
        """Seconds the user waited: from when the request was due, not from when it was sent."""
        return self.finished_s - self.scheduled_s

    @property
    def ttft_s(self) -> float | None:
        """Seconds from when the request was due to its first content token; None without one."""
        return None if self.first_token_s is None else self.first_token_s - self.scheduled_s

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds an output token after the first; None with fewer than two tokens."""
        if self.first_token_s is None or self.output_tokens < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.output_tokens - 1)

    @property
    def ok(self) -> bool:
        """Whether an answer came to its end: status 200, no error, and a finish reason.

        An answer that ended with ``"length"`` is ok here: it may be what the caller asked for.
        """
        return self.status == 200 and self.error is None and self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class SLO:
    """A service-level objective for one request. Every part of it must hold.

    Attributes:
        ttft_s: most seconds from when the request was due to its first token.
        latency_s: most seconds from when the request was due to its end.
        finish_reasons: finish reasons that count as a whole answer. Leave ``"length"`` out
            where an answer cut at its token limit is of no use to the user.
    """

    ttft_s: float
    latency_s: float
    finish_reasons: tuple[str, ...] = ("stop", "length")


def write_records(path: str | Path, records: Iterable[RequestRecord]) -> None:
    """Write records as JSON Lines, one object a line, keys as the fields are named."""
    lines = (json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
    Path(path).write_text("".join(lines), encoding="utf-8")


def read_records(path: str | Path) -> list[RequestRecord]:
    """Read what `write_records` wrote; blank lines are passed over.

    Raises:
        ValueError: a line is no record; the message names the file, the line and the reason.
    """
    known = {field.name for field in fields(RequestRecord)}
    records = []
    # Not str.splitlines(): it also breaks at U+2028, which JSON strings may hold.
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            if unknown := set(data) - known:
                raise ValueError(f"unknown fields {sorted(unknown)}")
            records.append(RequestRecord(**data))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return records
