"""The one way out of the sandbox: to the class's model server, and only while it is asked for."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shared.classroom.inside import join


class Relay:
    """A Unix socket outside, shown inside, that leads to a port of the host's loopback.

    Use it as a context manager. Closed until `towards` opens it: what runs at other times finds
    a socket that hangs up.
    """

    def __init__(self) -> None:
        self._kept = tempfile.TemporaryDirectory(prefix="labs-relay-")
        self.folder = Path(self._kept.name)
        self._port: int | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.folder / "engine"))
        self._listener.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._kept.cleanup()

    @contextmanager
    def towards(self, port: int) -> Iterator[None]:
        """Let connections through to this port while the block runs."""
        self._port = port
        try:
            yield
        finally:
            self._port = None

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            port = self._port
            if port is None:
                client.close()
                continue
            try:
                upstream = socket.create_connection(("127.0.0.1", port), timeout=10)
            except OSError:
                client.close()
                continue
            upstream.settimeout(None)
            join(client, upstream)
