"""A small HTTP server that starts, dies and shuts down as badly as it is told to.

Run as a child process: ``python -I -S fake_server.py PORT STATE_DIR [--option ...]``. It answers
``/health`` and ``/v1/models`` as a model server does and leaves notes in STATE_DIR: `*.pid` of
each process it is made of, `requests` (one byte a request), `environment.json`, and marks that
it got somewhere (`served_models`, `clean_end`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

LIFETIME_S = 90
"""Nothing started here outlives this, whatever happens to those who started it."""


def main() -> None:
    options = _options()
    state = Path(options.state)
    signal.alarm(LIFETIME_S)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    (state / "server.pid").write_text(str(os.getpid()))
    (state / "environment.json").write_text(json.dumps(dict(os.environ)))
    if options.grandchild:
        _grandchild(options.grandchild, state)
    _print(options)
    if options.die_by:
        os.kill(os.getpid(), getattr(signal, options.die_by))
    if options.die is not None and not options.die_when_asked:
        os._exit(options.die)
    if options.term == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif options.term == "clean":
        signal.signal(signal.SIGTERM, lambda *_: _clean_end(state / "clean_end"))
    _serve(options, state)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("state")
    parser.add_argument("--refuse", type=int, default=0, help="answer 503 to that many probes")
    parser.add_argument("--empty", type=int, default=0, help="list no model that many times")
    parser.add_argument("--noise", type=int, default=0, help="bytes printed before serving")
    parser.add_argument("--lines", type=int, default=0, help="lines printed before serving")
    parser.add_argument("--die", type=int, help="exit with that code instead of serving")
    parser.add_argument("--die-when-asked", action="store_true", help="... at GET /die")
    parser.add_argument("--die-by", help="end by that signal instead of serving")
    parser.add_argument("--term", choices=["default", "clean", "ignore"], default="default")
    parser.add_argument("--grandchild", choices=["clean", "ignore"])
    parser.add_argument("--mute", type=float, default=0, help="accept, answer after seconds")
    parser.add_argument("--hand-over", action="store_true", help="die; a stranger answers")
    return parser.parse_args()


def _print(options: argparse.Namespace) -> None:
    for number in range(options.lines):
        stream = sys.stderr if number % 2 else sys.stdout
        print(f"line {number}", file=stream, flush=True)
    if options.lines:
        sys.stderr.buffer.write(b"RuntimeError: weights \xff\xfe not found\n")
        sys.stderr.flush()
    if options.noise:
        print("noise begins", flush=True)
        for _ in range(options.noise // 100):
            print("INFO " + "x" * 94)
        print("noise ends", file=sys.stderr, flush=True)
        sys.stdout.flush()


def _grandchild(kind: str, state: Path) -> None:
    """A worker process of the same group, as model servers have."""
    ready, told = os.pipe()
    if os.fork() == 0:
        signal.alarm(LIFETIME_S)
        (state / "worker.pid").write_text(str(os.getpid()))
        if kind == "ignore":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            signal.signal(signal.SIGTERM, lambda *_: _clean_end(state / "worker_clean_end"))
        os.write(told, b"!")
        while True:
            time.sleep(60)
    os.read(ready, 1)


def _clean_end(mark: Path) -> None:
    time.sleep(0.3)  # requests in flight are finished
    mark.touch()
    os._exit(0)


def _serve(options: argparse.Namespace, state: Path) -> None:
    asked = {"probes": 0, "models": 0}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with (state / "requests").open("ab") as notes:
                notes.write(b".")
            time.sleep(options.mute)
            asked["probes"] += 1
            if self.path == "/die":
                os._exit(options.die or 0)
            if asked["probes"] <= options.refuse:
                self._answer(503, {"error": "loading"})
            elif self.path == "/health":
                self._answer(200, {})
            elif self.path == "/v1/models":
                asked["models"] += 1
                if asked["models"] <= options.empty:
                    self._answer(200, {"object": "list", "data": []})
                else:
                    (state / "served_models").touch()
                    self._answer(200, {"object": "list", "data": [{"id": "fake"}]})
            else:
                self._answer(404, {})

        def _answer(self, status: int, body: dict[str, object]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    class Server(HTTPServer):
        request_queue_size = 64

        def server_bind(self) -> None:
            # HTTPServer's own looks its host name up, which can take seconds without a network.
            socketserver.TCPServer.server_bind(self)

        def handle_error(self, *_: object) -> None:
            pass  # a probe that gave up

    server = Server(("127.0.0.1", options.port), Handler)
    if options.hand_over:
        _hand_over(server, state)
    server.serve_forever(poll_interval=0.02)


def _hand_over(server: HTTPServer, state: Path) -> None:
    """With the first probe waiting for its answer: die, and let another process answer it."""
    select.select([server.socket], [], [])
    leader = os.getpid()
    if os.fork() != 0:
        os._exit(4)
    os.setsid()
    signal.alarm(LIFETIME_S)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    (state / "stranger.pid").write_text(str(os.getpid()))
    while os.getppid() == leader:
        time.sleep(0.005)


if __name__ == "__main__":
    main()
