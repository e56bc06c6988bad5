"""A running engine, as labs see it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from shared.engine.errors import EngineError
from shared.engine.launch import Kind, LaunchSpec, Plan
from shared.engine.loopback import get
from shared.engine.metrics import EngineCounters, KVCacheReport, counters_of
from shared.engine.processes import ProcessId

__all__ = ["Engine", "EngineCounters", "KVCacheReport"]

_DIED = "`make engine-status` shows what runs; the next check starts it again."


@dataclass(frozen=True)
class Engine:
    """A running OpenAI-compatible server."""

    base_url: str
    """Where OpenAI clients go: ``http://127.0.0.1:<port>/v1``."""
    root_url: str
    """The same without ``/v1``: ``/health`` and ``/metrics`` are there."""
    model: str
    """The name to send as `model`."""
    kind: Kind
    max_model_len: int
    """Tokens that a request may have, prompt and answer together."""
    log_path: str
    pid: int
    process: ProcessId = field(repr=False)
    kv: KVCacheReport = field(repr=False)
    plan: Plan = field(repr=False, hash=False, compare=False)

    def alive(self) -> bool:
        """Whether the server answers, or is at least running and busy."""
        try:
            return get(f"{self.root_url}/health", timeout=5)[0] == 200
        except TimeoutError:
            return self.process.running()
        except OSError:
            return False

    def counters(self) -> EngineCounters:
        """Totals from the server's Prometheus page.

        vLLM counts a token when it is made, llama.cpp when its request ends.

        Raises:
            EngineError: the server does not answer.
        """
        return counters_of(self.metrics_page(), family(self.kind))

    def metrics_page(self) -> str:
        """The server's Prometheus page as it is.

        Raises:
            EngineError: the server does not answer.
        """
        try:
            status, page = get(f"{self.root_url}/metrics", timeout=30)
        except OSError as error:
            raise EngineError(f"{self.plan.title} does not answer ({error}). {_DIED}") from error
        if status != 200:
            raise EngineError(f"{self.plan.title} gives no metrics (status {status}). {_DIED}")
        return page

    def kv_cache(self) -> KVCacheReport:
        """The KV cache as the server itself reported it when it started."""
        return self.kv

    @property
    def model_config(self) -> dict[str, Any]:
        """The model's configuration, under the names of Hugging Face's `config.json`."""
        return dict(self.plan.config)

    def launch_spec(self, port: int) -> LaunchSpec:
        """How to start a second server of the same kind, with the same model, on `port`."""
        return self.plan.spec(port)

    def to_json(self) -> str:
        """Text from which `from_json` makes the same engine in another process.

        It says, too, how much memory the server holds now, for processes that cannot see it.
        """
        return json.dumps(asdict(self) | {"memory_bytes": _resident_bytes(self.pid)})

    @classmethod
    def from_json(cls, text: str) -> Engine:
        """The inverse of `to_json`."""
        values = json.loads(text)
        values.pop("memory_bytes", None)
        values["process"] = ProcessId(**values["process"])
        values["kv"] = KVCacheReport(**values["kv"])
        values["plan"] = Plan(**values["plan"])
        return cls(**values)


def family(kind: str) -> str:
    """``"vllm"`` or ``"portable"``: whose metrics and log format it is."""
    return "portable" if kind == "portable" else "vllm"


def _resident_bytes(pid: int) -> int:
    """What a process and its children hold; 0 when it is gone."""
    try:
        server = psutil.Process(pid)
        return sum(p.memory_info().rss for p in [server, *server.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0
