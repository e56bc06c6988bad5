"""SmolLM2's weights, read from its file without PyTorch: a check pays milliseconds, not seconds.

The values are those of `shared.compression.model.linear_weight`.
"""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from shared.models import smollm2_bf16


def stored_weight(layer: str) -> NDArray[np.float32]:
    """A linear layer's weight: float32, (out_features, in_features).

    Source: the safetensors format, https://huggingface.co/docs/safetensors/index: the length of a
    JSON header in 8 bytes, the header, then the tensors, row by row.

    Raises:
        KeyError: the model has no layer of that name.
    """
    with (smollm2_bf16() / "model.safetensors").open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[f"{layer}.weight"]
        begin, end = entry["data_offsets"]
        file.seek(8 + length + begin)
        halves = np.frombuffer(file.read(end - begin), dtype="<u2")
    if entry["dtype"] != "BF16":
        raise ValueError(f"{layer} is stored as {entry['dtype']}, not in bfloat16")
    # A bfloat16 number is the upper half of a float32.
    return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
