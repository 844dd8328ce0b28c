"""Where the overlapping tiles of a large image lie, and the weights that blend them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]

TILE_OVERLAP = 8  # neighbouring tiles share at least 1 / this of a tile
TILE_SIZES = 8  # sides that a tile may have where each new size costs time


@dataclass(frozen=True)
class Layout:
    """The rows and columns of tiles that cover an image; one of each where it is run whole."""

    rows: tuple[slice, ...]
    columns: tuple[slice, ...]

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self.rows) * len(self.columns)


def layout(
    height: int,
    width: int,
    tile: int,
    multiple: int,
    *,
    min_side: int = 1,
    max_side: int | None = None,
    few_sizes: bool = False,
) -> Layout:
    """The tiles of a padded image: none larger than ``tile * tile`` pixels, all sides multiples of ``multiple``.

    ``min_side``: no side of a tile is shorter; ``max_side``: nor longer, and it is ``tile`` or more. ``few_sizes``:
    tiles have one of ``TILE_SIZES`` sides, for backends on which each new size costs time.
    """
    if height * width <= tile * tile and max(height, width) <= (max_side or max(height, width)):
        return Layout((slice(0, height),), (slice(0, width),))
    overlap = max(1, tile // TILE_OVERLAP // multiple) * multiple
    step = max(1, tile // TILE_SIZES // multiple) * multiple if few_sizes else multiple

    def covered(length: int) -> tuple[slice, ...]:
        side = max(smallest_tile_for(length, tile, overlap, step), min_side + -min_side % multiple)
        return tuple(spans(length, min(tile, side), overlap, multiple))

    return Layout(covered(height), covered(width))


def spans(length: int, tile: int, overlap: int, multiple: int) -> list[slice]:
    """Cover ``length`` with slices of ``tile``, each overlapping its neighbour by at least ``overlap``.

    ``length``, ``tile`` and ``overlap`` are multiples of ``multiple``, and so is every start. The slices are spread
    evenly: none overlaps its neighbour by more than half unless there are only two.
    """
    if length <= tile:
        return [slice(0, length)]
    count = tiles_needed(length, tile, overlap)
    last = (length - tile) // multiple
    starts = [multiple * (i * last // (count - 1)) for i in range(count)]
    return [slice(start, start + tile) for start in starts]


def tiles_needed(length: int, tile: int, overlap: int) -> int:
    """How many tiles cover ``length``."""
    return max(1, -(-(length - overlap) // (tile - overlap)))


def smallest_tile_for(length: int, tile: int, overlap: int, multiple: int) -> int:
    """The smallest tile size that covers ``length`` with the same number of tiles: its tiles overlap least."""
    count = tiles_needed(length, tile, overlap)
    return -(-(length + (count - 1) * overlap) // (count * multiple)) * multiple


def blend_weights(covered: Sequence[slice]) -> list[Weights]:
    """A weight for each position of each slice; where slices overlap, one fades in linearly and the other fades out.

    The weights add up to 1 everywhere.
    """
    made: list[Weights] = []
    for i, here in enumerate(covered):
        own = np.ones(here.stop - here.start, np.float32)
        if i > 0:
            shared = covered[i - 1].stop - here.start
            own[:shared] = (np.arange(shared, dtype=np.float32) + np.float32(0.5)) / np.float32(shared)
            for before, weight in zip(covered, made, strict=False):
                fading = weight[max(0, here.start - before.start) :]  # of several slices where tiles are close
                fading *= 1.0 - own[: len(fading)]
        made.append(own)
    return made


def first_needed(span: slice, side: int) -> int:
    """The first pixel of a side that a tile's span reads, with what is reflected beyond the edge."""
    reflected: int = 2 * side - span.stop - 1
    start: int = span.start
    return start if span.stop <= side else max(0, min(start, reflected))


def scaled(span: slice, scale: int) -> slice:
    """Where an output that is ``scale`` times as large has these pixels."""
    return slice(span.start * scale, span.stop * scale)
