"""The Gaussian noise of an image: drawn from a seed for the whole padded image; each tile takes its part.

Noise that is drawn once has the shape that the bundle declares, with a batch of 1; noise of each step has one more axis
in front, of the steps.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from uid.bundles.declarations import PER_STEP, Noise
from uid.bundles.tensors import BATCH, HEIGHT, WIDTH, Array, divisor_of, factor_of, resolve, symbol_of
from uid.errors import InputError

NoiseArray = npt.NDArray[np.float32]


def shape_of(noise: Noise, height: int, width: int, steps: int) -> tuple[int, ...]:
    """The shape of noise for a padded image of ``height`` x ``width`` pixels."""
    shape = resolve(noise.spec.shape, {HEIGHT: height, WIDTH: width})
    return (steps, *shape) if noise.draw == PER_STEP else shape


@lru_cache(maxsize=2)  # all frames of a video have the same, and their transposed transforms another
def drawn(noise: tuple[Noise, ...], height: int, width: int, steps: int, seed: int) -> Mapping[str, NoiseArray]:
    """Every noise of a mode by name, from one generator in the order declared: the same for a seed; read-only."""
    generator = np.random.Generator(np.random.PCG64(seed))
    arrays = {}
    for one in noise:
        array = generator.standard_normal(shape_of(one, height, width, steps), dtype=np.float32)
        array.flags.writeable = False
        arrays[one.spec.name] = array
    return arrays


def checked(
    given: Mapping[str, Array], noise: Sequence[Noise], height: int, width: int, steps: int
) -> Mapping[str, NoiseArray]:
    """A caller's own noise by name; raises ``InputError`` for names, shapes and dtypes that the mode does not have."""
    known = {one.spec.name: one for one in noise}
    for name, array in given.items():
        if name not in known:
            raise InputError(f"noise {name!r} is not one of this mode's: {', '.join(known) or 'it has none'}")
        shape, dtype = shape_of(known[name], height, width, steps), known[name].spec.dtype
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
            got = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"noise {name!r} is {got}; expected {dtype}{list(shape)} for this image and these steps")
        if not np.isfinite(array).all():
            raise InputError(f"noise {name!r} has NaN or infinity; expected finite numbers")
    return given


def part(noise: Noise, array: NoiseArray, rows: slice, columns: slice) -> NoiseArray:
    """The part of an image's noise for the tile at these rows and columns of pixels."""
    spans = {HEIGHT: rows, WIDTH: columns}

    def along(dimension: int | str) -> slice:
        span = spans.get(symbol_of(dimension)) if isinstance(dimension, str) else None
        factor, divisor = factor_of(dimension), divisor_of(dimension)
        return slice(None) if span is None else slice(span.start * factor // divisor, span.stop * factor // divisor)

    index = tuple(along(dimension) for dimension in noise.spec.shape)
    if noise.draw == PER_STEP:
        index = (slice(None), *index)
    return array[index]


def together(noise: Noise, arrays: Sequence[NoiseArray]) -> NoiseArray:
    """The noise of several tiles of one size, one after another along the batch axis; a single one is not copied."""
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays, axis=noise.spec.shape.index(BATCH) + (noise.draw == PER_STEP))
