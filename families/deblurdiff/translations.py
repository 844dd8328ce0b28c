"""``operators`` in ONNX: the layout of windows and tiles is computed from the shape, in the graph."""

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
from onnxscript import opset20 as op

from uid.families.deblurdiff import operators, windows

FLOAT = onnx.TensorProto.FLOAT
TO_THE_END = 2**62


def integers(*values: int) -> Any:
    """A constant."""
    return op.Constant(value_ints=list(values))


def number(value: int) -> Any:
    """A constant without dimensions."""
    return op.Constant(value_int=value)


def real(value: float) -> Any:
    """A float32 constant without dimensions."""
    return op.Constant(value_float=value)


def size_of(x: Any, axis: int) -> Any:
    """A size of a tensor, without dimensions."""
    return op.Squeeze(op.Shape(x, start=axis, end=axis + 1))


def shape_of(*values: Any) -> Any:
    """Numbers without dimensions as a shape."""
    return op.Concat(*(op.Reshape(value, integers(1)) for value in values), axis=0)


def up_to(count: Any) -> Any:
    """0, 1, ... count - 1."""
    return op.Range(number(0), count, number(1))


def divided_up(numerator: Any, divisor: Any) -> Any:
    """A quotient of whole numbers, rounded up."""
    return op.Div(op.Sub(op.Add(numerator, divisor), number(1)), divisor)


class Axis:
    """Windows along an axis: all have one side, and start a stride apart or flush with the end."""

    def __init__(self, length: Any, side: Any, count: Any, stride: Any) -> None:
        self.length, self.side, self.stride = length, side, stride
        self.numbers = up_to(count)
        self.starts = op.Min(op.Mul(self.numbers, stride), op.Max(op.Sub(length, side), number(0)))

    def positions(self) -> Any:
        """(windows, side): ``windows.positions``."""
        all_ = op.Add(op.Unsqueeze(self.starts, integers(1)), op.Unsqueeze(up_to(self.side), integers(0)))
        return op.Min(all_, op.Sub(self.length, number(1)))

    def placement(self, weights: str, scale: int, before: float) -> Any:
        """(scale * length, windows * side * scale): ``windows.placement``."""
        times = number(scale)
        side, length = op.Mul(self.side, times), op.Mul(self.length, times)
        offsets, here = up_to(side), op.Unsqueeze(up_to(length), integers(1))
        inside = op.Sub(here, op.Unsqueeze(op.Mul(self.starts, times), integers(0)))  # (length, windows)
        matches = op.Equal(op.Unsqueeze(inside, integers(2)), op.Unsqueeze(offsets, integers(0, 1)))
        counts = op.Less(here, self.next_starts(length, times)) if weights == windows.LAST else self.first_at_the_end()
        flat: Any = op.Cast(op.And(matches, op.Unsqueeze(counts, integers(2))), to=FLOAT)
        if weights == windows.GAUSSIAN:
            flat = op.Mul(flat, op.Unsqueeze(gaussian(offsets, side, before), integers(0, 1)))
        flat = op.Reshape(flat, integers(0, -1))
        return op.Div(flat, op.ReduceSum(flat, integers(1), keepdims=1))

    def first_at_the_end(self) -> Any:
        """(1, windows): of several windows that are flush with the end the first one counts."""
        before = op.Add(op.Mul(op.Sub(self.numbers, number(1)), self.stride), self.side)
        return op.Unsqueeze(op.Or(op.Equal(self.numbers, number(0)), op.Less(before, self.length)), integers(0))

    def next_starts(self, length: Any, times: Any) -> Any:
        """(1, windows): where the next window starts, or the axis ends."""
        later = op.Slice(op.Mul(self.starts, times), integers(1), integers(TO_THE_END), integers(0))
        return op.Unsqueeze(op.Concat(later, op.Reshape(length, integers(1)), axis=0), integers(0))


def gaussian(offsets: Any, side: Any, before: float) -> Any:
    """``windows.gaussian`` without its factor, which a mean does not show."""
    length = op.Cast(side, to=FLOAT)
    centre = op.Sub(op.Mul(length, real(0.5)), real(before))
    away = op.Div(op.Sub(op.Cast(offsets, to=FLOAT), centre), length)
    return op.Exp(op.Mul(op.Mul(away, away), real(-1 / (2 * windows.TILE_VARIANCE))))


def cover(x: Any, rows: Axis, columns: Axis, weights: str, scale: int) -> tuple[Any, ...]:
    """``operators.covered``."""
    positions = rows.positions(), columns.positions()
    count = op.Mul(size_of(positions[0], 0), size_of(positions[1], 0))
    image = op.Reshape(
        op.Expand(op.Unsqueeze(up_to(size_of(x, 0)), integers(1)), shape_of(number(1), count)), integers(-1)
    )
    down, across = (
        axis.placement(weights, scale, before) for axis, before in zip((rows, columns), windows.OFF_CENTRE, strict=True)
    )
    return *positions, image, down, op.Transpose(across, perm=[1, 0])


def window_cover(x: Any, factor: int, window: int) -> tuple[Any, ...]:
    """``window_cover`` in ONNX."""

    def axis(number_: int) -> Axis:
        length = op.Div(size_of(x, number_), number(factor))
        side = op.Min(length, number(window))
        count = divided_up(length, side)
        between = op.Max(op.Sub(count, number(1)), number(1))
        return Axis(length, side, count, divided_up(op.Sub(length, side), between))

    return cover(x, axis(2), axis(3), windows.UNIFORM, 1)


def tile_cover(x: Any, tile: int, stride: int, weights: str, scale: int) -> tuple[Any, ...]:
    """``tile_cover`` in ONNX."""

    def axis(number_: int) -> Axis:
        length = size_of(x, number_)
        room = op.Max(op.Sub(length, number(tile)), number(0))
        count = op.Add(divided_up(room, number(stride)), number(1))
        return Axis(length, number(tile), count, number(stride))

    return cover(x, axis(2), axis(3), weights, scale)


def cut(x: Any, rows: Any, columns: Any, image: Any) -> Any:
    """``cut`` in ONNX."""
    pieces = op.Gather(op.Gather(x, rows, axis=2), columns, axis=4)  # (B, C, rows, h, columns, w)
    apart = op.Transpose(pieces, perm=[0, 2, 4, 1, 3, 5])
    return op.Reshape(apart, shape_of(number(-1), size_of(x, 1), size_of(rows, 1), size_of(columns, 1)))


def merge(pieces: Any, x: Any, rows: Any, columns: Any, down: Any, across: Any) -> Any:
    """``merge`` in ONNX."""
    shape = op.Concat(shape_of(number(-1), size_of(rows, 0), size_of(columns, 0)), op.Shape(pieces, start=1), axis=0)
    apart = op.Transpose(op.Reshape(pieces, shape), perm=[0, 3, 1, 4, 2, 5])  # (B, C, rows, h, columns, w)
    flat = op.Reshape(apart, shape_of(number(0), number(0), size_of(down, 1), size_of(across, 0)))
    return op.MatMul(op.MatMul(down, flat), across)


TRANSLATIONS: Mapping[Any, Callable[..., Any]] = {
    getattr(torch.ops, operators.NAMESPACE).window_cover.default: window_cover,
    getattr(torch.ops, operators.NAMESPACE).tile_cover.default: tile_cover,
    getattr(torch.ops, operators.NAMESPACE).cut.default: cut,
    getattr(torch.ops, operators.NAMESPACE).merge.default: merge,
}
