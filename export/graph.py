"""One component to one ONNX graph, its weights in a store that all components of a bundle share."""

import hashlib
import inspect
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.export import Dim

from uid.bundles.declarations import Component
from uid.bundles.tensors import BATCH, HEIGHT, WIDTH, Array, divisor_of, symbol_of
from uid.export.dummies import dummy_inputs
from uid.export.rewriting import quick_matching
from uid.families.contract import ExportComponent
from uid.families.weights import INT8_MAX

# At 21 GroupNormalization is one operator, which ONNX Runtime takes apart at every load, in twice the time of the rest;
# OpenVINO is as fast without. 23 has Attention, of which TensorRT-RTX takes only some.
OPSET = 20
EIGHT_BITS_TOLERANCE = 1e-3  # of a step: what float32 leaves of a division; other weights are half a step off somewhere
INLINE_BYTES = 4096  # smaller weights stay in the graph, where engines can fold them
MODULES = "pkg.torch.onnx.name_scopes"  # a node's note: the modules around it, outermost first, and its own name
# Somewhere torch's tracer asks whether a batch has less than 64, both branches of guidance counted. Where that is left
# open, all is traced a second time.
LARGEST_BATCH = 31
ALIGNMENT = 4096  # so that weights can be mapped into memory


class WeightStore:
    """One file of raw tensors, each distinct content once, that several ONNX graphs refer to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self.offsets: dict[tuple[str, str, tuple[int, ...]], int] = {}

    def put(self, name: str, array: Array) -> ir.ExternalTensor:
        """Store ``array`` unless its content is there already; returns the reference to it."""
        array = np.ascontiguousarray(array)
        key = (hashlib.sha256(array.data).hexdigest(), str(array.dtype), array.shape)
        if key not in self.offsets:
            self.file.seek(-self.file.tell() % ALIGNMENT, 1)
            self.offsets[key] = self.file.tell()
            array.tofile(self.file)
        return ir.ExternalTensor(
            self.path.name,
            self.offsets[key],
            array.nbytes,
            ir.DataType.from_numpy(array.dtype),
            shape=ir.Shape(array.shape),
            name=name,
            base_dir=str(self.path.parent),
        )

    def __enter__(self) -> "WeightStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def to_onnx(component: ExportComponent, size_multiple: int, side: int) -> ir.Model:
    """Trace the component's module with dynamic height and width; weights stay PyTorch's own memory.

    ``side`` is a small one that the model takes, a multiple of ``size_multiple``.
    """
    declaration = component.declaration
    inputs = dummy_inputs(declaration, trace_sizes(declaration.symbols, side))
    with warnings.catch_warnings(), quick_matching():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            component.module,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in declaration.inputs],
            output_names=[spec.name for spec in declaration.outputs],
            dynamic_shapes=dynamic_shapes(component, size_multiple),
            custom_translation_table=dict(component.translations) or None,
            verbose=False,
        )
    if program is None:
        raise RuntimeError(f"torch.onnx.export returned nothing for {declaration.name}")
    model: ir.Model = program.model
    name_dimensions(model, declaration)
    strip_notes(model)
    return model


def trace_sizes(symbols: Iterable[str], side: int) -> dict[str, int]:
    """Sizes to trace at: all different, and none 1, which tracing would take for a constant."""
    own = {BATCH: 5, HEIGHT: 2 * side, WIDTH: 3 * side}
    others = sorted(set(symbols) - set(own))
    return own | {symbol: (4 + i) * side + 2 * i + 1 for i, symbol in enumerate(others)}


def dynamic_shapes(component: ExportComponent, size_multiple: int) -> tuple[Any, ...]:
    """torch.export's dynamic axes: every size derives from one unit per axis, so "height/8" stays tied to "height"."""
    units = {HEIGHT: Dim("height_units", max=4096), WIDTH: Dim("width_units", max=4096)}
    free = {name: Dim(name, max=65536) for name in component.declaration.symbols - set(units)}
    free[BATCH] = Dim(BATCH, max=LARGEST_BATCH)

    def axis(symbol: int | str) -> Any:
        if isinstance(symbol, int):
            return None
        name = symbol_of(symbol)
        if name in free:
            return free[name]
        per_unit = size_multiple // divisor_of(symbol)
        return per_unit * units[name] if per_unit > 1 else units[name]

    shapes = [{i: axis(symbol) for i, symbol in enumerate(spec.shape)} for spec in component.declaration.inputs]
    shapes = [{i: dim for i, dim in shape.items() if dim is not None} for shape in shapes]
    parameters = inspect.signature(component.module.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return (tuple(shapes),)
    return tuple(shapes)


def name_dimensions(model: ir.Model, declaration: Component) -> None:
    """Give the graph's inputs and outputs the declaration's symbols, which say more than the tracer's."""
    for values, specs in ((model.graph.inputs, declaration.inputs), (model.graph.outputs, declaration.outputs)):
        for value, spec in zip(values, specs, strict=True):
            value.shape = ir.Shape(list(spec.shape))


def strip_notes(model: ir.Model) -> None:
    """Remove what the exporter notes down for debugging, stack traces with local paths, but for each node's modules."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(MODULES)
        node.metadata_props.clear()
        if scopes is not None:
            node.metadata_props[MODULES] = scopes
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def store_weights(model: ir.Model, store: WeightStore) -> None:
    """Move the graph's weights into the store: in 8 bits or in float16 those that lose nothing by it.

    They are made float32 again inside the graph, which engines fold when they load: a quarter or half of the size, the
    same numbers.
    """
    restoring: list[ir.Node] = []
    for name, value in list(model.graph.initializers.items()):
        assert value.const_value is not None
        array = value.const_value.numpy()
        if array.nbytes < INLINE_BYTES:
            value.const_value = ir.tensor(array, name=name)
        elif (eight := in_eight_bits(array, output_axis(value))) is not None:
            restoring.append(stored_int8(model, value, eight, store))
        elif fits_half(array):
            restoring.append(stored_half(model, value, store.put(f"{name}.half", array.astype(np.float16))))
        else:
            value.const_value = store.put(name, array)
    for node in reversed(restoring):
        model.graph.insert_before(model.graph[0], node)


def fits_half(array: Array) -> bool:
    """Whether float16 holds every one of these float32 numbers exactly."""
    if array.dtype != np.float32:
        return False
    with np.errstate(over="ignore"):
        return bool(np.array_equal(array.astype(np.float16).astype(np.float32), array))


def output_axis(value: ir.Value) -> int | None:
    """The axis of a weight's output channels where all that it serves as is the second factor of products."""
    axes = set()
    for node, index in value.uses():
        transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1
        rank = 0 if value.shape is None else len(value.shape)
        if index == 1 and node.op_type == "Conv":
            axes.add(0)
        elif index == 1 and node.op_type in ("MatMul", "Gemm") and rank == 2:
            axes.add(0 if transposed else 1)
        else:
            return None
    return axes.pop() if len(axes) == 1 else None


@dataclass(frozen=True)
class EightBits:
    """A weight as whole numbers, and what restores it."""

    numbers: Array  # int8
    scale: Array  # float32, one for each output channel
    axis: int  # of the output channels


def in_eight_bits(array: Array, axis: int | None) -> EightBits | None:
    """float32 weights in whole multiples of a scale for each output channel, as ``rounded_to_int8`` leaves them, or
    None.
    """
    if axis is None or array.dtype != np.float32:
        return None
    others = tuple(i for i in range(array.ndim) if i != axis)
    scale = np.abs(array).max(axis=others) / np.float32(INT8_MAX)
    scale[scale == 0] = 1.0
    multiples = array / np.expand_dims(scale, others)
    numbers = np.rint(multiples)
    if np.abs(multiples - numbers).max() > EIGHT_BITS_TOLERANCE:
        return None
    return EightBits(numbers.astype(np.int8), scale, axis)


def stored_int8(model: ir.Model, value: ir.Value, eight: EightBits, store: WeightStore) -> ir.Node:
    """Replace an initializer by an int8 one, its scales, and the DequantizeLinear that restores it."""
    stored = []
    for one in (store.put(f"{value.name}.int8", eight.numbers), ir.tensor(eight.scale, name=f"{value.name}.scale")):
        shape = ir.Shape(one.shape.numpy())
        stored.append(ir.Value(name=one.name, shape=shape, type=ir.TensorType(one.dtype), const_value=one))
    return restored_by(model, value, ir.node("DequantizeLinear", stored, attributes={"axis": eight.axis}))


def stored_half(model: ir.Model, value: ir.Value, tensor: ir.ExternalTensor) -> ir.Node:
    """Replace an initializer by a float16 one and the Cast that restores it."""
    stored = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(ir.DataType.FLOAT16), const_value=tensor)
    return restored_by(model, value, ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT}))


def restored_by(model: ir.Model, value: ir.Value, node: ir.Node) -> ir.Node:
    """``node``, whose inputs become initializers, in place of an initializer; the caller puts it into the graph."""
    name, restored = value.name, node.outputs[0]
    assert name is not None
    node.name = f"{name}.restored"
    restored.shape, restored.type = value.shape, value.type
    ir.convenience.replace_all_uses_with(value, restored)
    model.graph.initializers.pop(name)
    restored.name = name
    for stored in node.inputs:
        assert stored is not None
        model.graph.register_initializer(stored)
    return node
