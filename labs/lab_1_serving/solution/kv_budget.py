"""KV-cache budget: how many tokens and sequences fit into a memory budget.

While a model generates, it keeps one key and one value vector for each past token, in each
layer, for each key-value head. That cache, not the weights, decides how many users one server
can hold at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KVBudget:
    """What fits into a memory budget.

    Attributes:
        bytes_per_token: cache bytes of one token, over all layers.
        blocks: whole blocks that fit.
        tokens: tokens that those blocks hold.
        sequences: sequences of the asked length that those blocks hold at the same time.
    """

    bytes_per_token: int
    blocks: int
    tokens: int
    sequences: int


def kv_bytes_per_token(config: Mapping[str, Any], *, dtype_bytes: int = 2) -> int:
    """Cache bytes that one token takes, over all layers.

    The model stores a key and a value vector per token, layer and key-value head
    (multi-head, grouped-query and multi-query attention; compressed caches such as MLA are
    out of scope).

    Args:
        config: the model's `config.json` as published, with other fields beside these:
            `num_hidden_layers`, `num_attention_heads`: required.
            `num_key_value_heads`: heads that the cache stores. Absent or null: 1 if
            `multi_query` is true, else `num_attention_heads`.
            `head_dim`: width of one head. Absent or null: `hidden_size` divided by
            `num_attention_heads`; only then is `hidden_size` needed.
        dtype_bytes: bytes of one cached number: 2 for bfloat16 and float16, 1 for fp8. The
            cache has a dtype of its own; `torch_dtype` (in newer files `dtype`) is the weights'.

    Returns:
        Bytes, not bits.

    Raises:
        ValueError: a field that is needed is missing, null or not a positive int;
            `num_attention_heads` is no multiple of `num_key_value_heads`; `head_dim` is
            absent and `hidden_size` is no multiple of `num_attention_heads`; or `dtype_bytes`
            is below 1. The message names the field (`num_key_value_heads` and `hidden_size`
            for the two that contradict).

    Source: Shazeer 2019, arXiv:1911.02150; Ainslie et al. 2023, arXiv:2305.13245.
    """
    if dtype_bytes < 1:
        raise ValueError(f"dtype_bytes must be at least 1, not {dtype_bytes}")
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
    """What fits into `memory_bytes` of KV cache, in whole blocks.

    A paged cache (vLLM's PagedAttention) is cut into blocks of `block_tokens` tokens. A block
    belongs to one sequence at a time, so a sequence takes whole blocks of its own, the last
    one perhaps partly empty. Sharing of common prefixes is not counted.

    Args:
        config, dtype_bytes: as for `kv_bytes_per_token`.
        memory_bytes: the cache's memory in bytes; 1 GiB is 1,073,741,824.
        block_tokens: tokens a block.
        sequence_tokens: tokens of one sequence, prompt and answer together.

    Returns:
        The budget; all counts zero, without an error, where not even one block fits.

    Raises:
        ValueError: as for `kv_bytes_per_token`; or `memory_bytes` is negative, or
            `block_tokens` or `sequence_tokens` is below 1. The message names the argument.

    Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving
    with PagedAttention", arXiv:2309.06180.
    """
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
