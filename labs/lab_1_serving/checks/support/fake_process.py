"""Start fake servers under the learner's supervisor, and see what is left of them."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import psutil

_SCRIPT = Path(__file__).with_name("fake_server.py")
_PR_SET_CHILD_SUBREAPER = 36


class FakeServer:
    """One fake server's command line, and the notes that it leaves."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.port = free_port()
        self.argv = [sys.executable, "-I", "-S", str(_SCRIPT), str(self.port), str(folder)]
        self.argv += options
        self.health_url = f"http://127.0.0.1:{self.port}/health"
        self.models_url = f"http://127.0.0.1:{self.port}/v1/models"
        self.log_path = folder / "server.log"

    def supervised_by(self, learner: Any, **changes: Any) -> Any:
        """The learner's `ServerProcess` for it."""
        return learner.ServerProcess(
            self.argv,
            **{
                "health_url": self.health_url,
                "models_url": self.models_url,
                "log_path": self.log_path,
                **changes,
            },
        )

    def noted(self, name: str) -> bool:
        """Whether it left that note."""
        return (self.folder / name).exists()

    def requests(self) -> int:
        """Requests that reached it."""
        with suppress(FileNotFoundError):
            return (self.folder / "requests").stat().st_size
        return 0

    def pid(self, who: Literal["server", "worker", "stranger"] = "server") -> int | None:
        """Process id of the server or of a process it started; None if it never ran."""
        with suppress(FileNotFoundError, ValueError):
            return int((self.folder / f"{who}.pid").read_text())
        return None

    def clean_up(self) -> None:
        """End whatever is left."""
        for who in ("server", "worker", "stranger"):
            pid = self.pid(who)  # type: ignore[arg-type]
            if pid is not None:
                end(pid)


def state_of(pid: int | None) -> Literal["gone", "zombie", "running"]:
    """What became of a process; None stands for one that never ran."""
    with suppress(psutil.NoSuchProcess):
        if pid is not None:
            zombie = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
            return "zombie" if zombie else "running"
    return "gone"


def settled_state(pid: int | None) -> Literal["gone", "zombie", "running"]:
    """As `state_of`, for a process that may be ending at this very moment."""
    for _ in range(25):
        if state_of(pid) == "gone":
            break
        time.sleep(0.02)
    return state_of(pid)


def end(pid: int) -> None:
    """Kill a process and, where it is ours to reap, reap it."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    for _ in range(200):
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        if state_of(pid) == "gone":
            return
        time.sleep(0.01)


def holds_open(path: Path) -> bool:
    """Whether this very process has the file open."""
    return str(path.resolve()) in {f.path for f in psutil.Process().open_files()}


def free_port() -> int:
    """A loopback port that is free now.

    It lies below the range from which systems hand out ports by themselves: no other program's
    server or connection turns up on it between now and its use.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def orphans_reaped() -> Iterator[None]:
    """Play the part of init: adopt orphans of the servers under test and reap them.

    In a container without an init, dead orphans would stay as zombies, and code that waits
    for a process group to vanish would wait for them.
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    done = threading.Event()
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    reaper = threading.Thread(target=_reap_orphans, args=(done,), daemon=True)
    reaper.start()
    try:
        yield
    finally:
        done.set()
        reaper.join()
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _reap_orphans(done: threading.Event) -> None:
    me, our_group = psutil.Process(), os.getpgrp()
    while not done.wait(0.02):
        for child in me.children():
            with suppress(psutil.Error, ProcessLookupError, ChildProcessError):
                group = os.getpgid(child.pid)
                # The leader of a group is the learner's own child, and the learner's to reap.
                if child.status() == psutil.STATUS_ZOMBIE and group not in (child.pid, our_group):
                    os.waitpid(child.pid, os.WNOHANG)
