"""Keep every library on this machine: no hub, no telemetry, no account."""

from __future__ import annotations

import os

OFFLINE_ENV: dict[str, str] = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_TRACKING": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "DEEPEVAL_TELEMETRY_OPT_OUT": "YES",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # MLflow does not honour DO_NOT_TRACK
    "RAGAS_DO_NOT_TRACK": "true",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "WANDB_MODE": "offline",
}


def apply() -> None:
    """Set the variables for this process and those it starts."""
    os.environ.update(OFFLINE_ENV)
