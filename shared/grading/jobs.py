"""How many things to do at once."""

from __future__ import annotations

import os

from shared.errors import UserError


def wanted_jobs(text: str, most: int = 0) -> int:
    """The number that `JOBS=` says, or that of the usable cores, `most` at most.

    Raises:
        UserError: it is no whole number of 1 or more.
    """
    if not text:
        return min(usable_cores(), most or usable_cores())
    if not text.isdigit() or not int(text):
        raise UserError(f"JOBS={text}: it takes a whole number, 1 or more.")
    return int(text)


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
