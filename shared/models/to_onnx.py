"""Make the ONNX file of all-MiniLM-L6-v2 from its safetensors, without PyTorch.

The graph is BERT's encoder, written out node by node: embeddings, six layers of self-attention and
feed-forward, each followed by a layer norm. Inputs are `input_ids` and `attention_mask` (int64,
batch by sequence), the output is `last_hidden_state` (float32, batch by sequence by 384). Pooling
is left to `shared.models.embed`, where it can be read.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONVERSION = 1
"""Raise it when the outcome changes: what an older one made is then made again."""
FILE = "model.onnx"

_OPSET = 20  # the first with Gelu
_IR_VERSION = 10
_DTYPES = {"F32": np.float32, "I64": np.int64}


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: not such a file, or a data type that MiniLM does not have.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        body = file.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path.name}: {name} has the data type {entry['dtype']}")
        start, end = entry["data_offsets"]
        flat = np.frombuffer(body[start:end], dtype=_DTYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def build(source: Path, out: Path) -> None:
    """Write `out`/model.onnx from the folder of the model as it was published."""
    import onnx

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    graph = _Encoder(config, read_safetensors(source / "model.safetensors")).graph()
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="mlops-labs",
    )
    onnx.checker.check_model(model)
    onnx.save(model, out / FILE)


class _Encoder:
    """Collects nodes and weights; each method adds a part and returns its output's name."""

    def __init__(self, config: dict[str, Any], weights: dict[str, NDArray[Any]]) -> None:
        self._layers = int(config["num_hidden_layers"])
        self._heads = int(config["num_attention_heads"])
        self._width = int(config["hidden_size"])
        self._epsilon = float(config["layer_norm_eps"])
        self._weights = weights
        self._nodes: list[Any] = []
        self._constants: dict[str, NDArray[Any]] = {}

    def graph(self) -> Any:
        from onnx import TensorProto, helper, numpy_helper

        mask = self._mask()
        hidden = self._embeddings()
        for number in range(self._layers):
            hidden = self._layer(hidden, mask, f"encoder.layer.{number}")
        self._node("Identity", hidden, out="last_hidden_state")
        shape: list[Any] = ["batch", "sequence"]
        return helper.make_graph(
            self._nodes,
            "all-MiniLM-L6-v2",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, shape)
                for name in ("input_ids", "attention_mask")
            ],
            [
                helper.make_tensor_value_info(
                    "last_hidden_state", TensorProto.FLOAT, [*shape, self._width]
                )
            ],
            [numpy_helper.from_array(value, name) for name, value in self._constants.items()],
        )

    def _node(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = out or f"{op}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self._constants[name] = np.ascontiguousarray(value)
        return name

    def _weight(self, name: str) -> str:
        return self._constant(name, self._weights[name])

    def _mask(self) -> str:
        """0 where a word piece is, a very low number where padding is: (batch, 1, 1, sequence)."""
        kept = self._node("Cast", "attention_mask", to=1)
        kept = self._node("Unsqueeze", kept, self._constant("axes", np.array([1, 2], np.int64)))
        missing = self._node("Sub", self._constant("one", np.array(1, np.float32)), kept)
        lowest = np.array(np.finfo(np.float32).min, np.float32)
        return self._node("Mul", missing, self._constant("lowest", lowest))

    def _embeddings(self) -> str:
        words = self._node("Gather", self._weight("embeddings.word_embeddings.weight"), "input_ids")
        length = self._node("Shape", "input_ids", start=1, end=2)
        zero = self._constant("zero", np.array([0], np.int64))
        positions = self._node(
            "Slice", self._weight("embeddings.position_embeddings.weight"), zero, length, zero
        )
        kind = self._constant(
            "token_type", self._weights["embeddings.token_type_embeddings.weight"][0]
        )
        summed = self._node("Add", self._node("Add", words, kind), positions)
        return self._norm(summed, "embeddings.LayerNorm")

    def _layer(self, hidden: str, mask: str, name: str) -> str:
        attended = self._attention(hidden, mask, f"{name}.attention.self")
        projected = self._linear(attended, f"{name}.attention.output.dense")
        hidden = self._norm(
            self._node("Add", projected, hidden), f"{name}.attention.output.LayerNorm"
        )
        wide = self._node("Gelu", self._linear(hidden, f"{name}.intermediate.dense"))
        narrow = self._linear(wide, f"{name}.output.dense")
        return self._norm(self._node("Add", narrow, hidden), f"{name}.output.LayerNorm")

    def _attention(self, hidden: str, mask: str, name: str) -> str:
        query, key, value = (
            self._split(self._linear(hidden, f"{name}.{part}"))
            for part in ("query", "key", "value")
        )
        key = self._node("Transpose", key, perm=[0, 1, 3, 2])
        scale = np.array((self._width // self._heads) ** -0.5, np.float32)
        scores = self._node("Mul", self._node("MatMul", query, key), self._constant("scale", scale))
        weights = self._node("Softmax", self._node("Add", scores, mask), axis=-1)
        mixed = self._node("Transpose", self._node("MatMul", weights, value), perm=[0, 2, 1, 3])
        joined = self._constant("joined", np.array([0, 0, self._width], np.int64))
        return self._node("Reshape", mixed, joined)

    def _split(self, hidden: str) -> str:
        """(batch, sequence, width) to (batch, head, sequence, width of a head)."""
        shape = np.array([0, 0, self._heads, self._width // self._heads], np.int64)
        split = self._node("Reshape", hidden, self._constant("heads", shape))
        return self._node("Transpose", split, perm=[0, 2, 1, 3])

    def _linear(self, hidden: str, name: str) -> str:
        turned = self._constant(f"{name}.weight", self._weights[f"{name}.weight"].T)
        return self._node("Add", self._node("MatMul", hidden, turned), self._weight(f"{name}.bias"))

    def _norm(self, hidden: str, name: str) -> str:
        scale, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self._node("LayerNormalization", hidden, scale, bias, axis=-1, epsilon=self._epsilon)
