"""Attention shapes of published models, as their `config.json` files state them.

Each entry keeps the fields that bear on the KV cache under their published names, and a few
that do not, as a real file has them. `source` is the model's page on the Hugging Face Hub.
`bytes_per_token` is the known size for a 2-byte cache, worked out by hand:
2 (key and value) x layers x key-value heads x head width x 2 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublishedModel:
    name: str
    source: str
    config: dict[str, Any]
    bytes_per_token: int


def _model(name: str, bytes_per_token: int, **config: Any) -> PublishedModel:
    return PublishedModel(name, f"https://huggingface.co/{name}", config, bytes_per_token)


# Grouped-query attention: fewer key-value heads than query heads.
LLAMA_3_8B = _model(
    "meta-llama/Meta-Llama-3-8B",
    2 * 32 * 8 * 128 * 2,  # 131,072
    model_type="llama",
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=8,
    torch_dtype="bfloat16",
)
LLAMA_3_70B = _model(
    "meta-llama/Meta-Llama-3-70B",
    2 * 80 * 8 * 128 * 2,  # 327,680
    model_type="llama",
    hidden_size=8192,
    intermediate_size=28672,
    num_attention_heads=64,
    num_hidden_layers=80,
    num_key_value_heads=8,
    torch_dtype="bfloat16",
)
MISTRAL_7B = _model(
    "mistralai/Mistral-7B-v0.1",
    2 * 32 * 8 * 128 * 2,  # 131,072
    model_type="mistral",
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=8,
    sliding_window=4096,
    torch_dtype="bfloat16",
)
QWEN2_5_7B = _model(
    "Qwen/Qwen2.5-7B",
    2 * 28 * 4 * 128 * 2,  # 57,344
    model_type="qwen2",
    hidden_size=3584,
    intermediate_size=18944,
    num_attention_heads=28,
    num_hidden_layers=28,
    num_key_value_heads=4,
    torch_dtype="bfloat16",
)
SMOLLM2_135M = _model(
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    2 * 30 * 3 * 64 * 2,  # 23,040
    model_type="llama",
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    num_hidden_layers=30,
    num_key_value_heads=3,
    torch_dtype="bfloat16",
)
TINYLLAMA = _model(
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    2 * 22 * 4 * 64 * 2,  # 22,528
    model_type="llama",
    hidden_size=2048,
    intermediate_size=5632,
    num_attention_heads=32,
    num_hidden_layers=22,
    num_key_value_heads=4,
    torch_dtype="bfloat16",
)

# Multi-head attention: as many key-value heads as query heads.
LLAMA_2_7B = _model(
    "meta-llama/Llama-2-7b-hf",
    2 * 32 * 32 * 128 * 2,  # 524,288
    model_type="llama",
    hidden_size=4096,
    intermediate_size=11008,
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=32,
    torch_dtype="float16",
)
# Written before grouped-query attention: the field does not exist.
LLAMA_1_7B = _model(
    "huggyllama/llama-7b",
    2 * 32 * 32 * 128 * 2,  # 524,288
    model_type="llama",
    hidden_size=4096,
    intermediate_size=11008,
    num_attention_heads=32,
    num_hidden_layers=32,
    torch_dtype="float16",
)

# Multi-query attention: one key-value head.
GEMMA_2B = _model(
    "google/gemma-2b",
    2 * 18 * 1 * 256 * 2,  # 18,432
    model_type="gemma",
    head_dim=256,
    hidden_size=2048,
    intermediate_size=16384,
    num_attention_heads=8,
    num_hidden_layers=18,
    num_key_value_heads=1,
    torch_dtype="bfloat16",
)
# Falcon says it with a flag of its own.
FALCON_7B = _model(
    "tiiuae/falcon-7b",
    2 * 32 * 1 * 64 * 2,  # 8,192
    model_type="falcon",
    hidden_size=4544,
    multi_query=True,
    new_decoder_architecture=False,
    num_attention_heads=71,
    num_hidden_layers=32,
    torch_dtype="bfloat16",
)

# An explicit head width that is not hidden_size / num_attention_heads.
GEMMA_7B = _model(
    "google/gemma-7b",
    2 * 28 * 16 * 256 * 2,  # 458,752
    model_type="gemma",
    head_dim=256,  # 3072 / 16 would be 192
    hidden_size=3072,
    intermediate_size=24576,
    num_attention_heads=16,
    num_hidden_layers=28,
    num_key_value_heads=16,
    torch_dtype="bfloat16",
)
MISTRAL_NEMO = _model(
    "mistralai/Mistral-Nemo-Base-2407",
    2 * 40 * 8 * 128 * 2,  # 163,840
    model_type="mistral",
    head_dim=128,  # 5120 / 32 would be 160
    hidden_size=5120,
    intermediate_size=14336,
    num_attention_heads=32,
    num_hidden_layers=40,
    num_key_value_heads=8,
    torch_dtype="bfloat16",
)
QWEN3_0_6B = _model(
    "Qwen/Qwen3-0.6B",
    2 * 28 * 8 * 128 * 2,  # 114,688
    model_type="qwen3",
    head_dim=128,  # 1024 / 16 would be 64
    hidden_size=1024,
    intermediate_size=3072,
    num_attention_heads=16,
    num_hidden_layers=28,
    num_key_value_heads=8,
    torch_dtype="bfloat16",
)

GROUPED_QUERY = [LLAMA_3_8B, LLAMA_3_70B, MISTRAL_7B, QWEN2_5_7B, SMOLLM2_135M, TINYLLAMA]
MULTI_QUERY = [GEMMA_2B, FALCON_7B]
EXPLICIT_HEAD_DIM = [GEMMA_7B, MISTRAL_NEMO, QWEN3_0_6B]
