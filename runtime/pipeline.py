"""Load a bundle, call it on an image array, get a sharp one.

pipeline = load()
result = pipeline(image)                       # (H, W, 3) RGB uint8, uint16 or float
result.image                                   # the same shape and dtype
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Literal

import numpy as np

from uid.engines import Array, Backend, Report, TensorSpec, create
from uid.errors import InputError, OutOfMemoryError
from uid.runtime.bundle import SHALLOW, UNGUIDED, Bundle, Quality, built_in, read_bundle
from uid.runtime.pixels import (
    IMAGE_PIXELS,
    OUTPUT_PIXELS,
    Pixels,
    check_image,
    interleaved,
    like,
    pad,
    padded,
    planes,
    to_float,
)
from uid.runtime.plan import BATCH, OUTPUT, STATE, Plans, resolve
from uid.runtime.schedule import Step, ddim, stages
from uid.runtime.tiling import least_tile, spans, weights
from uid.runtime.views import TRANSPOSED, VIEWS, add, turned

TILE_OVERLAP = 8  # neighbouring tiles share at least 1 / this of a tile
TILE_SIZES = 8  # sides that a tile may have where each costs; those over half of the largest come to be used


@dataclass(frozen=True)
class Options:
    """How to run a pipeline; None takes the bundle's own default."""

    mode: str = "deblur"  # "deblur" or "blur-transfer"
    quality: str | None = None  # name of one of the bundle's qualities; steps and views may still be given
    steps: int | None = None  # denoising steps
    # Turned and mirrored copies of the picture, 1 to 8, whose results are averaged ("geometric self-ensemble", Lim et
    # al., 2017): up to 4 keep the picture's size, the others exchange height and width.
    views: int | None = None
    guidance: float | None = None  # classifier-free guidance scale
    # Two shortcuts, of bundles that were exported with them: guidance in the steps that begin in this part of the loop
    # alone, from 0 to 1, and every ``reuse``-th of those steps in full, the others by the U-Net's outermost level.
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    reuse: int = 1
    seed: int = 0  # of the initial noise; the same seed gives the same image on the same backend
    # Side of a tile in pixels; an image of more than tile * tile pixels is run in tiles. "auto" takes the bundle's own,
    # and half as much when the backend's memory runs out; what fits is kept for the pipeline's next images.
    tile: int | Literal["auto"] | None = None


@dataclass(frozen=True)
class Result:
    """An image, and how it was made."""

    image: Array  # shape and dtype of the input
    backend: str  # the backend that ran
    mode: str
    quality: str | None  # the bundle's quality that was taken, by name or as the default
    steps: int
    views: int
    guidance: float
    seed: int
    height: int
    width: int
    tiles: int  # of each view
    seconds: dict[str, float]  # per stage: prepare, step, finish
    tile: int | None = None  # largest side of a tile in pixels; None: the image was run whole
    captured: bool = False  # whether the backend ran all of it as CUDA graphs, and no launch by itself
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    reuse: int = 1
    batch: int = 1  # most tiles and views that ran together


class Pipeline:
    """A bundle on a backend. Engines load and plans are made when first needed.

    Threads may share it, and pipelines may share a backend: their calls wait for each other, in no certain order.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self._backend = backend
        self._plans = Plans(bundle, backend)
        # What "auto" starts with, and how many pieces of a picture run together at most: less, once memory ran out.
        self._auto_tile, self._largest_batch = bundle.tile, backend.largest_batch

    @property
    def backend(self) -> str:
        """Name of the backend that runs."""
        return self._backend.name

    def __call__(
        self,
        image: Array,
        options: Options | None = None,
        *,
        blur_image: Array | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Result:
        """Deblur ``image``, or give it the blur of ``blur_image`` in mode "blur-transfer".

        ``image`` and ``blur_image`` are (H, W, 3) RGB or (H, W) grey; uint8, uint16, or float in [0, 1]. ``on_step``
        is told (steps done, steps in all) after each step, or after a tile's last where the backend runs all steps in
        one piece. It must not wait for another call of the pipeline, which waits for this one.

        Raises ``InputError`` for an image or option that does not fit, ``ModelError`` when the model writes NaN or
        infinity, ``OutOfMemoryError`` when the backend's memory does not hold the image or tile.
        """
        options = options or Options()
        self._check(options, blur_image)
        chosen = self.chosen(options)
        guidance = self.bundle.guidance if options.guidance is None else options.guidance
        check_image(image, "image")
        steps = self._steps(options, chosen.steps, guidance)
        with self._backend.turn():
            run = _Run(self, options, steps, chosen.views, guidance, blur_image, on_step)
            sharp = self._sharpened(run, image)
        return Result(
            image=sharp,
            backend=self.backend,
            mode=options.mode,
            quality=options.quality or self.bundle.quality,
            steps=chosen.steps,
            views=chosen.views,
            guidance=guidance,
            seed=options.seed,
            height=image.shape[0],
            width=image.shape[1],
            tiles=run.tiles,
            seconds=run.seconds,
            tile=run.side if run.tiles > 1 else None,
            captured=run.captured,
            batch=run.together,
            guidance_interval=options.guidance_interval,
            reuse=options.reuse,
        )

    def chosen(self, options: Options) -> Quality:
        """Steps and views: the options' own, or the quality's, or the bundle's."""
        name = options.quality or self.bundle.quality
        quality = Quality(self.bundle.steps, 1, {}) if name is None else self.bundle.qualities[name]
        steps = quality.steps if options.steps is None else options.steps
        return replace(quality, steps=steps, views=options.views or quality.views)

    def _steps(self, options: Options, count: int, guidance: float) -> list[Step]:
        """The steps, and how each is computed; at guidance scale 1 the conditional branch alone says the same."""
        interval = options.guidance_interval
        if guidance == 1.0 and options.reuse == 1 and self._has(options.mode, UNGUIDED):
            interval = (0.0, 0.0)
        rows = ddim(self.bundle.schedule, count)
        return [Step(*step) for step in zip(rows, stages(count, interval, options.reuse), strict=True)]

    def _check(self, options: Options, blur_image: Array | None) -> None:
        """Refuse contradictory options before any work."""
        if options.mode not in self.bundle.modes:
            raise InputError(
                f"bundle {self.bundle.name!r} has no mode {options.mode!r}; it has {sorted(self.bundle.modes)}"
            )
        if options.quality is not None and options.quality not in self.bundle.qualities:
            known = ", ".join(self.bundle.qualities) or "none: give --steps and --views"
            raise InputError(f"bundle {self.bundle.name!r} has no quality {options.quality!r}; it has {known}")
        if options.views is not None and not 1 <= options.views <= VIEWS:
            raise InputError(f"views are {options.views}; expected 1 to {VIEWS}")
        transfers = self._reads(options.mode, "blur_image")
        if transfers and blur_image is None:
            raise InputError(f"mode {options.mode!r} needs the image whose blur is taken (blur_image, --blur-from)")
        if blur_image is not None and not transfers:
            raise InputError(f"mode {options.mode!r} takes no blur_image; drop it, or choose mode 'blur-transfer'")
        if options.guidance is not None and not math.isfinite(options.guidance):
            raise InputError(f"guidance is {options.guidance}; expected a finite number")
        if options.guidance not in (None, 1.0) and not self._reads(options.mode, "guidance_scale"):
            raise InputError(f"bundle {self.bundle.name!r} was exported without guidance; drop --guidance, or give 1")
        self._check_shortcuts(options)
        if options.seed < 0:
            raise InputError(f"seed is {options.seed}; expected 0 or more")
        if isinstance(options.tile, int) and options.tile < self._smallest_tile:
            raise InputError(
                f"tile is {options.tile}; bundle {self.bundle.name!r} needs at least {self._smallest_tile}"
            )
        if isinstance(options.tile, str) and options.tile != "auto":
            raise InputError(f"tile is {options.tile!r}; expected a number of pixels, 'auto' or None")

    def _check_shortcuts(self, options: Options) -> None:
        """Refuse ways to leave work out that make no sense or that the bundle lacks."""
        start, end = options.guidance_interval
        if not 0.0 <= start < end <= 1.0:
            raise InputError(f"guidance interval is {start:g}:{end:g}; expected a part of 0:1 such as 0.2:0.8")
        if options.reuse < 1:
            raise InputError(f"reuse is {options.reuse}; expected 1 (every step in full) or more")
        asked = {UNGUIDED: ("a guidance interval", (start, end) != (0.0, 1.0)), SHALLOW: ("reuse", options.reuse > 1)}
        for stage, (what, wanted) in asked.items():
            if wanted and not self._has(options.mode, stage):
                raise InputError(
                    f"bundle {self.bundle.name!r} has no {stage!r} components, which {what} takes: export it from a "
                    f"checkpoint{' that is run with guidance' if stage == UNGUIDED else ''} with --shortcuts"
                )

    def _has(self, mode: str, stage: str) -> bool:
        """Whether any component of a mode is of a stage."""
        return any(self.bundle.components[name].stage == stage for name in self.bundle.modes[mode].components)

    def _reads(self, mode: str, tensor: str) -> bool:
        """Whether any component of a mode reads a tensor."""
        parts = (self.bundle.components[name] for name in self.bundle.modes[mode].components)
        return any(spec.name == tensor for part in parts for spec in part.inputs)

    @property
    def _smallest_tile(self) -> int:
        """Side of the smallest tile: two are needed to overlap."""
        return 2 * self.bundle.size_multiple

    def _sharpened(self, run: "_Run", image: Array) -> Array:
        """The output of a run; where memory runs out, of one tile at a time, and if the options leave it open of
        ever smaller ones.
        """
        while True:
            try:
                return run.picture(image)
            except OutOfMemoryError as error:
                if not (run.one_at_a_time() or run.halve_tiles(image)):
                    raise OutOfMemoryError(f"{error}. {run.advice(image)}") from error
            # Not in the handler, where the error still holds the frames that hold the plan.
            self._plans.clear()


def load(
    bundle: Path | None = None, *, backend: str = "auto", threads: int | None = None, report: Report | None = None
) -> Pipeline:
    """Load a bundle (None: the built-in one) on a backend.

    ``report`` is told what takes long and why, such as an engine that is built before the first picture of a size.
    Raises ``BundleError`` when the bundle is incomplete or altered, ``BackendError`` when the backend cannot run here.
    """
    return Pipeline(read_bundle(bundle or built_in()), create(backend, threads=threads, report=report))


class _Run:
    """One call of a pipeline: the numbers that hold for all of its tiles, and what adds up over them."""

    def __init__(
        self,
        pipeline: Pipeline,
        options: Options,
        steps: list[Step],
        views: int,
        guidance: float,
        blur_image: Array | None,
        on_step: Callable[[int, int], None] | None,
    ) -> None:
        self.pipeline, self.bundle, self.options = pipeline, pipeline.bundle, options
        self.steps, self.views, self.guidance, self.on_step = steps, views, guidance, on_step
        self.blur_image: Pixels | None = None  # planes
        if blur_image is not None:
            check_image(blur_image, "blur_image")
            self.blur_image = to_float(planes(blur_image))
        default = pipeline._auto_tile if options.tile == "auto" else self.bundle.tile
        self.side = self.whole_multiple(options.tile if isinstance(options.tile, int) else default)
        self.start()

    @property
    def state(self) -> TensorSpec:
        """The loop's state, as the bundle declares it."""
        parts = (self.bundle.components[name] for name in self.bundle.modes[self.options.mode].components)
        return next(spec for part in parts for spec in part.inputs if spec.name == STATE)

    def start(self) -> None:
        """Set to zero what adds up over the tiles."""
        self.seconds = dict.fromkeys(("prepare", "step", "finish"), 0.0)
        self.tiles_done = 0
        self.together = 1  # most pieces that ran in one batch
        self.captured = False

    def whole_multiple(self, size: int) -> int:
        """A size, rounded down to the bundle's multiple."""
        return size // self.bundle.size_multiple * self.bundle.size_multiple

    def one_at_a_time(self) -> bool:
        """Start again with one piece at a time, unless that is how it was."""
        if self.together == 1:
            return False
        self.pipeline._largest_batch = 1
        self.start()
        return True

    def halve_tiles(self, image: Array) -> bool:
        """Start again with tiles of half the side, if the options leave it open and they are not the smallest yet."""
        smallest = self.pipeline._smallest_tile
        if self.options.tile != "auto" or self.side <= smallest:
            return False
        # The side at which this picture is one tile may be less than the limit.
        side = min(self.side, math.isqrt(image.shape[0] * image.shape[1]))
        self.side = self.pipeline._auto_tile = max(smallest, self.whole_multiple(side // 2))
        self.start()
        return True

    def advice(self, image: Array) -> str:
        """What to do where memory ran out."""
        height, width = image.shape[:2]
        what = f"{height} x {width} pixels" if self.tiles == 1 else f"Tiles of {self.side} x {self.side} pixels"
        remedy = "the smallest there are" if self.side <= self.pipeline._smallest_tile else "give --tile auto, or less"
        return f"{what} in mode {self.options.mode!r} are too much for backend {self.pipeline.backend}: {remedy}"

    def picture(self, image: Array) -> Array:
        """A checked image, run: the mean of what its views give."""
        given = planes(image)
        rows, columns = self.layout(*padded(given.shape[1:], self.bundle.size_multiple))
        self.tiles = len(rows) * len(columns)
        if self.tiles == self.views == 1 and image.ndim == 3 and self.in_uint8(given):
            # Nothing is added up here, so that it comes back in uint8 too.
            whole = pad(given, self.bundle.size_multiple)
            made = self.run([Piece(whole, self.noise(*whole.shape[1:]), 0)], OUTPUT_PIXELS)[0]
            return interleaved(list(made[:, : image.shape[0], : image.shape[1]]))
        total = np.zeros(given.shape, np.float32)
        pieces = (piece for number in range(self.views) for piece in self.pieces(given, total, number))
        for together in self.batches(pieces):
            for piece, made in zip(together, self.run(together), strict=True):
                piece.add(made)
        total /= np.float32(self.views)
        return like(total, image)

    def pieces(self, given: Array, total: Pixels, number: int) -> Iterator["Piece"]:
        """The tiles of a view of a picture: padded by reflection to the size multiple, and cut."""
        whole, place = pad(turned(given, number), self.bundle.size_multiple), turned(total, number)
        rows, columns = self.layout(*whole.shape[1:])
        noise = self.noise(*whole.shape[1:])
        factor = whole.shape[1] // noise.shape[2]
        for row, down in zip(rows, weights(rows), strict=True):
            for column, across in zip(columns, weights(columns), strict=True):
                top, left = (slice(s.start // factor, s.stop // factor) for s in (row, column))
                fading = (down, across) if self.tiles > 1 else None
                yield Piece(whole[:, row, column], noise[:, :, top, left], number, place[:, row, column], fading)

    def batches(self, pieces: Iterator["Piece"]) -> Iterator[list["Piece"]]:
        """Pieces of one size in lists that run together, in order."""

        def kind(
            piece: Piece,
        ) -> tuple[tuple[int, ...], object]:  # turned, the picture whose blur is taken has another size too
            return piece.planes.shape, self.blur_image is not None and piece.view // TRANSPOSED

        for _, same in groupby(pieces, kind):
            yield from self.in_parts(same)

    def in_parts(self, pieces: Iterator["Piece"]) -> Iterator[list["Piece"]]:
        """Pieces, of which there is one at least and which all have one size, in lists that run together."""
        first = next(pieces)
        size, left = self.batch(first), chain([first], pieces)
        while together := list(islice(left, size)):
            yield together

    def batch(self, piece: "Piece") -> int:
        """How many like this one run together: no more than a full tile has room for, and in equal parts."""
        if BATCH not in self.state.shape:
            return 1
        room: int = self.side**2 // (piece.planes.shape[1] * piece.planes.shape[2])
        count = self.tiles * min(self.views, TRANSPOSED)
        most = max(1, min(self.pipeline._largest_batch, room, count))
        if most > 1:
            components = [self.bundle.components[name] for name in self.bundle.modes[self.options.mode].components]
            most = self.pipeline._backend.batch(self.bundle, components, self.sizes(piece), most)
        return -(-count // -(-count // most))

    def sizes(self, piece: "Piece") -> dict[str, int]:
        """The manifest's symbols for a piece alone."""
        sizes = {"height": piece.planes.shape[1], "width": piece.planes.shape[2]}
        if self.blur_image is not None:
            sizes |= dict(
                zip(("blur_height", "blur_width"), turned(self.blur_image, piece.view).shape[1:], strict=True)
            )
        return sizes

    def in_uint8(self, tile: Array) -> bool:
        """Whether planes go to the backend as they are."""
        return tile.dtype == np.uint8 and self.pipeline._backend.uint8_pixels

    def layout(self, height: int, width: int) -> tuple[list[slice], list[slice]]:
        """Rows and columns of tiles; one of each when the picture is within the limit."""
        multiple, tile = self.bundle.size_multiple, self.side
        if height * width <= tile * tile:
            return [slice(0, height)], [slice(0, width)]
        overlap = max(1, tile // TILE_OVERLAP // multiple) * multiple
        # Where each size costs, as to build an engine, there are few to choose from.
        step = max(1, tile // TILE_SIZES // multiple) * multiple if self.pipeline._backend.new_sizes_cost else multiple

        def covered(length: int) -> list[slice]:
            return spans(length, min(tile, least_tile(length, tile, overlap, step)), overlap, multiple)

        return covered(height), covered(width)

    def noise(self, height: int, width: int) -> Pixels:
        """The seed's Gaussian noise for the whole padded picture; tiles take their parts of it."""
        return seeded_noise(self.options.seed, resolve(self.state.shape, {"height": height, "width": width}))

    def run(self, pieces: Sequence["Piece"], output: str = OUTPUT) -> Array:
        """Run the plan for pieces of one size; returns the planes of the tensor ``output``, one for each piece."""
        uint8 = self.in_uint8(pieces[0].planes)
        self.together = max(self.together, len(pieces))
        tiles = stacked([piece.planes[None] for piece in pieces])
        inputs = {IMAGE_PIXELS: tiles} if uint8 else {"image": to_float(tiles)}
        if self.blur_image is not None:
            inputs["blur_image"] = stacked([turned(self.blur_image, piece.view)[None] for piece in pieces])
        sizes = self.sizes(pieces[0]) | {BATCH: len(pieces)}
        plan = self.pipeline._plans.get(self.options.mode, sizes, self.steps, uint8)
        noise = stacked([piece.noise for piece in pieces])
        made, seconds = plan.run(inputs, noise, self.guidance, partial(self.count_steps, len(pieces)), output)
        self.tiles_done += len(pieces)
        self.captured = plan.captured
        for stage, value in seconds.items():
            self.seconds[stage] += value
        return made

    def count_steps(self, together: int, done: int) -> None:
        """Tell the caller that this many steps of so many tiles are done."""
        if self.on_step is not None:
            steps_done = self.tiles_done * len(self.steps) + together * done
            self.on_step(steps_done, len(self.steps) * self.tiles * self.views)


@dataclass(frozen=True)
class Piece:
    """One tile of one view of a picture, and where its output goes."""

    planes: Array  # (3, H, W), uint8, uint16 or float
    noise: Pixels  # (1, C, h, w), its part of the picture's
    view: int
    place: Pixels | None = None  # (3, H, W), less what was padded: what its output is added to
    fading: tuple[Pixels, Pixels] | None = None  # (H,) and (W,), whose products are what its values count for; None: 1

    def add(self, made: Pixels) -> None:
        """Add its output, (3, H, W), which is changed."""
        assert self.place is not None, "only what is added up has a place"
        if self.fading is not None:
            made *= np.outer(*self.fading)
        add(self.place, made[:, : self.place.shape[1], : self.place.shape[2]])


def stacked(arrays: Sequence[Array]) -> Array:
    """Arrays one after another along their first axis; one alone is not copied."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


@lru_cache(maxsize=2)  # the frames of a video have the same, and those of its views that are transposed another
def seeded_noise(seed: int, shape: tuple[int, ...]) -> Pixels:
    """Gaussian noise, float32, the same for the same seed; not to be written to."""
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
    noise.flags.writeable = False
    return noise
