"""Takes the cache's dtype from the weights' torch_dtype.

caught-by: test_the_cache_dtype_comes_from_the_argument_not_from_the_weights
hint: cache-dtype
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KVBudget:
    bytes_per_token: int
    blocks: int
    tokens: int
    sequences: int


def kv_bytes_per_token(config: Mapping[str, Any], *, dtype_bytes: int = 2) -> int:
    if dtype_bytes < 1:
        raise ValueError(f"dtype_bytes must be at least 1, not {dtype_bytes}")
    dtype_bytes = {"float32": 4, "float16": 2, "bfloat16": 2}.get(
        config.get("torch_dtype", ""), dtype_bytes
    )
    layers = _positive(config, "num_hidden_layers")
    heads = _positive(config, "num_attention_heads")
    kv_heads = _kv_heads(config, heads)
    keys_and_values = 2
    return keys_and_values * layers * kv_heads * _head_dim(config, heads) * dtype_bytes


def kv_budget(
    config: Mapping[str, Any],
    *,
    memory_bytes: int,
    block_tokens: int,
    sequence_tokens: int,
    dtype_bytes: int = 2,
) -> KVBudget:
    if memory_bytes < 0:
        raise ValueError(f"memory_bytes must not be negative, not {memory_bytes}")
    if block_tokens < 1:
        raise ValueError(f"block_tokens must be at least 1, not {block_tokens}")
    if sequence_tokens < 1:
        raise ValueError(f"sequence_tokens must be at least 1, not {sequence_tokens}")
    bytes_per_token = kv_bytes_per_token(config, dtype_bytes=dtype_bytes)
    blocks = memory_bytes // (bytes_per_token * block_tokens)
    blocks_per_sequence = -(-sequence_tokens // block_tokens)
    return KVBudget(
        bytes_per_token=bytes_per_token,
        blocks=blocks,
        tokens=blocks * block_tokens,
        sequences=blocks // blocks_per_sequence,
    )


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    if config.get("num_key_value_heads") is None:
        return 1 if config.get("multi_query") else heads
    kv_heads = _positive(config, "num_key_value_heads")
    if heads % kv_heads:
        raise ValueError(
            f"num_key_value_heads ({kv_heads}) does not divide num_attention_heads ({heads})"
        )
    return kv_heads


def _head_dim(config: Mapping[str, Any], heads: int) -> int:
    if config.get("head_dim") is not None:
        return _positive(config, "head_dim")
    hidden_size = _positive(config, "hidden_size")
    if hidden_size % heads:
        raise ValueError(
            f"hidden_size ({hidden_size}) is no multiple of num_attention_heads ({heads}), "
            "and the config has no head_dim"
        )
    return hidden_size // heads


def _positive(config: Mapping[str, Any], field: str) -> int:
    value = config.get(field)
    if value is None:
        raise ValueError(f"the config has no {field}")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{field} must be a positive int, not {value!r}")
    return value
