"""Floating-point operations of a bundle's graphs, counted from their products at concrete sizes.

Counted are Conv, ConvTranspose, MatMul and Gemm, two operations per multiplication and addition, as
``torch.utils.flop_counter`` does; attention is two MatMuls. All else together is small beside them.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from uid.bundles.declarations import Bundle, Component
from uid.bundles.tensors import HEIGHT, WIDTH, resolve
from uid.errors import BundleError
from uid.runtime.run import sizes_of


def picture_flops(bundle: Bundle, height: int, width: int, steps: int, mode: str = "deblur") -> dict[str, int]:
    """Operations of one whole image by stage: prepare, step (all of the steps), finish.

    Raises ``BundleError`` when a graph's shapes do not follow from its inputs'.
    """
    sizes = {HEIGHT: height, WIDTH: width}
    for spec in bundle.modes[mode].extra_inputs:
        sizes |= sizes_of(spec, (3, height, width))
    counts = {"prepare": 0, "step": 0, "finish": 0}
    for name in bundle.modes[mode].components:
        component = bundle.components[name]
        if component.stage in counts:
            counts[component.stage] += component_flops(bundle.folder, component, sizes)
    return counts | {"step": counts["step"] * steps}


def component_flops(folder: Path, component: Component, sizes: Mapping[str, int]) -> int:
    """Operations of one run of a component where the manifest's symbols have these values."""
    path = folder / component.file
    model = ir.load(path)  # the weights stay on disk: shapes need none
    inputs = {spec.name: resolve(spec.shape, sizes) for spec in component.inputs}
    for value in model.graph.inputs:
        value.shape = ir.Shape(inputs[str(value.name)])
    try:
        infer_shapes(model)
        return sum(node_flops(node) for node in model.graph)
    except ValueError as error:
        raise BundleError(f"cannot count the operations of {path}: {error}; export the bundle again") from error


def infer_shapes(model: ir.Model) -> None:
    """Find the shape of every value from the inputs', in place; the graph serves for nothing else afterwards.

    Reshapes take sizes that the graph computes from its inputs' shapes, so these constants are folded on the way.
    """
    for node in model.graph:
        for value in node.outputs:
            value.shape = None  # the exporter's symbols mean nothing here
    fold_constants(model, onnx_shape_inference=True)


def node_flops(node: ir.Node) -> int:
    """Operations of one node; 0 for what is no product. Raises ``ValueError`` when a size is not known."""
    if node.op_type == "MatMul":
        return 2 * math.prod(shape(node.outputs[0])) * shape(node.inputs[0])[-1]
    if node.op_type == "Gemm":
        transposed = "transA" in node.attributes and node.attributes["transA"].as_int()
        return 2 * math.prod(shape(node.outputs[0])) * shape(node.inputs[0])[0 if transposed else 1]
    if node.op_type in ("Conv", "ConvTranspose"):
        # Weights are (out, in / groups, ...), and each output is a sum over the rest; those of a transposed
        # convolution are (in, out / groups, ...), and each input goes into all of the rest.
        met = node.outputs[0] if node.op_type == "Conv" else node.inputs[0]
        return 2 * math.prod(shape(met)) * math.prod(shape(node.inputs[1])[1:])
    return 0


def shape(value: ir.Value | None) -> tuple[int, ...]:
    """A value's sizes, all of them numbers."""
    if value is None or value.shape is None or not value.shape.is_static():
        raise ValueError(f"the shape of {value} does not follow from the inputs'")
    return value.shape.numpy()
