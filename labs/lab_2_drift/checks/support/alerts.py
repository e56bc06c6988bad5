"""Run an alert rule over streams and count what it does. Shared by checks and measurements."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.domains.streams import MONTHS, Stream, control_stream, make_stream
from shared.domains.tabular import CONTROL, load_tabular
from shared.grading.expect import expect, fail, plain

QUIET_STREAMS = 40
QUIET_ALLOWED = 2
DRIFT_STREAMS = 16
DRIFT_NEEDED = 14
NAMED_NEEDED = 13
WINDOWS_ALLOWED = {"gradual": 6}
WINDOWS_ALLOWED_ELSE = 3

_FIGURES = Path(__file__).parent / "alert_figures.json"


@dataclass(frozen=True)
class Watched:
    """One stream and the alarms it raised: for each window the columns named, or None."""

    stream: Stream
    alarms: tuple[tuple[str, ...] | None, ...]

    @property
    def false_alarms(self) -> int:
        """Alarms in windows in which nothing had changed yet."""
        return sum(alarm is not None for alarm in self.alarms[: self.stream.onset])

    @property
    def delay(self) -> int | None:
        """Windows from the onset to the first alarm: 0 in the onset's own, None if never."""
        later = self.alarms[self.stream.onset :]
        return next((i for i, alarm in enumerate(later) if alarm is not None), None)

    @property
    def first_named(self) -> str | None:
        """The column that the first alarm after the onset names first."""
        if self.delay is None or self.stream.onset is None:
            return None
        return next(iter(self.alarms[self.stream.onset + self.delay] or ()), None)


def streams(domain: str, kind: str, count: int, rng: np.random.Generator) -> Iterator[Stream]:
    """Fresh streams of a kind; ``"control"`` is a kind here."""
    data = load_tabular(CONTROL if kind == CONTROL else domain)
    for _ in range(count):
        yield control_stream(data, rng) if kind == CONTROL else make_stream(data, kind, rng)


def watch(module: Any, stream: Stream) -> Watched:
    """Feed a stream to the learner's rule, and make its answers plain."""
    schema = module.Schema(stream.time, stream.target, stream.numeric, stream.categorical)
    rule = module.AlertRule(stream.reference, schema)
    return Watched(stream, tuple(columns_of(rule.update(w), stream) for w in stream.windows))


def columns_of(answer: Any, stream: Stream) -> tuple[str, ...] | None:
    """The columns of an `Alert`, None for None; fails the check for anything else."""
    if answer is None:
        return None
    if not hasattr(answer, "columns") or not hasattr(answer, "reason"):
        fail(
            observed=f"update() returned a {type(answer).__name__}",
            expected="an Alert, or None",
            why="The pager takes an Alert's columns and reason. False, 0 or a list reach nobody.",
            hint="alert-or-none",
        )
    columns, reason = plain(answer.columns), plain(answer.reason)
    known = {*stream.numeric, *stream.categorical, stream.target}
    sound = isinstance(columns, list) and columns and all(type(c) is str for c in columns)
    expect(
        bool(sound) and type(reason) is str and bool(reason.strip()),
        observed=f"an Alert with columns = {columns!r} and reason = {reason!r}",
        expected="at least one column's name in columns, and a sentence in reason",
        why="Whoever is called at night has to know where to look first.",
        hint="alert-or-none",
    )
    named = tuple(str(c) for c in columns)  # type: ignore[union-attr]
    strangers = [c for c in named if c not in known]
    expect(
        not strangers,
        observed=f"an alarm about {', '.join(strangers[:3])}",
        expected="alarms about columns of the schema only: its target, numeric and categorical",
        why="Row numbers and load times drift by nature. Watch what the model sees, or be called "
        "every month about an identifier.",
        hint="schema-only",
    )
    return named


def figures(domain: str, kind: str) -> dict[str, float]:
    """What the reference solution was measured to do on many streams of a kind."""
    return json.loads(_FIGURES.read_text(encoding="utf-8"))["figures"][domain][kind]


def check_quiet(
    module: Any,
    domain: str,
    kind: str,
    rng: np.random.Generator,
    figure: Callable[..., None],
    *,
    name: str,
    why: str,
    hint: Callable[[float, bool], str],
) -> None:
    """Fail when more than the allowed number of quiet streams raises an alarm.

    Args:
        hint: names the hint, for a rate of false alarms a window, and whether one column alone
            gives rise to most of them.
    """
    watched = [watch(module, s) for s in streams(domain, kind, QUIET_STREAMS, rng)]
    alarms = [w.false_alarms for w in watched]
    loud, windows = sum(a > 0 for a in alarms), QUIET_STREAMS * MONTHS
    rate = sum(alarms) / windows
    named = Counter(alarm[0] for w in watched for alarm in w.alarms if alarm)
    column, times = named.most_common(1)[0] if named else ("", 0)
    one_column = times > 0.6 * sum(alarms)
    figure(
        f"false alarms, {name}",
        100 * rate,
        reference=100 * figures(domain, kind)["false_alarms_a_window"],
        unit="in 100 windows",
    )
    expect(
        loud <= QUIET_ALLOWED,
        observed=f"{loud} of {QUIET_STREAMS} streams raised an alarm, "
        f"{sum(alarms)} of {windows} windows in all ({name}); named most often: {column}, "
        f"{times} times",
        expected=f"an alarm in at most {QUIET_ALLOWED} of {QUIET_STREAMS} such streams of a year",
        why=why,
        hint=hint(rate, one_column),
    )


def check_drift(
    module: Any,
    domain: str,
    kind: str,
    rng: np.random.Generator,
    figure: Callable[..., None],
    *,
    name: str,
    why: str,
    hint: str,
) -> None:
    """Fail when a kind of drift is not noticed, not in time, or under another column's name."""
    watched = [watch(module, s) for s in streams(domain, kind, DRIFT_STREAMS, rng)]
    allowed = WINDOWS_ALLOWED.get(kind, WINDOWS_ALLOWED_ELSE)
    delays = [w.delay for w in watched if w.delay is not None]
    noticed = sum(d < allowed for d in delays)
    known = figures(domain, kind)
    figure(
        f"noticed in time, {name}",
        100 * noticed / DRIFT_STREAMS,
        reference=100 * known["noticed_in_time"],
        unit="%",
    )
    if delays:
        figure(
            f"windows until the alarm, {name}",
            1 + sum(delays) / len(delays),
            reference=1 + known["mean_delay"],
        )
    missed = next((w.stream for w in watched if w.delay is None or w.delay >= allowed), None)
    expect(
        noticed >= DRIFT_NEEDED,
        observed=f"an alarm within {allowed} windows in {noticed} of {DRIFT_STREAMS} streams"
        + (f"; missed for example: {missed.story}, from window {missed.onset}" if missed else ""),
        expected=f"at least {DRIFT_NEEDED} of {DRIFT_STREAMS} ({name})",
        why=why,
        hint=hint,
    )
    if watched[0].stream.column is None:
        return
    right = sum(w.first_named == w.stream.column for w in watched)
    wrong = next((w for w in watched if w.first_named != w.stream.column), None)
    expect(
        right >= NAMED_NEEDED,
        observed=f"the column that changed named first in {right} of {DRIFT_STREAMS} alarms"
        + (f"; for example {wrong.first_named}, when {wrong.stream.story}" if wrong else ""),
        expected=f"at least {NAMED_NEEDED} of {DRIFT_STREAMS} ({name})",
        why="An alarm that points at the wrong column costs the first hour of the incident.",
        hint="name-first",
    )
