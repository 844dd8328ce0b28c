"""One image through a pipeline, within fixed limits: transforms, tiles and batches in, one image out.

An image is transformed, padded as the bundle says, and cut into tiles that take their parts of the image's noise. Tiles
of one size run together in batches. What they give is blended and averaged, and gets the mode's colour fix.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby, islice
from operator import itemgetter

import numpy as np

from uid.bundles.declarations import FLAT, NEAREST, NO_COLOUR_FIX, Bundle
from uid.bundles.tensors import BATCH, HEIGHT, IMAGE, OUTPUT, WIDTH, Array, TensorSpec
from uid.engines import Backend
from uid.errors import InputError
from uid.runtime.canvas import Canvas
from uid.runtime.colour import BAND, colour_fixed, detail, flat_kept
from uid.runtime.layout import Layout, blend_weights, first_needed, layout, scaled
from uid.runtime.noise import checked, drawn, part, together
from uid.runtime.options import AUTO, Options, Result, smallest_tile
from uid.runtime.pixels import (
    IMAGE_PIXELS,
    OUTPUT_PIXELS,
    Planes,
    blend,
    enlarged,
    extend,
    in_dtype,
    interleaved,
    like,
    pad,
    padded,
    planes,
    to_float,
)
from uid.runtime.plan import Plans
from uid.runtime.schedule import Step
from uid.runtime.transforms import TRANSPOSED, add, transformed

OnStep = Callable[[int, int], None]
LARGE = 32_000_000  # pixels, from which on rows are done with one by one


@dataclass(frozen=True)
class Limits:
    """How much of an image runs at once."""

    tile: int  # largest side of a tile in pixels; a larger image is cut
    batch: int  # most tiles and transforms that run together


@dataclass(frozen=True)
class Request:
    """What is asked for, checked and complete."""

    image: Array  # (H, W, 3) or (H, W)
    options: Options  # resolved
    steps: Sequence[Step]
    extra: Mapping[str, Planes] = field(default_factory=dict)  # the mode's further images: (3, H, W) float32 in [0, 1]
    noise: Mapping[str, Array] = field(default_factory=dict)  # in place of the seed's, by name
    on_step: OnStep | None = None


@dataclass(frozen=True)
class Piece:
    """One tile of one transform of an image, and where its output is added."""

    planes: Array  # (3, H, W), uint8, uint16 or float
    noise: Mapping[str, Array]  # its part of the image's noise, by name
    transform: int
    target: Planes | None = None  # (3, H, W), without padding: the view that its output is added to
    weights: tuple[Planes, Planes] | None = None  # (H,) and (W,), whose product its output is weighted by; None: 1

    def add(self, output: Planes) -> None:
        """Add its output, (3, H, W), which is changed."""
        assert self.target is not None, "only a piece of a sum has a target"
        if self.weights is not None:
            output *= np.outer(*self.weights)
        add(self.target, output[:, : self.target.shape[1], : self.target.shape[2]])


class ImageRun:
    """A request within limits. It is run once; its result says how."""

    def __init__(self, bundle: Bundle, backend: Backend, plans: Plans, request: Request, limits: Limits) -> None:
        self.bundle, self.backend, self.plans, self.request, self.limits = bundle, backend, plans, request, limits
        large = request.image.ndim == 3 and request.image[..., 0].size > LARGE  # which is not copied
        self.given = np.moveaxis(request.image, 2, 0) if large else planes(request.image)
        self.transforms = request.options.transforms or 1
        self.mode = bundle.modes[request.options.mode]
        self.parts = bundle.parts(request.options.mode)
        self.scale = bundle.output_scale(request.options.mode)
        height, width = padded(self.given.shape[1:], bundle.size_multiple, bundle.min_side)
        # Of the image as it is and transposed: its padded size, its tiles, its noise.
        self.sizes = (height, width), (width, height)
        self.layouts = [self.layout(*size) for size in self.sizes]
        self.tiles = self.layouts[0].tiles
        self.noises = [self.noise(*size) for size in self.sizes[: 1 + (self.transforms > TRANSPOSED)]]
        self.seconds = dict.fromkeys(("prepare", "step", "finish"), 0.0)
        self.pieces_done = 0
        self.largest_batch = 1  # that ran
        self.captured = False

    def result(self) -> Result:
        """Run the image. Raises ``ModelError`` and ``OutOfMemoryError`` as the pipeline does."""
        sharp = self.run_whole() if self.stays_uint8 else self.run_bands() if self.is_large else self.run_pieces()
        if self.request.options.strength < 1.0:
            blend(sharp, enlarged(self.request.image, self.scale), self.request.options.strength)
        return Result(
            image=sharp,
            backend=self.backend.name,
            options=self.request.options,
            height=self.request.image.shape[0],
            width=self.request.image.shape[1],
            seconds=self.seconds,
            tiles=self.tiles,
            tile=self.limits.tile if self.tiles > 1 else None,
            batch=self.largest_batch,
            captured=self.captured,
        )

    def smaller_limits(self) -> Limits | None:
        """What to try where memory ran out: pieces one at a time, then tiles of half the side if the options leave that
        open; None where nothing smaller is allowed.
        """
        if self.largest_batch > 1:
            return Limits(self.limits.tile, 1)
        smallest, multiple = smallest_tile(self.bundle), self.bundle.size_multiple
        if self.request.options.tile != AUTO or self.limits.tile <= smallest:
            return None
        # The side at which this image is one tile may be below the limit.
        side = min(self.limits.tile, math.isqrt(self.given.shape[1] * self.given.shape[2]))
        return Limits(max(smallest, side // 2 // multiple * multiple), self.limits.batch)

    def advice(self) -> str:
        """What to do where memory ran out and no smaller limits are left."""
        height, width = self.given.shape[1:]
        tile = self.limits.tile
        what = f"{height} x {width} pixels" if self.tiles == 1 else f"Tiles of {tile} x {tile} pixels"
        smallest = tile <= smallest_tile(self.bundle)
        remedy = "the smallest there are" if smallest else "use tiles of fewer pixels, or 'auto'"
        return f"{what} in mode {self.request.options.mode!r} are too much for backend {self.backend.name}: {remedy}"

    # -- the image ----------------------------------------------------------------------------------------------------

    @property
    def stays_uint8(self) -> bool:
        """Whether uint8 goes in and comes out, since nothing is computed on the host."""
        plain = self.mode.colour_fix in (NO_COLOUR_FIX, FLAT) and self.bundle.rounding == NEAREST
        one = self.tiles == self.transforms == 1
        return plain and one and self.request.image.ndim == 3 and self.uploads_uint8(self.given)

    def run_whole(self) -> Array:
        """The image as one piece, in uint8."""
        (output,) = self.run([Piece(self.padded(self.given), self.noises[0], 0)], OUTPUT_PIXELS)
        sharp = output[:, : self.given.shape[1], : self.given.shape[2]]
        if self.mode.colour_fix == FLAT and detail(given := to_float(self.given)) is not None:
            sharp = [in_dtype(plane, sharp.dtype) for plane in colour_fixed(to_float(sharp), given, FLAT)]
        return interleaved(list(sharp))

    def run_pieces(self) -> Array:
        """The average of what the transforms give, each blended from its tiles."""
        height, width = self.given.shape[1:]
        total = np.zeros((3, self.scale * height, self.scale * width), np.float32)
        pieces = (piece for number in range(self.transforms) for piece in self.pieces(total, number))
        for batch in self.batches(pieces):
            for piece, output in zip(batch, self.run(batch), strict=True):
                piece.add(output)
        total /= np.float32(self.transforms)
        if self.mode.colour_fix != NO_COLOUR_FIX:
            image = np.stack([enlarged(plane, self.scale) for plane in to_float(self.given)])
            total = colour_fixed(total, image, self.mode.colour_fix)
        return like(total, self.request.image, self.bundle.rounding)

    @property
    def is_large(self) -> bool:
        """Whether the sums of the whole image would take too much memory, and rows can be done with one by one."""
        by_rows = self.mode.colour_fix in (NO_COLOUR_FIX, FLAT) and self.tiles > 1 and self.scale == 1
        return by_rows and self.given.shape[1] * self.given.shape[2] > LARGE

    def run_bands(self) -> Array:
        """What ``run_pieces`` gives, from the top down: rows become pixels as soon as their last tile is done."""
        canvas, sharp = Canvas(self.given.shape), np.empty_like(self.request.image)
        every = (piece for number in range(self.transforms) for piece in self.pieces(canvas.sums, number))
        ordered = sorted(
            ((canvas.top(piece.target), piece) for piece in every if piece.target is not None), key=itemgetter(0)
        )
        tops = [*(top for top, _ in ordered[1:]), len(sharp)]
        part = detail(self.given) if self.mode.colour_fix == FLAT else None
        done = count = 0
        for batch in self.batches(piece for _, piece in ordered):
            for piece, output in zip(batch, self.run(batch), strict=True):
                piece.add(output)
            count += len(batch)
            end = tops[count - 1]
            for rows in (slice(start, min(start + BAND, end)) for start in range(done, end, BAND)):
                mean = canvas.sums[:, rows] / np.float32(self.transforms)
                fixed = mean if part is None else flat_kept(mean, to_float(self.given[:, rows]), part, rows)
                sharp[rows] = like(fixed, sharp, self.bundle.rounding)
            canvas.release(slice(done, end))
            done = end
        return sharp

    # -- its pieces ---------------------------------------------------------------------------------------------------

    def pieces(self, total: Planes, number: int) -> Iterator[Piece]:
        """The tiles of transform ``number`` of the image."""
        given, target = transformed(self.given, number), transformed(total, number)
        noise, tiles = self.noises[number // TRANSPOSED], self.layouts[number // TRANSPOSED]
        if self.tiles == 1:
            yield Piece(self.padded(given), noise, number, target)
            return
        rows, columns = ([scaled(span, self.scale) for span in spans] for spans in (tiles.rows, tiles.columns))
        for row, down, to_row in zip(tiles.rows, blend_weights(rows), rows, strict=True):
            for column, across, to_column in zip(tiles.columns, blend_weights(columns), columns, strict=True):
                own = {one.spec.name: part(one, noise[one.spec.name], row, column) for one in self.mode.noise}
                yield Piece(self.tile(given, row, column), own, number, target[:, to_row, to_column], (down, across))

    def batches(self, pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
        """Pieces of one size in lists that run together, in order."""

        def kind(piece: Piece) -> tuple[tuple[int, ...], object]:
            # A transposed transform changes the size of the further images too.
            return piece.planes.shape, bool(self.request.extra) and piece.transform // TRANSPOSED

        for _, group in groupby(pieces, kind):
            yield from self.equal_batches(group)

    def equal_batches(self, pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
        """Pieces of one size, of which there is at least one, in lists that run together."""
        first = next(pieces)
        size, left = self.batch_size(first), chain([first], pieces)
        while batch := list(islice(left, size)):
            yield batch

    def batch_size(self, piece: Piece) -> int:
        """How many pieces like this one run together: no more than a full tile has room for, in equal parts."""
        if not self.takes_batches:
            return 1
        room: int = self.limits.tile**2 // (piece.planes.shape[1] * piece.planes.shape[2])
        count = self.tiles * min(self.transforms, TRANSPOSED)
        most = max(1, min(self.limits.batch, room, count))
        if most > 1:
            most = self.backend.batch(self.bundle, self.parts, self.symbols(piece), most)
        return -(-count // -(-count // most))

    # -- the plan -----------------------------------------------------------------------------------------------------

    @property
    def takes_batches(self) -> bool:
        """Whether all that is given to the components for a tile has a batch axis."""
        given = (*self.mode.inputs, *(one.spec for one in self.mode.noise))
        return all(BATCH in spec.shape for spec in given)

    def uploads_uint8(self, tile: Array) -> bool:
        """Whether planes go to the backend as they are."""
        return tile.dtype == np.uint8 and self.scale == 1 and self.backend.uint8_pixels

    def padded(self, values: Array) -> Array:
        """Planes, extended to sizes that the bundle takes."""
        return pad(values, self.bundle.size_multiple, self.bundle.padding, self.bundle.min_side)

    def tile(self, given: Array, row: slice, column: slice) -> Array:
        """A tile of the planes, extended where it reaches beyond them; without a copy where it does not."""
        height, width = given.shape[1:]
        if row.stop <= height and column.stop <= width:
            return given[:, row, column]
        top, left = first_needed(row, height), first_needed(column, width)
        near = given[:, top : row.stop, left : column.stop]
        whole = extend(near, row.stop - top, column.stop - left, self.bundle.padding)
        return whole[:, row.start - top :, column.start - left :]

    def layout(self, height: int, width: int) -> Layout:
        """The tiles of a padded image of this size."""
        return layout(
            height,
            width,
            self.limits.tile,
            self.bundle.size_multiple,
            min_side=self.bundle.min_side,
            max_side=self.bundle.max_side,
            few_sizes=self.backend.new_sizes_cost,
        )

    def noise(self, height: int, width: int) -> Mapping[str, Array]:
        """The noise for a padded image of this size: the caller's, or the seed's."""
        noise, steps, given = self.mode.noise, len(self.request.steps), self.request.noise
        own = checked(given, noise, height, width, steps)
        return {**drawn(noise, height, width, steps, self.request.options.seed), **own}

    def symbols(self, piece: Piece) -> dict[str, int]:
        """The manifest's symbols for one piece."""
        sizes = {HEIGHT: piece.planes.shape[1], WIDTH: piece.planes.shape[2]}
        for spec in self.mode.extra_inputs:
            shape = transformed(self.request.extra[spec.name], piece.transform).shape
            sizes |= sizes_of(spec, shape)
        return sizes

    def run(self, batch: Sequence[Piece], output: str = OUTPUT) -> Array:
        """Run the plan for pieces of one size; returns the planes of tensor ``output``, one for each piece."""
        uint8 = self.uploads_uint8(batch[0].planes)
        self.largest_batch = max(self.largest_batch, len(batch))
        tiles = stacked([piece.planes[None] for piece in batch])
        inputs = (
            {IMAGE_PIXELS: np.ascontiguousarray(tiles)} if uint8 else {IMAGE: to_float(np.ascontiguousarray(tiles))}
        )
        for name, extra in self.request.extra.items():
            inputs[name] = stacked([transformed(extra, piece.transform)[None] for piece in batch])
        sizes = self.symbols(batch[0]) | {BATCH: len(batch)}
        noise = {
            one.spec.name: together(one, [piece.noise[one.spec.name] for piece in batch]) for one in self.mode.noise
        }
        guidance = float(self.request.options.guidance or 0.0)
        plan = self.plans.get(self.request.options.mode, sizes, self.request.steps, uint8)
        values, seconds = plan.run(inputs, noise, guidance, partial(self.count_steps, len(batch)), output)
        self.pieces_done += len(batch)
        self.captured = plan.replay.captured
        for stage, value in seconds.items():
            self.seconds[stage] += value
        return values

    def count_steps(self, batch: int, done: int) -> None:
        """Tell the caller that this many steps of a batch are done."""
        if self.request.on_step is not None:
            steps = len(self.request.steps)
            self.request.on_step(self.pieces_done * steps + batch * done, steps * self.tiles * self.transforms)


def sizes_of(spec: TensorSpec, shape: Sequence[int]) -> dict[str, int]:
    """The symbols of an image input (B, 3, H, W) for planes of ``shape`` (3, H, W).

    Raises ``InputError`` where the input has a fixed size and the planes have another.
    """
    sizes = {}
    for dimension, size in zip(spec.shape[2:], shape[1:], strict=True):
        if isinstance(dimension, str):
            sizes[dimension] = size
        elif dimension != size:
            expected = " x ".join(str(one) for one in spec.shape[2:])
            raise InputError(f"{spec.name} is {shape[1]} x {shape[2]} pixels; expected {expected}", option=spec.name)
    return sizes


def stacked(arrays: Sequence[Array]) -> Array:
    """Arrays one after another along their first axis; a single one is not copied."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
