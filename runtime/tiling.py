"""Where the overlapping tiles of a large image lie, and what each counts for."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]


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


def weights(covered: Sequence[slice]) -> list[Weights]:
    """What each slice's values count for where slices overlap: each fades in linearly over what it shares with the one
    before it, and what came before fades out. They add up to 1 everywhere.
    """
    made: list[Weights] = []
    for i, here in enumerate(covered):
        own = np.ones(here.stop - here.start, np.float32)
        if i > 0:
            shared = covered[i - 1].stop - here.start
            own[:shared] = (np.arange(shared, dtype=np.float32) + np.float32(0.5)) / np.float32(shared)
            for before, weight in zip(covered, made, strict=False):
                fading = weight[max(0, here.start - before.start) :]  # of more than the last one where tiles are close
                fading *= 1.0 - own[: len(fading)]
        made.append(own)
    return made
