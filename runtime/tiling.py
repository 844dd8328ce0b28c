"""Large images in overlapping tiles, blended linearly where they overlap, row of tiles by row of tiles."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]
RunTile = Callable[[slice, slice], Image]


def spans(length: int, tile: int, overlap: int, multiple: int) -> list[slice]:
    """Cover ``length`` with slices of ``tile``, each overlapping its neighbour by at least ``overlap``.

    ``length``, ``tile`` and ``overlap`` are multiples of ``multiple``, and so is every start. The slices are spread
    evenly, so that none overlaps its neighbour by more than half unless there are only two.
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


def least_tile(length: int, tile: int, overlap: int, multiple: int) -> int:
    """The least side of which as many tiles as of ``tile`` cover ``length`` in ``spans``: they overlap least."""
    count = tiles_needed(length, tile, overlap)
    return -(-(length + (count - 1) * overlap) // (count * multiple)) * multiple


def blend(below: Image, above: Image, overlap: int, axis: int) -> Image:
    """Join two pictures along ``axis``, fading linearly from one to the other over ``overlap`` pixels."""
    ramp = (np.arange(overlap, dtype=np.float32) + 0.5) / overlap
    ramp = ramp.reshape([-1 if i == axis else 1 for i in range(below.ndim)])
    keep = below.shape[axis] - overlap
    left, faded_out = np.split(below, [keep], axis)
    faded_in, right = np.split(above, [overlap], axis)
    return np.concatenate([left, faded_out * (1.0 - ramp) + faded_in * ramp, right], axis)


def rows_of_tiles(run_tile: RunTile, rows: list[slice], columns: list[slice]) -> Iterator[Image]:
    """Run every tile, yielding finished rows of the picture from the top; holds one row of tiles and its overlap.

    ``run_tile`` takes a tile's rows and columns and returns its pixels, (tile height, tile width, C) float32.
    """
    pending: Image | None = None  # the lower part of the row above, still to be faded into the next
    for i, row in enumerate(rows):
        band = run_tile(row, columns[0])
        for before, column in itertools.pairwise(columns):
            band = blend(band, run_tile(row, column), before.stop - column.start, axis=1)
        if pending is not None:
            band = blend(pending, band, pending.shape[0], axis=0)
        done = rows[i + 1].start - row.start if i + 1 < len(rows) else band.shape[0]
        yield band[:done]
        pending = band[done:]
