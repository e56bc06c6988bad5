"""Know processes for sure, and end only our own.

A process number is used again after its process has ended, so a process is known by its number
and the moment of its birth together. An engine's processes are known by the token that its
keeper put into their environment, which children inherit.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shared.engine.launch import TOKEN_VARIABLE

_POLL_S = 0.05
_KILL_WAIT_S = 10.0


@dataclass(frozen=True)
class ProcessId:
    """A process number with its birth: in clock ticks since boot on Linux, else in seconds."""

    pid: int
    birth: float

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has this number now, or None. A zombie counts as ended."""
        birth = _birth(pid)
        return None if birth is None else cls(pid, birth)

    def running(self) -> bool:
        """Whether this very process still runs."""
        return _birth(self.pid) == self.birth

    def signal(self, number: int) -> None:
        """Send a signal, to this very process or to none."""
        if self.running():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout: float) -> bool:
        """Whether it has ended within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.running():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True


def owned_processes(token: str) -> list[ProcessId]:
    """All running processes that carry this token."""
    if sys.platform == "linux":
        return _owned_linux(f"{TOKEN_VARIABLE}={token}".encode())
    import psutil

    owned = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(TOKEN_VARIABLE) == token:
                identity = ProcessId.of(process.pid)
                if identity is not None:
                    owned.append(identity)
    return owned


def end_owned(token: str, leader: ProcessId | None = None, grace: float = 0.0) -> bool:
    """End an engine: its leader politely if `grace` allows, then whatever is left by force.

    What a process that was ended by force could not tidy up (shared memory, scratch files) is
    removed. Returns whether nothing of it is left.
    """
    shared = _shared_memory(owned_processes(token))
    if leader is not None and grace > 0 and leader.running():
        leader.signal(signal.SIGTERM)
        leader.wait(grace)
    deadline = time.monotonic() + _KILL_WAIT_S
    while owned := owned_processes(token):
        shared |= _shared_memory(owned)
        for process in owned:
            process.signal(signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    _remove_shared_memory(shared)
    shutil.rmtree(_scratch(token), ignore_errors=True)
    return True


def make_scratch(token: str) -> Path:
    """A folder for an engine's temporary files, short enough for the sockets in it."""
    folder = _scratch(token)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _scratch(token: str) -> Path:
    return Path(tempfile.gettempdir()) / f"labs-engine-{token[:16]}"


def _shared_memory(processes: list[ProcessId]) -> set[int]:
    """File numbers of the shared memory and semaphores that these processes use (Linux)."""
    found: set[int] = set()
    for process in processes:
        with suppress(OSError), open(f"/proc/{process.pid}/maps", encoding="utf-8") as maps:
            # A semaphore is mapped under a first name that it loses at once; its number stays.
            found |= {int(line.split()[4]) for line in maps if " /dev/shm/" in line}
    return found


def _remove_shared_memory(numbers: set[int]) -> None:
    """Remove Python's shared memory and semaphores that have these file numbers."""
    if not numbers:
        return
    with suppress(OSError), os.scandir("/dev/shm") as entries:
        for entry in entries:
            if entry.name.startswith(("psm_", "sem.mp-")) and entry.inode() in numbers:
                with suppress(OSError):
                    os.unlink(entry.path)


def _owned_linux(marker: bytes) -> list[ProcessId]:
    owned = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError), open(f"/proc/{entry.name}/environ", "rb") as file:
            if marker in file.read().split(b"\0"):
                identity = ProcessId.of(int(entry.name))
                if identity is not None:
                    owned.append(identity)
    return owned


def _birth(pid: int) -> float | None:
    if sys.platform == "linux":
        # Ticks since boot: unlike a wall-clock time, it never changes when the clock is set.
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            return None
        return None if not fields or fields[0] in "ZX" else float(fields[19])
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.create_time()
    except psutil.Error:
        return None
