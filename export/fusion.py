"""A component's graph for ONNX Runtime on CUDA: with operators of its own, and channels last.

Portable ONNX spells normalisation over groups out in nine operators, and its convolutions have the channels before the
pixels, which tensor cores do not read. Here both are one operator with the channels last, and what is added before a
normalisation is a part of it. Weights are those of the portable graph; the transposition that a convolution's take is
folded when the graph is loaded, where transpositions that undo each other go too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxruntime.transformers.fusion_skip_group_norm import FusionSkipGroupNorm
from onnxruntime.transformers.onnx_model_unet import UnetOnnxModel

from uid.bundles.tensors import Array
from uid.export.attention import DOMAIN, fuse_attention, input_of, made_by, read_by

ONNXRUNTIME_CUDA = "onnxruntime-cuda"  # the backend that a component's variant may be for
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # (B, C, H, W) to (B, H, W, C), and back
CHANNELS_PER_THREAD = 2  # of the CUDA kernel: it takes groups of an even number of channels
GATED_WIDTHS = (2560, 5120, 10240)  # for which CUDA kernels for gated GELU, and the sum after it, are compiled


def fuse_for_cuda(model: ir.Model) -> ir.Model | None:
    """The same graph in other operators, or None where none is normalised over groups; ``model`` itself is used up."""
    fuse_attention(model)
    each(model, "InstanceNormalization", fuse_group_norm)
    if not any(node.op_type == "GroupNorm" for node in model.graph):
        return None
    each(model, "Gelu", fuse_gated_gelu)
    model.graph.opset_imports[DOMAIN] = 1
    fused = fuse_sums(model)
    each(fused, "Conv", fuse_convolution)  # not before: ONNX Runtime's shape inference fails at some of the new ones
    each(fused, "Transpose", unsqueeze_in_place)
    return fused


def each(model: ir.Model, op: str, change: Callable[[ir.Node], None]) -> None:
    """Change the nodes of an operator, and remove what nothing reads any more."""
    for node in list(model.graph):
        if node.op_type == op:
            change(node)
    RemoveUnusedNodesPass()(model)


def fuse_group_norm(instance: ir.Node) -> None:
    """One operator in place of a normalisation over groups, and of the SiLU after it.

    The optimizer that comes with ONNX Runtime would do this, but takes float32 scales alone, and a product far behind
    for the SiLU.
    """
    try:
        flat = made_by(instance.inputs[0], "Reshape")
        x = input_of(flat)
        shaped = read_by(instance.outputs[0], "Reshape")
        scaled = read_by(shaped.outputs[0], "Mul")
        last = read_by(scaled.outputs[0], "Add")
        gamma, beta = (per_channel(input_of(node, 1)) for node in (scaled, last))
        ones, zeros = (constant(input_of(instance, i)) for i in (1, 2))
        split = constant(input_of(flat, 1))
        whole = made_by(input_of(shaped, 1), "Shape").inputs[0] is x
    except LookupError:
        return
    groups = len(ones)
    even = gamma.size % (CHANNELS_PER_THREAD * groups) == 0
    if not even or not whole or (ones != 1).any() or zeros.any() or list(split) != [0, groups, -1]:
        return
    activated = silu(last.outputs[0])
    attributes = {
        "epsilon": instance.attributes["epsilon"].as_float(),
        "groups": groups,
        "activation": int(activated is not None),
    }
    scales = {"gamma": gamma, "beta": beta}
    inputs = [initializer(instance, f"{instance.name}.{name}", value) for name, value in scales.items()]
    channels_last("GroupNorm", [x, *inputs], attributes, activated or last)


def silu(value: ir.Value) -> ir.Node | None:
    """The product that ends ``x * sigmoid(x)``, where nothing else reads x."""
    readers = list(value.consumers())
    by_type = {node.op_type: node for node in readers}
    if len(readers) != 2 or by_type.keys() != {"Sigmoid", "Mul"}:
        return None
    product, sigmoid = by_type["Mul"], by_type["Sigmoid"].outputs[0]
    return product if set(product.inputs) == {value, sigmoid} and len(sigmoid.uses()) == 1 else None


def fuse_convolution(conv: ir.Node) -> None:
    """A convolution with the channels last: of two dimensions, all channels in each output."""
    weight, groups = input_of(conv, 1), conv.attributes.get("group")
    if weight.const_value is None or len(weight.const_value.shape) != 4 or (groups and groups.as_int() != 1):
        return
    last = transposed(conv, weight, TO_LAST)
    channels_last("NhwcConv", [input_of(conv), last, *conv.inputs[2:]], dict(conv.attributes), conv)


def fuse_gated_gelu(gelu: ir.Node) -> None:
    """``a * gelu(b)`` of the two halves of a biased product in one operator."""
    try:
        split = made_by(input_of(gelu), "Split")
        biased = made_by(input_of(split), "Add")
        product = read_by(gelu.outputs[0], "Mul")
        bias = constant(input_of(biased, 1))
    except LookupError:
        return
    halves = split.outputs
    if bias.ndim != 1 or bias.size not in GATED_WIDTHS or len(halves) != 2 or len(biased.outputs[0].uses()) != 1:
        return
    if gelu.inputs[0] is not halves[1] or set(product.inputs) != {halves[0], gelu.outputs[0]}:
        return
    node = ir.node("BiasSplitGelu", [input_of(biased), input_of(biased, 1)], domain=DOMAIN, name=f"{gelu.name}.fused")
    replace(product, node)


def fuse_sums(model: ir.Model) -> ir.Model:
    """Sums that are normalised, by the optimizer that comes with ONNX Runtime: it works on ONNX's own classes.

    It never sees large weights, which stay in their file.
    """
    optimizer = UnetOnnxModel(ir.serde.serialize_model(model))
    optimizer.fuse_skip_layer_norm()
    FusionSkipGroupNorm(optimizer).apply()
    optimizer.fuse_add_bias_skip_layer_norm()
    optimizer.fuse_bias_add()
    optimizer.prune_graph()
    optimizer.topological_sort()
    fused = ir.serde.deserialize_model(optimizer.model)
    for value in fused.graph.initializers.values():
        source = model.graph.initializers.get(str(value.name))
        if source is not None:
            value.const_value = source.const_value  # which knows the folder of its file
    return fused


def unsqueeze_in_place(transpose: ir.Node) -> None:
    """The two axes that are put behind the channels of a (B, C), to go before them, put there at once."""
    node = input_of(transpose).producer()
    if node is None or node.op_type != "Unsqueeze" or list(transpose.attributes["perm"].as_ints()) != TO_LAST:
        return
    if node.inputs[1] is None or list(constant(node.inputs[1])) != [2, 3]:
        return
    axes = initializer(transpose, "axes_before_channels", np.array([1, 2], np.int64))
    replace(transpose, ir.node("Unsqueeze", [input_of(node), axes], name=f"{node.name}.last"))


def channels_last(op: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any], last: ir.Node) -> None:
    """Put an operator that reads and writes channels last in place of the node ``last`` and those before it."""
    first = inputs[0]
    assert first is not None
    x = transposed(last, first, TO_LAST)
    node = ir.node(op, [x, *inputs[1:]], attributes=attributes, domain=DOMAIN, name=f"{last.name}.fused")
    graph_of(last).insert_before(last, node)
    replace(last, ir.node("Transpose", node.outputs, attributes={"perm": TO_FIRST}, name=f"{last.name}.first"))


def transposed(before: ir.Node, value: ir.Value, permutation: list[int]) -> ir.Value:
    """A transposition of a value, put before a node."""
    node = ir.node("Transpose", [value], attributes={"perm": permutation}, name=f"{before.name}.{value.name}.last")
    graph_of(before).insert_before(before, node)
    return node.outputs[0]


def replace(old: ir.Node, new: ir.Node) -> None:
    """Put a node in another's place."""
    graph_of(old).insert_before(old, new)
    stand_in(old.outputs[0], new.outputs[0])


def stand_in(old: ir.Value, new: ir.Value) -> None:
    """Let a value be read in another's place; it takes over shape, type and name."""
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name, old.name = old.name, f"{old.name}.replaced"


def initializer(near: ir.Node, name: str, array: Array) -> ir.Value:
    """A constant of the graph that a node is in; the same one for the same name."""
    graph = graph_of(near)
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that a node is in."""
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def constant(value: ir.Value) -> Array:
    """The value of a constant; raises ``LookupError`` for any other tensor."""
    if value.const_value is None:
        raise LookupError(value.name)
    return value.const_value.numpy()


def per_channel(value: ir.Value) -> Array:
    """A constant of shape (C, 1, 1) as (C,), in float32; ``LookupError`` if it is none."""
    array = constant(value)
    if array.ndim != 3 or math.prod(array.shape[1:]) != 1:
        raise LookupError(value.name)
    return np.asarray(array, np.float32).reshape(-1)
