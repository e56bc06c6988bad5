"""A Python process in which an agent works, and dies when it is told to.

    python process_main.py FD LEARNER_FILE

It imports the learner's file once and forks a process for each job, so that a hundred processes
cost little. Jobs come as lines of JSON over the socket FD.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import re
import signal
import socket
import sqlite3
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from shared.agents.scripted import Reply, ScriptedChatModel, calls_all, says
from shared.domains.worlds import Step, ToolSpec, World, open_world

_WRITES = re.compile(r"\s*(INSERT|UPDATE|DELETE|REPLACE|COMMIT|END|CREATE)", re.IGNORECASE)


class Checkpoints:
    """Watches what is done to one SQLite file, and ends the process at one of its statements.

    It wraps `sqlite3.connect`, so it must be made before anybody imports that by name.
    """

    def __init__(self) -> None:
        self.file: Path | None = None
        self.written = 0
        self._die_at, self._pause_s, self._slow_s = 0, 0.0, 0.0
        self._connect = sqlite3.connect
        sqlite3.connect = sqlite3.dbapi2.connect = self._watched  # type: ignore[assignment,attr-defined]

    def watch(self, file: Path, die_at: int, pause_s: float, slow_s: float) -> None:
        """Die before the `die_at`th statement that writes (0: never), after a pause.

        Args:
            slow_s: how long each commit takes, as on a slow disk.
        """
        self.file, self._die_at = file.resolve(), die_at
        self._pause_s, self._slow_s = pause_s, slow_s

    def holds(self, text: str) -> bool:
        """Whether some table of the file holds a text, for who opens the file now."""
        assert self.file is not None
        with closing(self._connect(self.file)) as db:
            db.text_factory = bytes
            tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            rows = (
                row for (name,) in tables for row in db.execute(f'SELECT * FROM "{name.decode()}"')
            )
            return any(isinstance(v, bytes) and text.encode() in v for row in rows for v in row)

    def lock(self) -> None:
        """Keep others from writing until this process ends, as a backup would."""
        assert self.file is not None
        self._locked = self._connect(self.file, isolation_level=None, check_same_thread=False)
        self._locked.execute("BEGIN IMMEDIATE")

    def _watched(self, database: Any, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        db = self._connect(database, *args, **kwargs)
        name = os.fsdecode(database).removeprefix("file:").partition("?")[0]
        if self.file is not None and Path(name).resolve() == self.file:
            db.set_trace_callback(self._statement)
        return db

    def _statement(self, text: str) -> None:
        if self._slow_s and text.startswith("COMMIT"):
            time.sleep(self._slow_s)
        if _WRITES.match(text):
            self.written += 1
            if self.written == self._die_at:
                time.sleep(self._pause_s)
                die()


def die() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


class Scripts:
    """A model's words: for each request the calls of each reply, and then an answer.

    Where a job stands is read from the messages alone. Each reply's calls have fresh ids, as a
    real model's have. With `live` the calls are that model's, the number of replies the script's:
    a small model would go on for ever. Each time the model is asked, a line is added to the file
    `asked`.

    Attributes:
        ids: of the calls of the last reply.
    """

    def __init__(
        self,
        job: dict[str, Any],
        hold: Callable[[str], None],
        live: Callable[[list[BaseMessage]], AIMessage] | None,
    ) -> None:
        self._scripts = job["scripts"]
        self._asked = job["asked"]
        self._die_at = job.get("die_at_model", 0)
        self._hold = hold
        self._live = live
        self._calls = 0
        self._fixed = job.get("fixed_ids", False)
        self.ids: list[str] = []

    def __call__(self, messages: list[BaseMessage]) -> Reply:
        since = max(n for n, m in enumerate(messages) if isinstance(m, HumanMessage))
        script = self._scripts[str(messages[since].text)]
        done = sum(isinstance(m, AIMessage) for m in messages[since:])
        self._note(messages, done)
        self._calls += 1
        if self._calls == self._die_at:
            die()
        self._hold("model")
        if done == len(script["replies"]):
            return says(script["answer"])
        if self._live is not None:
            wanted = self._live(messages).tool_calls
            if not wanted:  # cut off before it had asked for anything
                return says(script["answer"])
            steps = [Step(call["name"], call["args"]) for call in wanted]
        else:
            steps = [Step(**step) for step in script["replies"][done]]
        self.ids = [
            f"call-{done}-{n}" if self._fixed else f"call-{uuid.uuid4().hex[:12]}"
            for n in range(len(steps))
        ]
        return calls_all(steps, ids=self.ids)

    def _note(self, messages: list[BaseMessage], done: int) -> None:
        seen = [
            {
                "kind": m.type,
                "text": str(m.text),
                "calls": [c["id"] for c in m.tool_calls] if isinstance(m, AIMessage) else [],
                "answers": m.tool_call_id if isinstance(m, ToolMessage) else None,
                "name": m.name,
                "status": m.status if isinstance(m, ToolMessage) else None,
            }
            for m in messages
        ]
        line = json.dumps({"reply": done, "messages": seen, "pid": os.getpid()}) + "\n"
        with open(self._asked, "a", encoding="utf-8") as file:
            file.write(line)


def work(module: ModuleType, job: dict[str, Any], checkpoints: Checkpoints) -> dict[str, Any]:
    """Do one job, in this process, and say what came of it."""
    file = Path(job["file"])
    die_at, pause_s, slow_s = (job.get(k, 0) for k in ("die_at_statement", "pause_s", "slow_s"))
    checkpoints.watch(file, die_at, pause_s, slow_s)
    world = open_world(job["domain"], job["world"])
    hold = _Hold(job.get("hold"))
    live = _live(job["engine"], world) if job.get("engine") else None
    scripts = Scripts(job, hold.at, live)
    model = ScriptedChatModel(replies=scripts)
    looks: list[dict[str, Any]] = []

    def look(spec: ToolSpec) -> None:
        """Note whether the reply that asked for this call is in the file, now or a moment later."""
        if job.get("look"):
            now = checkpoints.holds(scripts.ids[0])
            if not now:
                time.sleep(10 * slow_s)
            looks.append(
                {"tool": spec.name, "now": now, "later": checkpoints.holds(scripts.ids[0])}
            )

    tools = [_prepared(spec, job, hold, checkpoints, look) for spec in world.tools()]
    given = {k: job[k] for k in ("thread_id", "request_id", "version", "wait_s") if k in job}

    def run() -> dict[str, Any]:
        return _outcome(
            module, lambda: module.run_durably(model, tools, file, job["request"], **given)
        )

    if job.get("twice"):
        second: list[dict[str, Any]] = []
        first = threading.Thread(target=lambda: second.append(run()))
        first.start()
        hold.wait_until_held()
        here = run()
        hold.release()
        first.join()
        return {"first": second[0], "second": here}
    outcome = run()
    if job.get("again"):
        outcome["again"] = run()
    outcome |= {"written": checkpoints.written, "looks": looks}
    if job.get("die_at_end"):
        die()
    return outcome


class _Hold:
    """Stops who first comes to a place: makes the file `held`, and waits for the file `go`."""

    def __init__(self, given: dict[str, str] | None) -> None:
        self._given = given

    def at(self, place: str) -> None:
        if self._given is None or self._given["place"] != place:
            return
        if not Path(self._given["held"]).exists():
            Path(self._given["held"]).touch()
            while not Path(self._given["go"]).exists():
                time.sleep(0.01)

    def wait_until_held(self) -> None:
        assert self._given is not None
        until = time.monotonic() + 10
        while not Path(self._given["held"]).exists() and time.monotonic() < until:
            time.sleep(0.01)

    def release(self) -> None:
        assert self._given is not None
        Path(self._given["go"]).touch()


def _prepared(
    spec: ToolSpec,
    job: dict[str, Any],
    hold: _Hold,
    checkpoints: Checkpoints,
    look: Callable[[ToolSpec], None],
) -> ToolSpec:
    """The tool, with what the job wants to happen in it."""

    def call(arguments: Any, **how: Any) -> dict[str, Any]:
        look(spec)
        hold.at(spec.role)
        if spec.role == job.get("breaks_in"):
            raise sqlite3.OperationalError("database is locked")
        answer = spec.call(arguments, **how)
        if spec.role == job.get("lock_in"):
            checkpoints.lock()
        return answer

    return replace(spec, call=call)


def _live(engine: str, world: World) -> Callable[[list[BaseMessage]], AIMessage]:
    """One reply of the engine's model, which must call a tool."""
    from shared.agents.live import live_agent_model
    from shared.engine import Engine

    model = live_agent_model(Engine.from_json(engine), max_tokens=120)
    bound = model.bind_tools(world.tools(), tool_choice="any")
    return lambda messages: bound.invoke(messages)


def _outcome(module: ModuleType, run: Callable[[], Any]) -> dict[str, Any]:
    try:
        reply = run()
        unknown = [[step.tool, step.arguments] for step in reply.unknown]
        return {"reply": {"text": reply.text, "unknown": unknown}}
    except BaseException as error:
        own = [
            f for f in traceback.extract_tb(error.__traceback__) if f.filename == module.__file__
        ]
        return {
            "error": type(error).__name__,
            "text": str(error)[:300],
            "reason": getattr(error, "reason", None),
            "line": own[-1].lineno if own else None,
        }


def serve(control: socket.socket, module: ModuleType, checkpoints: Checkpoints) -> None:
    """Fork a process for each job until the other side hangs up."""
    running: set[int] = set()
    lines = control.makefile("r", encoding="utf-8")

    def say(answer: dict[str, Any]) -> None:
        control.sendall(json.dumps(answer).encode() + b"\n")

    say({"ready": True})
    for line in lines:
        command = json.loads(line)
        if "job" in command:
            pid = os.fork()
            if pid == 0:
                lines.close()
                control.close()
                _child(module, command["job"], checkpoints)
            running.add(pid)
            say({"pid": pid})
        else:
            status = _wait(command["wait"], command["limit_s"])
            running.discard(command["wait"])
            say({"status": status})
    for pid in running:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _child(module: ModuleType, job: dict[str, Any], checkpoints: Checkpoints) -> None:
    status = 70
    try:
        outcome = work(module, job, checkpoints)
        part = Path(job["result"] + ".part")
        part.write_text(json.dumps(outcome), encoding="utf-8")
        part.replace(job["result"])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _wait(pid: int, limit_s: float) -> int | None:
    """How the process ended; None, and it is ended, when it runs for too long."""
    until = time.monotonic() + limit_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)


def main() -> None:
    """Entry: the socket's number and the learner's file."""
    control = socket.socket(fileno=int(sys.argv[1]))
    checkpoints = Checkpoints()
    path = Path(sys.argv[2])
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    # What LangChain imports at its first use is paid here, once.
    tool = {"name": "none", "description": "", "parameters": {}}
    ScriptedChatModel(replies=["ready"]).bind_tools([tool]).invoke("ready?")
    # The forked processes share this memory as long as the collector doesn't write into it.
    gc.freeze()
    serve(control, module, checkpoints)


if __name__ == "__main__":
    main()
