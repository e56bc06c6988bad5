"""The runner's side of a checks process: start it, listen, keep its time, end it.

On Linux a warm worker forks a process for each run; elsewhere (a fork after heavy imports is not
safe on macOS) each run is a fresh process. Both look the same from here.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from shared.grading.child import STACK_SIGNAL, ChildSpec, end_descendants
from shared.grading.events import CheckOutcome, Frame
from shared.grading.target import Target
from shared.paths import ROOT

OUTPUT_LIMIT = 10 * 2**20
"""Bytes a run may print before it is stopped."""
STARTUP_LIMIT = 90.0
"""Seconds until the first check must have begun: imports on a slow disk, and the learner's own."""
_POLL = 0.1
_PRINTED_SHOWN = 4000
_PRINTED_READ = 2**16  # progress bars are taken out of it
_LONGEST_EVENT = 2**22
_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)$')
_BAR = re.compile(
    r"(?:[^\n\r|]{0,80}?:\s{0,4})?"
    r"(?:\d{1,3}%\|[^\n\r|]{0,300}\|\s{0,3}[^\s|]{1,20}|\d{1,9}it)\s\[[^\n\r\]]{0,100}\]"
)
"""A bar of tqdm with its label: `Loading: 40%|████      | 2/5 [00:01<00:02, 1.5it/s]`."""


class RunEnd(BaseModel):
    """How a run as a whole ended."""

    outcomes: list[CheckOutcome]
    exit_code: int | None = None
    broken: str = ""
    """Why nothing could be collected, if so."""


class ChecksProcess:
    """Runs tasks' checks in child processes. Use it as a context manager."""

    def __init__(self) -> None:
        self._worker: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._inbox = b""

    def __enter__(self) -> ChecksProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and whatever its runs left behind."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._worker is not None:
            end_descendants(self._worker.pid)
            self._worker.kill()
            self._worker.wait()
            self._worker = None

    def run(
        self,
        spec: ChildSpec,
        target: Target,
        on_outcome: Callable[[CheckOutcome], None] = lambda _: None,
    ) -> RunEnd:
        """Run the checks that `spec` names, each within its own limit.

        A check that overruns ends the run: the process is stopped, the line it was at is named,
        and the checks after it do not report.
        """
        with (
            tempfile.TemporaryFile() as output,
            tempfile.TemporaryFile() as stack,
        ):
            read_fd, write_fd = os.pipe()
            try:
                run = self._start(spec, target, write_fd, output.fileno(), stack.fileno())
            finally:
                os.close(write_fd)
            try:
                listener = self._listener(run, read_fd, output.fileno(), stack.fileno(), target)
                return listener.listen(on_outcome)
            finally:
                os.close(read_fd)
                run.end()

    def _listener(self, run: Run, events: int, output: int, stack: int, target: Target) -> Listener:
        return Listener(run, events, output, stack, target)

    def _start(self, spec: ChildSpec, target: Target, events: int, output: int, stack: int) -> Run:
        if sys.platform != "linux":
            return _spawn(spec, events, output, stack)
        if self._worker is None or self._worker.poll() is not None:
            self._start_worker()
        assert self._control is not None
        assert self._worker is not None
        message = spec.model_dump_json().encode()
        socket.send_fds(self._control, [message], [events, output, stack])
        return Run(self._next_message()["pid"], self._worker.pid, self._next_message)

    def _start_worker(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "shared.grading.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
        )
        theirs.close()
        self._control, self._inbox = ours, b""

    def _next_message(self) -> dict[str, Any]:
        assert self._control is not None
        while b"\n" not in self._inbox:
            data = self._control.recv(65536)
            if not data:
                self.close()
                raise ChildProcessError("The process that runs the checks ended unexpectedly.")
            self._inbox += data
        line, self._inbox = self._inbox.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message


class Run:
    """One child process."""

    def __init__(
        self, pid: int, sweep_root: int, next_message: Callable[[], dict[str, Any]]
    ) -> None:
        self.pid = pid
        self._sweep_root = sweep_root
        self._next_message = next_message
        self._exit: int | None = None

    def signal(self, number: int) -> None:
        """Send the child a signal."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def ended(self) -> bool:
        """Whether it is known to have ended; its events need not have been read yet."""
        return False

    def kill(self) -> None:
        """End the child and its process group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """Make sure that the child and all it started are gone; return its exit status."""
        if self._exit is None:
            self.kill()
            self._exit = int(self._next_message()["exit"])
            self.kill()
            end_descendants(self._sweep_root)
        return self._exit


class _SpawnedRun(Run):
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(process.pid, process.pid, dict)
        self._process = process

    def end(self) -> int:
        end_descendants(self.pid)
        self.kill()
        return self._process.wait()


def _spawn(spec: ChildSpec, events: int, output: int, stack: int) -> Run:
    command = [sys.executable, "-m", "shared.grading.child"]
    command += [str(events), str(output), str(stack), spec.model_dump_json()]
    return _SpawnedRun(
        subprocess.Popen(
            command, pass_fds=[events, output, stack], cwd=ROOT, start_new_session=True
        )
    )


class Listener:
    """Follows one run's events and keeps its time."""

    def __init__(
        self, run: Run, events_fd: int, output_fd: int, stack_fd: int, target: Target
    ) -> None:
        self._run = run
        self._fd = events_fd
        self._output_fd = output_fd
        self._stack_fd = stack_fd
        self._target = target
        self._outcomes: list[CheckOutcome] = []
        self._running: str | None = None
        self._printed_from = 0
        self._limit = STARTUP_LIMIT
        self._since = time.monotonic()
        self._done = False
        self._broken = ""

    def listen(self, on_outcome: Callable[[CheckOutcome], None]) -> RunEnd:
        """Follow the run until its checks are through, it has ended, or it is over a limit."""
        buffer = b""
        os.set_blocking(self._fd, False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._fd, selectors.EVENT_READ)
            while not self._done:
                if selector.select(_POLL):
                    data = os.read(self._fd, 65536)
                    if not data:
                        break
                    *lines, buffer = (buffer + data).split(b"\n")
                    for line in lines:
                        self._take(line, on_outcome)
                    if len(buffer) > _LONGEST_EVENT:  # no event is: not ours
                        self._take(buffer, on_outcome)
                        buffer = b""
                elif self._run.ended():
                    break
                stopped = self._overrun()
                if stopped is not None:
                    self._outcomes.append(stopped)
                    on_outcome(stopped)
                    self._running = None
                    break
        if self._done:
            # The verdicts are in; what remains is pytest's own tidying up.
            return RunEnd(outcomes=self._outcomes, exit_code=0, broken=self._broken)
        exit_code = self._wait_for_exit()
        if self._running is not None:
            crashed = self._crashed(exit_code)
            self._outcomes.append(crashed)
            on_outcome(crashed)
        return RunEnd(outcomes=self._outcomes, exit_code=exit_code, broken=self._broken)

    def _wait_for_exit(self) -> int:
        return self._run.end()

    def _take(self, line: bytes, on_outcome: Callable[[CheckOutcome], None]) -> None:
        with suppress(ValueError):
            event = json.loads(line)
            kind = event.pop("event")
            if kind == "start":
                self._running = str(event["check"])
                self._limit = float(event["limit"])
                self._printed_from = int(event["printed_from"])
                self._since = time.monotonic()
            elif kind == "result":
                outcome = CheckOutcome(**event)
                outcome.printed = self._printed()
                self._outcomes.append(outcome)
                self._running = None
                self._limit, self._since = STARTUP_LIMIT, time.monotonic()
                on_outcome(outcome)
            elif kind == "broken":
                self._broken = str(event["detail"])
            elif kind == "done":
                self._done = True

    def _overrun(self) -> CheckOutcome | None:
        printed = os.fstat(self._output_fd).st_size
        if printed > OUTPUT_LIMIT:
            frames = self._where()
            self._run.kill()
            return CheckOutcome(
                check=self._running or "",
                outcome="timed_out",
                observed=f"it printed {printed / 2**20:.0f} MiB and was stopped{_at(frames)}",
                expected=f"less than {OUTPUT_LIMIT / 2**20:.0f} MiB of output",
                why="A loop that prints fills the disk of the machine it runs on.",
                frames=frames,
            )
        if time.monotonic() - self._since <= self._limit:
            return None
        frames = self._where()
        self._run.kill()
        return CheckOutcome(
            check=self._running or "",
            outcome="timed_out",
            observed=f"it was still running after {self._limit:.0f} s and was stopped{_at(frames)}",
            expected="an answer well within that time",
            why="Work without an end or a deadline ties up a server until somebody restarts it.",
            frames=frames,
            printed=self._printed(),
            seconds=time.monotonic() - self._since,
        )

    def _crashed(self, exit_code: int) -> CheckOutcome:
        if exit_code < 0:
            how = f"was ended by {signal.Signals(-exit_code).name}"
        else:
            how = f"exited with status {exit_code}"
        return CheckOutcome(
            check=self._running or "",
            outcome="raised",
            observed=f"the Python process {how} while this check ran",
            expected="a return value or an exception",
            why="Code that ends the process it runs in takes every other request down with it.",
            printed=self._printed(),
        )

    def _where(self) -> list[Frame]:
        """Ask the process for its stack and keep the learner's frames, outermost first."""
        self._run.signal(STACK_SIGNAL)
        deadline, size = time.monotonic() + 1.0, -1
        while time.monotonic() < deadline:
            time.sleep(0.05)
            now = os.fstat(self._stack_fd).st_size
            if now and now == size:
                break
            size = now
        frames: list[Frame] = []
        for line in os.pread(self._stack_fd, 1 << 20, 0).decode(errors="replace").splitlines():
            match = _FRAME.match(line)
            if match and self._target.owns(Path(match["file"])):
                path, number = Path(match["file"]), int(match["line"])
                frames.append(
                    Frame(
                        file=self._target.display(path),
                        line=number,
                        function=match["function"],
                        code=_source_line(self._target.on_host(path), number),
                    )
                )
        return frames[::-1]

    def _printed(self) -> str:
        size = os.fstat(self._output_fd).st_size
        start = max(self._printed_from, size - _PRINTED_READ)
        text = os.pread(self._output_fd, size - start, start).decode(errors="replace")
        shown = without_bars(text)
        cut = start > self._printed_from or len(shown) > _PRINTED_SHOWN
        return ("…" + shown[-_PRINTED_SHOWN:]) if cut else shown


def without_bars(text: str) -> str:
    """`text` as a terminal shows it in the end, without the progress bars of libraries.

    Of a line that was written over only the last version is left. Lines that were nothing but bars
    go: they would push what the learner printed out of sight.
    """
    lines = []
    for line in text.replace("\x1b[A", "").split("\n"):
        rest, bars = _BAR.subn("", line)
        kept = [part for part in rest.split("\r") if part.strip()]
        if kept or not bars:
            lines.append(kept[-1] if kept else "")
    return "\n".join(lines)


def _at(frames: list[Frame]) -> str:
    return f" at {frames[-1].file}, line {frames[-1].line}" if frames else ""


def _source_line(path: Path, number: int) -> str:
    with suppress(OSError, IndexError):
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[number - 1].strip()
    return ""
