"""Keeps a process on this machine, by the audit events that Python itself raises."""

from __future__ import annotations

import os
import sys
from typing import Any

BROKE_OUT = 97
"""Exit status of a process that took a step off this machine while it was watched."""

_HERE = {"", "localhost", "127.0.0.1", "::1", "None"}
_STATE: dict[str, int] = {}


def stay_here() -> None:
    """From now on each step off this machine is an OSError, to the end of this process."""
    if not _STATE:
        _STATE["log"] = -1
        sys.addaudithook(_hook)


def end_at_first_step(log: str) -> None:
    """From now on the first step off this machine ends this process; `log` says which it was."""
    stay_here()
    _STATE["log"] = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not event.startswith("socket."):
        return
    where = _where(event, arguments)
    if where in _HERE:
        return
    if _STATE["log"] < 0:
        raise OSError(f"the checks stay on this machine: {event} {where}")
    os.write(_STATE["log"], f"{event} {where}\n".encode())
    os._exit(BROKE_OUT)


def _where(event: str, arguments: tuple[Any, ...]) -> str:
    """The host of an event that leads somewhere; empty for the others."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        # An address that is no tuple is a Unix socket's, or was given before.
        host = arguments[1][0] if isinstance(arguments[1], tuple) else ""
    else:
        return ""
    return host.decode() if isinstance(host, bytes) else str(host)
