"""Overlapping windows of a feature map, and overlapping tiles of a latent: cut out, and put together again.

Windows lie on a grid, so both are products of one step along the rows and one along the columns: cutting out is a
gather along each axis, putting together a product with a matrix along each axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# What windows weigh where they overlap: all the same, less away from their centres, or nothing but the last one.
UNIFORM, GAUSSIAN, LAST = "uniform", "gaussian", "last"
TILE_VARIANCE = 0.01  # of the Gaussian weights, in squared sides
# The centre of the weights, in pixels before side / 2: the rows' and the columns' differ, as in the original code.
OFF_CENTRE = (0.0, 0.5)


@dataclass(frozen=True)
class Grid:
    """Where windows of one size start, along the rows and along the columns."""

    side: tuple[int, int]  # of a window
    starts: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def counts(self) -> tuple[int, int]:
        """The number of windows along the rows and along the columns."""
        return len(self.starts[0]), len(self.starts[1])

    @property
    def count(self) -> int:
        """The number of windows."""
        return math.prod(self.counts)


def window_starts(length: int, window: int) -> tuple[int, ...]:
    """Where the windows of a transformer start along an axis, the last one flush with the end."""
    side = min(length, window)
    count = (length - 1) // side + 1
    stride = side if count == 1 else math.ceil((length - side) / (count - 1) - 1e-8)
    starts = []
    for index in range(count):
        starts.append(min(index * stride, length - side))
        if starts[-1] + side >= length:
            break
    return tuple(starts)


def tile_starts(length: int, tile: int, stride: int) -> tuple[int, ...]:
    """Where the tiles of a latent start along an axis: a stride apart, and one flush with the end."""
    starts = list(range(0, length - tile + 1, stride)) or [0]
    return tuple(starts if starts[-1] + tile >= length else [*starts, length - tile])


def windows_of(shape: Sequence[int], window: int) -> Grid:
    """The windows of a feature map (..., H, W)."""
    height, width = shape[-2:]
    sides = min(height, window), min(width, window)
    return Grid(sides, (window_starts(height, window), window_starts(width, window)))


def tiles_of(shape: Sequence[int], tile: int, stride: int) -> Grid:
    """The tiles of a latent (..., H, W). One that reaches beyond its end repeats the last row or column."""
    return Grid((tile, tile), (tile_starts(shape[-2], tile, stride), tile_starts(shape[-1], tile, stride)))


def positions(starts: Sequence[int], side: int, length: int) -> Tensor:
    """(windows, side) int64: the positions in each window along an axis."""
    return (torch.tensor(starts)[:, None] + torch.arange(side)).clamp(max=length - 1)


def cut(x: Tensor, grid: Grid) -> Tensor:
    """(B, C, H, W) -> (B * windows, C, h, w), the windows of an image one after another, row by row."""
    ways = [
        positions(starts, side, length).to(x.device)
        for starts, side, length in zip(grid.starts, grid.side, x.shape[-2:], strict=True)
    ]
    return gathered(x, *ways)


def gathered(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same from positions of rows (windows, h) and columns (windows, w)."""
    pieces = x[:, :, rows][..., columns]  # (B, C, rows, h, columns, w)
    return pieces.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def averaged(pieces: Tensor, grid: Grid, size: Sequence[int]) -> Tensor:
    """The mean of windows (B * windows, C, h, w) where they overlap: (B, C, H, W)."""
    return put_together(pieces, grid.counts, *placements(grid, size, UNIFORM, like=pieces))


def placements(grid: Grid, size: Sequence[int], weights: str, scale: int = 1, *, like: Tensor) -> tuple[Tensor, Tensor]:
    """What ``put_together`` multiplies by; the windows' results are ``scale`` times as large as the windows."""
    down, across = (
        placement([scale * start for start in starts], scale * side, scale * length, weights, before)
        for starts, side, length, before in zip(grid.starts, grid.side, size, OFF_CENTRE, strict=True)
    )
    return down.to(like), across.T.to(like)


def put_together(pieces: Tensor, counts: Sequence[int], down: Tensor, across: Tensor) -> Tensor:
    """The weighted mean of windows (B * windows, C, h, w): (B, C, H, W).

    ``down`` is (H, rows of windows * h) and ``across`` (columns of windows * w, W): products of their weights are those
    of a pixel.
    """
    apart = pieces.unflatten(0, (-1, *counts)).permute(0, 3, 1, 4, 2, 5)  # (B, C, rows, h, columns, w)
    return down @ apart.flatten(4, 5).flatten(2, 3) @ across


def placement(starts: Sequence[int], side: int, length: int, weights: str, before: float) -> Tensor:
    """(length, windows * side) float32: which parts of which windows a position is the weighted mean of."""
    own = gaussian(side, side / 2 - before) if weights == GAUSSIAN else torch.ones(side)
    matrix = torch.zeros(length, len(starts), side)
    for index, start in enumerate(starts):
        end = min(start + side, length)
        if weights == LAST:
            matrix[start:end] = 0
        matrix[start:end, index] = torch.diag(own)[: end - start]
    matrix = matrix.flatten(1)
    return matrix / matrix.sum(1, keepdim=True)


def gaussian(side: int, centre: float) -> Tensor:
    """The weights of a tile along an axis, (side,) float32, computed in float64."""
    at = torch.arange(side, dtype=torch.float64)
    weights = torch.exp(-((at - centre) ** 2) / (side * side) / (2 * TILE_VARIANCE))
    return (weights / math.sqrt(2 * math.pi * TILE_VARIANCE)).float()
