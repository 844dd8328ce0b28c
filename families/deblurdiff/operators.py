"""Windows and tiles as operators of PyTorch, whose translations to ONNX (``translations.py``) serve every size.

How many windows there are, and how large, follows from the size of the image. Traced as PyTorch, a graph would be of
one number of windows. All maps of one size share one cover.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from uid.families.deblurdiff import windows

NAMESPACE = "uid_deblurdiff"
# The tracer asks whether a batch has less than 64, both branches of guidance counted. The graph is the same either way.
MOST_TRACED = 31
Tensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Cover(NamedTuple):
    """Windows that cover a map (B, C, H, W), as tensors."""

    rows: Tensor  # (rows of windows, h) int64: the positions in each
    columns: Tensor  # (columns of windows, w) int64
    image: Tensor  # (B * windows,) int64: the image that each is of
    down: Tensor  # (H, rows of windows * h) float32: the weights that rows are put together with
    across: Tensor  # (columns of windows * w, W) float32

    def cut(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B * windows, C, h, w)."""
        pieces: Tensor = torch.ops.uid_deblurdiff.cut(x, self.rows, self.columns, self.image)
        return pieces

    def merge(self, pieces: Tensor, x: Tensor) -> Tensor:
        """The windows' results (B * windows, C, h, w), put together: (B, C, H, W); only B is read of ``x``."""
        down, across = self.down.to(pieces.dtype), self.across.to(pieces.dtype)
        whole: Tensor = torch.ops.uid_deblurdiff.merge(pieces, x, self.rows, self.columns, down, across)
        return whole


def window_cover(x: Tensor, factor: int, window: int) -> Cover:
    """The windows of transformers that see ``x`` at a ``factor``-th of its sides."""
    return Cover(*torch.ops.uid_deblurdiff.window_cover(x, factor, window))


def tile_cover(x: Tensor, tile: int, stride: int, weights: str, scale: int = 1) -> Cover:
    """The tiles of ``x``, whose results are put together ``scale`` times as large, by weights of ``windows``."""
    return Cover(*torch.ops.uid_deblurdiff.tile_cover(x, tile, stride, weights, scale))


def covered(x: Tensor, size: tuple[int, int], grid: windows.Grid, weights: str, scale: int) -> Tensors:
    """A cover's tensors."""
    rows, columns = (
        windows.positions(starts, side, length).to(x.device)
        for starts, side, length in zip(grid.starts, grid.side, size, strict=True)
    )
    image = torch.arange(len(x), device=x.device).repeat_interleave(grid.count)
    down, across = windows.placements(grid, size, weights, scale, like=x.float())
    return rows, columns, image, down, across.contiguous()


@torch.library.custom_op(f"{NAMESPACE}::window_cover", mutates_args=())
def windows_as_tensors(x: Tensor, factor: int, window: int) -> Tensors:
    """``window_cover``."""
    size = x.shape[-2] // factor, x.shape[-1] // factor
    return covered(x, size, windows.windows_of(size, window), windows.UNIFORM, 1)


@torch.library.custom_op(f"{NAMESPACE}::tile_cover", mutates_args=())
def tiles_as_tensors(x: Tensor, tile: int, stride: int, weights: str, scale: int) -> Tensors:
    """``tile_cover``."""
    size = x.shape[-2], x.shape[-1]
    return covered(x, size, windows.tiles_of(size, tile, stride), weights, scale)


@torch.library.custom_op(f"{NAMESPACE}::cut", mutates_args=())
def cut(x: Tensor, rows: Tensor, columns: Tensor, image: Tensor) -> Tensor:
    """``Cover.cut``."""
    return windows.gathered(x, rows, columns).contiguous()


@torch.library.custom_op(f"{NAMESPACE}::merge", mutates_args=())
def merge(pieces: Tensor, x: Tensor, rows: Tensor, columns: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """``Cover.merge``."""
    return windows.put_together(pieces, (len(rows), len(columns)), down, across).contiguous()


# -- shapes, for the tracer -------------------------------------------------------------------------------------------


@windows_as_tensors.register_fake
def _(x: Tensor, factor: int, window: int) -> Tensors:
    return traced_cover(x, sizes_to_come(2), [side // factor for side in x.shape[-2:]])


@tiles_as_tensors.register_fake
def _(x: Tensor, tile: int, stride: int, weights: str, scale: int) -> Tensors:
    return traced_cover(x, [tile, tile], [scale * side for side in x.shape[-2:]])


@cut.register_fake
def _(x: Tensor, rows: Tensor, columns: Tensor, image: Tensor) -> Tensor:
    return x.new_empty(image.shape[0], x.shape[1], rows.shape[1], columns.shape[1])


@merge.register_fake
def _(pieces: Tensor, x: Tensor, rows: Tensor, columns: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return pieces.new_empty(x.shape[0], pieces.shape[1], down.shape[0], across.shape[1])


def traced_cover(x: Tensor, sides: list[Any], size: list[Any]) -> Tensors:
    """A cover by windows with ``sides`` that puts together maps of ``size``; how many there are is seen in the run."""
    rows, columns, down, across = sizes_to_come(4)
    (image,) = sizes_to_come(1, most=MOST_TRACED)
    return (
        x.new_empty(rows, sides[0], dtype=torch.int64),
        x.new_empty(columns, sides[1], dtype=torch.int64),
        x.new_empty(image, dtype=torch.int64),
        x.new_empty(size[0], down, dtype=torch.float32),
        x.new_empty(across, size[1], dtype=torch.float32),
    )


def sizes_to_come(number: int, most: int | None = None) -> list[Any]:
    """Sizes that are seen when the graph runs."""
    context = torch.library.get_ctx()
    return [context.new_dynamic_size(min=2, max=most) for _ in range(number)]
