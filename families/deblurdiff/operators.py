"""Windows of a feature map as operators whose graphs serve every size of image.

How many windows there are, and how large, follows from the size. Traced as PyTorch, a graph would be of one number of
windows: these operators have a translation to ONNX that computes it from the shape.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript import opset20 as op
from torch import Tensor

from uid.families.deblurdiff import windows


@torch.library.custom_op("uid_deblurdiff::cut", mutates_args=())
def cut(x: Tensor, window: int) -> Tensor:
    """(B, C, H, W) -> (B * windows, C, h, w), as ``windows.cut``."""
    return windows.cut(x, windows.windows_of(x.shape, window)).contiguous()


@torch.library.custom_op("uid_deblurdiff::merge", mutates_args=())
def merge(pieces: Tensor, x: Tensor, window: int) -> Tensor:
    """The mean of windows of ``x`` where they overlap, in the shape of ``x``."""
    return windows.averaged(pieces, windows.windows_of(x.shape, window), x.shape[-2:]).contiguous()


@torch.library.custom_op("uid_deblurdiff::for_each", mutates_args=())
def for_each(text: Tensor, pieces: Tensor) -> Tensor:
    """(B, L, D) -> (B * windows, L, D): the text of each window."""
    return text.repeat_interleave(len(pieces) // len(text), dim=0)


@cut.register_fake
def _(x: Tensor, window: int) -> Tensor:
    context = torch.library.get_ctx()
    count, height, width = (context.new_dynamic_size(min=2) for _ in range(3))
    return x.new_empty(count, x.shape[1], height, width)


@merge.register_fake
def _(pieces: Tensor, x: Tensor, window: int) -> Tensor:
    return torch.empty_like(x)


@for_each.register_fake
def _(text: Tensor, pieces: Tensor) -> Tensor:
    return text.new_empty(pieces.shape[0], text.shape[1], text.shape[2])


# -- in ONNX ----------------------------------------------------------------------------------------------------------


def integers(*values: int) -> Any:
    """A constant."""
    return op.Constant(value_ints=list(values))


def number(value: int) -> Any:
    """A constant without dimensions."""
    return op.Constant(value_int=value)


class Axis:
    """The windows along one axis of ``x``, as tensors of the graph."""

    def __init__(self, x: Any, axis: int, window: int) -> None:
        length = op.Squeeze(op.Shape(x, start=axis, end=axis + 1))
        one = number(1)
        self.side = op.Min(length, number(window))
        self.count = op.Add(op.Div(op.Sub(length, one), self.side), one)
        between = op.Max(op.Sub(self.count, one), one)
        room = op.Sub(length, self.side)
        stride = op.Div(op.Sub(op.Add(room, between), one), between)
        numbers = op.Range(number(0), self.count, one)
        starts = op.Min(op.Mul(numbers, stride), room)
        offsets = op.Range(number(0), self.side, one)
        self.index = op.Add(op.Unsqueeze(starts, integers(1)), op.Unsqueeze(offsets, integers(0)))  # (count, side)
        # Of several windows that are flush with the end the first one counts.
        before = op.Add(op.Mul(op.Sub(numbers, one), stride), self.side)
        self.counts = op.Or(op.Equal(numbers, number(0)), op.Less(before, length))
        self.positions = op.Range(number(0), length, one)

    def placement(self, like: Any) -> Any:
        """(length, count * side): which parts of which windows a position is the mean of."""
        here = op.Equal(op.Unsqueeze(self.positions, integers(1, 2)), op.Unsqueeze(self.index, integers(0)))
        counted = op.And(here, op.Unsqueeze(self.counts, integers(0, 2)))
        flat = op.CastLike(op.Reshape(counted, integers(0, -1)), like)
        return op.Div(flat, op.ReduceSum(flat, integers(1), keepdims=1))


def sizes(*values: Any) -> Any:
    """Numbers as a shape."""
    return op.Concat(*(op.Reshape(value, integers(1)) for value in values), axis=0)


def onnx_cut(x: Any, window: int) -> Any:
    """``cut`` in ONNX."""
    rows, columns = Axis(x, 2, window), Axis(x, 3, window)
    pieces = op.Gather(op.Gather(x, rows.index, axis=2), columns.index, axis=4)
    apart = op.Transpose(pieces, perm=[0, 2, 4, 1, 3, 5])
    return op.Reshape(apart, sizes(number(-1), op.Squeeze(op.Shape(x, start=1, end=2)), rows.side, columns.side))


def onnx_merge(pieces: Any, x: Any, window: int) -> Any:
    """``merge`` in ONNX."""
    rows, columns = Axis(x, 2, window), Axis(x, 3, window)
    channels = op.Squeeze(op.Shape(x, start=1, end=2))
    shape = sizes(number(-1), rows.count, columns.count, channels, rows.side, columns.side)
    apart = op.Transpose(op.Reshape(pieces, shape), perm=[0, 3, 1, 4, 2, 5])
    down, across = op.Mul(rows.count, rows.side), op.Mul(columns.count, columns.side)
    flat = op.Reshape(apart, sizes(number(-1), channels, down, across))
    across_ = op.Transpose(columns.placement(x), perm=[1, 0])
    return op.MatMul(rows.placement(x), op.MatMul(flat, across_))


def onnx_for_each(text: Any, pieces: Any) -> Any:
    """``for_each`` in ONNX."""
    batch = op.Squeeze(op.Shape(text, start=0, end=1))
    count = op.Div(op.Squeeze(op.Shape(pieces, start=0, end=1)), batch)
    tail = op.Shape(text, start=1, end=3)
    wide = op.Expand(op.Unsqueeze(text, integers(1)), op.Concat(sizes(batch, count), tail, axis=0))
    return op.Reshape(wide, op.Concat(integers(-1), tail, axis=0))


TRANSLATIONS: Mapping[Any, Callable[..., Any]] = {
    torch.ops.uid_deblurdiff.cut.default: onnx_cut,
    torch.ops.uid_deblurdiff.merge.default: onnx_merge,
    torch.ops.uid_deblurdiff.for_each.default: onnx_for_each,
}
