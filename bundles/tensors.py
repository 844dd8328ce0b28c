"""Tensors by name, dtype and symbolic shape; and the names that the runtime itself reads or writes.

Components are wired by tensor name: what one writes, a later one reads. These names are the runtime's:

    image                 the image in, (B, 3, H, W) float32 in [0, 1]; B is 1 unless the graphs have a batch axis
    latent, latent_next   the state of the denoising loop; what a step writes is the next step's ``latent``
    a step's coefficients (1,) float32, by sampler: ``declarations.SAMPLERS``; a step need not read them all
    guidance_scale        (1,) float32
    output                the image out, (B, 3, H, W) float32 in [0, 1], or a whole number of times as high and wide;
                          where the mode has a colour fix, also beyond [0, 1]

A mode may declare further images and noise that it reads.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from uid.errors import ModelError

Array = npt.NDArray[Any]

IMAGE, OUTPUT = "image", "output"
STATE, NEXT_STATE = "latent", "latent_next"
GUIDANCE = "guidance_scale"
BATCH = "batch"  # symbol of a graph's first dimension, if it can run several images of one size together
HEIGHT, WIDTH = "height", "width"  # symbols of the padded image's size


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a graph's input or output; a dimension is a size or a symbol such as "height/8"."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    @property
    def symbols(self) -> frozenset[str]:
        """The symbols in the shape, without divisors and factors."""
        return frozenset(symbol_of(size) for size in self.shape if isinstance(size, str))


def symbol_of(dimension: str) -> str:
    """The symbol in a dimension: "height" in "height/8" and in "height*2"."""
    return dimension.partition("/")[0].partition("*")[0]


def divisor_of(dimension: int | str) -> int:
    """What the symbol of a dimension is divided by: 8 in "height/8"."""
    return int(str(dimension).partition("/")[2] or 1)


def factor_of(dimension: int | str) -> int:
    """What the symbol of a dimension is multiplied by: 2 in "height*2"."""
    return int(str(dimension).partition("*")[2] or 1)


def resolve(shape: Sequence[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A symbolic shape in numbers: ("batch", 4, "height/8") with sizes {"height": 64} is (1, 4, 8).

    The batch is 1 unless ``sizes`` has another. Raises ``ModelError`` for a symbol that is not in ``sizes``, and for a
    dimension that would be 0.
    """
    known = {BATCH: 1, **sizes}

    def dimension(size: int | str) -> int:
        if isinstance(size, int):
            return size
        symbol = symbol_of(size)
        if symbol not in known:
            raise ModelError(f"the manifest uses dimension {size!r}; expected one of {sorted(known)}")
        value = known[symbol] // divisor_of(size) * factor_of(size)
        if value < 1:
            raise ModelError(
                f"the manifest's dimension {size!r} is 0 where {symbol} is {known[symbol]}; use a larger image"
            )
        return value

    return tuple(dimension(size) for size in shape)


def resolve_all(specs: Iterable[TensorSpec], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors in numbers, by name."""
    return {spec.name: resolve(spec.shape, sizes) for spec in specs}
