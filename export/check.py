"""Which layer makes a picture wrong: a bundle's components, layer by layer, on what they read when a picture is run.

The reference is float32 arithmetic in ONNX Runtime on the bundle's own weights: it shows how large the values truly
are, and any other way to run the component is held against it. Tensors inside a graph are seen by making them outputs,
as many at a time as ``CHUNK_BYTES`` holds, of a graph that is cut down to what they need.

On the CPU, ONNX Runtime computes float16 graphs in float32 and rounds where it has to, so that an overflow inside a
graph may go unseen. What stands for a GPU here rounds to float16 after every layer.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from uid.engines import Array, Backend, Report, TensorSpec, create
from uid.engines.onnxruntime import create_cpu
from uid.engines.onnxruntime_session import memory_errors
from uid.errors import InputError
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
from uid.runtime.bundle import STEPS, Bundle
from uid.runtime.images import read_image
from uid.runtime.pixels import check_image, pad, planes, to_float
from uid.runtime.plan import GUIDANCE, STATE, Plans, number
from uid.runtime.schedule import Step, ddim

HALF_MAX = 65504.0
HALF_INFINITE = 65520.0  # from here on float16 rounds to infinity
HALF_NORMAL = 2.0**-14  # below it float16 has fewer than 11 bits
NEAR = 4  # a value is near when this many times it would overflow
TINY_SHARE = 0.5  # of a tensor's values other than 0
JUMP = 10  # times the error of what a layer computes from, or of one rounding where that is larger
ROUNDING = {True: 2.0**-10, False: 1e-5}  # relative error that any layer in float16, or in float32, may add
CHUNK_BYTES = 1 << 30  # of the tensors that are outputs at a time, in float32
FAULTS = ("jump", "overflow")  # the findings that make a picture wrong
FINDINGS = (*FAULTS, "near", "tiny", "sum")  # worst first
NUMBERED = re.compile(r"val_\d+")  # what the exporter calls a tensor that has no name in PyTorch


@dataclass(frozen=True)
class Values:
    """What a layer computes in float32."""

    shape: tuple[int, ...]
    largest: float  # magnitude, among the finite
    tiny: float  # share below float16's smallest normal number, among those that are not 0
    total: float  # no sum that a reduction forms is larger; 0: no reduction, or not known


@dataclass(frozen=True)
class Difference:
    """A layer's tensor against the reference's; errors are among the finite."""

    largest: float  # absolute
    relative: float  # L2 norm of the error over that of the reference
    infinite: int  # values that are NaN or infinite, and finite in the reference


@dataclass(frozen=True)
class Row:
    """What was found out about one layer."""

    component: str
    layer: Layer
    half: bool  # the bundle computes it in float16
    values: Values
    difference: Difference | None  # None: not compared
    before: float  # largest relative error among what it computes from; inf: NaN or infinity is there
    findings: tuple[str, ...]  # of FINDINGS, worst first

    @property
    def wrong(self) -> bool:
        """Whether it makes a picture wrong."""
        return any(finding in FAULTS for finding in self.findings)

    def figures(self) -> tuple[str, str, str]:
        """Largest value, relative error of what it computes from, and its own, for a table."""
        found = self.difference
        if found is None:
            return f"{self.values.largest:.3g}", "", ""
        own = f"{found.infinite} not finite" if found.infinite else f"{found.relative:.1e} (max {found.largest:.1e})"
        before = "not finite" if math.isinf(self.before) else f"{self.before:.1e}"
        return f"{self.values.largest:.3g}", before, own

    def record(self) -> dict[str, Any]:
        """The row as a JSON object."""
        found = self.difference
        return {
            "component": self.component,
            "node": self.layer.node,
            "op": self.layer.op,
            "tensor": self.layer.tensor,
            "module": self.layer.module,
            "dtype": "float16" if self.half else "float32",
            "shape": self.values.shape,
            "largest": self.values.largest,
            "tiny": self.values.tiny,
            "sum": self.values.total or None,
            "max_error": found and found.largest,
            "relative_error": found and found.relative,
            "not_finite": found and found.infinite,
            "relative_error_before": self.before if math.isfinite(self.before) else None,
            "findings": self.findings,
        }


def check(
    bundle: Bundle,
    image: Array,
    *,
    components: Sequence[str] = (),
    reference: Bundle | None = None,
    backend: str | None = None,
    step: int = 1,
    report: Report = print,
) -> list[Row]:
    """Every layer of the bundle's ``components`` (none named: all) on what it reads when ``image`` is run.

    ``image`` is (H, W, 3) RGB or (H, W) grey, and also the picture whose blur is taken; ``step`` is the denoising step
    that is looked at, from 1. ``backend`` runs the bundle's graphs as they are (None: the CPU, rounding to float16
    after every layer that is float16). It is held against ``reference`` (None: the bundle itself) in float32; of
    another bundle, those layers count that have the same name and kind. An fp32 bundle that is given neither is not
    compared, and its values are judged as if they were float16. Raises ``InputError`` or ``BackendError``.
    """
    check_image(image, "image")
    steps = (reference or bundle).steps
    if not 1 <= step <= steps:
        raise InputError(f"step is {step}; expected 1 to {steps}, the bundle's number of steps")
    runner = create(backend, report=report) if backend else None
    with TemporaryDirectory() as temporary:
        exact = in_float32(reference or bundle, Path(temporary) / "reference")
        known = [name for name in bundle.components if name in exact.components]
        for name in components:
            if name not in known:
                raise InputError(f"there is no component {name!r} to check; there are {', '.join(known)}")
        report("running the reference in float32")
        inputs = component_inputs(exact, image, step - 1, components or known)
        compared = bool(backend or reference or bundle.precision == "fp16")
        rows: list[Row] = []
        for name in components or [name for name in known if name in inputs]:
            report(f"checking {name}")
            pair = Pair(bundle, exact, name, inputs[name], Path(temporary) / "checked")
            rows += pair.rows(runner, compared)
    return rows


def in_float32(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle with every float16 tensor made float32, of the same value; its graphs are written to ``folder``."""

    def widened(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(replace(s, dtype=np.dtype(np.float32)) if s.dtype == np.float16 else s for s in specs)

    for component in bundle.components.values():
        model = ir.load(bundle.folder / component.file)
        widen(model.graph)
        save(model, bundle.folder, folder / component.file)
    components = {
        name: replace(part, inputs=widened(part.inputs), outputs=widened(part.outputs), variants={})
        for name, part in bundle.components.items()
    }
    constants = {name: value.astype(np.float32) for name, value in bundle.constants.items()}
    return replace(bundle, folder=folder, components=components, constants=constants)


def component_inputs(bundle: Bundle, image: Array, step: int, components: Iterable[str]) -> dict[str, dict[str, Array]]:
    """What ``components`` of an fp32 bundle read when ``image`` is run in their modes; steps at ``step``, from 0."""
    pixels = pad(to_float(planes(image)), bundle.size_multiple)[None]
    inputs: dict[str, dict[str, Array]] = {}
    for name, mode in bundle.modes.items():  # one after another, so that only one mode's engines are in memory
        if (set(components) - set(inputs)) & set(mode.components):
            inputs = mode_inputs(bundle, name, pixels, step) | inputs
    return inputs


def mode_inputs(bundle: Bundle, mode: str, pixels: Array, step: int) -> dict[str, dict[str, Array]]:
    """The same for the components of one mode; ``pixels`` is (1, 3, H, W) float32 in [0, 1]."""
    height, width = pixels.shape[2:]
    sizes = {"height": height, "width": width, "blur_height": height, "blur_width": width}
    all_steps = [Step(row) for row in ddim(bundle.schedule, bundle.steps)]
    backend = create_cpu(None)
    backend.keeps = False  # the bundle may be one that goes away with the check
    plan = Plans(bundle, backend).make(mode, sizes, all_steps, pixels=False)
    for key, value in {"image": pixels, "blur_image": pixels, GUIDANCE: number(bundle.guidance)}.items():
        if key in plan.buffers:
            plan.buffers[key].write(value)
    generator = np.random.Generator(np.random.PCG64(0))
    plan.states[0].write(generator.standard_normal(plan.states[0].shape, dtype=np.float32))
    for launch in plan.work.prepare:
        launch()
    latents = []
    for index, launch in enumerate(plan.work.step):
        latents.append(plan.states[index % 2].read())
        launch()
    tensors = {key: buffer.read() for key, buffer in (*plan.buffers.items(), *plan.numbers[step].items())}
    states = dict.fromkeys(STEPS, latents[step]) | {"finish": plan.result.read()}
    parts = [bundle.components[name] for name in bundle.modes[mode].components]
    return {
        part.name: {s.name: states[part.stage] if s.name == STATE else tensors[s.name] for s in part.inputs}
        for part in parts
    }


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
                "give a --reference of the same model"
            )
        # Rounded as the bundle's own inputs are, so that the comparison is of what is computed from them.
        self.inputs = {key: value.astype(dtypes[key]).astype(np.float32) for key, value in inputs.items()}
        self.graph, own = ir.load(self.exact).graph, ir.load(self.own).graph
        self.tensors = tensors_of(self.graph)
        self.layers = layers_of(self.graph)
        self.halves = {str(value.name) for value in varying(own) if value.dtype == HALF}
        self.shared = shared_tensors(own, self.graph)

    def rows(self, runner: Backend | None, compared: bool) -> Iterator[Row]:
        """Run both sides chunk by chunk, and judge every layer by the errors of those before it."""
        values: dict[str, Values] = {}
        differences: dict[str, Difference] = {}
        for chunk in self.chunks():
            tensors = self.reference(chunk)
            for name in (layer.tensor for layer in chunk):
                values[name] = values_of(tensors[name], largest_sum(self.tensors[name], tensors))
            wanted = {layer.tensor: tensors[layer.tensor] for layer in chunk if layer.tensor in self.shared}
            if compared and wanted:
                differences |= self.differences(runner, wanted)
        errors: dict[str, float] = {}
        for layer in self.layers:
            before = max((errors.get(source, 0.0) for source in layer.sources), default=0.0)
            found = differences.get(layer.tensor)
            errors[layer.tensor] = before if found is None else math.inf if found.infinite else found.relative
            half, value = layer.tensor in self.halves, values[layer.tensor]
            jumps = found is not None and errors[layer.tensor] > JUMP * max(before, ROUNDING[half])
            yield Row(self.name, layer, half, value, found, before, findings(value, jumps, half or self.all_half))

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
        with memory_errors("a component's tensors"):
            arrays = session.run(list(names), {node.name: self.inputs[node.name] for node in session.get_inputs()})
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


def values_of(tensor: Array, total: float) -> Values:
    """Magnitudes of a float32 tensor."""
    magnitudes = np.abs(tensor[np.isfinite(tensor) & (tensor != 0)])
    tiny = np.count_nonzero(magnitudes < HALF_NORMAL) / max(magnitudes.size, 1)
    return Values(tensor.shape, float(magnitudes.max(initial=0.0)), tiny, total)


def difference(expected: Array, got: Array) -> Difference:
    """A tensor against the reference's, both float32 and of one shape."""
    finite = np.isfinite(expected)
    infinite = int(np.count_nonzero(finite & ~np.isfinite(got)))
    both = finite & np.isfinite(got)
    expected, error = expected[both].astype(np.float64), (got[both] - expected[both]).astype(np.float64)
    # Below what float16 can tell apart, an error is large only in proportion.
    norm = max(float(np.linalg.norm(expected)), HALF_NORMAL * math.sqrt(max(expected.size, 1)))
    return Difference(float(np.abs(error).max(initial=0.0)), float(np.linalg.norm(error)) / norm, infinite)


def findings(values: Values, jumps: bool, half: bool) -> tuple[str, ...]:
    """What is wrong, or may be, with a layer's values; ``half``: in float16."""
    found = {
        "jump": jumps,
        "overflow": half and values.largest >= HALF_INFINITE,
        "near": half and HALF_MAX / NEAR <= values.largest < HALF_INFINITE,
        "tiny": half and values.tiny >= TINY_SHARE,
        "sum": half and values.total > HALF_MAX,
    }
    return tuple(name for name in FINDINGS if found[name])


def worst_first(rows: Iterable[Row]) -> list[Row]:
    """The rows that something was found out about: errors that jump, in the order of the run, since the first is the
    cause; then the largest values; then the rest.
    """

    def order(row: Row) -> tuple[int, float]:
        finding = row.findings[0]
        measure = {"jump": 0.0, "tiny": row.values.tiny, "sum": row.values.total}
        return FINDINGS.index(finding), -measure.get(finding, row.values.largest)

    return sorted((row for row in rows if row.findings), key=order)


def summary(rows: Sequence[Row], shown: int) -> Iterator[str]:
    """How many layers were looked at and what was found, in lines."""
    half = sum(row.half for row in rows)
    compared = sum(row.difference is not None for row in rows)
    yield f"{len(rows)} layers, {half} of them in float16, {compared} compared; {shown} shown"
    texts = {
        "jump": f"have more than {JUMP} times the error of what they read",
        "overflow": "overflow in float16",
        "near": f"are within a factor of {NEAR} of it",
        "tiny": f"have at least {TINY_SHARE:.0%} of their values below float16's smallest normal number",
        "sum": "may form sums that overflow where they are not formed in float32",
    }
    for finding, text in texts.items():
        if count := sum(finding in row.findings for row in rows):
            yield f"{count} {text}"


def picture(path: Path | None, side: int) -> Array:
    """The middle of a picture file, at most ``side`` pixels high and wide, or a made one (None); (H, W, 3) RGB."""
    if path is None:
        from uid.train.pictures import picture as made

        return made(np.random.default_rng(0), side, side)
    pixels = read_image(path).pixels
    top, left = (max(0, length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]
