"""`make ui`: the MLflow pages on the learner's own runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from rich.console import Console

from shared.errors import UserError
from shared.tracking import own_store

_PREFERRED_PORT = 5000


def serve_ui(console: Console) -> None:
    """Serve the pages on loopback until Ctrl-C.

    Raises:
        UserError: the port that `PORT=` names is in use.
    """
    port = _port()
    console.print(f"MLflow on your own runs: [bold]http://127.0.0.1:{port}[/]  (Ctrl-C stops it)")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    store = own_store()
    command += ["--backend-store-uri", store.uri, "--artifacts-destination", str(store.artifacts)]
    with subprocess.Popen(command) as server:
        try:
            server.wait()
        except KeyboardInterrupt:
            server.terminate()


def _port() -> int:
    wanted = os.environ.get("PORT", "")
    if wanted:
        if not wanted.isdigit() or not _free(int(wanted)):
            raise UserError(f"PORT={wanted} cannot be had. Leave it out, or name a free one.")
        return int(wanted)
    if _free(_PREFERRED_PORT):
        return _PREFERRED_PORT
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
