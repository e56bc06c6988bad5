"""What a model costs on the device, counted and not timed.

The device has no clock that a test could trust: the machine that stands for it is shared, and a
second there says more about its neighbours than about the model. So cycles are counted from the
operations of the graph and the shapes they work on. The same model with the same input costs the
same, today and on another machine. The rates are those of an imagined small processor, in the
proportions in which real ones differ: int8 four times as fast as float32, that twice as float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, shape_inference

_PRODUCTS = {"MatMul", "Gemm", "MatMulInteger"}
_KEPT_ELEMENTS = 64
"""Constants up to this size may be shapes or axes; larger ones are weights, whose values do not
matter here."""


@dataclass(frozen=True)
class Rates:
    """Cycles of one multiply-add of two numbers of a type, and of one element of anything else."""

    float64: int = 8
    float32: int = 4
    float16: int = 2
    int8: int = 1
    element: int = 1

    def of(self, kind: int) -> int:
        """Cycles a multiply-add with weights of this ONNX type.

        Raises:
            ValueError: the device cannot multiply this type.
        """
        rates: dict[int, int] = {
            TensorProto.DOUBLE: self.float64,
            TensorProto.FLOAT: self.float32,
            TensorProto.FLOAT16: self.float16,
            TensorProto.INT8: self.int8,
            TensorProto.UINT8: self.int8,
        }
        if kind not in rates:
            raise ValueError(f"the device cannot multiply numbers of ONNX type {kind}")
        return rates[kind]


class CostModel:
    """The cycles of one model, for inputs of any shape."""

    def __init__(self, model: onnx.ModelProto, rates: Rates | None = None) -> None:
        self._rates = rates or Rates()
        self._skeleton = _without_weights(model)
        self._known: dict[tuple[tuple[str, tuple[int, ...]], ...], int] = {}

    def cycles(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Cycles of one pass with inputs of these shapes.

        Raises:
            ValueError: a shape does not follow from those of the inputs, or an operation has a
                graph of its own (If, Loop, Scan).
        """
        key = tuple(sorted(shapes.items()))
        if key not in self._known:
            self._known[key] = self._count(shapes)
        return self._known[key]

    def _count(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        model = onnx.ModelProto()
        model.CopyFrom(self._skeleton)
        for value in model.graph.input:
            for dimension, size in zip(
                value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False
            ):
                dimension.dim_value = size
        graph = shape_inference.infer_shapes(model, strict_mode=True).graph
        types = {
            v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info, *graph.output)
        }
        kinds = {name: t.elem_type for name, t in types.items()}
        sizes = {name: [d.dim_value for d in t.shape.dim] for name, t in types.items()}
        for constant in graph.initializer:
            kinds[constant.name] = constant.data_type
            sizes[constant.name] = list(constant.dims)
        total = 0
        for node in graph.node:
            if any(
                a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
                for a in node.attribute
            ):
                raise ValueError(f"{node.op_type} has a graph of its own")
            out = sizes.get(node.output[0])
            if out is None or (
                0 in out and 0 not in [s for shape in shapes.values() for s in shape]
            ):
                raise ValueError(f"the shape of {node.output[0]} is not known")
            elements = math.prod(out)
            if node.op_type in _PRODUCTS:
                total += elements * sizes[node.input[0]][-1] * self._rates.of(kinds[node.input[1]])
            else:
                total += elements * self._rates.element
        return total


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with large constants turned into inputs: shapes are inferred as before, quickly."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    graph = skeleton.graph
    kept = []
    for constant in graph.initializer:
        if math.prod(constant.dims) <= _KEPT_ELEMENTS:
            kept.append(constant)
        elif constant.name not in {v.name for v in graph.input}:
            graph.input.append(
                onnx.helper.make_tensor_value_info(
                    constant.name, constant.data_type, list(constant.dims)
                )
            )
    small = [onnx.TensorProto.FromString(c.SerializeToString()) for c in kept]
    del graph.initializer[:]
    graph.initializer.extend(small)
    return skeleton
