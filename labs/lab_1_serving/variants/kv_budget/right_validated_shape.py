"""Reads the config into a validated record first, then does the sums block by block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, PositiveInt, model_validator


@dataclass(frozen=True)
class KVBudget:
    bytes_per_token: int
    blocks: int
    tokens: int
    sequences: int


class _Shape(BaseModel):
    # ValidationError is a ValueError, and its text names the field.
    num_hidden_layers: int = Field(gt=0, strict=True)
    num_attention_heads: int = Field(gt=0, strict=True)
    num_key_value_heads: int | None = Field(None, gt=0, strict=True)
    head_dim: int | None = Field(None, gt=0, strict=True)
    hidden_size: int | None = Field(None, gt=0, strict=True)
    multi_query: bool | None = None

    @model_validator(mode="after")
    def _complete(self) -> _Shape:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = 1 if self.multi_query else self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_key_value_heads does not divide num_attention_heads")
        if self.head_dim is None:
            if self.hidden_size is None or self.hidden_size % self.num_attention_heads:
                raise ValueError("hidden_size is missing or no multiple of num_attention_heads")
            self.head_dim = self.hidden_size // self.num_attention_heads
        return self


class _Plan(BaseModel):
    memory_bytes: int = Field(ge=0)
    block_tokens: PositiveInt
    sequence_tokens: PositiveInt


def kv_bytes_per_token(config: Mapping[str, Any], *, dtype_bytes: int = 2) -> int:
    if dtype_bytes <= 0:
        raise ValueError("dtype_bytes must be positive")
    shape = _Shape.model_validate(dict(config))
    vector_bytes = shape.num_key_value_heads * shape.head_dim * dtype_bytes
    one_layer = {"key": vector_bytes, "value": vector_bytes}
    return sum(sum(one_layer.values()) for _ in range(shape.num_hidden_layers))


def kv_budget(
    config: Mapping[str, Any],
    *,
    memory_bytes: int,
    block_tokens: int,
    sequence_tokens: int,
    dtype_bytes: int = 2,
) -> KVBudget:
    plan = _Plan(
        memory_bytes=memory_bytes, block_tokens=block_tokens, sequence_tokens=sequence_tokens
    )
    per_token = kv_bytes_per_token(config, dtype_bytes=dtype_bytes)
    per_block = per_token * plan.block_tokens
    blocks, _ = divmod(plan.memory_bytes, per_block)
    each = math.ceil(plan.sequence_tokens / plan.block_tokens)
    return KVBudget(per_token, blocks, blocks * plan.block_tokens, blocks // each)
