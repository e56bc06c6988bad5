"""Reads the output in a thread, asks with urllib, and watches the group with killpg alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

LOG_TAIL_LINES = 20


@dataclass(frozen=True)
class StopReport:
    """How a server ended."""

    exit_code: int | None
    signal: str | None
    forced: bool


class ServerStartError(RuntimeError):
    """A server did not become ready."""

    def __init__(
        self,
        reason: Literal["address_in_use", "exited", "not_ready"],
        *,
        exit_code: int | None = None,
        signal: str | None = None,
        log_tail: Sequence[str] = (),
    ) -> None:
        self.reason = reason
        self.exit_code = exit_code
        self.signal = signal
        self.log_tail = list(log_tail)
        super().__init__(reason)


class ServerProcess:
    """One model server as a child process."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        health_url: str,
        models_url: str,
        log_path: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.argv = list(argv)
        self.health_url = health_url
        self.models_url = models_url
        self.log_path = Path(log_path)
        self.env = dict(env or {})
        self._child: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._forced = False
        self._tail: deque[bytes] = deque(maxlen=LOG_TAIL_LINES)
        # Proxies are for other machines.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def start(self, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        if self._child is not None and self.poll() is None:
            raise RuntimeError("running already")
        where = urlparse(self.health_url)
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((where.hostname, where.port)) == 0:
                raise ServerStartError("address_in_use")
        self._forced = False
        self._tail.clear()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.stop, 0)
            environment = os.environ.copy()
            environment.update(self.env)
            self._child = subprocess.Popen(
                self.argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            self._reader = threading.Thread(target=self._copy_output, daemon=True)
            self._reader.start()
            ready = False
            while not ready and time.monotonic() < end and self.poll() is None:
                ready = self._get(self.health_url) is not None and bool(
                    (self._get(self.models_url) or {}).get("data")
                )
                if not ready:
                    time.sleep(0.1)
            if ready and self.poll() is None:
                on_failure.pop_all()
                return
        # The group is gone, so the pipe has ended, and the tail is complete.
        code = self.poll()
        lines = [line.decode("utf-8", "replace").rstrip("\n") for line in self._tail]
        if self._forced or code is None or self._asked_to_end:
            raise ServerStartError("not_ready", log_tail=lines)
        raise ServerStartError("exited", **_split(code), log_tail=lines)

    def poll(self) -> int | None:
        if self._child is None:
            raise RuntimeError("never started")
        return self._child.poll()

    def stop(self, grace_s: float) -> StopReport:
        if self._child is None:
            return StopReport(None, None, False)
        self._asked_to_end = self._child.poll() is None
        if self._send(signal.SIGTERM):
            end = time.monotonic() + grace_s
            while time.monotonic() < end and self._send(0):
                self._child.poll()
                time.sleep(0.02)
            self._child.poll()
            if self._send(signal.SIGKILL):
                self._forced = True
        self._child.wait()
        while self._send(0):
            time.sleep(0.02)
        self._reader.join()
        return StopReport(**_split(self._child.returncode), forced=self._forced)

    def _send(self, number: int) -> bool:
        """Signal the group; False once it has no member."""
        self._child.poll()
        try:
            os.killpg(self._child.pid, number)
        except ProcessLookupError:
            return False
        return True

    def _copy_output(self) -> None:
        with self._child.stdout as pipe, self.log_path.open("wb", buffering=0) as log:
            for line in pipe:
                log.write(line)
                self._tail.append(line)

    def _get(self, url: str) -> dict | None:
        try:
            with self._opener.open(url, timeout=0.5) as answer:
                body = answer.read()
                return json.loads(body) if body else {}
        except (OSError, ValueError, http.client.HTTPException):
            return None


def _split(code: int) -> dict:
    if code < 0:
        return {"exit_code": None, "signal": signal.Signals(-code).name}
    return {"exit_code": code, "signal": None}
