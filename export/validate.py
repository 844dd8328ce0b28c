"""The comparison with PyTorch that ends every export: names, then shapes, then values, then the whole image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from uid.bundles.declarations import Bundle, Component, Mode
from uid.bundles.tensors import IMAGE, Array
from uid.engines import Backend, Engine
from uid.errors import ParityError
from uid.export.dummies import dummy_inputs
from uid.families.contract import ExportComponent, Model
from uid.runtime.colour import colour_fixed
from uid.runtime.noise import drawn
from uid.runtime.options import Options
from uid.runtime.pipeline import Pipeline
from uid.runtime.pixels import enlarged, padded, planes

# Largest error over the output's largest value, by what is computed in. fp16 carries 11 bits, and a step subtracts two
# close predictions and multiplies the difference by the guidance scale. bf16 carries 8: PyTorch's own bfloat16 is up to
# 1.4e-2 from its float32 without guidance.
TOLERANCES = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 1e-1}

SMALLEST = 1e-30  # that errors are divided by, where all of an output is 0


@dataclass(frozen=True)
class ParityCase:
    """A component's inputs at some size, and what PyTorch made of them in float32."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True)
class Parity:
    """How far a component, or the whole image, is from PyTorch."""

    name: str
    error: float  # components: largest error over the largest value; image: largest error, of 1.0
    tolerance: float


@dataclass(frozen=True)
class ImageCase:
    """Small images and PyTorch's result from them in every mode."""

    images: Mapping[str, Array]  # by input name, (H, W, 3) float32 in [0, 1]
    results: Mapping[str, Array]
    steps: int


@torch.inference_mode()
def component_case(component: ExportComponent, sizes: Mapping[str, int]) -> ParityCase:
    """Run the PyTorch module, in float32, on dummy inputs of a size other than the one it is traced at."""
    inputs = {name: tensor.float() for name, tensor in dummy_inputs(component.declaration, dict(sizes), seed=1).items()}
    outputs = component.module(*inputs.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    names = [spec.name for spec in component.declaration.outputs]
    return ParityCase(
        {name: tensor.numpy() for name, tensor in inputs.items()},
        {name: tensor.numpy() for name, tensor in zip(names, outputs, strict=True)},
    )


def image_case(model: Model, components: Sequence[ExportComponent], steps: int, guidance: float) -> ImageCase:
    """Run the reference on smooth random images of the smallest size."""
    (side, _), modes = padded((1, 1), model.size_multiple, model.min_side), model.modes(components)
    generator = np.random.Generator(np.random.PCG64(0))
    names = dict.fromkeys([IMAGE, *(spec.name for mode in modes.values() for spec in mode.extra_inputs)])
    images = {name: generator.random((side, side, 3), dtype=np.float32) for name in names}

    def run(name: str, mode: Mode) -> Array:
        given = [IMAGE, *(spec.name for spec in mode.extra_inputs)]
        planar = {one: torch.from_numpy(planes(images[one]))[None] for one in given}
        noise = {key: torch.from_numpy(array.copy()) for key, array in drawn(mode.noise, side, side, steps, 0).items()}
        output = model.sample(name, planar, noise, steps, guidance)[0].numpy()
        large = planes(enlarged(images[IMAGE], output.shape[1] // side))
        return colour_fixed(output, large, mode.colour_fix).transpose(1, 2, 0)

    return ImageCase(images, {name: run(name, mode) for name, mode in modes.items()}, steps)


def check_component(
    backend: Backend, engine: Engine, component: Component, case: ParityCase, tolerance: float
) -> Parity:
    """Compare an engine with PyTorch; raises ``ParityError`` that says what differs."""
    name = component.name
    for what, declared, actual in (
        ("inputs", component.inputs, engine.inputs),
        ("outputs", component.outputs, engine.outputs),
    ):
        want = {spec.name: (str(spec.dtype), spec.shape) for spec in declared}
        got = {spec.name: (str(spec.dtype), spec.shape) for spec in actual.values()}
        if want != got:
            raise ParityError(f"{name}: the graph's {what} are {got}; its declaration says {want}")
    results = run_engine(backend, engine, case)
    errors = {}
    for key, expected in case.outputs.items():
        if results[key].shape != expected.shape:
            raise ParityError(f"{name}: {key!r} has shape {results[key].shape}; PyTorch's has {expected.shape}")
        largest = max(float(np.abs(expected).max()), SMALLEST)
        difference = np.abs(results[key].astype(np.float32) - expected).max() / largest
        errors[key] = float(difference) if np.isfinite(difference) else float("inf")
    worst = max(errors, key=lambda key: errors[key])
    if errors[worst] > tolerance:
        raise ParityError(f"{name}: {worst!r} differs from PyTorch by {errors[worst]:.2e}; tolerance {tolerance:.0e}")
    return Parity(name, errors[worst], tolerance)


def run_engine(backend: Backend, engine: Engine, case: ParityCase) -> dict[str, Array]:
    """Run an engine once on a case's inputs, cast to the dtypes that it takes."""
    buffers = {}
    for spec in engine.inputs.values():
        value = case.inputs[spec.name].astype(spec.dtype)
        buffers[spec.name] = backend.allocate(value.shape, spec.dtype)
        buffers[spec.name].write(value)
    for spec in engine.outputs.values():
        buffers[spec.name] = backend.allocate(case.outputs[spec.name].shape, spec.dtype)
    engine.bind(buffers)()
    return {name: buffers[name].read() for name in engine.outputs}


def check_image(bundle: Bundle, backend: Backend, case: ImageCase) -> list[Parity]:
    """Run whole modes through the runtime; each must agree within ``image_tolerance`` on 99.9 % of the values."""
    parities = []
    for mode, expected in case.results.items():
        extra: dict[str, Any] = {spec.name: case.images[spec.name] for spec in bundle.modes[mode].extra_inputs}
        options = Options(mode=mode, steps=case.steps if bundle.has_steps(mode) else None, transforms=1)
        # A pipeline of its own for each mode: two full-size step graphs need not be in memory together.
        result = Pipeline(bundle, backend)(case.images[IMAGE], options, **extra)
        difference = np.abs(result.image - expected)
        error = float(np.quantile(difference, 0.999))
        tolerance = image_tolerance(bundle, mode)
        steps = f", {case.steps} steps" if bundle.has_steps(mode) else ""
        if not error <= tolerance:
            raise ParityError(
                f"the {mode} image differs from PyTorch's by {error * 255:.2f}/255 on more than 0.1 % of its values"
                f"{steps}; tolerance {tolerance * 255:.0f}/255"
            )
        parities.append(Parity(f"{mode} image{steps}", error, tolerance))
    return parities


def image_tolerance(bundle: Bundle, mode: str) -> float:
    """Largest error of a mode's image, of 1.0.

    An fp16 image of a denoising loop is not judged: over many guided steps of an untrained network rounding grows
    freely.
    """
    if bundle.precision == "fp32":
        return 1 / 255
    return float("inf") if bundle.has_steps(mode) else TOLERANCES[bundle.precision]
