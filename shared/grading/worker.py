"""The warm parent of checks processes.

It imports pytest and a lab's heavy libraries once and forks a child for every run, so that a
learner who checks a hundred times pays for the imports once a session. Commands come over a
Unix socket, each with the three file descriptors that its child reports to.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress

from shared import offline
from shared.grading.child import ChildSpec, end_descendants, preload, run_checks


def serve(control: socket.socket) -> None:
    """Fork a child for each command until the runner hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    offline.apply()
    _adopt_orphans()
    import pytest  # noqa: F401

    import shared.grading.plugin  # noqa: F401

    while True:
        message, fds, _, _ = socket.recv_fds(control, 1 << 20, 3)
        if not message:
            return
        spec = ChildSpec.model_validate_json(message)
        preload(spec.preload)
        pid = os.fork()
        if pid == 0:
            control.close()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setsid()
            status = 70
            try:
                status = run_checks(spec, *fds)
            finally:
                os._exit(status)
        for fd in fds:
            os.close(fd)
        control.sendall(json.dumps({"pid": pid}).encode() + b"\n")
        status = _wait(pid, control)
        _reap()
        control.sendall(json.dumps({"exit": os.waitstatus_to_exitcode(status)}).encode() + b"\n")


def _wait(pid: int, control: socket.socket) -> int:
    """Wait for the child; if the runner is gone meanwhile, end everything and this process."""
    handle = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([handle, control.fileno()], [], [])
        if handle not in ready:
            end_descendants(os.getpid())
            os._exit(0)
    finally:
        os.close(handle)
    return os.waitpid(pid, 0)[1]


def _adopt_orphans() -> None:
    """Become the parent of processes that a run leaves behind, so that the runner finds them."""
    pr_set_child_subreaper = 36
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
