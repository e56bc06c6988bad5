"""The parent's side of a walled run: start it, hand it the files, listen, end it."""

from __future__ import annotations

import base64
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared.classroom.canary import Plan, draw_plan
from shared.classroom.inside import WORK
from shared.classroom.listener import Sign, StrictListener, WallRun
from shared.classroom.relay import Relay
from shared.classroom.sandbox import (
    Wall,
    command_line,
    environment_of_bwrap,
    small_files,
    starter_of,
    worker_command,
    writable_folders,
)
from shared.grading.child import ChildSpec
from shared.grading.events import CheckOutcome
from shared.grading.lab import Lab
from shared.grading.process import ChecksProcess, Listener, Run, RunEnd
from shared.grading.target import Target

_START_LIMIT = 180.0
"""Seconds until the sandbox must have begun a run: imports from a cold disk, on a busy machine."""
_SETTLING = 2.0
_LIMIT, _LIVE_LIMIT = 20.0, 120.0
"""Seconds that a check may take which asks for nothing else."""
_MORE_FOR_VLLM = 8 * 2**30


class WalledChecks(ChecksProcess):
    """Runs tasks' checks on other people's code, behind the wall. Use it as a context manager.

    Args:
        labs: the labs whose checks are to be there.
        threads: how many threads numerical libraries may take.

    Attributes:
        signs: what runs since the last `take_signs` showed of tampering.
    """

    def __init__(self, wall: Wall, labs: Sequence[Lab], threads: int = 1) -> None:
        super().__init__()
        self._wall = wall
        self._labs = list(labs)
        self._threads = threads
        self._plan: Plan | None = None
        self._longest = 0.0
        self._signs: list[Sign] = []
        self._kept = ExitStack()
        self._etc = self._kept.enter_context(small_files())
        self._vllm = any(lab.engine == "vllm" for lab in labs)
        needs_engine = any(lab.engine != "none" for lab in labs)
        self._relay = self._kept.enter_context(Relay()) if needs_engine else None
        self._said = self._kept.enter_context(tempfile.TemporaryFile())  # noqa: SIM115

    def close(self) -> None:
        """End the sandbox and all in it."""
        self._end_sandbox()
        self._kept.close()

    def take_signs(self) -> list[Sign]:
        """The signs of tampering since this was last asked."""
        signs, self._signs = self._signs, []
        return signs

    def run(
        self,
        spec: ChildSpec,
        target: Target,
        on_outcome: Callable[[CheckOutcome], None] = lambda _: None,
    ) -> RunEnd:
        """Run the checks that `spec` names, and their twins, against the target's files.

        Raises:
            ChildProcessError: the sandbox did not come about, or broke.
        """
        environment = spec.environment | {"LABS_TARGET": "starter", "LABS_STORE": ""}
        spec = spec.model_copy(update={"scratch": WORK, "environment": environment})
        self._plan = draw_plan(spec.checks)
        self._longest = _longest_limit(spec)
        port = _engine_port(spec)
        try:
            if port is None or self._relay is None:
                return super().run(spec, target, on_outcome)
            with self._relay.towards(port):
                return super().run(spec, target, on_outcome)
        finally:
            if self._wall.kind == "cold":
                self._end_sandbox()

    def _listener(self, run: Run, events: int, output: int, stack: int, target: Target) -> Listener:
        assert isinstance(run, _SandboxRun)
        assert self._plan is not None
        return _Kept(self._signs, run, events, output, stack, target, self._plan, self._longest)

    def _start(self, spec: ChildSpec, target: Target, events: int, output: int, stack: int) -> Run:
        if self._worker is None or self._worker.poll() is not None:
            self._end_sandbox()
            self._start_sandbox()
        assert self._control is not None
        assert self._plan is not None
        port = _engine_port(spec)
        limits = self._wall.limits
        if port is not None and self._vllm:
            limits = limits.model_copy(update={"memory": limits.memory + _MORE_FOR_VLLM})
        order = {
            "spec": spec.model_dump(),
            "plan": self._plan.model_dump(),
            "limits": limits.model_dump(),
            "files": {
                path.name: base64.b64encode(path.read_bytes()).decode("ascii")
                for path in sorted(target.folder.glob("*.py"))
            },
            "files_at": str(target.seen_at or target.folder),
            "writable": writable_folders(self._labs),
            "engine_port": port,
        }
        request = json.dumps(spec.preload).encode() + b"\n"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        kept = os.memfd_create("order", os.MFD_CLOEXEC)
        try:
            with open(kept, "wb", closefd=False) as file:
                file.write(json.dumps(order).encode())
            fds = [events, output, stack, theirs.fileno(), kept]
            socket.send_fds(self._control, [request], fds)
        except OSError as error:
            ours.close()
            raise ChildProcessError(self._why()) from error
        finally:
            theirs.close()
            os.close(kept)
        run = _SandboxRun(ours, self._end_of_run)
        try:
            run.wait_until_ready(self._alive)
        except ChildProcessError as error:
            run.release()
            why = f"{error} {self._why()}".strip()
            self._end_sandbox()
            raise ChildProcessError(why) from error
        return run

    def _start_sandbox(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        relay = self._relay.folder if self._relay is not None else None
        command = command_line(
            self._wall,
            self._labs,
            self._etc,
            relay=relay,
            threads=self._threads,
            engine=self._vllm,
        )
        self._said.seek(0)
        self._said.truncate()
        self._worker = subprocess.Popen(
            [*command, *worker_command(self._wall, theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            env=environment_of_bwrap(),
            start_new_session=True,
        )
        theirs.close()
        self._control, self._inbox = ours, b""

    def _end_sandbox(self) -> None:
        """The sandbox's first process is bubblewrap's: with it, the kernel ends all inside."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            self._worker = None

    def _end_of_run(self) -> None:
        """Wait until the warm process has seen the run's end."""
        if self._wall.kind == "cold":
            self._end_sandbox()
            return
        with suppress(ChildProcessError, OSError):
            self._next_message()

    def _alive(self) -> bool:
        return self._worker is not None and self._worker.poll() is None

    def _why(self) -> str:
        with suppress(OSError):
            self._said.seek(0)
            text = self._said.read()[-2000:].decode("utf-8", "replace").strip()
            return f"The sandbox said: {text}" if text else "The sandbox ended unexpectedly."
        return ""


class _Kept(StrictListener):
    """A listener whose signs go where they are kept beyond the run."""

    def __init__(self, signs: list[Sign], *rest: Any) -> None:
        super().__init__(*rest)
        self._into = signs

    def listen(self, on_outcome: Callable[[CheckOutcome], None]) -> RunEnd:
        try:
            return super().listen(on_outcome)
        finally:
            self._into.extend(self.signs)


class _SandboxRun(WallRun):
    """One run, by the process descriptors that its first process sent out."""

    def __init__(self, report: socket.socket, end_of_run: Callable[[], None]) -> None:
        super().__init__(0, 0, dict)
        self._report = report
        self._inbox = b""
        self._first: int | None = None
        self._checks: int | None = None
        self._code: int | None = None
        self._gone = False
        self._end_of_run = end_of_run

    def wait_until_ready(self, alive: Callable[[], bool]) -> None:
        """Wait until the checks are about to begin.

        Raises:
            ChildProcessError: they will not.
        """
        deadline = time.monotonic() + _START_LIMIT
        while self._first is None:
            if self._gone or not alive() or time.monotonic() > deadline:
                raise ChildProcessError("The sandbox did not begin the run.")
            self._hear(0.5)

    def signal(self, number: int) -> None:
        """Send the checks' process a signal."""
        _send(self._checks, number)

    def kill(self) -> None:
        """End the run's first process, and with it the namespace."""
        _send(self._first, signal.SIGKILL)

    def ended(self) -> bool:
        """Whether the checks' process has ended by itself."""
        self._hear(0)
        return not self.over_limit and (self._code is not None or self._gone)

    def settle(self) -> None:
        """Wait a moment for the exit status of checks that have ended by themselves."""
        deadline = time.monotonic() + _SETTLING
        while not (self._gone or self.over_limit or self._code is not None):
            if time.monotonic() > deadline:
                return
            self._hear(0.1)

    def end(self) -> int:
        """End whatever is left of the run; return the checks' exit status."""
        if self._exit is None:
            self._hear(0)
            self.kill()
            while not self._gone:
                self._hear(1.0)
            self._exit = self._code if self._code is not None else -signal.SIGKILL
            self._end_of_run()
            self.release()
        return self._exit

    def release(self) -> None:
        """Close what is open for this run."""
        self._report.close()
        for fd in (self._first, self._checks):
            if fd is not None:
                os.close(fd)
        self._first = self._checks = None

    def _hear(self, seconds: float) -> None:
        """Take in what the run's first process says."""
        if self._gone:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self._report, selectors.EVENT_READ)
            if not selector.select(seconds):
                return
        try:
            data, fds, _, _ = socket.recv_fds(self._report, 65536, 2)
        except OSError:
            data, fds = b"", []
        self._gone = not data
        if len(fds) == 2:
            self._first, self._checks = fds
        *lines, self._inbox = (self._inbox + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self.over_limit = message.get("limit", self.over_limit)
            if "exit" in message:
                self._code = int(message["exit"])
            if "failed" in message and self._first is None:
                raise ChildProcessError(f"A run could not be prepared: {message['failed']}.")


def _send(handle: int | None, number: int) -> None:
    if handle is not None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)


def _engine_port(spec: ChildSpec) -> int | None:
    info = spec.environment.get("LABS_ENGINE_INFO")
    return urlsplit(json.loads(info)["base_url"]).port if info else None


def _longest_limit(spec: ChildSpec) -> float:
    """The longest time that any check of the module asks for, by its text."""
    text = Path(spec.check_file).read_text(encoding="utf-8")
    asked = [float(number) for number in re.findall(r"\blimit\((\d+(?:\.\d+)?)", text)]
    return max([_LIVE_LIMIT if spec.environment.get("LABS_ENGINE_INFO") else _LIMIT, *asked])


def walled_target(lab: Lab, folder: Path, label: str) -> Target:
    """The target for a folder of a submission's files, as the checks will see it."""
    return Target(label, folder, seen_at=starter_of(lab))
