"""One component of a bundle against a reference in float32, layer by layer.

Tensors inside a graph are seen by making them outputs, as many at a time as ``CHUNK_BYTES`` holds, of a graph that is
cut down to what they need.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from uid.bundles.declarations import Bundle
from uid.bundles.tensors import Array
from uid.engines import Backend
from uid.engines.ort.cpu import check_memory, create_cpu
from uid.errors import InputError
from uid.export.findings import JUMP, ROUNDING, Difference, LayerRow, Values, difference, findings, values_of
from uid.export.layers import (
    FULL,
    HALF,
    MOVES,
    Layer,
    cut,
    largest_sum,
    layers_of,
    op_of,
    round_to_half,
    save,
    tensors_of,
    varying,
    widen,
)

CHUNK_BYTES = 1 << 28  # of the tensors that are outputs at a time, in float32
NUMBERED = re.compile(r"val_\d+")  # what the exporter calls a tensor that has no name in PyTorch


class Pair:
    """One component: as a bundle has it, and a reference's in float32."""

    def __init__(self, bundle: Bundle, exact: Bundle, name: str, inputs: Mapping[str, Array], folder: Path) -> None:
        """``folder`` is for the graphs that are run."""
        self.name, self.folder = name, folder
        self.own = bundle.folder / bundle.components[name].file
        self.exact = exact.folder / exact.components[name].file
        self.all_half = bundle.precision == "fp32"  # whose values are judged as if they were float16
        dtypes = {spec.name: spec.dtype for spec in bundle.components[name].inputs}
        if set(dtypes) != set(inputs):
            raise InputError(
                f"component {name!r} reads {', '.join(dtypes)}, and the reference's {', '.join(inputs)}; "
                "give a reference of the same model",
                option="reference",
            )
        # Rounded as the bundle's own inputs are, so that the comparison is of what is computed from them.
        self.inputs = {key: value.astype(dtypes[key]).astype(np.float32) for key, value in inputs.items()}
        self.graph, own = ir.load(self.exact).graph, ir.load(self.own).graph
        self.tensors = tensors_of(self.graph)
        self.layers = layers_of(self.graph)
        self.halves = {str(value.name) for value in varying(own) if value.dtype == HALF}
        self.shared = shared_tensors(own, self.graph)

    def rows(self, runner: Backend | None, compared: bool) -> Iterator[LayerRow]:
        """Run both sides, and judge every layer by the errors of those before it."""
        values, differences = self.measured(runner, compared)
        errors: dict[str, float] = {}
        for layer in self.layers:
            before = max((errors.get(source, 0.0) for source in layer.sources), default=0.0)
            found = differences.get(layer.tensor)
            errors[layer.tensor] = before if found is None else math.inf if found.infinite else found.relative
            half, value = layer.tensor in self.halves, values[layer.tensor]
            jumps = found is not None and errors[layer.tensor] > JUMP * max(before, ROUNDING[half])
            yield LayerRow(self.name, layer, half, value, found, before, findings(value, jumps, half or self.all_half))

    def measured(self, runner: Backend | None, compared: bool) -> tuple[dict[str, Values], dict[str, Difference]]:
        """Run both sides chunk by chunk: the reference's values, and where ``compared`` how the bundle's differ."""
        values: dict[str, Values] = {}
        differences: dict[str, Difference] = {}
        for chunk in self.chunks():
            tensors = self.reference(chunk)
            for name in (layer.tensor for layer in chunk):
                values[name] = values_of(tensors[name], largest_sum(self.tensors[name], tensors))
            wanted = {layer.tensor: tensors[layer.tensor] for layer in chunk if layer.tensor in self.shared}
            if compared and wanted:
                differences |= self.differences(runner, wanted)
        return values, differences

    def chunks(self) -> Iterator[list[Layer]]:
        """First the component's outputs alone, computed as in use with all that a backend fuses; then the others."""
        sizes = self.sizes()
        outputs = {str(value.name) for value in self.graph.outputs}
        chunk = [layer for layer in self.layers if layer.tensor in outputs]
        taken = CHUNK_BYTES  # so that the next layer starts a chunk
        for layer in self.layers:
            if layer.tensor not in outputs:
                size = sum(sizes[name] for name in {layer.tensor, *layer.reduced})
                if chunk and taken + size > CHUNK_BYTES:
                    yield chunk
                    chunk, taken = [], 0
                chunk.append(layer)
                taken += size
        yield chunk

    def sizes(self) -> dict[str, int]:
        """Bytes of every tensor that depends on the inputs, by running the graph once for their sizes alone."""
        model = ir.load(self.exact)
        names = [str(value.name) for value in varying(model.graph) if value.dtype == FULL]
        values = tensors_of(model.graph) | {str(value.name): value for value in model.graph.inputs}
        for name in names:
            node = ir.node("Size", [values[name]])
            node.outputs[0].name, node.outputs[0].type = f"{name}.size", ir.TensorType(ir.DataType.INT64)
            model.graph.append(node)
        counted = [f"{name}.size" for name in names]
        counts = self.run(model, counted)
        return {name: 4 * int(counts[key]) for name, key in zip(names, counted, strict=True)}

    def reference(self, chunk: Sequence[Layer]) -> dict[str, Array]:
        """The layers' tensors, and those that they sum up, in float32."""
        names = dict.fromkeys(name for layer in chunk for name in (layer.tensor, *layer.reduced))
        return self.inputs | self.run(ir.load(self.exact), [name for name in names if name not in self.inputs])

    def run(self, model: ir.Model, names: Sequence[str]) -> dict[str, Array]:
        """Tensors of a float32 graph."""
        path = self.exact.with_name("cut.onnx")
        cut(model, names, {name: array.shape for name, array in self.inputs.items()})
        save(model, path.parent, path)
        session = create_cpu(None).load(path).session
        try:
            arrays = session.run(list(names), {node.name: self.inputs[node.name] for node in session.get_inputs()})
        except Exception as error:  # its exceptions share no base class
            check_memory(error, "a component's tensors")
            raise
        return dict(zip(names, arrays, strict=True))

    def differences(self, runner: Backend | None, wanted: Mapping[str, Array]) -> dict[str, Difference]:
        """What the bundle's own graph computes, against the reference's tensors."""
        model = ir.load(self.own)
        if runner is None:
            widen(model.graph)
            computed = {name: op_of(value) for name, value in tensors_of(model.graph).items() if name in self.halves}
            round_to_half(model.graph, [name for name, op in computed.items() if op not in MOVES])
        path = self.folder / "cut.onnx"
        arrays = {**self.inputs, **wanted}
        cut(model, wanted, {name: array.shape for name, array in arrays.items()})
        save(model, self.own.parent, path)
        backend = runner or create_cpu(None)
        engine = backend.load(path)
        buffers = {
            name: backend.allocate(arrays[name].shape, spec.dtype)
            for name, spec in (*engine.inputs.items(), *engine.outputs.items())
        }
        for name, spec in engine.inputs.items():
            buffers[name].write(arrays[name].astype(spec.dtype))
        engine.bind(buffers)()
        return {name: difference(array, buffers[name].read().astype(np.float32)) for name, array in wanted.items()}


def shared_tensors(own: ir.Graph, exact: ir.Graph) -> set[str]:
    """Names of the tensors that two graphs compute by the same kind of node.

    Where the graphs differ, the exporter's running numbers stand for different tensors and do not count.
    """
    ops, exact_ops = ({name: op_of(value) for name, value in tensors_of(graph).items()} for graph in (own, exact))
    shared = {name for name, op in ops.items() if exact_ops.get(name) == op}
    return shared if len(shared) == len(ops) else {name for name in shared if not NUMBERED.fullmatch(name)}
