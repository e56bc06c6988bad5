"""What this checkout knows about its engines, in `.labs/engine/`, one record an engine."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from shared.engine.launch import HOST, Plan, Wanted
from shared.engine.metrics import KVCacheReport
from shared.engine.processes import ProcessId
from shared.engine.server import Engine
from shared.paths import STATE

Phase = Literal["starting", "ready", "failed"]
WANTED: tuple[Wanted, ...] = ("portable", "vllm")


@dataclass(frozen=True)
class Record:
    """One engine, from the moment its keeper begins to start it."""

    token: str
    phase: Phase
    plan: Plan
    keeper: ProcessId
    since: float
    """Wall-clock time of the start."""
    log_path: str
    port: int = 0
    process: ProcessId | None = None
    max_model_len: int = 0
    kv: KVCacheReport | None = None
    failure: str = ""
    failure_lines: list[str] = field(default_factory=list)

    def changed(self, **changes: Any) -> Record:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def engine(self) -> Engine:
        """The running engine that this record describes; its phase must be ``"ready"``."""
        assert self.process is not None
        assert self.kv is not None
        root = f"http://{HOST}:{self.port}"
        return Engine(
            base_url=f"{root}/v1",
            root_url=root,
            model=self.plan.model,
            kind=self.plan.kind,
            max_model_len=self.max_model_len,
            log_path=self.log_path,
            pid=self.process.pid,
            process=self.process,
            kv=self.kv,
            plan=self.plan,
        )


class StateFolder:
    """The records and logs of a checkout's engines."""

    def __init__(self, folder: Path | None = None) -> None:
        chosen = os.environ.get("ENGINE_STATE_DIR")
        self.folder = folder or (Path(chosen) if chosen else STATE / "engine")

    def path(self, wanted: Wanted) -> Path:
        return self.folder / f"{wanted}.json"

    def log(self, wanted: Wanted) -> Path:
        return self.folder / f"{wanted}.log"

    def keeper_log(self, wanted: Wanted) -> Path:
        return self.folder / f"{wanted}.keeper.log"

    def lock(self, wanted: Wanted) -> Path:
        return self.folder / f".{wanted}.lock"

    def read(self, wanted: Wanted) -> Record | None:
        """The record, or None when there is none or it is unreadable."""
        try:
            values = json.loads(self.path(wanted).read_text(encoding="utf-8"))
            values.pop("kind", None)
            values["plan"] = Plan(**values["plan"])
            values["keeper"] = ProcessId(**values["keeper"])
            values["process"] = ProcessId(**values["process"]) if values["process"] else None
            values["kv"] = KVCacheReport(**values["kv"]) if values["kv"] else None
            return Record(**values)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, record: Record) -> None:
        """Put the record in place whole."""
        path = self.path(record.plan.wanted)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        text = json.dumps({"kind": record.plan.kind, **asdict(record)}, indent=1)
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)

    def remove(self, record: Record) -> None:
        """Remove this very record; another start's record stays."""
        current = self.read(record.plan.wanted)
        if current is None or current.token == record.token:
            with suppress(OSError):
                self.path(record.plan.wanted).unlink()

    def touch(self, wanted: Wanted) -> None:
        """Note that somebody uses the engine now."""
        with suppress(OSError):
            path = self.folder / f".{wanted}.used"
            path.touch()
            os.utime(path)

    def last_touch(self, wanted: Wanted) -> int:
        """A number that changes with every `touch`."""
        try:
            return (self.folder / f".{wanted}.used").stat().st_mtime_ns
        except OSError:
            return 0
