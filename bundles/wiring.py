"""What the components of a mode read that none of them writes: images, noise, coefficients."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from uid.bundles.declarations import COEFFICIENTS, FULL, PER_STEP, SAMPLERS, STEPS, Component, Mode, Noise
from uid.bundles.tensors import (
    BATCH,
    GUIDANCE,
    HEIGHT,
    IMAGE,
    OUTPUT,
    STATE,
    WIDTH,
    Array,
    TensorSpec,
    divisor_of,
    factor_of,
    symbol_of,
)
from uid.errors import BundleError

LARGEST_SCALE = 16  # of an output to its input


def mode_of(
    parts: Sequence[Component], *, prompt: str, constants: Mapping[str, str], noise: Sequence[Noise] = (), **others: Any
) -> Mode:
    """The mode that runs ``parts`` in order: its images and noise follow from what they read.

    ``constants`` are keys by input name; ``others`` further fields of a mode. Raises ``BundleError`` where the parts do
    not read what ``noise`` declares.
    """
    check_stages(parts)
    check_own_tensors(parts)
    drawn = noise_read(noise, parts, constants)
    images = images_read(parts, {*constants, *(one.spec.name for one in drawn)})
    return Mode(prompt, tuple(part.name for part in parts), constants, images, drawn, **others)


def check_stages(parts: Sequence[Component]) -> None:
    """Raise ``BundleError`` where a mode has shortcuts of a step and not the step itself."""
    stages = {part.stage for part in parts}
    if stages & set(STEPS) and FULL not in stages:
        others = ", ".join(sorted(stages & set(STEPS)))
        raise BundleError(f"a mode has the stage {others}, and no component of stage {FULL!r}; export the bundle again")


def check_own_tensors(parts: Sequence[Component]) -> None:
    """Raise ``BundleError`` for tensors of the runtime's own names that are not as it gives or takes them.

    An image is RGB of its own size, an output that of a whole number of times the size, and numbers have one element.
    """
    for part in parts:
        for spec in part.outputs:
            if spec.name == OUTPUT and not is_output(spec.shape):
                raise BundleError(
                    f"component {part.name!r} writes {in_words(spec)}; expected [{BATCH}, 3, {HEIGHT}, {WIDTH}], or "
                    f"both sides times the same whole number up to {LARGEST_SCALE}, such as {HEIGHT}*2"
                )
        for spec in part.inputs:
            if spec.name == IMAGE and not (spec.dtype == np.float32 and is_image(spec.shape)):
                raise BundleError(
                    f"component {part.name!r} reads {in_words(spec)}; expected float32[{BATCH}, 3, {HEIGHT}, {WIDTH}]"
                )
            if spec.name in (*COEFFICIENTS, GUIDANCE) and not (spec.dtype == np.float32 and spec.shape == (1,)):
                raise BundleError(f"component {part.name!r} reads {in_words(spec)}; expected float32[1]")


def is_image(shape: Sequence[int | str]) -> bool:
    """Whether a shape is that of an image."""
    return len(shape) == 4 and shape[0] in (BATCH, 1) and tuple(shape[1:]) == (3, HEIGHT, WIDTH)


def is_output(shape: Sequence[int | str]) -> bool:
    """Whether a shape is that of an output."""
    if len(shape) != 4 or shape[0] not in (BATCH, 1) or shape[1] != 3:
        return False
    height, width = shape[2:]
    times = factor_of(height)
    return times <= LARGEST_SCALE and (height, width) in ((HEIGHT, WIDTH), (f"{HEIGHT}*{times}", f"{WIDTH}*{times}"))


def check_divisors(components: Iterable[Component], size_multiple: int) -> None:
    """Raise ``BundleError`` where a part of an image's size is no whole number for every padded image."""
    for component in components:
        for spec in (*component.inputs, *component.outputs):
            for size in spec.shape:
                if isinstance(size, str) and symbol_of(size) in (HEIGHT, WIDTH) and size_multiple % divisor_of(size):
                    raise BundleError(
                        f"component {component.name!r} has {in_words(spec)}, and sizes are multiples of "
                        f"{size_multiple}, which {divisor_of(size)} does not divide; export the bundle again"
                    )


def check_constants(name: str, mode: Mode, components: Mapping[str, Component], constants: Mapping[str, Array]) -> None:
    """Raise ``BundleError`` for a constant that is not in the file, or not as its reader expects it."""
    readers = {spec.name: spec for part in mode.components for spec in components[part].inputs}
    for tensor, key in mode.constants.items():
        if key not in constants:
            known = ", ".join(constants) or "none"
            raise BundleError(f"mode {name!r} reads the constant {key!r}, and the file has {known}; export it again")
        spec, value = readers.get(tensor), constants[key]
        if spec is not None and not fits(value, spec):
            raise BundleError(
                f"constant {key!r} is {value.dtype}{list(value.shape)}, and its reader has {in_words(spec)}; export "
                "the bundle again"
            )


def fits(value: Array, spec: TensorSpec) -> bool:
    """Whether an array may be a tensor, whose shape is in numbers but for a batch."""
    return value.dtype == spec.dtype and value.shape == tuple(1 if size == BATCH else size for size in spec.shape)


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
    known = {spec.name for part in parts for spec in part.outputs} | set(constants)
    noise = with_first_state(declared, parts, known)
    if any(one.spec.name == STATE and one.draw == PER_STEP for one in noise):
        raise BundleError(f"the manifest draws {STATE!r} for each step; expected once: it is the loop's state")
    for one in noise:
        check_noise(one, readers_of(one.spec.name, parts), known)
    names = [one.spec.name for one in declared]
    if len(set(names)) < len(names):
        raise BundleError(f"the manifest declares one noise twice, of {', '.join(names)}; export the bundle again")
    return noise


def with_first_state(declared: Sequence[Noise], parts: Sequence[Component], known: Iterable[str]) -> tuple[Noise, ...]:
    """The declared noise, after the state of a loop where that is neither declared nor among the ``known`` names."""
    states = [spec for part, spec in readers_of(STATE, parts) if part.stage in STEPS]
    if not states or STATE in known or any(one.spec.name == STATE for one in declared):
        return tuple(declared)
    return (Noise(states[0]), *declared)


def readers_of(tensor: str, parts: Sequence[Component]) -> list[tuple[Component, TensorSpec]]:
    """The components that read a tensor, each with what it declares the tensor to be."""
    return [(part, spec) for part in parts for spec in part.inputs if spec.name == tensor]


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
