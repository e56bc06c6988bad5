"""Real processes that work with a learner's agent, are killed, and are followed by others."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from shared.domains.worlds import Step, World, open_world
from shared.grading.expect import fail, show
from shared.paths import ROOT

KILLED = -signal.SIGKILL
LIMIT_S = 15.0
"""A job takes a tenth of a second. What runs for longer waits for something."""


@dataclass(frozen=True)
class Script:
    """What the model does about a request: the calls of each reply, and then an answer."""

    request: str
    replies: Sequence[Sequence[Step]]
    answer: str

    @property
    def calls(self) -> list[Step]:
        """All calls, in order."""
        return [step for reply in self.replies for step in reply]


@dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
        status: its exit status; `KILLED` after SIGKILL.
        said: what came of its job; empty when it was killed.
    """

    status: int
    said: dict[str, Any]

    @property
    def killed(self) -> bool:
        """Whether it was killed."""
        return self.status == KILLED

    @property
    def error(self) -> str | None:
        """The class name of the exception that `run_durably` raised."""
        name: str | None = self.said.get("error")
        return name

    def __str__(self) -> str:
        if self.killed:
            return "a process that was killed"
        if self.error:
            line = f" (line {self.said['line']} of your file)" if self.said["line"] else ""
            return f"{self.error}: {self.said['text']}{line}"
        return f"the reply {show(self.said.get('reply'))}"


class Machine:
    """A Python interpreter of its own, with its own hash seed, that forks processes."""

    def __init__(self, learner_file: Path, hash_seed: int) -> None:
        ours, theirs = socket.socketpair()
        main = Path(__file__).with_name("process_main.py")
        self._process = subprocess.Popen(
            [sys.executable, str(main), str(theirs.fileno()), str(learner_file)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONHASHSEED": str(hash_seed),
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        )
        theirs.close()
        self._control = ours
        self._lines = ours.makefile("r", encoding="utf-8")

    def until_ready(self) -> None:
        """Wait until it has imported everything."""
        self._answer()

    def start(self, job: Mapping[str, Any]) -> int:
        """Begin a job in a new process, and give its id."""
        self._control.sendall(json.dumps({"job": job}).encode() + b"\n")
        return int(self._answer()["pid"])

    def wait(self, pid: int, limit_s: float) -> int | None:
        """The process' exit status; None when it had to be ended."""
        self._control.sendall(json.dumps({"wait": pid, "limit_s": limit_s}).encode() + b"\n")
        status: int | None = self._answer()["status"]
        return status

    def close(self) -> None:
        """End it, and with it all its processes."""
        self._lines.close()
        self._control.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise ChildProcessError("the process that works for the checks ended unexpectedly")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def machines(learner_file: Path, number: int) -> Iterator[list[Machine]]:
    """Several machines, started at the same time."""
    made = [Machine(learner_file, hash_seed) for hash_seed in range(1, number + 1)]
    try:
        for machine in made:
            machine.until_ready()
        yield made
    finally:
        for machine in made:
            machine.close()


@dataclass
class Running:
    """A process at work."""

    machine: Machine
    pid: int
    result: Path
    doing: str

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: it stands still, and holds what it holds."""
        os.kill(self.pid, signal.SIGSTOP)

    def end(self, limit_s: float = LIMIT_S) -> End:
        """Wait for its end."""
        status = self.machine.wait(self.pid, limit_s)
        if status is None:
            fail(
                observed=f"still running after {limit_s:g} s: {self.doing}",
                expected="a reply or an error at once",
                why="A worker that waits for a dead one waits for ever, and the customer with it.",
                hint="dead-owner",
            )
        said = json.loads(self.result.read_text()) if self.result.exists() else {}
        if status not in (0, KILLED):
            fail(
                observed=f"the process ended with status {status}: {self.doing}",
                expected="a reply or an exception of run_durably",
                why="What ends the process ends all other work in it.",
            )
        if said.get("error") == "NotImplementedError":
            raise NotImplementedError(said["text"])
        return End(status, said)


class Case:
    """One world, one checkpoint file, and processes that work with them, one machine in turn.

    Attributes:
        world: what the tools act on.
        file: the checkpoint file. Nothing is there at first.
    """

    def __init__(self, machines: Sequence[Machine], folder: Path, domain: str, seed: int) -> None:
        self.folder = folder
        self.world: World = open_world(domain, folder / "world.sqlite", seed=seed)
        self.file = folder / "checkpoints.sqlite"
        self._machines = machines
        self._numbers = count()

    def start(self, script: Script | Sequence[Script], *, doing: str, **how: Any) -> Running:
        """Begin a process that calls `run_durably` with the (last) script's request.

        Args:
            how: `thread_id`, `request_id`, `version`, `wait_s` for `run_durably`, and what shall
                happen in the process (see process_main.py).
        """
        scripts = [script] if isinstance(script, Script) else list(script)
        number = next(self._numbers)
        result = self.folder / f"result-{number}.json"
        job = {
            "world": str(self.world.path),
            "domain": self.world.domain,
            "file": str(self.file),
            "asked": str(self.folder / "asked.jsonl"),
            "result": str(result),
            "thread_id": "thread-1",
            "request_id": "request-1",
            "request": scripts[-1].request,
            "scripts": {
                s.request: {
                    "replies": [
                        [{"tool": c.tool, "arguments": c.arguments} for c in reply]
                        for reply in s.replies
                    ],
                    "answer": s.answer,
                }
                for s in scripts
            },
            **how,
        }
        machine = self._machines[number % len(self._machines)]
        return Running(machine, machine.start(job), result, doing)

    def run(self, script: Script | Sequence[Script], *, doing: str, **how: Any) -> End:
        """`start`, and wait for the end."""
        return self.start(script, doing=doing, **how).end()

    def asked(self) -> list[dict[str, Any]]:
        """Each time that the model was asked, by whatever process, oldest first."""
        log = self.folder / "asked.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return [json.loads(line) for line in lines]

    def hold(self, place: str) -> Hold:
        """A place (a tool's role, or ``"model"``) where a process stops until it is let go."""
        return Hold(place, self.folder / f"held-{next(self._numbers)}")


class Hold:
    """Where a process stops."""

    def __init__(self, place: str, file: Path) -> None:
        self._file = file
        self.job = {"place": place, "held": str(file), "go": f"{file}.go"}

    def wait(self) -> bool:
        """Whether a process got there, in good time."""
        until = time.monotonic() + LIMIT_S
        while not self._file.exists() and time.monotonic() < until:
            time.sleep(0.005)
        return self._file.exists()

    def release(self) -> None:
        """Let it go on."""
        Path(self.job["go"]).touch()
