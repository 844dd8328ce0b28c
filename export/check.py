"""Which layer makes an image wrong: a bundle's components, layer by layer, on what they read when an image is run.

The reference is float32 arithmetic in ONNX Runtime on the bundle's own weights: it shows how large the values truly
are, and any other way to run the component is held against it.

On the CPU, ONNX Runtime computes float16 graphs in float32 and rounds where it has to, so that an overflow inside a
graph may go unseen. What stands for a GPU here rounds to float16 after every layer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from uid.bundles.declarations import FINISH, STEPS, Bundle
from uid.bundles.hashes import sha256
from uid.bundles.tensors import GUIDANCE, HEIGHT, IMAGE, STATE, WIDTH, Array, TensorSpec
from uid.engines import Report, create
from uid.engines.ort.cpu import create_cpu
from uid.errors import InputError
from uid.export.check_memory import check_room
from uid.export.compare_layers import Pair
from uid.export.findings import LayerRow
from uid.export.layers import (
    save,
    widen,
)
from uid.runtime.media.decode import read_image
from uid.runtime.noise import drawn
from uid.runtime.pixels import check_image, pad, planes, to_float
from uid.runtime.plan import Plan, Plans, number
from uid.runtime.run import sizes_of
from uid.runtime.schedule import Step, coefficients


def check(
    bundle: Bundle,
    image: Array,
    *,
    components: Sequence[str] = (),
    reference: Bundle | None = None,
    backend: str | None = None,
    step: int = 1,
    report: Report = print,
) -> list[LayerRow]:
    """Every layer of the bundle's ``components`` (none named: all) on what it reads when ``image`` is run.

    ``image`` is (H, W, 3) RGB or (H, W) grey, which stands for any further image of a mode too; ``step`` is the
    denoising step that is looked at, from 1. ``backend`` runs the bundle's graphs as they are (None: the CPU, rounding
    to float16 after every layer that is float16). It is held against ``reference`` (None: the bundle itself) in
    float32; of another bundle, those layers count that have the same name and kind. An fp32 bundle that is given
    neither is not compared, and its values are judged as if they were float16. Raises ``InputError``, also for an image
    that is too large for the memory here, or ``BackendError``.
    """
    check_image(image, "image")
    steps = (reference or bundle).steps
    if steps and not 1 <= step <= steps:
        raise InputError(f"step is {step}; expected 1 to {steps}, the bundle's number of steps", option="step")
    runner = create(backend, report=report) if backend else None
    compared = bool(backend or reference or bundle.precision == "fp16")
    rows: list[LayerRow] = []
    with TemporaryDirectory() as temporary:
        exact = in_float32(reference or bundle, Path(temporary) / "reference")
        wanted = chosen(bundle, exact, components)
        check_room(bundle, exact, wanted, max(image.shape[:2]), Path(temporary) / "checked", report)
        report("running the reference in float32")
        inputs = component_inputs(exact, image, step - 1, wanted)
        for name in wanted:
            if name in inputs or components:
                report(f"checking {name}")
                pair = Pair(bundle, exact, name, inputs[name], Path(temporary) / "checked")
                rows += pair.rows(runner, compared)
    return rows


def chosen(bundle: Bundle, exact: Bundle, components: Sequence[str]) -> Sequence[str]:
    """The components to check: those named, or all that both bundles have."""
    known = [name for name in bundle.components if name in exact.components]
    for name in components:
        if name not in known:
            raise InputError(
                f"there is no component {name!r} to check; there are {', '.join(known)}", option="component"
            )
    return components or known


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
    files = {path.name: sha256(path) for path in folder.iterdir()}
    return replace(bundle, folder=folder, components=components, constants=constants, files=files)


def component_inputs(bundle: Bundle, image: Array, step: int, components: Iterable[str]) -> dict[str, dict[str, Array]]:
    """What ``components`` of an fp32 bundle read when ``image`` is run in their modes; steps at ``step``, from 0."""
    pixels = pad(to_float(planes(image)), bundle.size_multiple, bundle.padding, bundle.min_side)[None]
    inputs: dict[str, dict[str, Array]] = {}
    for name, mode in bundle.modes.items():  # one after another, so that only one mode's engines are in memory
        if (set(components) - set(inputs)) & set(mode.components):
            inputs = mode_inputs(bundle, name, pixels, step) | inputs
    return inputs


def mode_inputs(bundle: Bundle, mode: str, pixels: Array, step: int) -> dict[str, dict[str, Array]]:
    """The same for the components of one mode; ``pixels`` is (1, 3, H, W) float32 in [0, 1]."""
    plan = plan_of(bundle, mode, pixels)
    write_inputs(plan, bundle, mode, pixels)
    states = states_read(plan, step)
    buffers = plan.tensors_of(step) if plan.steps else plan.buffers
    tensors = {name: buffer.read() for name, buffer in buffers.items()}
    return {
        part.name: {s.name: states[part.stage] if s.name == STATE else tensors[s.name] for s in part.inputs}
        for part in bundle.parts(mode)
    }


def plan_of(bundle: Bundle, mode: str, pixels: Array) -> Plan:
    """A plan of a mode with all its steps, for images of the size of ``pixels``."""
    sizes = {HEIGHT: pixels.shape[2], WIDTH: pixels.shape[3]}
    for spec in bundle.modes[mode].extra_inputs:
        sizes |= sizes_of(spec, pixels.shape[1:])
    steps = [Step(row) for row in coefficients(bundle.schedule, bundle.steps)] if bundle.has_steps(mode) else []
    backend = create_cpu(None)
    backend.caches = False  # the bundle may be one that goes away with the check
    return Plans(bundle, backend).make(mode, sizes, steps, pixels=False)


def write_inputs(plan: Plan, bundle: Bundle, mode: str, pixels: Array) -> None:
    """Write what a run is given: ``pixels`` as each image of the mode, the guidance scale, and the noise of seed 0."""
    declared = bundle.modes[mode]
    images = dict.fromkeys([IMAGE, *(spec.name for spec in declared.extra_inputs)], pixels)
    for name, value in {**images, GUIDANCE: number(bundle.guidance)}.items():
        if name in plan.buffers:
            plan.buffers[name].write(value)
    plan.write_noise(drawn(declared.noise, *pixels.shape[2:], len(plan.steps), 0))


def states_read(plan: Plan, step: int) -> dict[str, Array]:
    """Run a plan but for its finish stage. Returns the state that each stage reads, in step ``step`` of the loop."""
    for launch in plan.work.prepare:
        launch()
    states = []
    for index, launch in enumerate(plan.work.step):
        states.append(plan.states[index % 2].read())
        launch()
    return dict.fromkeys(STEPS, states[step]) | {FINISH: plan.result.read()} if states else {}


def example_image(path: Path | None, side: int) -> Array:
    """The middle of an image file, at most ``side`` pixels high and wide, or a made one (None); (H, W, 3) RGB."""
    if path is None:
        return made_image(side)
    pixels = read_image(path).pixels
    top, left = (max(0, length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def made_image(side: int) -> Array:
    """Noise with the spectrum of photos, amplitude 1 / frequency, the same in every run: (side, side, 3) uint8."""
    spectrum = np.fft.rfft2(np.random.default_rng(0).standard_normal((3, side, side)))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf  # no offset
    planes_ = np.fft.irfft2(spectrum / frequency, s=(side, side))
    planes_ = 0.5 + planes_ / (4.0 * planes_.std())
    return np.rint(planes_.clip(0.0, 1.0).transpose(1, 2, 0) * 255).astype(np.uint8)
