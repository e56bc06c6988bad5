"""The keeper: a background process that starts one engine, watches it, and ends it.

It is started detached, so it survives the command that wanted the engine. The engine is its
child in a session of its own. A leash process ends the engine if the keeper itself is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from shared.engine.errors import EngineError
from shared.engine.launch import (
    START_LIMIT_S,
    STOP_GRACE_S,
    TOKEN_VARIABLE,
    LaunchSpec,
    Plan,
    plan_from_json,
    seconds,
)
from shared.engine.logs import read_tail, telling_lines
from shared.engine.loopback import get, get_json
from shared.engine.metrics import KVCacheReport, busy, counters_of, kv_of_llama_log, kv_of_vllm
from shared.engine.ports import answers_for, fixed_port, free_port, in_use, port_taken
from shared.engine.processes import ProcessId, end_owned, make_scratch, owned_processes
from shared.engine.server import family
from shared.engine.state import Record, StateFolder
from shared.paths import ROOT

IDLE_S = 900.0
PORT_ATTEMPTS = 3
LOG_LIMIT = 64 * 2**20
_TICK_S = 0.5
_METRICS_EVERY_S = 15.0


class _Stopped(Exception):
    """Somebody asked the keeper to stop."""


class _PortLost(Exception):
    """Somebody else took the port between choosing it and listening on it."""


class _Failed(Exception):
    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class Keeper:
    """Starts one engine and stays with it until it ends or is to be ended."""

    def __init__(self, folder: StateFolder, plan: Plan, token: str) -> None:
        self._folder = folder
        self._plan = plan
        self._log = folder.log(plan.wanted)
        self._stop = threading.Event()
        self._leash: subprocess.Popen[bytes] | None = None
        self._engine: subprocess.Popen[bytes] | None = None
        identity = ProcessId.of(os.getpid())
        assert identity is not None
        self._record = Record(
            token=token,
            phase="starting",
            plan=plan,
            keeper=identity,
            since=time.time(),
            log_path=str(self._log),
        )

    def run(self) -> int:
        """The keeper's whole life; 0 when the engine was ended in good order."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._stop.set())
        self._folder.write(self._record)
        self._folder.touch(self._plan.wanted)
        try:
            idle = seconds("ENGINE_IDLE", IDLE_S)
            self._hold_leash()
            self._start()
            self._watch(idle)
        except _Stopped:
            pass
        except (_Failed, EngineError, OSError) as error:
            lines = [] if isinstance(error, EngineError) else telling_lines(self._log)
            self._end_engine()
            self._write(phase="failed", failure=str(error), failure_lines=lines)
            return 1
        finally:
            self._end_engine()
            self._drop_leash()
        self._folder.remove(self._record)
        return 0

    def _start(self) -> None:
        """Have a healthy engine, on another port if the first one is taken meanwhile."""
        fixed = fixed_port()
        for attempt in range(PORT_ATTEMPTS):
            port = fixed or free_port()
            try:
                self._start_on(port)
                return
            except _PortLost:
                self._end_engine()
                if fixed:
                    break
                print(f"port {port} was taken meanwhile (attempt {attempt + 1})", flush=True)
        if fixed:
            raise EngineError(port_taken(fixed))
        raise EngineError(f"{PORT_ATTEMPTS} ports in turn were taken by other programs. Try again.")

    def _start_on(self, port: int) -> None:
        spec, token = self._plan.spec(port), self._record.token
        self._rotate_log()
        with self._log.open("ab") as log:
            self._engine = subprocess.Popen(
                spec.argv,
                env=spec.env | {TOKEN_VARIABLE: token, "TMPDIR": str(make_scratch(token))},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._write(port=port, process=ProcessId.of(self._engine.pid))
        self._await_health(spec, port)
        self._write(
            phase="ready",
            max_model_len=self._served_length(spec),
            kv=self._kv_report(port),
        )

    def _await_health(self, spec: LaunchSpec, port: int) -> None:
        limit = seconds("ENGINE_START_LIMIT", START_LIMIT_S[self._plan.kind])
        deadline = time.monotonic() + limit
        while True:
            if self._stop.wait(0.05 if self._plan.kind == "portable" else 0.25):
                raise _Stopped
            if self._engine_ended():
                raise self._death_while_starting(port)
            with suppress(OSError):
                if get(spec.health_url, timeout=2)[0] == 200:
                    if answers_for(port, [p.pid for p in owned_processes(self._record.token)]):
                        return
                    raise _PortLost
            if time.monotonic() > deadline:
                raise _Failed(
                    f"{self._plan.title} was not ready after {limit:.0f} s and was stopped. "
                    "On a slow machine ENGINE_START_LIMIT=<seconds> gives it longer."
                )

    def _death_while_starting(self, port: int) -> Exception:
        code = self._end_engine()
        log = read_tail(self._log).lower()
        # Our own engine is gone, so whoever listens now is another program.
        if in_use(port) and ("address already in use" in log or "couldn't bind" in log):
            return _PortLost()
        if code == -signal.SIGKILL:
            return _Failed(
                f"{self._plan.title} was killed while it started, most likely because memory "
                "ran out. Close other programs, or stop other engines with `make engine-down`, "
                "and try again."
            )
        if code == -signal.SIGILL:
            return _Failed(
                f"{self._plan.title} needs instructions that this processor lacks. "
                "Use the other engine: ENGINE=portable or ENGINE=vllm."
            )
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return _Failed(f"{self._plan.title} did not start ({how}).")

    def _watch(self, idle: float) -> None:
        """Stay until the engine ends, idles, is to stop, or its record is gone."""
        look_every = max(1.0, min(_METRICS_EVERY_S, idle / 4))
        seen: object = None
        active = looked = time.monotonic()
        while not self._stop.wait(_TICK_S):
            if self._engine_ended():
                print("the engine ended", flush=True)
                return
            self._hold_leash()
            now = time.monotonic()
            if now - looked < look_every:
                continue
            looked = now
            self._trim_log()
            current = self._folder.read(self._plan.wanted)
            if current is None or current.token != self._record.token:
                print("the record is gone or another's", flush=True)
                return
            signs = self._signs_of_use()
            if signs != seen:
                seen, active = signs, now
            elif idle > 0 and now - active >= idle:
                print(f"idle for {idle:.0f} s", flush=True)
                return

    def _signs_of_use(self) -> object:
        """Something that changes while the engine is used."""
        touched = self._folder.last_touch(self._plan.wanted)
        try:
            page = get(f"http://127.0.0.1:{self._record.port}/metrics", timeout=10)[1]
        except OSError:
            return touched, "no answer"
        name = family(self._plan.kind)
        if busy(page, name):
            return time.monotonic()
        return touched, counters_of(page, name)

    def _served_length(self, spec: LaunchSpec) -> int:
        """Tokens a request may have, as the server says."""
        root = spec.health_url.removesuffix("/health")
        try:
            if self._plan.kind == "portable":
                return int(get_json(f"{root}/slots")[0]["n_ctx"])
            return int(get_json(spec.models_url)["data"][0]["max_model_len"])
        except (OSError, KeyError, IndexError, TypeError, ValueError):
            return self._plan.max_model_len

    def _kv_report(self, port: int) -> KVCacheReport:
        log = read_tail(self._log, LOG_LIMIT)
        if self._plan.kind == "portable":
            report = kv_of_llama_log(log)
        else:
            report = kv_of_vllm(get(f"http://127.0.0.1:{port}/metrics")[1], log)
        if report is None:
            raise _Failed(f"{self._plan.title} started, but does not report its KV cache.")
        return report

    def _write(self, **changes: object) -> None:
        self._record = self._record.changed(**changes)
        self._folder.write(self._record)

    def _engine_ended(self) -> bool:
        """Whether the engine has ended. It stays a zombie, so its number is not reused."""
        return self._engine is None or ProcessId.of(self._engine.pid) is None

    def _end_engine(self) -> int:
        """End the engine and all it started; return its exit status."""
        if self._engine is None:
            return 0
        engine, self._engine = self._engine, None
        end_owned(self._record.token, ProcessId.of(engine.pid), grace=STOP_GRACE_S)
        with suppress(ProcessLookupError, PermissionError):
            # Whatever hid its environment. The unreaped leader keeps the group's number ours.
            os.killpg(engine.pid, signal.SIGKILL)
        return engine.wait()

    def _hold_leash(self) -> None:
        """Have a living leash."""
        if self._leash is not None and self._leash.poll() is None:
            return
        self._leash = subprocess.Popen(
            [sys.executable, "-P", "-m", "shared.engine.leash", self._record.token],
            stdin=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )

    def _drop_leash(self) -> None:
        """The engine is gone: the leash has nothing more to do."""
        if self._leash is not None and self._leash.stdin is not None:
            self._leash.stdin.close()
            self._leash.kill()
            self._leash.wait()

    def _rotate_log(self) -> None:
        with suppress(OSError):
            os.replace(self._log, self._log.with_suffix(".previous.log"))

    def _trim_log(self) -> None:
        """Keep a long-running engine's log from filling the disk; it appends, so this is safe."""
        with suppress(OSError):
            if self._log.stat().st_size > LOG_LIMIT:
                os.truncate(self._log, 0)


def detach(then: Callable[[], int]) -> None:
    """Leave the command that started us: its process tree, its session, its terminal."""
    if os.fork():
        os._exit(0)
    code = 1
    try:
        code = then()
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> int:
    """`python -m shared.engine.keeper FOLDER TOKEN PLAN`"""
    folder, token, plan = sys.argv[1:]
    return Keeper(StateFolder(Path(folder)), plan_from_json(plan), token).run()


if __name__ == "__main__":
    detach(main)
