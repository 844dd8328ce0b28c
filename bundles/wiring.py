"""What the components of a mode read that none of them writes: images, noise, coefficients."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from uid.bundles.declarations import COEFFICIENTS, PER_STEP, SAMPLERS, STEPS, Component, Mode, Noise
from uid.bundles.tensors import BATCH, GUIDANCE, HEIGHT, IMAGE, STATE, WIDTH, TensorSpec
from uid.errors import BundleError


def mode_of(
    parts: Sequence[Component], *, prompt: str, constants: Mapping[str, str], noise: Sequence[Noise] = (), **others: Any
) -> Mode:
    """The mode that runs ``parts`` in order: its images and noise follow from what they read.

    ``constants`` are keys by input name; ``others`` further fields of a mode. Raises ``BundleError`` where the parts do
    not read what ``noise`` declares.
    """
    drawn = noise_read(noise, parts, constants)
    images = images_read(parts, {*constants, *(one.spec.name for one in drawn)})
    return Mode(prompt, tuple(part.name for part in parts), constants, images, drawn, **others)


def images_read(parts: Sequence[Component], given: Iterable[str]) -> tuple[TensorSpec, ...]:
    """The images that components read and nothing before them writes; ``given``: names of constants and noise."""
    written = {spec.name for part in parts for spec in part.outputs}
    others = {*written, *given, *COEFFICIENTS, STATE, GUIDANCE}
    read = {spec.name: spec for part in parts for spec in part.inputs if spec.name not in others}
    return tuple(spec for spec in read.values() if spec.name == IMAGE or is_extra_image(spec))


def is_extra_image(spec: TensorSpec) -> bool:
    """Whether a tensor is an RGB image with sizes of its own."""
    return len(spec.shape) == 4 and spec.shape[1] == 3 and not spec.symbols & {HEIGHT, WIDTH}


def noise_read(declared: Sequence[Noise], parts: Sequence[Component], constants: Iterable[str]) -> tuple[Noise, ...]:
    """The noise of a mode; raises ``BundleError`` where its components do not read what is declared.

    The state of a loop that nothing writes before its first step is noise too, declared or not; then it is drawn first.
    """
    noise, readers = list(declared), [(part, spec) for part in parts for spec in part.inputs]
    known = {spec.name for part in parts for spec in part.outputs} | set(constants)
    state = next((spec for part, spec in readers if part.stage in STEPS and spec.name == STATE), None)
    names = [one.spec.name for one in noise]
    if state is not None and STATE not in known and STATE not in names:
        noise.insert(0, Noise(state))
    for one in noise:
        check_noise(one, [(part, spec) for part, spec in readers if spec.name == one.spec.name], known)
    if len(set(names)) < len(names):
        raise BundleError(f"the manifest declares one noise twice, of {', '.join(names)}; export the bundle again")
    return tuple(noise)


def check_noise(noise: Noise, readers: Sequence[tuple[Component, TensorSpec]], known: Iterable[str]) -> None:
    """Raise ``BundleError`` for noise that cannot be drawn, or that nothing reads."""
    spec = noise.spec
    if not readers:
        raise BundleError(f"the manifest declares the noise {spec.name!r}, which no component of its mode reads")
    if spec.name in known:
        raise BundleError(f"the manifest declares {spec.name!r} as noise, and as what a component or constant gives")
    for part, read in readers:
        if read != spec:
            raise BundleError(
                f"the manifest declares the noise {in_words(spec)}, and component {part.name!r} reads {in_words(read)}"
            )
        if noise.draw == PER_STEP and part.stage not in STEPS:
            raise BundleError(f"component {part.name!r} reads {spec.name!r}, which is drawn for steps alone")
    if spec.dtype != np.float32 or not spec.symbols <= {BATCH, HEIGHT, WIDTH}:
        raise BundleError(
            f"the manifest declares the noise {in_words(spec)}; expected float32, "
            f"sizes in numbers, {BATCH}, {HEIGHT} and {WIDTH}"
        )


def check_coefficients(components: Iterable[Component], schedule: Mapping[str, Any]) -> None:
    """Raise ``BundleError`` where a component reads a coefficient that the sampler does not have."""
    known = SAMPLERS[schedule["sampler"]] if schedule else ()
    for component in components:
        for spec in component.inputs:
            if spec.name in COEFFICIENTS and spec.name not in known:
                have = f"sampler {schedule['sampler']!r} has {', '.join(known)}" if known else "no component is a step"
                raise BundleError(f"component {component.name!r} reads {spec.name!r}, and {have}")


def listed_specs(specs: Iterable[TensorSpec]) -> str:
    """Tensors in words."""
    return ", ".join(map(in_words, specs)) or "none"


def in_words(spec: TensorSpec) -> str:
    """A tensor in words."""
    return f"{spec.name} {spec.dtype}{list(spec.shape)}"
