"""Gates: what each part of a bundle's diffusion adds to its images, by cutting a wire and putting something else there.

The wires are found from the manifest. Features are what a prepare component makes of the whole image for the steps,
such as UID-Diff's f_s. The encoder's latent is what one makes of the image in the shape of the latent. A bundle without
them, such as a restorer, has no gates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from uid.bench.quality.methods import Method, own_options
from uid.bundles.declarations import FINISH, PREPARE, STEPS, Bundle, Component, Noise
from uid.bundles.tensors import HEIGHT, IMAGE, STATE, WIDTH, Array, TensorSpec, resolve
from uid.engines import Backend, Engine, create
from uid.runtime.options import Options
from uid.runtime.pipeline import Pipeline
from uid.runtime.pixels import interleaved, pad, planes
from uid.runtime.transforms import transformed, transformed_back
from uid.train.blur import RgbImage
from uid.train.held_out import BlurCase

NO_DIFFUSION, TRUE_LATENT, NOISE_LATENT = "no diffusion", "true latent", "noise as latent"
ZERO, ANOTHER = " = 0", " of another image"  # what a tensor's name is followed by
Source = Callable[[Array, int], Mapping[str, Array]]  # planes as the pipeline gets them, number of the transform


def gates(pipeline: Pipeline, options: Options, others: Mapping[str, RgbImage]) -> dict[str, Method]:
    """What is compared with the whole bundle, by name; empty where it has no such wires.

    ``others``: by photo another one, whose features take the place of its own. In this order: each of the features as 0
    and another image's, the encoder's latent decoded without the diffusion, that of the sharp image (what a perfect
    diffusion could reach), and noise.
    """
    bundle, backend = pipeline.bundle, create(pipeline.backend)
    tried: dict[str, Method] = {}
    for component, spec in features(bundle, options.mode):
        run = Cut(pipeline, options, spec, drop_steps=False)
        alone = Alone(bundle, backend, component, options.mode)
        tried[f"{spec.name}{ZERO}"] = with_zeros(run, spec)
        tried[f"{spec.name}{ANOTHER}"] = with_features(run, alone, spec, others)
    if latent := encoded_latent(bundle, options.mode):
        component, spec = latent
        run = Cut(pipeline, options, replace(spec, name=STATE, dtype=np.dtype(np.float32)), drop_steps=True)
        tried |= with_latents(run, Alone(bundle, backend, component, options.mode), spec.name)
    return tried


def is_gate(method: str) -> bool:
    """Whether a method's name is that of a gate."""
    return method in (NO_DIFFUSION, TRUE_LATENT, NOISE_LATENT) or method.endswith((ZERO, ANOTHER))


def with_zeros(run: "Cut", spec: TensorSpec) -> Method:
    """The pipeline with a tensor of zeros."""
    zeros = np.zeros(resolve(spec.shape, {}), spec.dtype)
    return lambda case: run(case.blurred, lambda *_: {spec.name: zeros})


def with_features(run: "Cut", alone: "Alone", spec: TensorSpec, others: Mapping[str, RgbImage]) -> Method:
    """The pipeline with the features of another image."""

    def method(case: BlurCase) -> RgbImage:
        other = planes(others[case.photo])
        return run(case.blurred, lambda _, number: {spec.name: alone(transformed(other, number), spec.name)})

    return method


def with_latents(run: "Cut", alone: "Alone", name: str) -> dict[str, Method]:
    """The decoder on the latent of the blurred image, on that of the sharp one, and on noise."""

    def true_latent(case: BlurCase) -> RgbImage:
        sharp = planes(case.sharp)
        return run(case.blurred, lambda _, number: {STATE: alone(transformed(sharp, number), name)})

    return {
        NO_DIFFUSION: lambda case: run(case.blurred, lambda view, _: {STATE: alone(view, name)}),
        TRUE_LATENT: true_latent,
        NOISE_LATENT: lambda case: run(case.blurred, lambda *_: {}),
    }


# -- wires ------------------------------------------------------------------------------------------------------------


def features(bundle: Bundle, mode: str) -> list[tuple[Component, TensorSpec]]:
    """What prepare components make of the image as a whole, for the steps alone; and by which component."""
    parts = bundle.parts(mode)
    by_others = {spec.name for part in parts if part.stage not in STEPS for spec in part.inputs}
    by_steps = {spec.name for part in parts if part.stage in STEPS for spec in part.inputs} - by_others
    return [
        (part, spec)
        for part in from_image(bundle, mode)
        for spec in part.outputs
        if spec.name in by_steps and not spec.symbols & {HEIGHT, WIDTH}
    ]


def encoded_latent(bundle: Bundle, mode: str) -> tuple[Component, TensorSpec] | None:
    """What a prepare component makes of the image in the shape of the latent, the first if there are several."""
    states = [spec for part in bundle.parts(mode) if part.stage == FINISH for spec in part.inputs if spec.name == STATE]
    if not states or not bundle.has_steps(mode):
        return None
    found = ((part, spec) for part in from_image(bundle, mode) for spec in part.outputs)
    return next((one for one in found if one[1].shape == states[0].shape and one[1].name != STATE), None)


def from_image(bundle: Bundle, mode: str) -> list[Component]:
    """The prepare components that read the image, and beside it constants and noise alone."""
    declared = bundle.modes[mode]
    known = {IMAGE, *declared.constants, *(one.spec.name for one in declared.noise)}
    parts = [part for part in bundle.parts(mode) if part.stage == PREPARE]
    return [part for part in parts if IMAGE in (names := {spec.name for spec in part.inputs}) and names <= known]


class Alone:
    """A prepare component run by itself, on one transform of an image; noise that it reads is 0."""

    def __init__(self, bundle: Bundle, backend: Backend, part: Component, mode: str) -> None:
        self.bundle, self.backend, self.part = bundle, backend, part
        self.constants = {name: bundle.constants[key] for name, key in bundle.modes[mode].constants.items()}
        self.engine: Engine | None = None

    def __call__(self, view: Array, name: str) -> Array:
        """(3, H, W) float32 in [0, 1] -> the output called ``name``, with a batch of 1."""
        image = pad(view, self.bundle.size_multiple, self.bundle.padding, self.bundle.min_side)
        sizes = {HEIGHT: image.shape[1], WIDTH: image.shape[2]}
        if self.engine is None or not self.engine.covers(sizes):
            self.engine = self.backend.load_component(self.bundle, self.part, sizes)
        specs = (*self.part.inputs, *self.part.outputs)
        buffers = {spec.name: self.backend.allocate(resolve(spec.shape, sizes), spec.dtype) for spec in specs}
        given = {IMAGE: np.ascontiguousarray(image[None]), **self.constants}
        for spec in self.part.inputs:
            shape = resolve(spec.shape, sizes)
            buffers[spec.name].write(given[spec.name] if spec.name in given else np.zeros(shape, spec.dtype))
        self.engine.bind(buffers)()
        return buffers[name].read()


class Cut:
    """A pipeline one of whose tensors comes from outside: what wrote it does not run."""

    def __init__(self, pipeline: Pipeline, options: Options, spec: TensorSpec, *, drop_steps: bool) -> None:
        """``drop_steps``: without the denoising loop, and ``spec`` is its result."""
        bundle = pipeline.bundle
        self.transforms = options.resolved(bundle).transforms or 1
        parts = [part for part in bundle.parts(options.mode) if keeps(part, spec, drop_steps)]
        read = {one.name for part in parts for one in part.inputs}
        mode = bundle.modes[options.mode]
        noise = [one for one in mode.noise if one.spec.name in read and one.spec.name != spec.name]
        constants = {name: key for name, key in mode.constants.items() if name in read}
        names = tuple(part.name for part in parts)
        mode = replace(mode, components=names, noise=(*noise, Noise(spec)), constants=constants)
        self.spec = spec
        cut = replace(bundle, modes={options.mode: mode})
        self.pipeline = Pipeline(cut, create(pipeline.backend))
        self.options = replace(own_options(options, cut), transforms=1)

    def __call__(self, image: RgbImage, source: Source) -> RgbImage:
        """The mean over the transforms of what the pipeline makes of ``image``, (H, W, 3) in [0, 1].

        ``source`` gives each transform's tensor by name; nothing: the seed's noise.
        """
        made = []
        for number in range(self.transforms):
            view = np.ascontiguousarray(transformed(planes(image), number))
            own = {name: value.astype(self.spec.dtype) for name, value in source(view, number).items()}
            output = self.pipeline(interleaved(list(view)), self.options, noise=own).image
            made.append(transformed_back(planes(output), number))
        return interleaved(list(np.mean(made, axis=0)))


def keeps(part: Component, spec: TensorSpec, drop_steps: bool) -> bool:
    """Whether a component still runs where ``spec`` comes from outside."""
    written: Sequence[str] = [one.name for one in part.outputs]
    return spec.name not in written and not (drop_steps and part.stage in STEPS)
