"""One manager for an OpenAI-compatible model server: vLLM on GPU or CPU, or llama.cpp.

`ensure_engine("portable")` gives a running server, starting one only when none runs. It outlives
the command that started it, serves all commands of this checkout, and stops when idle.
"""

from shared.engine.errors import EngineError, EngineUnavailable
from shared.engine.launch import LaunchSpec, vllm_unavailable
from shared.engine.manager import (
    EngineRecord,
    LastLog,
    engine_status,
    ensure_engine,
    last_log,
    stop_engine,
)
from shared.engine.server import Engine, EngineCounters, KVCacheReport

__all__ = [
    "Engine",
    "EngineCounters",
    "EngineError",
    "EngineRecord",
    "EngineUnavailable",
    "KVCacheReport",
    "LastLog",
    "LaunchSpec",
    "engine_status",
    "ensure_engine",
    "last_log",
    "stop_engine",
    "vllm_unavailable",
]
