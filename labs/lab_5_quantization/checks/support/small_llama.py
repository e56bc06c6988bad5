"""A Llama so small that it is compressed in a second, made anew for each run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = {"hidden_size": 192, "intermediate_size": 384, "num_attention_heads": 3, "head_dim": 64}
"""Divided by 64 and 32 but, as SmolLM2's, not by 128."""


def make_model(folder: Path, texts: tuple[str, ...], seed: int) -> Path:
    """Random weights and a tokenizer of 512 entries, in Hugging Face's format, two shards."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        num_hidden_layers=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        max_position_embeddings=1024,
        initializer_range=0.1,
        **COLUMNS,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="600KB")
    return folder


def tokens_of(model: Path, texts: list[str]) -> list[list[int]]:
    """The texts' tokens, whole."""
    from transformers import AutoTokenizer

    found: list[list[int]] = AutoTokenizer.from_pretrained(model)(texts)["input_ids"]
    return found


@contextmanager
def samples_read() -> Iterator[list[list[int]]]:
    """While this lasts, `oneshot` changes no model; the samples it would calibrate on, in order.

    Hundreds of them are too many to calibrate on in a check. Taken where all arguments have had
    their effect, they are the same however the arguments were written.
    """
    from unittest.mock import patch

    import torch
    from llmcompressor.entrypoints.oneshot import Oneshot

    found: list[list[int]] = []

    def read(_: Any, calibration_dataloader: Any, *__: Any, **___: Any) -> None:
        for batch in calibration_dataloader or ():
            ids = torch.atleast_2d(torch.as_tensor(batch["input_ids"]))
            mask = torch.as_tensor(batch.get("attention_mask", torch.ones_like(ids)))
            for row, kept in zip(ids, mask.reshape(ids.shape), strict=True):
                found.append(row[kept.bool()].tolist())

    with patch.object(Oneshot, "apply_recipe_modifiers", read):
        yield found


def quantization_config(folder: Path) -> dict[str, Any]:
    """What the checkpoint says about its own format."""
    import json

    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = config.get("quantization_config") or {}
    return found


def linear_layers(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Each linear layer's weight, as loaded by transformers, and its scales if it has any."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.inference_mode():
        model(torch.arange(8)[None])  # the first pass turns packed weights into numbers
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            scale = getattr(module, "weight_scale", None)
            found[name] = (
                module.weight.detach().float().numpy(),
                None if scale is None else scale.detach().float().numpy(),
            )
    return found


def stored_codes(folder: Path, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """A layer's codes and scales as they are stored, without loading the model."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if f"{layer}.weight_scale" in tensors.keys():  # noqa: SIM118
                codes = tensors.get_tensor(f"{layer}.weight")
                scale = tensors.get_tensor(f"{layer}.weight_scale")
                return codes.float().numpy(), scale.float().numpy()
    raise KeyError(f"no scales of {layer} in {folder}")


def steps(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The weight in units of its scales."""
    return weight / np.repeat(scale, weight.shape[1] // scale.shape[1], axis=1)
