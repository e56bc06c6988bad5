"""What runs inside the wall, and is ours: it imports, divides, watches, and forwards.

Inside one bubblewrap sandbox a warm process imports a task's libraries once. For each run it
forks, and the child gets walls of its own before any of the learner's code is loaded:

    bubblewrap's sandbox
      warm process        imports; forks; sees all runs, is seen by none
        init of a run     first process of its own process, network, mount and IPC namespaces:
                          puts the submission's files in place, watches the limits, forwards to
                          the model server; when it ends, the kernel ends all in the namespace
          checks          a user namespace without any privilege, in which pytest runs

Where nested namespaces are forbidden, the sandbox holds a single run and `init` is its first
process; the walls are then bubblewrap's own.
"""

from __future__ import annotations

import base64
import fcntl
import gc
import json
import os
import random
import select
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from shared.classroom import namespaces as ns

WORK = "/scratch/work"
RELAY = "/relay/engine"
"""Where the model server's relay is, as a Unix socket."""
USER = 1000
_PERIOD = 0.05
_LONGEST_REQUEST = 1 << 16
_LEAST = 64 * 2**20


def serve(control: socket.socket) -> None:
    """The warm process: fork a run for each request, until the parent hangs up."""
    _prepare()
    while (request := _receive(control)) is not None:
        modules, fds = request
        _import(modules)
        # What is there now stays: children that looked through it for garbage would copy it all.
        gc.freeze()
        child = os.fork()
        if child == 0:
            control.close()
            _or_die(partial(_divide, fds), fds[3])
        for fd in fds:
            os.close(fd)
        handle = os.pidfd_open(child)
        ready, _, _ = select.select([handle, control.fileno()], [], [])
        os.close(handle)
        if not ready:
            return
        # If the parent has gone, the sandbox's end takes the run with it.
        os.waitpid(child, 0)
        control.sendall(b'{"exit": 0}\n')


def serve_one(control: socket.socket) -> None:
    """The sandbox's first process where each run has a sandbox of its own."""
    _prepare()
    request = _receive(control)
    if request is None:
        return
    modules, fds = request
    _import(modules)
    control.close()
    _or_die(partial(_init, fds, divided=False), fds[3])


def _prepare() -> None:
    ns.set_dumpable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _make_folders()
    seed = Path("/seed")
    if seed.is_dir():
        from shared.paths import STATE

        _put_back(STATE, _contents(seed))
    from shared import offline

    offline.apply()
    import pytest  # noqa: F401

    import shared.classroom.limits
    import shared.classroom.proctor
    import shared.grading.child
    import shared.grading.plugin  # noqa: F401


def _import(modules: list[str]) -> None:
    from shared.classroom.proctor import read_ahead
    from shared.grading.child import preload

    preload(modules)
    read_ahead()


def _receive(control: socket.socket) -> tuple[list[str], list[int]] | None:
    """What to import for the next run, and what came along: events, output, stack, report, order.

    The order, with the submission's files, is read by the run itself: what the warm process has
    once held, all later runs could find in their memory.
    """
    message, fds, _, _ = socket.recv_fds(control, _LONGEST_REQUEST, 5)
    if not message:
        return None
    while not message.endswith(b"\n"):
        message += control.recv(_LONGEST_REQUEST)
    modules: list[str] = json.loads(message)
    return modules, list(fds)


def _read_order(fd: int) -> dict[str, Any]:
    with open(fd, "rb") as file:
        file.seek(0)
        order: dict[str, Any] = json.load(file)
    return order


def _or_die(work: Callable[[], None], report: int) -> NoReturn:
    """Do what a child was forked for, say what went wrong, and never return to the caller."""
    try:
        work()
    except BaseException as error:
        with suppress(OSError):
            _tell(report, {"failed": f"{type(error).__name__}: {error}"})
        os._exit(70)
    os._exit(0)


def _divide(fds: list[int]) -> None:
    """Leave the sandbox's namespaces, start the run's first process in new ones, wait for it."""
    ns.end_with_parent(signal.SIGKILL)
    ns.unshare(
        ns.CLONE_NEWNS | ns.CLONE_NEWPID | ns.CLONE_NEWNET | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS
    )
    child = os.fork()
    if child == 0:
        ns.end_with_parent(signal.SIGKILL)
        _or_die(partial(_init, fds, divided=True), fds[3])
    for fd in fds:
        os.close(fd)
    os.waitpid(child, 0)


def _init(fds: list[int], *, divided: bool) -> None:
    """The first process of a run: prepare the room, start the checks, watch them."""
    from shared.classroom.limits import Limits, private_memory

    order = _read_order(fds.pop())
    limits = Limits.model_validate(order["limits"])
    with suppress(PermissionError):  # it leads a session already
        os.setsid()
    if divided:
        _mount_room(order, limits)
        ns.raise_loopback()
    _put_files(order, read_only=divided)
    relay = _listen(order["engine_port"]) if order["engine_port"] else None
    theirs, ours = os.pipe(), os.pipe()
    checks = os.fork()
    if checks == 0:
        for fd in (fds[3], theirs[0], ours[1]):
            os.close(fd)
        if relay is not None:
            relay.close()
        # What goes wrong from here on shows as a run that reported nothing.
        with suppress(BaseException):
            if divided:
                ns.become(USER)
            os.write(theirs[1], b".")
            os.close(theirs[1])
            os.read(ours[0], 1)
            os.close(ours[0])
            _run(order, fds[:3], limits)
        os._exit(70)
    os.close(theirs[1])
    os.close(ours[0])
    for fd in fds[:3]:
        os.close(fd)
    if os.read(theirs[0], 1) != b".":
        raise OSError("the checks' process could not give up its privileges")
    if divided:
        ns.mount("", "/proc", "", ns.MS_REMOUNT | ns.MS_BIND | ns.MS_RDONLY | _SAFE | ns.MS_NOEXEC)
    if relay is not None:
        threading.Thread(target=_forward, args=(relay,), daemon=True).start()
    handle = os.pidfd_open(checks)
    _tell(fds[3], {"ready": True}, [os.pidfd_open(os.getpid()), handle])
    os.write(ours[1], b".")
    os.close(ours[1])
    _watch(checks, handle, fds[3], limits, private_memory(), order["writable"])


_SAFE = ns.MS_NOSUID | ns.MS_NODEV


def _mount_room(order: dict[str, Any], limits: Any) -> None:
    """Writable folders of the run's own, empty but for what was prepared; a `/proc` of its own."""
    ns.mount("none", "/", "", ns.MS_REC | ns.MS_PRIVATE)
    for folder in order["writable"]:
        before = _contents(Path(folder))
        ns.mount("tmpfs", folder, "tmpfs", _SAFE, f"size={limits.disk},mode=0755")
        _put_back(Path(folder), before)
    ns.mount("proc", "/proc", "proc", _SAFE | ns.MS_NOEXEC)


def _put_files(order: dict[str, Any], *, read_only: bool) -> None:
    """The submission's files, in their place."""
    folder = Path(order["files_at"])
    for name, text in order["files"].items():
        if Path(name).name != name or name in (".", ".."):
            raise ValueError(f"a file in no folder of a lab: {name!r}")
        (folder / name).write_bytes(base64.b64decode(text))
        (folder / name).chmod(0o444)
    if read_only:
        flags = ns.MS_REMOUNT | ns.MS_BIND | ns.MS_RDONLY | _SAFE
        ns.mount("", str(folder), "", flags)
    _make_folders()


def _make_folders() -> None:
    """Where programs expect to be able to write: the run's, and the warm process's own."""
    for path in (WORK, "/scratch/tmp", "/scratch/home"):
        Path(path).mkdir(parents=True, exist_ok=True)


def _contents(folder: Path) -> dict[str, bytes]:
    """Small files below a folder, by their relative path."""
    found = {}
    for path in folder.rglob("*"):
        with suppress(OSError):
            info = path.lstat()
            if stat.S_ISREG(info.st_mode) and info.st_size < _LEAST:
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def _put_back(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _run(order: dict[str, Any], fds: list[int], limits: Any) -> None:
    """The checks' own process, from its last privilege to pytest's exit status."""
    ns.drop_privileges()
    ns.set_dumpable(True)
    os.setsid()
    os.nice(5)
    limits.apply()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    events = _elsewhere(fds[0])
    from shared.classroom.canary import Plan
    from shared.classroom.proctor import Proctor
    from shared.grading.child import ChildSpec, run_checks

    spec = ChildSpec.model_validate(order["spec"])
    proctor = Proctor(Plan.model_validate(order["plan"]))
    order.clear()
    os._exit(run_checks(spec, events, fds[1], fds[2], plugins=[proctor]))


def _elsewhere(fd: int) -> int:
    """The same descriptor under a number that nobody can guess."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, random.SystemRandom().randrange(200, 1000))
    os.close(fd)
    return moved


def _watch(
    checks: int, handle: int, report: int, limits: Any, base: int, writable: list[str]
) -> None:
    """Until the checks end, the parent is gone, or more is used than may be."""
    from shared.classroom.limits import usage

    while True:
        ready, _, _ = select.select([handle, report], [], [], _PERIOD)
        if report in ready:
            return  # Nobody listens any more.
        if handle in ready:
            _, status = os.waitpid(checks, 0)
            _tell(report, {"exit": os.waitstatus_to_exitcode(status)})
            return
        _bury_orphans(checks)
        over = usage(os.getpid(), base, limits, writable).over(limits)
        if over:
            _tell(report, {"limit": over})
            return


def _bury_orphans(checks: int) -> None:
    """Collect what ended and has no other parent than the namespace's first process."""
    with suppress(ChildProcessError):
        for _ in range(1000):
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid == checks:
                return
            os.waitpid(ended.si_pid, 0)


def _tell(report: int, message: dict[str, Any], fds: list[int] | None = None) -> None:
    with socket.socket(fileno=os.dup(report)) as line:
        socket.send_fds(line, [json.dumps(message).encode() + b"\n"], fds or [])


def _listen(port: int) -> socket.socket:
    """A listener on the run's own loopback, where clients expect the model server."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    return listener


def _forward(listener: socket.socket) -> None:
    """Pass each connection on to the relay, and through it to the model server outside."""
    while True:
        with suppress(OSError):
            client, _ = listener.accept()
            upstream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                upstream.connect(RELAY)
            except OSError:
                client.close()
                upstream.close()
                continue
            join(client, upstream)


def join(one: socket.socket, other: socket.socket) -> None:
    """Copy between two sockets, both ways, in the background, until both sides have ended."""
    left = threading.Semaphore(0)

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        left.release()

    def close() -> None:
        left.acquire()
        left.acquire()
        one.close()
        other.close()

    for work in (lambda: copy(one, other), lambda: copy(other, one), close):
        threading.Thread(target=work, daemon=True).start()


def probe() -> None:
    """Whether a run may be divided from the rest in this sandbox; raises OSError if not."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            ns.set_dumpable(False)
            ns.unshare(
                ns.CLONE_NEWNS
                | ns.CLONE_NEWPID
                | ns.CLONE_NEWNET
                | ns.CLONE_NEWIPC
                | ns.CLONE_NEWUTS
            )
            if os.fork() == 0:
                with suppress(BaseException):
                    ns.mount("none", "/", "", ns.MS_REC | ns.MS_PRIVATE)
                    ns.mount("tmpfs", "/scratch", "tmpfs", _SAFE, "size=1m")
                    ns.mount("proc", "/proc", "proc", _SAFE | ns.MS_NOEXEC)
                    ns.raise_loopback()
                    ns.become(USER)
                    ns.drop_privileges()
                    os.write(write, b"ok")
                os._exit(0)
            os.wait()
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    if os.read(read, 2) != b"ok":
        raise OSError("nested namespaces are not allowed")


def main() -> None:
    """``serve FD``, ``serve_one FD``, or ``probe``."""
    what = sys.argv[1]
    if what == "probe":
        probe()
        return
    control = socket.socket(fileno=int(sys.argv[2]))
    (serve if what == "serve" else serve_one)(control)


if __name__ == "__main__":
    main()
