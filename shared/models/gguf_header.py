"""Read a GGUF file's metadata: enough to name the model's shape as its `config.json` would.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

_MAGIC = b"GGUF"
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_MAX_KEYS = 10_000
_MAX_BYTES = 1 << 26


class GGUFError(ValueError):
    """The file is no readable GGUF."""


def read_metadata(path: Path, *, until: str = "") -> dict[str, Any]:
    """Key-value pairs of a GGUF header. Arrays are given by their length only.

    Args:
        until: a key to stop before. A vocabulary holds 100,000 strings to step over one by one,
            and the model's shape usually comes before it.

    Raises:
        GGUFError: another format, or cut off.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise GGUFError(f"{path.name} is no GGUF file: it does not begin with 'GGUF'")
            version = _number(file, "<I")
            if version not in (2, 3):
                raise GGUFError(f"{path.name} is GGUF version {version}; 2 and 3 are known")
            _number(file, "<Q")  # number of tensors
            count = _number(file, "<Q")
            if count > _MAX_KEYS:
                raise GGUFError(f"{path.name} claims {count} metadata keys")
            metadata: dict[str, Any] = {}
            for _ in range(count):
                key = _string(file)
                if key == until:
                    break
                metadata[key] = _value(file, _number(file, "<I"))
            return metadata
    except (struct.error, UnicodeDecodeError) as error:
        raise GGUFError(f"{path.name} is cut off or damaged") from error


def hf_config(path: Path) -> dict[str, Any]:
    """The model's shape under the names that Hugging Face configurations use.

    `torch_dtype` is ``"float16"``: the type in which llama.cpp keeps the KV cache, whatever the
    weights are quantized to. `quantization` names the weights' file type.

    Raises:
        GGUFError: not a GGUF, or one without a transformer's shape.
    """
    meta = read_metadata(path, until="tokenizer.ggml.tokens")
    if f"{meta.get('general.architecture')}.vocab_size" not in meta:
        meta = read_metadata(path)
    arch = meta.get("general.architecture")

    def of(name: str) -> Any:
        return meta.get(f"{arch}.{name}")

    heads, hidden, layers = of("attention.head_count"), of("embedding_length"), of("block_count")
    if not all(isinstance(v, int) and v > 0 for v in (heads, hidden, layers)):
        raise GGUFError(f"{path.name} does not describe a transformer language model")
    config = {
        "model_type": arch,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv") or heads,
        "hidden_size": hidden,
        "head_dim": of("attention.key_length") or hidden // heads,
        "intermediate_size": of("feed_forward_length"),
        "max_position_embeddings": of("context_length"),
        "vocab_size": of("vocab_size") or meta.get("tokenizer.ggml.tokens"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_theta": of("rope.freq_base"),
        "torch_dtype": "float16",
        "quantization": _FILE_TYPES.get(meta.get("general.file_type", -1), "unknown"),
    }
    return {name: value for name, value in config.items() if value is not None}


_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    12: "Q3_K_M",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    32: "BF16",
}


def _number(file: BinaryIO, layout: str) -> Any:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def _string(file: BinaryIO) -> str:
    size = _number(file, "<Q")
    if size > _MAX_BYTES:
        raise GGUFError("a metadata string is impossibly long: the file is damaged")
    return file.read(size).decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind in _SCALARS:
        return _number(file, _SCALARS[kind])
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        raise GGUFError(f"unknown metadata type {kind}: the file is damaged")
    inner, length = _number(file, "<I"), _number(file, "<Q")
    if inner in _SCALARS:
        file.seek(length * struct.calcsize(_SCALARS[inner]), 1)
    else:
        if length > _MAX_BYTES:
            raise GGUFError("a metadata array is impossibly long: the file is damaged")
        for _ in range(length):
            _value(file, inner) if inner == _ARRAY else _skip_string(file)
    return length


def _skip_string(file: BinaryIO) -> None:
    file.seek(_number(file, "<Q"), 1)
