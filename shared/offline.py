"""One list of the settings that keep every process of the labs off the network.

Libraries of this field report usage, look for updates, or fetch models when nobody asked them
to. Each has its own switch; these are all of them, in one place, for every process we start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from shared.paths import STATE

OFFLINE_ENV: dict[str, str] = {
    # Who honours the common switch: vLLM, Gradio-style tools, several CLIs. MLflow does not.
    "DO_NOT_TRACK": "1",
    # Hubs: read what is on disk, never ask the hub whether something newer exists.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Model servers.
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "LLAMA_OFFLINE": "1",
    # Experiment tracking and evaluation.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_MODE": "offline",
    "WANDB_CACHE_DIR": str(STATE / "cache" / "wandb"),  # else ~/.cache/wandb
    "WANDB__SAVE_REQUIREMENTS": "false",  # a list of all packages of this machine, and a second
    "DEEPEVAL_TELEMETRY_OPT_OUT": "YES",
    "DEEPEVAL_DISABLE_DOTENV": "1",  # it would read settings from an .env of the working folder
    "DEEPEVAL_CACHE_FOLDER": str(STATE / "deepeval"),  # else .deepeval in the working folder
    "DEEPEVAL_HOME": str(STATE / "deepeval"),  # else ~/.deepeval
    "RAGAS_DO_NOT_TRACK": "true",
    "XDG_DATA_HOME": str(STATE / "share"),  # RAGAS keeps an id of this machine below it
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime's, which begins at its import
    "MPLCONFIGDIR": str(STATE / "cache" / "matplotlib"),  # else ~/.cache; a list of fonts
    "TLDEXTRACT_CACHE": str(STATE / "cache" / "tldextract"),  # else below ~/.cache; Presidio's
    # Agents.
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_TRACKING": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
    # A folder's name below the home, or, as here, a whole path.
    "CREWAI_STORAGE_DIR": str(STATE / "crewai"),
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
}
"""Environment variables for every child process. Not in it: `OTEL_SDK_DISABLED`, which would
also silence the local traces that the labs are about."""


def apply(environ: MutableMapping[str, str] | None = None) -> None:
    """Put the settings into `environ` (default: this process's), replacing what was there."""
    target = os.environ if environ is None else environ
    target.update(OFFLINE_ENV)


@contextmanager
def home_elsewhere() -> Iterator[None]:
    """While this lasts, the home folder is one of ours.

    CrewAI makes a key and a settings folder under the home when it is imported, and has no
    setting for where.
    """
    before = os.environ.get("HOME")
    home = STATE / "crewai" / "home"
    home.mkdir(parents=True, exist_ok=True)
    os.environ["HOME"] = str(home)
    try:
        yield
    finally:
        if before is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = before
