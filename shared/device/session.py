"""What the device lends a bundle's runtime: ONNX Runtime on one thread, with a count of cycles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tokenizers
import tokenizers.models

from shared.device.cycles import CostModel

_total = 0


class Session:
    """A model that is loaded.

    Raises:
        Exception: as ONNX Runtime does, for a file that is no model.
    """

    def __init__(self, path: Path | str) -> None:
        self._costs = CostModel(onnx.load(str(path)))
        self._session = _load(str(path))

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """The model's outputs in their order. Its cycles are added to the count."""
        global _total
        outputs = self._session.run(None, dict(feeds))
        _total += self._costs.cycles({name: value.shape for name, value in feeds.items()})
        return outputs


def cycles_so_far() -> int:
    """Cycles of all passes of all sessions in this process."""
    return _total


def warm_up() -> None:
    """Use the libraries once, so that what they take themselves is not charged to a bundle."""
    helper, numbers = onnx.helper, onnx.TensorProto.FLOAT
    weights = helper.make_tensor("w", numbers, [8, 8], [0.5] * 64)
    graph = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["back"]),
            helper.make_node("MatMul", ["back", "w"], ["y"]),
        ],
        "warm_up",
        [helper.make_tensor_value_info("x", numbers, ["n", 8])],
        [helper.make_tensor_value_info("y", numbers, ["n", 8])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    _load(model.SerializeToString()).run(None, {"x": np.ones((4, 8), np.float32)})
    CostModel(model).cycles({"x": (4, 8)})
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    tokenizers.Tokenizer.from_str(tokenizer.to_str()).encode("a")


def _load(model: str | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
