"""SmolLM2-135M-Instruct in PyTorch: its weights, and what its layers are given to work on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.models import smollm2_bf16

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


def load_model(path: Path | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """A fresh copy of the model, in evaluation mode (a second; 540 MB in float32).

    Args:
        path: a directory in Hugging Face's format; the labs' bfloat16 copy if not given.
    """
    folder = path or smollm2_bf16()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@cache
def tokenizer() -> Any:
    """The model's tokenizer."""
    return AutoTokenizer.from_pretrained(smollm2_bf16())


@cache
def original() -> Any:
    """The model in float32, one copy a process: read it, never change it."""
    return load_model().requires_grad_(False)


def token_windows(texts: Iterable[str], length: int = 128) -> Tokens:
    """The texts' tokens, end to end, cut into whole windows: int64, (windows, length).

    Texts are parted by the end-of-text token. What does not fill a last window is left out.
    """
    end = tokenizer().eos_token_id
    ids = [i for text in texts for i in [*tokenizer()(text)["input_ids"], end]]
    whole = len(ids) // length
    return np.array(ids[: whole * length], dtype=np.int64).reshape(whole, length)


def linear_names() -> tuple[str, ...]:
    """Names of the linear layers within the model's blocks, in order."""
    return tuple(
        name
        for name, module in original().named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    )


def linear_weight(name: str) -> Floats:
    """A linear layer's weight: float32, (out_features, in_features). A copy."""
    weight: Floats = original().get_submodule(name).weight.numpy().copy()
    return weight


def layer_inputs(names: Sequence[str], windows: Tokens) -> dict[str, Floats]:
    """What linear layers are given when the model reads the windows.

    The model runs only as far as the last of them, so early layers cost little.

    Returns:
        name to float32, (tokens, in_features); row t of each belongs to the same token.

    Raises:
        AttributeError: the model has no layer of that name.
    """
    seen: dict[str, list[Floats]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            flat = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            seen[name].append(flat.to(torch.float32).numpy().copy())
            if len({len(parts) for parts in seen.values()}) == 1:
                raise _SeenAll

        return hook

    hooks = [original().get_submodule(n).register_forward_pre_hook(keep(n)) for n in names]
    try:
        with torch.inference_mode():
            for window in windows:
                with suppress(_SeenAll):
                    original()(torch.from_numpy(window)[None])
    finally:
        for hook in hooks:
            hook.remove()
    return {name: np.concatenate(parts) for name, parts in seen.items()}


class _SeenAll(Exception):
    """Every layer that was asked about has been given its inputs."""
