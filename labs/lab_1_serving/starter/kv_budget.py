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
    raise NotImplementedError("Task 1.1: write kv_bytes_per_token")


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
    raise NotImplementedError("Task 1.1: write kv_budget")
