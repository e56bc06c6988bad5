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
        raise NotImplementedError("Task 1.2: write ServerProcess.start")

    def poll(self) -> int | None:
        """Whether the server still runs.

        Returns:
            None while it runs; afterwards its exit code, or the negative number of the signal
            that ended it. A server that has ended is reaped by this call.

        Raises:
            RuntimeError: it was never started.
        """
        raise NotImplementedError("Task 1.2: write ServerProcess.poll")

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
        raise NotImplementedError("Task 1.2: write ServerProcess.stop")
