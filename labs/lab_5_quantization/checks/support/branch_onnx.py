"""The small model as ONNX graphs: as it is, smaller in ways that work, and in ways that don't."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from support.branch_models import Array, Weights

Part = tuple[list[NodeProto], dict[str, np.ndarray]]
"""Nodes and the constants that they use."""


def as_float32(weights: Weights) -> bytes:
    """The weights as they are."""
    return _graph(weights, _gather(weights), _product(weights.hidden))


def with_float16_layer(weights: Weights) -> bytes:
    """The hidden layer in half precision."""
    nodes = [
        helper.make_node("Cast", ["vectors"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "hidden"], ["product"]),
        helper.make_node("Cast", ["product"], ["raw"], to=TensorProto.FLOAT),
    ]
    return _graph(weights, _gather(weights), (nodes, {"hidden": weights.hidden.astype(np.float16)}))


def with_int8_layer(weights: Weights) -> bytes:
    """The hidden layer in int8, its input quantized as it comes."""
    values, scale = _int8(weights.hidden)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["vectors"], ["q", "q_scale", "q_zero"]),
        helper.make_node("MatMulInteger", ["q", "hidden", "q_zero"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["product"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["q_scale", "scale"], ["both"]),
        helper.make_node("Mul", ["product", "both"], ["raw"]),
    ]
    constants = {"hidden": values, "scale": np.array(scale, np.float32)}
    return _graph(weights, _gather(weights), (nodes, constants))


def with_int8_words(weights: Weights) -> bytes:
    """Word vectors and hidden layer in int8; only what is looked up is brought back."""
    values, scale = _int8(weights.embedding)
    gather = [
        helper.make_node("Gather", ["embedding", "ids"], ["small"]),
        helper.make_node("DequantizeLinear", ["small", "word_scale"], ["vectors"]),
    ]
    layer, layer_scale = _int8(weights.hidden)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["vectors"], ["q", "q_scale", "q_zero"]),
        helper.make_node("MatMulInteger", ["q", "hidden", "q_zero"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["product"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["q_scale", "scale"], ["both"]),
        helper.make_node("Mul", ["product", "both"], ["raw"]),
    ]
    return _graph(
        weights,
        (gather, {"embedding": values, "word_scale": np.array(scale, np.float32)}),
        (nodes, {"hidden": layer, "scale": np.array(layer_scale, np.float32)}),
    )


def without_units(weights: Weights, gone: list[int]) -> Weights:
    """The weights without some of the hidden units."""
    keep = [i for i in range(len(weights.hidden_bias)) if i not in gone]
    return replace(
        weights,
        hidden=weights.hidden[:, keep],
        hidden_bias=weights.hidden_bias[keep],
        out=weights.out[keep],
    )


def widened(weights: Weights) -> bytes:
    """Twice as many hidden units, two and two alike: the same answers for twice the work."""
    wide = replace(
        weights,
        hidden=np.tile(weights.hidden, 2),
        hidden_bias=np.tile(weights.hidden_bias, 2),
        out=np.tile(weights.out, (2, 1)) / 2,
    )
    return as_float32(wide)


def with_float64_layer(weights: Weights) -> bytes:
    """The hidden layer in double precision, as an export that forgot a cast leaves it."""
    nodes = [
        helper.make_node("Cast", ["vectors"], ["double"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["double", "hidden"], ["product"]),
        helper.make_node("Cast", ["product"], ["raw"], to=TensorProto.FLOAT),
    ]
    return _graph(weights, _gather(weights), (nodes, {"hidden": weights.hidden.astype(np.float64)}))


def brought_back_each_time(weights: Weights) -> bytes:
    """Stored in int8, and the hidden layer brought back to float32 for each text."""
    values, scale = _int8(weights.hidden)
    nodes = [
        helper.make_node("DequantizeLinear", ["hidden", "scale"], ["full"]),
        helper.make_node("MatMul", ["vectors", "full"], ["raw"]),
    ]
    constants = {"hidden": values, "scale": np.array(scale, np.float32)}
    return _graph(weights, _gather(weights), (nodes, constants))


def whole_table_brought_back(weights: Weights) -> bytes:
    """Word vectors in int8, all of which are brought back to look up a dozen."""
    values, scale = _int8(weights.embedding)
    gather = [
        helper.make_node("DequantizeLinear", ["embedding", "word_scale"], ["full"]),
        helper.make_node("Gather", ["full", "ids"], ["vectors"]),
    ]
    constants = {"embedding": values, "word_scale": np.array(scale, np.float32)}
    return _graph(weights, (gather, constants), _product(weights.hidden))


SMALLER: tuple[Callable[[Weights], bytes], ...] = (
    with_float16_layer,
    with_int8_layer,
    with_int8_words,
)
SLOWER: tuple[Callable[[Weights], bytes], ...] = (
    widened,
    with_float64_layer,
    brought_back_each_time,
    whole_table_brought_back,
)


def _int8(values: Array) -> tuple[np.ndarray, float]:
    scale = float(np.abs(values).max()) / 127
    return np.clip(np.round(values / scale), -127, 127).astype(np.int8), scale


def _gather(weights: Weights) -> Part:
    node = helper.make_node("Gather", ["embedding", "ids"], ["vectors"])
    return [node], {"embedding": weights.embedding}


def _product(hidden: np.ndarray) -> Part:
    return [helper.make_node("MatMul", ["vectors", "hidden"], ["raw"])], {"hidden": hidden}


def _graph(weights: Weights, gather: Part, layer: Part) -> bytes:
    nodes = [
        *gather[0],
        *layer[0],
        helper.make_node("Add", ["raw", "hidden_bias"], ["biased"]),
        helper.make_node("Relu", ["biased"], ["units"]),
        helper.make_node("ReduceMean", ["units"], ["pooled"], axes=[0], keepdims=1),
        helper.make_node("MatMul", ["pooled", "out"], ["scores"]),
        helper.make_node("Add", ["scores", "out_bias"], ["logits"]),
    ]
    constants = gather[1] | layer[1]
    constants |= {
        "hidden_bias": weights.hidden_bias,
        "out": weights.out,
        "out_bias": weights.out_bias,
    }
    graph = helper.make_graph(
        nodes,
        "router",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["words"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, len(weights.out_bias)])],
        [numpy_helper.from_array(np.ascontiguousarray(v), name) for name, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()
