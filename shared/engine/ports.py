"""Loopback ports: find a free one, and make sure that who answers on it is who we started."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from contextlib import suppress

from shared.engine.errors import EngineError

HOST = "127.0.0.1"


def free_port() -> int:
    """A loopback port that nothing listens on."""
    for _ in range(50):
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port: int = probe.getsockname()[1]
        if not in_use(port):
            return port
    raise EngineError("No free loopback port was found in 50 attempts.")


def in_use(port: int) -> bool:
    """Whether something listens on the port, shared or not.

    Binding alone does not tell: a server that allows port sharing (SO_REUSEPORT, which vLLM
    sets) would let a second one bind, and the two would then answer in turn.
    """
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex((HOST, port)) == 0:
            return True
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def fixed_port() -> int | None:
    """The port that `ENGINE_PORT` asks for, if any.

    Raises:
        EngineError: it is no port that one may use.
    """
    text = os.environ.get("ENGINE_PORT", "").strip()
    if not text:
        return None
    if not text.isdigit() or not 1024 <= int(text) <= 65535:
        raise EngineError(f"ENGINE_PORT={text}: it takes a port from 1024 to 65535.")
    return int(text)


def port_taken(port: int) -> str:
    """What to say when the wished-for port is in use."""
    return (
        f"ENGINE_PORT={port} is in use by another program. "
        "Unset ENGINE_PORT to let a free port be found, or name another one."
    )


def listeners(port: int) -> set[int] | None:
    """Numbers of the processes that listen on the port, or None where one may not look.

    Processes of other users are not seen; they cannot share a port with ours either.
    """
    import psutil

    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.AccessDenied, OSError):
        return None
    return {
        c.pid
        for c in connections
        if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid
    }


def answers_for(port: int, ours: Collection[int]) -> bool:
    """Whether one of our processes listens on the port, and nobody else does."""
    found = listeners(port)
    if found is not None:
        return bool(found) and found <= set(ours)
    import psutil

    for pid in ours:
        with suppress(psutil.Error):
            for c in psutil.Process(pid).net_connections(kind="tcp"):
                if c.status == psutil.CONN_LISTEN and c.laddr.port == port:
                    return True
    return False
