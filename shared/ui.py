"""`make ui`: the MLflow pages on the learner's own runs."""

from __future__ import annotations

import subprocess
import sys

from rich.console import Console

from shared.ports import bound_socket
from shared.tracking import own_store

_PREFERRED_PORT = 5000


def serve_ui(console: Console) -> None:
    """Serve the pages on loopback until Ctrl-C.

    Raises:
        UserError: the port that `PORT=` names is in use.
    """
    with bound_socket(_PREFERRED_PORT) as found:
        port = found.getsockname()[1]
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
