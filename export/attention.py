"""Attention as one operator of ONNX Runtime's own, in a second graph beside the portable one.

Portable ONNX spells attention out, and its scores, (heads, queries, keys), are then tensors in memory: at 512 x 512
those of ``sd15`` take more of it than all else but the weights. ``MultiHeadAttention`` computes them block by block.
"""

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

DOMAIN = "com.microsoft"
SPLIT = [0, 2, 1, 3]  # (B, S, heads, D) to (B, heads, S, D), and back


def fuse_attention(model: ir.Model) -> int:
    """Put one ``MultiHeadAttention`` in place of each attention without a mask; returns how many there were."""
    fused = 0
    for softmax in [node for node in model.graph if node.op_type == "Softmax"]:
        found = matched(softmax)
        if found is None:
            continue
        inputs, heads, scale, output = found
        reshape = output.producer()
        assert reshape is not None
        attributes = {"num_heads": heads, "scale": scale}
        node = ir.node("MultiHeadAttention", inputs, attributes=attributes, domain=DOMAIN, name=f"{softmax.name}.fused")
        node.outputs[0].shape, node.outputs[0].type = output.shape, output.type
        model.graph.insert_before(reshape, node)
        ir.convenience.replace_all_uses_with(output, node.outputs[0])
        fused += 1
    if fused:
        model.graph.opset_imports[DOMAIN] = 1
        RemoveUnusedNodesPass()(model)
    return fused


def matched(softmax: ir.Node) -> tuple[list[ir.Value], int, float, ir.Value] | None:
    """Queries, keys and values (B, S, C), heads, scale, and the result (B, S, C), where the graph is that of attention.

    The exporter writes softmax(s q (s k)^T) v for each, and makes heads of channels before and channels of heads after.
    """
    try:
        scores = made_by(softmax.inputs[0], "MatMul")
        query, query_scale = scaled(scores.inputs[0])
        key, key_scale = scaled(scores.inputs[1])
        for op in ("Reshape", "Transpose", "Reshape"):  # its last two axes exchanged
            key = input_of(made_by(key, op))
        weighted = read_by(softmax.outputs[0], "MatMul")
        inputs = [channels(value) for value in (query, key, input_of(weighted, 1))]
        output = read_by(read_by(weighted.outputs[0], "Transpose").outputs[0], "Reshape").outputs[0]
        heads = query.shape[1] if query.shape is not None else None
    except LookupError:
        return None
    if not isinstance(heads, int) or output.is_graph_output():
        return None
    return inputs, heads, query_scale * key_scale, output


def made_by(value: ir.Value | None, op: str) -> ir.Node:
    """The node that writes a value; ``LookupError`` if it is another one."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != op:
        raise LookupError(op)
    return node


def read_by(value: ir.Value, op: str) -> ir.Node:
    """The only node that reads a value; ``LookupError`` if there are more, or it is another one."""
    readers = list(value.consumers())
    if len(readers) != 1 or readers[0].op_type != op:
        raise LookupError(op)
    return readers[0]


def input_of(node: ir.Node, index: int = 0) -> ir.Value:
    """An input that must be there."""
    value = node.inputs[index]
    if value is None:
        raise LookupError(node.op_type)
    return value


def scaled(value: ir.Value | None) -> tuple[ir.Value, float]:
    """A value before it was multiplied by a constant, and the constant."""
    product = made_by(value, "Mul")
    factor = ir.convenience.get_const_tensor(input_of(product, 1))
    if factor is None or math.prod(factor.shape.numpy()) != 1:
        raise LookupError("Mul")
    return input_of(product), float(np.asarray(factor.numpy()).item())


def channels(value: ir.Value) -> ir.Value:
    """(B, heads, S, D) as it was before its channels became heads, (B, S, C)."""
    transposed = made_by(value, "Transpose")
    if list(transposed.attributes["perm"].as_ints()) != SPLIT:
        raise LookupError("Transpose")
    source = input_of(made_by(input_of(transposed), "Reshape"))
    if source.shape is None or len(source.shape) != 3:
        raise LookupError("Reshape")
    return source
