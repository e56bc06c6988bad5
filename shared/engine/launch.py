"""How each engine is started: its command, its environment, and where it answers."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shared.engine.errors import EngineError, EngineUnavailable
from shared.models.serve import ServedModel, served_model
from shared.models.store import ModelError, Progress, engine_python
from shared.offline import OFFLINE_ENV
from shared.paths import ROOT

Wanted = Literal["vllm", "portable"]
Kind = Literal["vllm-gpu", "vllm-cpu", "portable"]

HOST = "127.0.0.1"
MAX_MODEL_LEN = 2048
SLOTS = 16
"""Sequences that the portable engine decodes at once, each with room for MAX_MODEL_LEN tokens."""
CPU_KV_CACHE_GIB = 1
GPU_MEMORY_UTILIZATION = 0.5
"""Share of the GPU's memory for vLLM: a small model leaves the rest to the learner's other work."""
START_LIMIT_S = {"portable": 120.0, "vllm-cpu": 600.0, "vllm-gpu": 600.0}
STOP_GRACE_S = 10.0
"""Seconds that a server has to end by itself before it is ended by force."""
TOKEN_VARIABLE = "LABS_ENGINE_TOKEN"
"""Every process of a managed engine carries its start's token in its environment."""

# OpenMP threads that wait for each other by spinning keep one another from the core that the
# awaited one needs, as soon as anything else runs on the machine: ten times slower, measured.
_PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
_GPU_DEVICE = Path("/dev/nvidia0")
_NAMES = {"vllm-gpu": "vLLM on the GPU", "vllm-cpu": "vLLM on the CPU", "portable": "llama.cpp"}


@dataclass(frozen=True)
class LaunchSpec:
    """What it takes to start a server of one's own: run `argv` with `env`, poll `health_url`."""

    argv: list[str]
    env: dict[str, str] = field(repr=False)
    health_url: str
    """Answers 200 once the server is ready."""
    models_url: str
    """Lists the served models, in OpenAI's format."""


@dataclass(frozen=True)
class Plan:
    """An engine that could be started: everything but its port."""

    wanted: Wanted
    kind: Kind
    model_path: str
    model: str
    config: dict[str, Any] = field(repr=False)
    max_model_len: int

    @property
    def title(self) -> str:
        """The engine's name in a sentence."""
        return _NAMES[self.kind]

    def spec(self, port: int) -> LaunchSpec:
        """Command, environment and URLs of this engine on `port`."""
        portable = self.kind == "portable"
        root = f"http://{HOST}:{port}"
        return LaunchSpec(
            argv=self._portable_argv(port) if portable else self._vllm_argv(port),
            env=_environment(_PATIENT if portable else self._vllm_env()),
            health_url=f"{root}/health",
            models_url=f"{root}/v1/models",
        )

    def _portable_argv(self, port: int) -> list[str]:
        slots = _slots_that_fit(self.config, self.max_model_len)
        return [
            _portable_python(),
            *("-P", "-m", "shared.engine.portable"),
            *("--model", self.model_path, "--served-model-name", self.model),
            *("--max-model-len", str(self.max_model_len), "--slots", str(slots)),
            *("--host", HOST, "--port", str(port)),
        ]

    def _vllm_argv(self, port: int) -> list[str]:
        device = (
            [
                "--gpu-memory-utilization",
                os.environ.get("ENGINE_GPU_MEMORY", str(GPU_MEMORY_UTILIZATION)),
            ]
            if self.kind == "vllm-gpu"
            # Compiling costs 100 s of start and gains nothing measurable on a CPU.
            else ["--enforce-eager"]
        )
        return [
            str(engine_python()),
            *("-P", "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", self.model_path, "--served-model-name", self.model),
            *("--dtype", "bfloat16", "--max-model-len", str(self.max_model_len)),
            *device,
            *("--host", HOST, "--port", str(port)),
            # They are asked for all the time, and would bury what matters in the log.
            *("--disable-access-log-for-endpoints", "/health,/metrics"),
        ]

    def _vllm_env(self) -> dict[str, str]:
        # Else vLLM asks the routing table for this machine's address in the outside world.
        loopback = {"VLLM_HOST_IP": HOST, "VLLM_LOOPBACK_IP": HOST}
        if self.kind == "vllm-gpu":
            return loopback
        return {
            **loopback,
            **_PATIENT,
            "VLLM_CPU_KVCACHE_SPACE": str(CPU_KV_CACHE_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, available_cores())),
        }


def make_plan(wanted: Wanted, progress: Progress | None = None) -> Plan:
    """Decide what to start for `wanted`, fetching or repairing the model if need be.

    Raises:
        EngineUnavailable: this engine has no build for this machine.
        EngineError: its environment or its model is missing; the sentence says what to run.
    """
    kind: Kind = "portable"
    if wanted == "vllm":
        kind = _vllm_kind()
    elif wanted == "portable":
        _portable_python()
    else:
        raise EngineError(f"ENGINE={wanted}: it takes vllm or portable.")
    try:
        model = served_model(wanted, progress)
    except ModelError as error:
        raise EngineError(str(error)) from error
    return plan_for(wanted, kind, model)


def plan_for(wanted: Wanted, kind: Kind, model: ServedModel) -> Plan:
    """The plan that serves `model`."""
    trained = model.config.get("max_position_embeddings") or MAX_MODEL_LEN
    return Plan(
        wanted=wanted,
        kind=kind,
        model_path=str(model.path),
        model=model.name,
        config=model.config,
        max_model_len=min(MAX_MODEL_LEN, trained),
    )


def vllm_unavailable() -> str | None:
    """Why vLLM cannot be installed on this machine, or None if it can."""
    system, machine = platform.system(), platform.machine().lower()
    if system != "Linux" or machine not in ("x86_64", "amd64", "aarch64", "arm64"):
        return (
            f"vLLM has no build for {system} on {machine}. "
            "The portable engine runs here: add ENGINE=portable."
        )
    return None


def seconds(variable: str, default: float) -> float:
    """A duration from the environment.

    Raises:
        EngineError: it is no number of seconds.
    """
    text = os.environ.get(variable, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise EngineError(f"{variable}={text}: it takes a number of seconds.")
    return value


def available_cores() -> list[int]:
    """The cores that this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _vllm_kind() -> Kind:
    reason = vllm_unavailable()
    if reason is not None:
        raise EngineUnavailable(reason)
    python = engine_python()
    packages = next(python.parent.parent.glob("lib/python*/site-packages"), None)
    if not python.exists() or packages is None:
        raise EngineError(
            "vLLM is not installed: its environment, .venv-engine, is not there. "
            "Run: make setup-engine"
        )
    if any(packages.glob("vllm_cpu-*.dist-info")):
        return "vllm-cpu"
    if not any(packages.glob("vllm-*.dist-info")):
        raise EngineError("vLLM's environment, .venv-engine, is half-made. Run: make setup-engine")
    if not (_GPU_DEVICE.exists() or shutil.which("nvidia-smi")):
        raise EngineError(
            "vLLM is installed for an NVIDIA GPU, and this machine shows none. "
            "Run: make setup-engine ENGINE_ENV=cpu"
        )
    return "vllm-gpu"


def _portable_python() -> str:
    """A Python that has xllamacpp: this one, or that of `.venv`."""
    if importlib.util.find_spec("xllamacpp") is not None:
        return sys.executable
    labs = ROOT / ".venv" / "bin" / "python"
    if any(labs.parent.parent.glob("lib/python*/site-packages/xllamacpp")):
        return str(labs)
    raise EngineError("The portable engine, xllamacpp, is not installed here. Run: make setup")


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, offline, and without what concerns only this process."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LABS_", "PYTEST_", "COV_")) and name != "PYTHONPATH"
    }
    return {
        **environment,
        **OFFLINE_ENV,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        # Else process titles overwrite the environment that a process shows, token included.
        "SPT_NOENV": "1",
        **extra,
    }


def _slots_that_fit(config: Mapping[str, Any], max_model_len: int) -> int:
    """SLOTS, or fewer when a bigger model's KV cache would take over a quarter of the memory."""
    import psutil

    per_token = (
        2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    )
    room = psutil.virtual_memory().total // 4
    return max(1, min(SLOTS, room // (per_token * max_model_len)))


def plan_to_json(plan: Plan) -> str:
    """The plan as text, for the keeper's command line."""
    return json.dumps(plan.__dict__)


def plan_from_json(text: str) -> Plan:
    """The inverse of `plan_to_json`."""
    return Plan(**json.loads(text))
