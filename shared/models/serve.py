"""Which model an engine serves: the labs' small one, or the one that `MODEL=` names."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.models.catalog import SMOLLM2
from shared.models.gguf_header import GGUFError, hf_config
from shared.models.store import (
    ModelError,
    Progress,
    forget_damaged,
    smollm2_bf16,
    smollm2_gguf,
)

EngineName = Literal["vllm", "portable"]


@dataclass(frozen=True)
class ServedModel:
    """A model on disk, of the kind that the engine takes."""

    path: Path
    name: str
    """The name that clients send as `model`."""
    config: dict[str, Any]
    """The model's `config.json`, or for a GGUF its header under the same names."""


def served_model(wanted: EngineName, progress: Progress | None = None) -> ServedModel:
    """The model for an engine: `MODEL=<path>` if set, else SmolLM2-135M-Instruct.

    Raises:
        ModelError: it cannot be had, or is not of the kind that the engine takes.
    """
    override = os.environ.get("MODEL", "").strip()
    if override:
        path = _checked_override(Path(override).expanduser(), wanted)
        own = (path.stem if path.is_file() else path.resolve().name).lower()
        name = re.sub(r"[^a-z0-9._-]+", "-", own).strip("-") or "model"
    else:
        fetch = smollm2_gguf if wanted == "portable" else smollm2_bf16
        path, name = fetch(progress), SMOLLM2.name
        try:
            _config(path)
        except ModelError:
            # Of the right size and age, and yet damaged: hash everything, and mend it now.
            if not forget_damaged():
                raise
            path = fetch(progress)
    return ServedModel(path.resolve(), name, _config(path))


def _checked_override(path: Path, wanted: EngineName) -> Path:
    if not path.exists():
        raise ModelError(f"MODEL={path} does not exist. Unset MODEL to use the labs' own model.")
    if wanted == "portable" and (path.is_dir() or path.suffix.lower() != ".gguf"):
        raise ModelError(
            f"MODEL={path}: the portable engine (llama.cpp) takes a .gguf file. "
            "For a Hugging Face directory add ENGINE=vllm."
        )
    if wanted == "vllm" and not (path / "config.json").is_file():
        raise ModelError(
            f"MODEL={path}: vLLM takes a Hugging Face directory (config.json, weights, "
            "tokenizer). For a .gguf file add ENGINE=portable."
        )
    return path


def _config(path: Path) -> dict[str, Any]:
    try:
        if path.is_file():
            return hf_config(path)
        config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except GGUFError as error:
        raise ModelError(f"{error}.") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"The model's configuration cannot be read: {error}") from error
    # Newer writers say `dtype`; multimodal models nest what concerns the language model.
    config = {**config, **config.get("text_config", {})}
    config.setdefault("torch_dtype", config.get("dtype", "bfloat16"))
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if heads and hidden:
        config.setdefault("num_key_value_heads", heads)
        config.setdefault("head_dim", hidden // heads)
    return config
