"""What operators that only ONNX Runtime's CUDA provider has compute, in standard ones: a CPU can check their graphs."""

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from uid.export.attention import DOMAIN, input_of
from uid.export.fusion import TO_FIRST, TO_LAST, constant, graph_of, initializer, stand_in

ON_CPU = {"MultiHeadAttention", "SkipLayerNormalization"}  # which the CPU provider has too
EXPANDED = {"GroupNorm", "SkipGroupNorm", "NhwcConv", "BiasSplitGelu", "BiasAdd"}
FLOAT = ir.DataType.FLOAT


def unknown_operators(model: ir.Model) -> list[str]:
    """ONNX Runtime's own operators in a graph that its CPU provider lacks, and whose meaning is not known here."""
    return sorted({node.op_type for node in model.graph if node.domain == DOMAIN} - ON_CPU - EXPANDED)


def expand(model: ir.Model) -> None:
    """Put standard operators in place of those that only the CUDA provider has."""
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type in EXPANDED:
            for output, value in zip(node.outputs, meaning(Before(node)), strict=False):  # nothing may read the sum
                stand_in(output, value)
    RemoveUnusedNodesPass()(model)


class Before:
    """Puts nodes before ``node``, one a call."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node

    def __call__(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """The output of a new node."""
        made = ir.node(op, inputs, attributes=attributes)
        graph_of(self.node).insert_before(self.node, made)
        return made.outputs[0]

    def input(self, index: int) -> ir.Value:
        """One of the node's inputs."""
        return input_of(self.node, index)

    def optional(self, index: int) -> ir.Value | None:
        """One of the node's inputs, or None."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def constant(self, name: str, value: object, dtype: type) -> ir.Value:
        """A constant, shared by name."""
        return initializer(self.node, name, np.asarray(value, dtype))

    def attribute(self, name: str) -> ir.Attr:
        """One of the node's attributes."""
        return self.node.attributes[name]


def meaning(put: Before) -> list[ir.Value]:
    """What stands for the node's outputs."""
    match put.node.op_type:
        case "GroupNorm":
            return [group_norm(put, put.input(0))]
        case "SkipGroupNorm":
            total = added(put, put("Add", put.input(0), put.input(3)), put.optional(4))
            return [group_norm(put, total), total]
        case "NhwcConv":
            return [convolution(put)]
        case "BiasSplitGelu":
            return [gated_gelu(put, put("Add", put.input(0), put.input(1)))]
        case "BiasAdd":
            return [put("Add", put("Add", put.input(0), put.input(1)), put.input(2))]
        case other:
            raise LookupError(other)


def added(put: Before, value: ir.Value, bias: ir.Value | None) -> ir.Value:
    """A sum with a bias, if there is one."""
    return value if bias is None else put("Add", value, bias)


def group_norm(put: Before, x: ir.Value) -> ir.Value:
    """(B, H, W, C) normalised over groups of channels, in float32; then SiLU, if the node says so."""
    groups = put.attribute("groups").as_int()
    first = put("Transpose", put("Cast", x, to=FLOAT), perm=TO_FIRST)
    grouped = put("Reshape", first, put.constant(f"groups.{groups}", [0, groups, -1], np.int64))
    last = put.constant("axis.last", [-1], np.int64)
    centred = put("Sub", grouped, put("ReduceMean", grouped, last))
    variance = put("ReduceMean", put("Mul", centred, centred), last)
    epsilon = put.attribute("epsilon").as_float()
    deviation = put("Sqrt", put("Add", variance, put.constant(f"epsilon.{epsilon}", epsilon, np.float32)))
    shaped = put("Reshape", put("Div", centred, deviation), put("Shape", first))
    scaled = put("Mul", put("Transpose", shaped, perm=TO_LAST), put.input(1))
    result = put("Add", scaled, put.input(2))
    if put.attribute("activation").as_int():
        result = put("Mul", result, put("Sigmoid", result))
    return put("CastLike", result, x)


def convolution(put: Before) -> ir.Value:
    """(B, H, W, C) convolved with weights (O, H, W, C)."""
    x, weight = (put("Transpose", put.input(i), perm=TO_FIRST) for i in (0, 1))
    result = put("Conv", x, weight, *put.node.inputs[2:], **dict(put.node.attributes))
    return put("Transpose", result, perm=TO_LAST)


def gated_gelu(put: Before, x: ir.Value) -> ir.Value:
    """The first half of (B, T, C) times GELU of the second."""
    width = constant(put.input(1)).size
    middle, end = (put.constant(f"width.{n}", [n], np.int64) for n in (width // 2, width))
    zero, axis = put.constant("zero", [0], np.int64), put.constant("axis.last", [-1], np.int64)
    first, second = put("Slice", x, zero, middle, axis), put("Slice", x, middle, end, axis)
    return put("Mul", first, put("Gelu", second))
