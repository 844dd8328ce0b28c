"""One image through a pipeline, within fixed limits: transforms, tiles and batches in, one image out.

An image is padded by reflection to the bundle's size multiple, transformed, and cut into tiles that share one noise
field. Tiles of one size run together in batches. What they give is blended and averaged.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain, groupby, islice

import numpy as np

from uid.bundles.manifest import Bundle
from uid.bundles.tensors import BATCH, HEIGHT, IMAGE, OUTPUT, STATE, WIDTH, Array, TensorSpec, resolve
from uid.engines import Backend
from uid.errors import InputError
from uid.runtime.layout import blend_weights, layout
from uid.runtime.options import AUTO, Options, Result, smallest_tile
from uid.runtime.pixels import IMAGE_PIXELS, OUTPUT_PIXELS, Planes, interleaved, like, pad, padded, planes, to_float
from uid.runtime.plan import Plans
from uid.runtime.schedule import Step
from uid.runtime.transforms import TRANSPOSED, add, transformed

OnStep = Callable[[int, int], None]


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
    on_step: OnStep | None = None


@dataclass(frozen=True)
class Piece:
    """One tile of one transform of an image, and where its output is added."""

    planes: Array  # (3, H, W), uint8, uint16 or float
    noise: Planes  # (1, C, h, w), its part of the image's noise
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
        self.given = planes(request.image)
        self.transforms = request.options.transforms or 1
        self.parts = bundle.parts(request.options.mode)
        self.extra_inputs = bundle.modes[request.options.mode].extra_inputs
        # The loop's state, as the bundle declares it.
        self.state = next(spec for part in self.parts for spec in part.inputs if spec.name == STATE)
        height, width = padded(self.given.shape[1:], bundle.size_multiple)
        few = backend.new_sizes_cost
        # Tiles, and the shape of the noise, of the image as it is and transposed.
        sizes = (height, width), (width, height)
        self.layouts = [layout(*size, limits.tile, bundle.size_multiple, few_sizes=few) for size in sizes]
        self.tiles = self.layouts[0].tiles
        self.noise_shapes = [resolve(self.state.shape, {HEIGHT: size[0], WIDTH: size[1]}) for size in sizes]
        self.seconds = dict.fromkeys(("prepare", "step", "finish"), 0.0)
        self.pieces_done = 0
        self.largest_batch = 1  # that ran
        self.captured = False

    def result(self) -> Result:
        """Run the image. Raises ``ModelError`` and ``OutOfMemoryError`` as the pipeline does."""
        sharp = self.run_whole() if self.stays_uint8 else self.run_pieces()
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
        """Whether uint8 goes in and comes out, since nothing is added up on the host."""
        return self.tiles == self.transforms == 1 and self.request.image.ndim == 3 and self.uploads_uint8(self.given)

    def run_whole(self) -> Array:
        """The image as one piece, in uint8."""
        whole = pad(self.given, self.bundle.size_multiple)
        (output,) = self.run([Piece(whole, self.noise(0), 0)], OUTPUT_PIXELS)
        return interleaved(list(output[:, : self.given.shape[1], : self.given.shape[2]]))

    def run_pieces(self) -> Array:
        """The average of what the transforms give, each blended from its tiles."""
        total = np.zeros(self.given.shape, np.float32)
        pieces = (piece for number in range(self.transforms) for piece in self.pieces(total, number))
        for batch in self.batches(pieces):
            for piece, output in zip(batch, self.run(batch), strict=True):
                piece.add(output)
        total /= np.float32(self.transforms)
        return like(total, self.request.image)

    # -- its pieces ---------------------------------------------------------------------------------------------------

    def pieces(self, total: Planes, number: int) -> Iterator[Piece]:
        """The tiles of transform ``number`` of the image."""
        given, target = transformed(self.given, number), transformed(total, number)
        whole = pad(given, self.bundle.size_multiple)
        noise, tiles = self.noise(number), self.layouts[number // TRANSPOSED]
        if self.tiles == 1:
            yield Piece(whole, noise, number, target)
            return
        factor = whole.shape[1] // noise.shape[2]
        for row, down in zip(tiles.rows, blend_weights(tiles.rows), strict=True):
            for column, across in zip(tiles.columns, blend_weights(tiles.columns), strict=True):
                top, left = (slice(s.start // factor, s.stop // factor) for s in (row, column))
                part = whole[:, row, column], noise[:, :, top, left]
                yield Piece(*part, number, target[:, row, column], (down, across))

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
        if BATCH not in self.state.shape:
            return 1
        room: int = self.limits.tile**2 // (piece.planes.shape[1] * piece.planes.shape[2])
        count = self.tiles * min(self.transforms, TRANSPOSED)
        most = max(1, min(self.limits.batch, room, count))
        if most > 1:
            most = self.backend.batch(self.bundle, self.parts, self.sizes(piece), most)
        return -(-count // -(-count // most))

    # -- the plan -----------------------------------------------------------------------------------------------------

    def uploads_uint8(self, tile: Array) -> bool:
        """Whether planes go to the backend as they are."""
        return tile.dtype == np.uint8 and self.backend.uint8_pixels

    def noise(self, number: int) -> Planes:
        """The seed's Gaussian noise for the whole padded image in a transform; tiles take their parts of it."""
        return seeded_noise(self.request.options.seed, self.noise_shapes[number // TRANSPOSED])

    def sizes(self, piece: Piece) -> dict[str, int]:
        """The manifest's symbols for one piece."""
        sizes = {HEIGHT: piece.planes.shape[1], WIDTH: piece.planes.shape[2]}
        for spec in self.extra_inputs:
            shape = transformed(self.request.extra[spec.name], piece.transform).shape
            sizes |= sizes_of(spec, shape)
        return sizes

    def run(self, batch: Sequence[Piece], output: str = OUTPUT) -> Array:
        """Run the plan for pieces of one size; returns the planes of tensor ``output``, one for each piece."""
        uint8 = self.uploads_uint8(batch[0].planes)
        self.largest_batch = max(self.largest_batch, len(batch))
        tiles = stacked([piece.planes[None] for piece in batch])
        inputs = {IMAGE_PIXELS: tiles} if uint8 else {IMAGE: to_float(tiles)}
        for name, extra in self.request.extra.items():
            inputs[name] = stacked([transformed(extra, piece.transform)[None] for piece in batch])
        sizes = self.sizes(batch[0]) | {BATCH: len(batch)}
        noise = stacked([piece.noise for piece in batch])
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


@lru_cache(maxsize=2)  # all frames of a video have the same, and their transposed transforms another
def seeded_noise(seed: int, shape: tuple[int, ...]) -> Planes:
    """Gaussian noise, float32, the same for the same seed; read-only."""
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
    noise.flags.writeable = False
    return noise
