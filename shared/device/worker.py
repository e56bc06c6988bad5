"""Runs bundles for `Device`: `python -m shared.device.worker`, one JSON line a job and an answer.

Each bundle runs in a process of its own, forked from this one, which has the libraries already.
Where the system has no fork, this process runs one bundle and ends.

The child's network is closed by an audit hook: each try is noted and refused. The hook sees what
goes through Python. A library that opens sockets by itself is only seen from outside, in an empty
network namespace, as in Task 5.7.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from shared.device import session

LIMIT_S = 60
_SOCKETS = {
    "socket.__new__",
    "socket.bind",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyaddr",
    "socket.gethostbyname",
    "socket.sendmsg",
    "socket.sendto",
}
_PROCESSES = {
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.spawn",
    "subprocess.Popen",
}


class Tried(PermissionError):
    """The bundle tried to reach beyond itself."""


def main() -> None:
    """Serve jobs from standard input until it ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a bundle prints is no reply
    for line in sys.stdin:
        job = json.loads(line)
        if hasattr(os, "fork"):
            replies.write(_in_a_child(job))
            replies.flush()
        else:
            replies.write(json.dumps(run(job)) + "\n")
            replies.flush()
            break


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Load the bundle that lies in a folder, have it answer, and say what that took.

    Args:
        job: ``folder``, ``texts``.
    """
    sockets: list[str] = []
    processes: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _SOCKETS:
            sockets.append(f"{event} {_words(args)}")
        elif event in _PROCESSES:
            processes.append(f"{event} {_words(args)}")
        else:
            return
        raise Tried(f"{event}: a bundle has no business there")

    folder = Path(job["folder"])
    wheels = sorted(str(path) for path in (folder / "runtime").glob("*.whl"))
    sys.path[:0] = wheels
    answers: list[str] = []
    tokens: list[list[int]] = []
    cycles: list[int] = []
    error: str | None = None
    session.warm_up()
    seen_before, started = _memory(), time.perf_counter()
    sys.addaudithook(hook)
    try:
        model = importlib.import_module("bundle_runtime").load(folder)
        for text in job["texts"]:
            before = session.cycles_so_far()
            answer, ids = model.answer(text)
            answers.append(str(answer))
            tokens.append([int(i) for i in ids])
            cycles.append(session.cycles_so_far() - before)
    except BaseException as raised:  # SystemExit, too, is the bundle's own
        error = f"{type(raised).__name__}: {str(raised)[:300]}"
    seconds = time.perf_counter() - started
    _let_it_end()
    return {
        "answers": answers,
        "tokens": tokens,
        "cycles": cycles,
        "peak_bytes": max(0, _peak() - seen_before),
        "sockets": sockets,
        "processes": processes,
        "seconds": seconds,
        "error": error,
    }


def _in_a_child(job: dict[str, Any]) -> str:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            signal.alarm(LIMIT_S)
            with os.fdopen(write, "w") as out:
                out.write(json.dumps(run(job)) + "\n")
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        reply = said.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return reply or json.dumps({"error": f"the bundle's process ended with {status}"}) + "\n"


def _let_it_end() -> None:
    """What a bundle does at its end, or in threads that still run, belongs to it as well."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(2.0)
    atexit._run_exitfuncs()


def _memory() -> int:
    """Bytes of this process that are in memory now; on other systems than Linux, at most so far.

    On Linux the peak starts anew here.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)
    return _status("VmRSS") or _peak()


def _peak() -> int:
    """The largest number of bytes of this process that were in memory at once."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM") or most * (1 if sys.platform == "darwin" else 1024)


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def _words(args: tuple[Any, ...]) -> str:
    return " ".join(str(a) for a in args if isinstance(a, (str, int, tuple, list)))[:200]


if __name__ == "__main__":
    main()
