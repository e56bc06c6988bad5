"""Champion and challenger: move the `champion` alias on evidence, once, and find the way back.

MLflow stores an alias in one row, so moving it is one atomic step. It offers no compare-and-set
and no transaction around several calls: those are yours to make, with a lock and an order.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from mlflow import MlflowClient
from numpy.typing import ArrayLike

CHAMPION = "champion"
"""The alias that serving reads."""

AUDIT_PREFIX = "audit."
"""Audit records are tags of the registered model: `audit.0001`, `audit.0002`, ..."""

EPSILON = 1e-6
"""Probabilities are clipped to [EPSILON, 1 - EPSILON] before their logarithm is taken."""

Action = Literal["promote", "keep", "stale", "rollback"]


@dataclass(frozen=True)
class Evidence:
    """What the same rows say about two models.

    Attributes:
        rows: number of rows scored by both.
        gain: mean of champion's loss minus challenger's loss, in nats a row. Above 0, the
            challenger is better.
        low: lower end of the confidence interval of `gain`.
        high: upper end.
        confidence: of the two-sided interval, e.g. 0.95.
    """

    rows: int
    gain: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Decision:
    """What `promote` or `rollback` did.

    Attributes:
        action: "promote", "keep", "stale" or "rollback", or "unchanged" where there was nothing
            left to do.
        champion: the version that holds the alias now.
    """

    action: Action | Literal["unchanged"]
    champion: str


@dataclass(frozen=True)
class AuditRecord:
    """One decision, as the trail keeps it.

    Attributes:
        action: what was decided.
        before: the champion when the decision was made.
        after: the champion that the decision asks for; equal to `before` unless it moves.
        challenger: the version that was judged; for a rollback, the one that is left.
        actor: who asked: a person or a job.
        at: when, in UTC, ISO 8601 with offset, e.g. "2026-03-01T12:00:00.123456+00:00".
        evidence: the `Evidence` as a dict; None for a rollback.
        reason: why, in words, for whoever reads it in a year.
    """

    action: Action
    before: str
    after: str
    challenger: str
    actor: str
    at: str
    evidence: dict[str, Any] | None
    reason: str

    def to_json(self) -> str:
        """The text that the tag holds."""
        return json.dumps(asdict(self))


class NothingToRollBack(LookupError):
    """No promotion put the present champion there, so there is no way back."""


def audit_trail(client: MlflowClient, name: str) -> list[AuditRecord]:
    """The records of registered model `name`, oldest first."""
    tags = client.get_registered_model(name).tags
    keys = sorted(
        (k for k in tags if k.startswith(AUDIT_PREFIX)),
        key=lambda k: int(k.removeprefix(AUDIT_PREFIX)),
    )
    return [AuditRecord(**json.loads(tags[k])) for k in keys]


def paired_evidence(
    outcome: ArrayLike,
    champion: ArrayLike,
    challenger: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Evidence:
    """Compare two models row by row on the same rows.

    A row's loss is its log loss, -ln(p) for outcome 1 and -ln(1 - p) for outcome 0, with p
    clipped by `EPSILON`. The evidence is the mean of (champion's loss - challenger's loss) and a
    two-sided confidence interval of that mean from a paired method: the bootstrap that resamples
    rows, or Student's t on the differences. With 500 rows or more and confidence of at most 0.95,
    the two agree: each end lies within 15 % of a half-width of the t interval's end. The same
    arguments give the same evidence.

    Args:
        outcome: (n,) 0 or 1, what happened.
        champion: (n,) the champion's probability of 1, for the same rows in the same order.
        challenger: (n,) the challenger's.
        confidence: between 0 and 1.
        resamples: bootstrap resamples (a method without resampling ignores it).
        seed: of the resampling.

    Raises:
        ValueError: the lengths differ, there are fewer than 2 rows, or a probability is missing
            (NaN) or outside [0, 1].

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    raise NotImplementedError("Task 2.7: write paired_evidence")


def promote(
    client: MlflowClient,
    name: str,
    *,
    champion: str,
    challenger: str,
    evidence: Evidence,
    actor: str,
    lock_path: Path,
    minimum_gain: float = 0.0,
    timeout: float = 30.0,
) -> Decision:
    """Move the alias `champion` from version `champion` to version `challenger`, if earned.

    In this order, the first that applies:

    - The alias is on `challenger` already: "unchanged", nothing is written.
    - The alias is on another version than `champion`, which the evidence is about: "stale".
    - `evidence.low` is not above `minimum_gain`: "keep".
    - Otherwise "promote": the alias moves to `challenger`.

    Each decision but "unchanged" adds one `AuditRecord` under the next free key: `audit.0001`,
    `audit.0002` and so on. Records are never changed or removed.

    The whole of it, from the first read to the last write, holds an exclusive `filelock.FileLock`
    on `lock_path`, which every promoter of this registry uses.

    Moving the alias is the last write, in one call, so that a failure anywhere leaves the old
    champion in place, loses no way back, and a repeated call completes. Errors of the registry
    pass through.

    Args:
        client: a registry client; all reads and writes go through it.
        name: the registered model.
        champion: the version that the evidence compares with, e.g. "1".
        challenger: the version that would take over, e.g. "2".
        evidence: from `paired_evidence`.
        actor: who asks.
        lock_path: the lock file.
        minimum_gain: nats a row by which the challenger must be better.
        timeout: seconds to wait for the lock.

    Raises:
        TimeoutError: the lock was not to be had within `timeout` seconds (`filelock.Timeout` is
            one). Nothing was written.
    """
    raise NotImplementedError("Task 2.7: write promote")


def rollback(
    client: MlflowClient,
    name: str,
    *,
    actor: str,
    reason: str,
    lock_path: Path,
    timeout: float = 30.0,
) -> Decision:
    """Undo the last promotion that is not undone yet: the alias returns to its `before`.

    Called again, it undoes the one before that, as an editor's undo does. No version is deleted.
    It adds an `AuditRecord` ("rollback", with `challenger` the version that is left, and no
    evidence), holds the lock and orders its writes as `promote` does.

    A record whose move never happened does not count: a failure left the alias where it was, so
    the next "promote" or "rollback" record (for the last one, the alias) starts from another
    version than its `after`.

    Args:
        client: a registry client; all reads and writes go through it.
        name: the registered model.
        actor: who asks.
        reason: why, for the trail.
        lock_path: the lock file that `promote` uses.
        timeout: seconds to wait for the lock.

    Raises:
        NothingToRollBack: no promotion that is not undone yet put the present champion there.
            Nothing was written.
        TimeoutError: the lock was not to be had. Nothing was written.
    """
    raise NotImplementedError("Task 2.7: write rollback")
