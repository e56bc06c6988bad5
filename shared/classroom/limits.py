"""What one submission's run may use, and the watch that ends it when it uses more."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from contextlib import suppress

from shared.classroom.records import Record


class Limits(Record):
    """Limits of one run: of everything in its process namespace together, where not said otherwise.

    Time limits are the checks' own; the runner keeps them.

    Attributes:
        memory: bytes, of private memory and files that are in memory only.
        processes, threads: how many at a time.
        disk: bytes in its writable folders, all of which are in memory.
        cpu_seconds: of each process.
        file: bytes of each file.
        open_files: of each process.
    """

    memory: int = 4 * 2**30
    processes: int = 96
    threads: int = 1024
    disk: int = 2 * 2**30
    cpu_seconds: int = 900
    file: int = 2**30
    open_files: int = 1024

    def apply(self) -> None:
        """Set those that the kernel keeps by itself, for this process and what it starts.

        A limit on the number of processes is among them, but does not bind the superuser outside,
        and one on memory is each process's own. So both are watched too.
        """
        _set(resource.RLIMIT_CPU, self.cpu_seconds)
        _set(resource.RLIMIT_FSIZE, self.file)
        _set(resource.RLIMIT_NOFILE, self.open_files)
        _set(resource.RLIMIT_CORE, 0)
        _set(resource.RLIMIT_NPROC, self.threads)
        _set(resource.RLIMIT_DATA, _data_now() + self.memory)
        _set(resource.RLIMIT_MSGQUEUE, 2**20)
        _set(resource.RLIMIT_MEMLOCK, 2**23)


class Usage(Record):
    """What a namespace uses at a moment."""

    processes: int
    threads: int
    memory: int
    disk: int

    def over(self, limits: Limits) -> str:
        """In words, which limit this is over; empty if none."""
        if self.processes > limits.processes:
            return f"it had more than {limits.processes} processes"
        if self.threads > limits.threads:
            return f"it had more than {limits.threads} threads"
        if self.memory > limits.memory:
            return f"it used more than {limits.memory / 2**30:.3g} GiB of memory"
        if self.disk > limits.disk:
            return f"it wrote more than {limits.disk / 2**30:.3g} GiB"
        return ""


def usage(besides: int, base: int, limits: Limits, writable: Sequence[str]) -> Usage:
    """What this process namespace uses; `/proc` must be the namespace's own.

    Args:
        besides: a process that does not count: the watch itself.
        base: bytes that each process shares with the one it was forked from. Those are counted
            in a process's figures without being its own.
        writable: the folders that it can write to.
    """
    processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    processes = [process for process in processes if process != besides]
    threads = memory = 0
    for process in processes:
        with suppress(OSError, ValueError, IndexError):
            own, count = _private(process)
            memory += max(0, own - base)
            threads += count
    files = _unmapped_files(processes)
    if memory + files > limits.memory:
        # Forks share what they have not written to: ask for each one's proportional share.
        memory = sum(_share(process) for process in processes)
    return Usage(
        processes=len(processes),
        threads=threads,
        memory=memory + files,
        disk=sum(_stored(folder) for folder in writable),
    )


def _stored(folder: str) -> int:
    info = os.statvfs(folder)
    return (info.f_blocks - info.f_bfree) * info.f_frsize


def private_memory() -> int:
    """Bytes of private memory that this process holds."""
    return _private(os.getpid())[0]


def _private(process: int) -> tuple[int, int]:
    """Bytes in private pages and shared memory, and the number of threads."""
    sizes = {"RssAnon": 0, "RssShmem": 0, "VmSwap": 0, "Threads": 0}
    with open(f"/proc/{process}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in sizes:
                sizes[name] = int(value.split()[0])
    threads = sizes.pop("Threads")
    return sum(sizes.values()) * 1024, threads


def _share(process: int) -> int:
    """Bytes of memory, those that are shared divided among the sharers."""
    try:
        with open(f"/proc/{process}/smaps_rollup", encoding="ascii") as file:
            found = (line.split() for line in file if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
            return sum(int(words[1]) for words in found) * 1024
    except OSError:
        with suppress(OSError):
            return _private(process)[0]
        return 0


def _unmapped_files(processes: list[int]) -> int:
    """Bytes of open files that are in memory only (memfd), which no other figure shows."""
    sizes: dict[int, int] = {}
    for process in processes:
        folder = f"/proc/{process}/fd"
        with suppress(OSError):
            for name in os.listdir(folder):
                with suppress(OSError):
                    if os.readlink(f"{folder}/{name}").startswith("/memfd:"):
                        info = os.stat(f"{folder}/{name}")
                        sizes[info.st_ino] = info.st_blocks * 512
    return sum(sizes.values())


def _data_now() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def _set(what: int, value: int) -> None:
    _, most = resource.getrlimit(what)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    with suppress(ValueError, OSError):
        resource.setrlimit(what, (value, value))
