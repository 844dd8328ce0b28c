"""Overlapping windows of a feature map, and overlapping tiles of a latent: cut out, and put together again.

Windows lie on a grid, so both are products of one step along the rows and one along the columns: cutting out is a
gather along each axis, putting together a product with a matrix along each axis.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_VARIANCE = 0.01  # of the Gaussian weights of tiles, in squared tile sides


@dataclass(frozen=True)
class Grid:
    """Where windows of one size start, along the rows and along the columns."""

    side: tuple[int, int]  # of a window
    starts: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def count(self) -> int:
        """The number of windows."""
        return len(self.starts[0]) * len(self.starts[1])


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
    starts = list(range(0, length - tile + 1, stride))
    return tuple(starts if starts[-1] + tile == length else [*starts, length - tile])


def windows_of(shape: Sequence[int], window: int) -> Grid:
    """The windows of a feature map (..., H, W)."""
    height, width = shape[-2:]
    sides = min(height, window), min(width, window)
    return Grid(sides, (window_starts(height, window), window_starts(width, window)))


def tiles_of(shape: Sequence[int], tile: int, stride: int) -> Grid:
    """The tiles of a latent (..., H, W), both of whose sides are ``tile`` or more."""
    return Grid((tile, tile), (tile_starts(shape[-2], tile, stride), tile_starts(shape[-1], tile, stride)))


def cut(x: Tensor, grid: Grid) -> Tensor:
    """(B, C, H, W) -> (B * windows, C, h, w), the windows of an image one after another, row by row."""
    rows, columns = (
        torch.tensor([[start + i for i in range(side)] for start in starts], device=x.device)
        for side, starts in zip(grid.side, grid.starts, strict=True)
    )
    pieces = x[:, :, rows][..., columns]  # (B, C, rows, h, columns, w)
    return pieces.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def put_together(pieces: Tensor, grid: Grid, size: Sequence[int], weights: Sequence[Tensor]) -> Tensor:
    """The weighted mean of windows (B * windows, C, h, w) where they overlap: (B, C, H, W).

    ``weights`` are those of a window's rows and of its columns, whose products its pixels are weighted by.
    """
    ways = [
        placement(starts, length, weight) for starts, length, weight in zip(grid.starts, size, weights, strict=True)
    ]
    rows, columns = len(grid.starts[0]), len(grid.starts[1])
    apart = pieces.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 4, 2, 5)  # (B, C, rows, h, columns, w)
    return ways[0] @ apart.flatten(4, 5).flatten(2, 3) @ ways[1].T


def placement(starts: Sequence[int], length: int, weight: Tensor) -> Tensor:
    """(length, windows * side): which parts of which windows a position is the weighted mean of."""
    side = len(weight)
    matrix = weight.new_zeros(length, len(starts), side)
    for index, start in enumerate(starts):
        matrix[start : start + side, index] = torch.diag(weight)
    matrix = matrix.flatten(1)
    return matrix / matrix.sum(1, keepdim=True)


def gaussian(side: int, centre: float) -> Tensor:
    """The weights of a tile along an axis, (side,) float32, computed in float64."""
    at = torch.arange(side, dtype=torch.float64)
    weights = torch.exp(-((at - centre) ** 2) / (side * side) / (2 * TILE_VARIANCE))
    return (weights / math.sqrt(2 * math.pi * TILE_VARIANCE)).float()


def tile_weights(side: int) -> tuple[Tensor, Tensor]:
    """The weights of a tile's rows and columns. Their centres differ by half a pixel, as in the original code."""
    return gaussian(side, side / 2), gaussian(side, (side - 1) / 2)


def in_tiles(run: Callable[[Tensor, slice, slice], Tensor], x: Tensor, grid: Grid, scale: int = 1) -> Tensor:
    """The blend of what ``run`` gives for each tile of ``x`` with its rows and columns; ``scale`` times as large."""
    side = grid.side[0] * scale
    pieces = []
    for top in grid.starts[0]:
        for left in grid.starts[1]:
            rows, columns = slice(top, top + grid.side[0]), slice(left, left + grid.side[1])
            pieces.append(run(x[:, :, rows, columns], rows, columns))
    stacked = torch.stack(pieces, dim=1).flatten(0, 1)
    starts = [tuple(start * scale for start in axis) for axis in grid.starts]
    larger = Grid((side, side), (starts[0], starts[1]))
    weights = [one.to(x) for one in tile_weights(side)]
    return put_together(stacked, larger, [scale * length for length in x.shape[-2:]], weights)


def averaged(pieces: Tensor, grid: Grid, size: Sequence[int]) -> Tensor:
    """The mean of windows (B * windows, C, h, w) where they overlap: (B, C, H, W)."""
    uniform = [pieces.new_ones(side) for side in grid.side]
    return put_together(pieces, grid, size, uniform)
