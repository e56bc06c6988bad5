"""Start, reuse, show and stop this checkout's engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from filelock import FileLock, Timeout

from shared.engine.errors import EngineError
from shared.engine.launch import (
    START_LIMIT_S,
    STOP_GRACE_S,
    Plan,
    Wanted,
    make_plan,
    plan_to_json,
)
from shared.engine.logs import read_tail, telling_lines
from shared.engine.loopback import get
from shared.engine.ports import fixed_port, in_use, port_taken
from shared.engine.processes import end_owned
from shared.engine.server import Engine
from shared.engine.state import WANTED, Record, StateFolder
from shared.models.store import Progress, forget_damaged
from shared.offline import OFFLINE_ENV
from shared.paths import ROOT

_POLL_S = 0.03
_KEEPER_LIMIT_S = 60.0
_HEALTH_S = 10.0
_NEWS_EVERY_S = 10.0


@dataclass(frozen=True)
class EngineRecord:
    """One line of `engine_status`."""

    kind: str
    state: str
    """``"starting"``, ``"ready"`` or ``"not answering"``."""
    model: str
    base_url: str
    pid: int
    log_path: str
    up_for_s: float
    last_log_lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = self.base_url or "no port yet"
        first = f"{self.kind}: {self.state}, {where}, model {self.model}, process {self.pid}, "
        first += f"for {self.up_for_s / 60:.0f} min. Log: {self.log_path}"
        return "\n".join([first, *(f"  {line}" for line in self.last_log_lines)])


def ensure_engine(wanted: Wanted, *, progress: Progress | None = None) -> Engine:
    """A healthy engine of the wanted kind, serving the wanted model: the running one, or a new one.

    Args:
        progress: is told, in short sentences, what takes time.

    Raises:
        EngineUnavailable: this engine has no build for this machine.
        EngineError: it cannot be had; the message says why, what to do, and what its log says.
    """
    tell = progress or (lambda _: None)
    folder = StateFolder()
    plan = make_plan(wanted, progress)
    running = _reusable(folder, plan)
    if running is not None:
        return running
    try:
        folder.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(f"The engine's folder {folder.folder} cannot be made: {error}") from error
    with _only_starter(folder, wanted, tell):
        running = _reusable(folder, plan)
        if running is not None:
            return running
        record = folder.read(wanted)
        if record is None or not _is_starting(record, plan):
            if record is not None:
                _clear(folder, record, tell, plan)
            tell(f"starting {plan.title} with {plan.model}")
            record = _launch_keeper(folder, plan)
        return _await_engine(folder, record, tell)


def engine_status() -> list[EngineRecord]:
    """The engines of this checkout that run or are being started."""
    folder = StateFolder()
    found = []
    for wanted in WANTED:
        record = folder.read(wanted)
        if record is None:
            continue
        if not _lives(record):
            _end(folder, record)
            continue
        state = record.phase if record.phase == "starting" or _healthy(record) else "not answering"
        found.append(_status_line(record, state))
    return found


def stop_engine(kind: str | None = None) -> list[EngineRecord]:
    """Stop this checkout's engines, or those of one kind; returns those that ran.

    Args:
        kind: ``"vllm"``, ``"portable"``, or an `Engine.kind`.
    """
    folder = StateFolder()
    stopped = []
    for wanted in WANTED:
        record = folder.read(wanted)
        if record is None or kind not in (None, wanted, record.plan.kind):
            continue
        if _lives(record):
            stopped.append(_status_line(record, "stopped"))
        _end(folder, record)
    return stopped


def _reusable(folder: StateFolder, plan: Plan) -> Engine | None:
    """The running engine, if it is what `plan` asks for and answers."""
    record = folder.read(plan.wanted)
    if record is None or record.phase != "ready" or not _fits(record, plan):
        return None
    if not _lives(record) or not _healthy(record):
        return None
    folder.touch(plan.wanted)
    return record.engine()


def _fits(record: Record, plan: Plan) -> bool:
    port = fixed_port()
    return record.plan == plan and port in (None, record.port)


def _lives(record: Record) -> bool:
    """Whether keeper and engine (if it has one yet) both run."""
    if record.phase == "failed" or not record.keeper.running():
        return False
    return record.phase == "starting" or bool(record.process and record.process.running())


def _is_starting(record: Record, plan: Plan) -> bool:
    return record.phase == "starting" and record.keeper.running() and record.plan == plan


def _healthy(record: Record) -> bool:
    """Whether the engine answers. A busy one may take a moment."""
    try:
        return get(f"http://127.0.0.1:{record.port}/health", timeout=_HEALTH_S)[0] == 200
    except OSError:
        return False


def _clear(folder: StateFolder, record: Record, tell: Progress, plan: Plan) -> None:
    """Make room for a new start: end what the record tells of, saying why if it runs."""
    if _lives(record):
        if record.plan != plan:
            tell(f"stopping the running engine, which serves {record.plan.model_path}")
        elif record.phase == "ready" and not _fits(record, plan):
            tell(f"stopping the running engine, which is on port {record.port}")
        else:
            tell("stopping the running engine, which does not answer")
    _end(folder, record)


def _end(folder: StateFolder, record: Record) -> None:
    """End keeper and engine if they run, and whatever they left behind; then forget them."""
    if record.keeper.running():
        record.keeper.signal(signal.SIGTERM)
        if not record.keeper.wait(STOP_GRACE_S + 10):
            record.keeper.signal(signal.SIGKILL)
    end_owned(record.token, record.process, grace=1.0)
    folder.remove(record)


def _launch_keeper(folder: StateFolder, plan: Plan) -> Record:
    """Start a keeper, detached, and wait for its first sign of life."""
    port = fixed_port()
    if port is not None and in_use(port):
        raise EngineError(port_taken(port))
    token = uuid.uuid4().hex
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LABS_", "PYTEST_"))}
    environment |= OFFLINE_ENV | {"PYTHONPATH": str(ROOT)}
    log = folder.keeper_log(plan.wanted)
    with log.open("wb") as out:
        starter = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "shared.engine.keeper"),
                *(str(folder.folder.resolve()), token, plan_to_json(plan)),
            ],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    starter.wait()
    deadline = time.monotonic() + _KEEPER_LIMIT_S
    while time.monotonic() < deadline:
        record = folder.read(plan.wanted)
        if record is not None and record.token == token:
            return record
        if starter.returncode:
            break
        time.sleep(_POLL_S)
    raise EngineError("The engine's keeper did not start.", read_tail(log).splitlines()[-8:])


def _await_engine(folder: StateFolder, record: Record, tell: Progress) -> Engine:
    """Wait until the keeper says that the engine is ready or has failed."""
    plan, token = record.plan, record.token
    started = news = time.monotonic()
    while True:
        current = folder.read(plan.wanted)
        if current is not None and current.token == token:
            if current.phase == "ready":
                folder.touch(plan.wanted)
                return current.engine()
            if current.phase == "failed":
                folder.remove(current)
                raise EngineError(_with_advice(current), current.failure_lines)
        if not record.keeper.running():
            # Look once more: it may have written its last word just before it ended.
            latest = folder.read(plan.wanted)
            if latest is not None and latest.token == token and latest != current:
                continue
            if latest is not None and latest.token == token:
                _end(folder, latest)
                raise EngineError(
                    f"{plan.title}: its keeper was killed while it started. Try again.",
                    telling_lines(folder.keeper_log(plan.wanted)),
                )
            raise EngineError(f"{plan.title} was stopped while it started. Try again.")
        if time.monotonic() - news > _NEWS_EVERY_S:
            news = time.monotonic()
            tell(f"{plan.title} is still starting ({news - started:.0f} s)")
        time.sleep(_POLL_S)


def _with_advice(record: Record) -> str:
    """The failure, and what to do about it where the reason is in the model cache."""
    if os.environ.get("MODEL"):
        return f"{record.failure} It was to serve MODEL={record.plan.model_path}."
    damaged = forget_damaged()
    if damaged:
        return (
            f"{record.failure} The cached model was damaged ({', '.join(damaged)}). "
            "Run the same command again: it fetches or makes it anew."
        )
    return f"{record.failure} The whole log: {record.log_path}"


def _status_line(record: Record, state: str) -> EngineRecord:
    return EngineRecord(
        kind=record.plan.kind,
        state=state,
        model=record.plan.model,
        base_url=f"http://127.0.0.1:{record.port}/v1" if record.port else "",
        pid=record.process.pid if record.process else record.keeper.pid,
        log_path=record.log_path,
        up_for_s=max(0.0, time.time() - record.since),
        last_log_lines=tuple(read_tail(StateFolder().log(record.plan.wanted)).splitlines()[-3:]),
    )


@dataclass(frozen=True)
class LastLog:
    """How the log of the engine that ran last ends."""

    path: str
    lines: tuple[str, ...]


def last_log(limit: int = 8) -> LastLog | None:
    """The end of the newest engine log of this checkout, or None where none ran yet."""
    folder = StateFolder()
    logs = [path for wanted in WANTED if (path := folder.log(wanted)).exists()]
    if not logs:
        return None
    newest = max(logs, key=lambda path: path.stat().st_mtime)
    return LastLog(str(newest), tuple(read_tail(newest).splitlines()[-limit:]))


@contextmanager
def _only_starter(folder: StateFolder, wanted: Wanted, tell: Progress) -> Iterator[None]:
    """Hold the lock of those who start this engine."""
    lock = FileLock(folder.lock(wanted))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell("another command is starting the engine; waiting for it")
        limit = max(START_LIMIT_S.values()) + 60
        try:
            lock.acquire(timeout=limit, poll_interval=0.1)
        except Timeout as error:
            raise EngineError(
                f"Another command has been starting the engine for {limit:.0f} s. "
                "Stop it, run `make engine-down`, and try again."
            ) from error
    except OSError as error:
        raise EngineError(f"The engine's folder {folder.folder} cannot be used: {error}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            lock.release()
