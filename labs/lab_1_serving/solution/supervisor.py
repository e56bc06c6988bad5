"""Launch a model server, wait until it can serve, and stop it without leaving anything behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx
import psutil

LOG_TAIL_LINES = 20
"""Log lines that a failed start reports."""

_POLL_S = 0.05
_PROBE_TIMEOUT_S = 1.0
_LOG_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True)
class StopReport:
    """How a server ended.

    Attributes:
        exit_code: its exit status; None if a signal ended it or it never ran.
        signal: name of the signal that ended it, e.g. ``"SIGTERM"``; None if none did.
        forced: whether SIGKILL was needed, for the server or any other process of its group.
    """

    exit_code: int | None
    signal: str | None
    forced: bool


class ServerStartError(RuntimeError):
    """A server did not become ready.

    Attributes:
        reason: ``"address_in_use"``: something else listened there before the launch;
            ``"exited"``: the server ended before it was ready;
            ``"not_ready"``: it still ran at the deadline, but was not ready.
        exit_code, signal: how it ended, as in `StopReport`, for ``"exited"``; else None.
        log_tail: the last `LOG_TAIL_LINES` lines of its log, fewer if it wrote fewer.
    """

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
        how = {
            "address_in_use": "another process already listens at its address",
            "exited": f"it ended with {signal or f'exit code {exit_code}'}",
            "not_ready": "it was not ready at the deadline",
        }[reason]
        super().__init__("\n".join([f"The server did not start: {how}.", *self.log_tail]))


class ServerProcess:
    """One model server as a child process.

    Its standard output and standard error go to `log_path`. It runs in a new session, so that
    it and its own children form a process group, which is signalled as a whole. POSIX only.

    Args:
        argv: the command and its arguments.
        health_url: answers 200 once the HTTP server is up.
        models_url: the OpenAI-compatible ``/v1/models``.
        log_path: file that takes the server's output; each start overwrites it.
        env: variables for the server, on top of this process's own environment.
    """

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
        self._process: subprocess.Popen[bytes] | None = None
        self._report: StopReport | None = None

    def start(self, deadline_s: float) -> None:
        """Launch the server and return once it is ready.

        Ready means: `health_url` answers 200, `models_url` answers 200 with JSON whose ``data``
        is a list of at least one model, and the launched process is still running after both
        answered. A server that is up may still be loading its model, and an answer may come
        from another process than the one launched.

        However `start` ends without a ready server (an error below, or an exception such as
        KeyboardInterrupt while it waits), it first kills the process group, reaps the child and
        closes its own descriptor of the log.

        Args:
            deadline_s: seconds from now until the server must be ready. A probe that gets no
                answer counts as "not yet" and must not outlast the deadline by long.

        Raises:
            ServerStartError: something accepts connections at the host and port of
                `health_url` before the launch (nothing is launched then); the server ended,
                noticed at once and not at the deadline; or the deadline passed. The log is
                decoded as UTF-8, with what cannot be decoded replaced.
            RuntimeError: this object's server is running already.
            OSError: the command cannot be run.
        """
        if self._process is not None:
            if self.poll() is None:
                raise RuntimeError("The server is running already.")
            self.stop(grace_s=0)
        if _is_listening(self.health_url):
            raise ServerStartError("address_in_use")
        deadline = time.monotonic() + deadline_s
        try:
            # The child has its own copy of the descriptor; ours need not outlive the launch.
            with self.log_path.open("wb") as log:
                self._report = None
                self._process = subprocess.Popen(
                    self.argv,
                    env={**os.environ, **self.env},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            reason = self._wait_until_ready(deadline)
        except BaseException:
            self.stop(grace_s=0)
            raise
        if reason is not None:
            ended = self.stop(grace_s=0)
            tail = _log_tail(self.log_path)
            if reason == "not_ready":
                raise ServerStartError(reason, log_tail=tail)
            raise ServerStartError(
                reason, exit_code=ended.exit_code, signal=ended.signal, log_tail=tail
            )

    def poll(self) -> int | None:
        """Whether the server still runs.

        Returns:
            None while it runs; afterwards its exit code, or the negative number of the signal
            that ended it. A server that has ended is reaped by this call.

        Raises:
            RuntimeError: it was never started.
        """
        if self._process is None:
            raise RuntimeError("The server was never started.")
        return self._process.poll()

    def stop(self, grace_s: float) -> StopReport:
        """End the server and every process of its group.

        Sends SIGTERM to the group, waits until all its processes have ended, but `grace_s` at
        most, then sends SIGKILL to those that are left. Returns as soon as all have ended;
        then the child is reaped and this process holds no open file of its own for the log.

        A server that ended by itself may have left processes of its group: they are ended in
        the same way. Stopping again, or a server that never started, does nothing: the report
        is the same again, or ``StopReport(None, None, False)``. A stopped server can be
        started again.

        Args:
            grace_s: seconds between SIGTERM and SIGKILL.
        """
        if self._process is None:
            return StopReport(None, None, False)
        if self._report is None:
            self._report = _end_group(self._process, grace_s)
        return self._report

    def _wait_until_ready(self, deadline: float) -> Literal["exited", "not_ready"] | None:
        """None once ready, else why that will not be."""
        # A proxy from the environment has no business between us and our own child.
        with httpx.Client(trust_env=False) as client:
            while True:
                remaining = deadline - time.monotonic()
                ready = self._answers(client, min(_PROBE_TIMEOUT_S, max(remaining, 0.1)))
                # Asked after the answers: they may have come from another process.
                if self.poll() is not None:
                    return "exited"
                if ready:
                    return None
                if remaining <= 0:
                    return "not_ready"
                time.sleep(_POLL_S)

    def _answers(self, client: httpx.Client, timeout_s: float) -> bool:
        try:
            if client.get(self.health_url, timeout=timeout_s).status_code != 200:
                return False
            models = client.get(self.models_url, timeout=timeout_s)
            return models.status_code == 200 and bool(models.json()["data"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return False


def _is_listening(url: str) -> bool:
    address = urlsplit(url)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname or "", port), _PROBE_TIMEOUT_S):
            return True
    except OSError:
        return False


def _end_group(process: subprocess.Popen[bytes], grace_s: float) -> StopReport:
    # The child leads the group (start_new_session), so its pid is the group's id, and stays
    # reserved for as long as the group has a member.
    group = process.pid
    forced = False
    try:
        _signal_group(group, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while _has_live_member(process) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    finally:
        # Also when a second Ctrl-C cuts the grace short.
        if _has_live_member(process):
            forced = True
            _signal_group(group, signal.SIGKILL)
        code = process.wait()
        while _has_live_member(process):
            time.sleep(_POLL_S)
    if code < 0:
        return StopReport(None, signal.Signals(-code).name, forced)
    return StopReport(code, None, forced)


def _has_live_member(process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is None:
        return True
    # killpg(group, 0) alone would count orphans that are dead but not yet reaped by init.
    for other in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(other.pid) == process.pid and other.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _signal_group(group: int, number: signal.Signals) -> None:
    # ProcessLookupError: nobody is left. PermissionError: macOS says so of a group of zombies.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _log_tail(path: Path) -> list[str]:
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
        return log.read().decode("utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
