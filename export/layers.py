"""A graph's layers, and graphs made over to look into them: in float32, rounding to float16, or cut down."""

import ast
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from uid.bundles.tensors import Array
from uid.export.graph import MODULES

# These move values and compute none. A Cast may round, so it is a layer.
MOVES = frozenset(
    ("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "SpaceToDepth")
) | {"Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT


@dataclass(frozen=True)
class Layer:
    """A node that computes, by one of its outputs."""

    node: str
    op: str
    tensor: str
    module: str  # in PyTorch; "after ..." where only that of an earlier layer is known, "" where none is
    sources: tuple[str, ...]  # tensors of other layers, or inputs of the graph, that it computes from
    reduced: tuple[str, ...]  # tensors that a reduction sums up


def layers_of(graph: ir.Graph) -> list[Layer]:
    """The layers of a graph in float32, in its order."""
    live = varying(graph)
    modules: dict[str, str] = {}

    def sources(node: ir.Node) -> Iterator[str]:
        for value in node.inputs:
            producer = value.producer() if value is not None and value in live else None
            if producer is not None and producer.op_type in MOVES:
                yield from sources(producer)
            elif value is not None and value in live:
                yield str(value.name)

    def layer(value: ir.Value) -> Layer:
        node = value.producer()
        assert node is not None
        tensor, module = str(value.name), module_of(node)
        before = tuple(dict.fromkeys(sources(node)))
        near = next((modules[name] for name in before if modules.get(name)), "")
        modules[tensor] = module or near
        reduced = [v.name for v in node.inputs if v in live and v.dtype == FULL] if node.op_type in SUMS else []
        known = module or (near and f"after {near}")
        return Layer(node.name or tensor, node.op_type, tensor, known, before, tuple(map(str, reduced)))

    floats = [value for node in graph for value in node.outputs if value in live and value.dtype == FULL]
    return [layer(value) for value in floats if op_of(value) not in MOVES or value.is_graph_output()]


def varying(graph: ir.Graph) -> set[ir.Value]:
    """The tensors of a graph that depend on its inputs."""
    found = set(graph.inputs)
    for node in graph:
        if any(value in found for value in node.inputs):
            found |= set(node.outputs)
    return found


def module_of(node: ir.Node) -> str:
    """The PyTorch module that a node comes from: by the exporter's note, or else by the names of its weights; or ""."""
    if MODULES in node.metadata_props:
        return str(["", *ast.literal_eval(node.metadata_props[MODULES])][-2])
    names = [str(value.name) for value in node.inputs if value is not None]
    return next((name.rpartition(".")[0] for name in names if name.endswith((".weight", ".bias"))), "")


def op_of(value: ir.Value) -> str:
    """Kind of the node that computes a tensor; "": none does."""
    node = value.producer()
    return node.op_type if node is not None else ""


def tensors_of(graph: ir.Graph) -> dict[str, ir.Value]:
    """What the nodes of a graph compute, by name."""
    return {str(value.name): value for node in graph for value in node.outputs}


def widen(graph: ir.Graph) -> None:
    """Make every float16 tensor of a graph float32."""
    widen_weights(graph)
    for node in graph:
        widen_attributes(node)
    for value in (*graph.inputs, *tensors_of(graph).values()):
        if value.dtype == HALF:
            value.type = ir.TensorType(FULL)


def widen_weights(graph: ir.Graph) -> None:
    """Make float16 weights float32 by a Cast, which engines fold when they load."""
    for value in list(graph.initializers.values()):
        if value.dtype == HALF and not all(node.op_type == "Cast" for node in value.consumers()):
            stored = ir.Value(
                name=f"{value.name}.half", shape=value.shape, type=value.type, const_value=value.const_value
            )
            cast = ir.node("Cast", [stored], attributes={"to": FULL}, name=f"{value.name}.cast")
            del graph.initializers[str(value.name)]
            substitute(graph, value, cast.outputs[0])
            graph.register_initializer(stored)
            graph.insert_before(graph[0], cast)


def widen_attributes(node: ir.Node) -> None:
    """Make a node's casts to float16, and its float16 constants, float32."""
    for name, attribute in list(node.attributes.items()):
        if node.op_type == "Cast" and name == "to" and attribute.as_int() == HALF:
            node.attributes[name] = ir.AttrInt64(name, FULL)
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == HALF:
            wide = ir.tensor(attribute.as_tensor().numpy().astype(np.float32))
            node.attributes[name] = ir.AttrTensor(name, wide)


def round_to_half(graph: ir.Graph, tensors: Iterable[str]) -> None:
    """Round these tensors of a float32 graph to float16, and back, where they are computed."""
    values = tensors_of(graph)
    for name in tensors:
        exact = values[name]
        producer = exact.producer()
        assert producer is not None
        down = ir.node("Cast", [exact], attributes={"to": HALF}, name=f"{name}.round")
        up = ir.node("Cast", [down.outputs[0]], attributes={"to": FULL}, name=f"{name}.restore")
        substitute(graph, exact, up.outputs[0], keep=down)
        exact.name, down.outputs[0].name = f"{name}.exact", f"{name}.half"
        graph.insert_after(producer, [down, up])


def substitute(graph: ir.Graph, old: ir.Value, new: ir.Value, keep: ir.Node | None = None) -> None:
    """Let all but ``keep`` read ``new``, a float32 tensor that takes the name, in place of ``old``."""
    new.name, new.shape, new.type = old.name, old.shape, ir.TensorType(FULL)
    for node, index in list(old.uses()):
        if node is not keep:
            node.replace_input_with(index, new)
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new


def cut(model: ir.Model, outputs: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Leave what ``outputs`` need of a graph, and fix the shapes of its inputs and outputs, as engines want them."""
    graph, values = model.graph, tensors_of(model.graph)
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in outputs)
    RemoveUnusedNodesPass()(model)
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    for value in (*graph.inputs, *graph.outputs):
        if str(value.name) in shapes:
            value.shape = ir.Shape(shapes[str(value.name)])


def save(model: ir.Model, source: Path, path: Path) -> None:
    """Write a graph and, beside it, the files of weights that it refers to, which lie in ``source``."""
    path.parent.mkdir(exist_ok=True)
    tensors = (value.const_value for value in model.graph.initializers.values())
    for name in {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}:
        if not (path.parent / name).exists():
            # No link: ONNX's readers refuse weights that a symbolic link leads to, and those that have two names.
            shutil.copyfile(source / name, path.parent / name)
    ir.save(model, path)


def largest_sum(tensor: ir.Value, tensors: Mapping[str, Array]) -> float:
    """An upper bound of the sums, also of squares, that a tensor's node forms of ``tensors``; 0: none, or not known."""
    node = tensor.producer()
    if node is None or node.op_type not in SUMS:
        return 0.0
    values = [None if value is None else tensors.get(str(value.name), constant(value)) for value in node.inputs]
    return float(SUMS[node.op_type](node, *values)) if values[0] is not None else 0.0


def constant(value: ir.Value) -> Array | None:
    """A weight, also one that is stored in float16, or None."""
    producer = value.producer()
    stored = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else value
    tensor = None if stored is None else stored.const_value
    return None if tensor is None else tensor.numpy()


def integer(node: ir.Node, name: str, default: int) -> int:
    """An attribute."""
    return node.attributes[name].as_int() if name in node.attributes else default


def squares(x: Array, axis: int) -> Any:
    """The largest sum of squares over ``axis`` and those after it."""
    return np.square(x, dtype=np.float32).sum(axis=tuple(range(axis % x.ndim, x.ndim))).max()


def group_squares(node: ir.Node, x: Array, *_: Array | None) -> Any:
    """GroupNormalization and InstanceNormalization."""
    groups = integer(node, "num_groups", x.shape[1])
    return squares(x.reshape(x.shape[0], groups, -1), 2)


def layer_squares(node: ir.Node, x: Array, *_: Array | None) -> Any:
    """LayerNormalization and RMSNormalization."""
    return squares(x, integer(node, "axis", -1))


def magnitudes(node: ir.Node, x: Array, axes: Array | None = None) -> Any:
    """ReduceMean and ReduceSum."""
    return np.abs(x).sum(axis=None if axes is None else tuple(axes.tolist())).max()


def exponentials(node: ir.Node, x: Array) -> Any:
    """Softmax, which subtracts the largest value first."""
    axis = integer(node, "axis", -1)
    return np.exp(x - x.max(axis=axis, keepdims=True)).sum(axis=axis).max()


def products(node: ir.Node, a: Array, b: Array | None) -> Any:
    """MatMul: no sum of some of a row's products with a column is larger than the product of their norms."""
    if b is None or a.ndim < 2 or b.ndim < 2:
        return 0.0
    rows, columns = (np.linalg.norm(m.astype(np.float32), axis=axis).max(-1) for m, axis in ((a, -1), (b, -2)))
    return np.max(rows * columns)


SUMS: Mapping[str, Callable[..., Any]] = {
    "GroupNormalization": group_squares,
    "InstanceNormalization": group_squares,
    "LayerNormalization": layer_squares,
    "RMSNormalization": layer_squares,
    "MatMul": products,
    "ReduceMean": magnitudes,
    "ReduceSum": magnitudes,
    "Softmax": exponentials,
}
