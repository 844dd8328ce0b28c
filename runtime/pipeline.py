"""Load a bundle, call it on an image array, get a sharp one.

pipeline = load()
result = pipeline(image)                       # (H, W, 3) RGB uint8, uint16 or float
result.image                                   # the same shape and dtype
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from uid.engines import Array, Backend, Report, create
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
from uid.runtime.plan import OUTPUT, STATE, Plans, resolve
from uid.runtime.schedule import Step, ddim, stages
from uid.runtime.tiling import least_tile, spans, weights
from uid.runtime.views import VIEWS, add, turned

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
    captured: bool = False  # whether the backend ran all steps in one piece, as one CUDA graph
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    reuse: int = 1


class Pipeline:
    """A bundle on a backend. Engines load and plans are made when first needed.

    Threads may share it, and pipelines may share a backend: their calls wait for each other, in no certain order.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self._backend = backend
        self._plans = Plans(bundle, backend)
        self._auto_tile = bundle.tile  # what "auto" starts with: less, once memory ran out

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
        one piece. Raises ``InputError`` for an image or option that does not fit, ``ModelError`` when the model writes
        NaN or infinity, ``OutOfMemoryError`` when the backend's memory does not hold the image or tile.
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
        """The output of a run; where memory runs out and the options leave it open, in ever smaller tiles."""
        while True:
            try:
                return run.picture(image)
            except OutOfMemoryError as error:
                if not run.halve_tiles(image):
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

    def start(self) -> None:
        """Set to zero what adds up over the tiles."""
        self.seconds = dict.fromkeys(("prepare", "step", "finish"), 0.0)
        self.tiles_done = 0
        self.captured = False

    def whole_multiple(self, size: int) -> int:
        """A size, rounded down to the bundle's multiple."""
        return size // self.bundle.size_multiple * self.bundle.size_multiple

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
            made = self.run(whole, self.noise(*whole.shape[1:]), 0, OUTPUT_PIXELS)
            return interleaved(list(made[:, : image.shape[0], : image.shape[1]]))
        total = np.zeros(given.shape, np.float32)
        for number in range(self.views):
            self.add_view(number, turned(given, number), turned(total, number))
        total /= np.float32(self.views)
        return like(total, image)

    def add_view(self, number: int, given: Array, total: Pixels) -> None:
        """Add to ``total`` what a view's planes give: padded by reflection to the size multiple, and run by tiles."""
        whole = pad(given, self.bundle.size_multiple)
        rows, columns = self.layout(*whole.shape[1:])
        noise = self.noise(*whole.shape[1:])
        factor = whole.shape[1] // noise.shape[2]
        for row, down in zip(rows, weights(rows), strict=True):
            for column, across in zip(columns, weights(columns), strict=True):
                top, left = (slice(s.start // factor, s.stop // factor) for s in (row, column))
                tile = self.run(whole[:, row, column], noise[:, :, top, left], number)
                if self.tiles > 1:
                    tile *= np.outer(down, across)
                place = total[:, row, column]  # less what was padded
                add(place, tile[:, : place.shape[1], : place.shape[2]])

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
        parts = (self.bundle.components[name] for name in self.bundle.modes[self.options.mode].components)
        state = next(spec for part in parts for spec in part.inputs if spec.name == STATE)
        return seeded_noise(self.options.seed, resolve(state.shape, {"height": height, "width": width}))

    def run(self, tile: Array, noise: Pixels, view: int, output: str = OUTPUT) -> Array:
        """Run the plan for a tile of planes, of this view; returns the planes of the tensor ``output``."""
        uint8 = self.in_uint8(tile)
        inputs = {IMAGE_PIXELS: tile[None]} if uint8 else {"image": to_float(tile)[None]}
        sizes = dict(zip(("height", "width"), tile.shape[1:], strict=True))
        if self.blur_image is not None:
            blur = turned(self.blur_image, view)
            inputs["blur_image"] = blur[None]
            sizes |= dict(zip(("blur_height", "blur_width"), blur.shape[1:], strict=True))
        plan = self.pipeline._plans.get(self.options.mode, sizes, self.steps, uint8)
        result, seconds = plan.run(inputs, noise, self.guidance, self.count_steps, output)
        self.tiles_done += 1
        self.captured = plan.captured
        for stage, value in seconds.items():
            self.seconds[stage] += value
        planes_made: Array = result[0]
        return planes_made

    def count_steps(self, done: int) -> None:
        """Tell the caller that this many steps of a tile are done."""
        if self.on_step is not None:
            self.on_step(self.tiles_done * len(self.steps) + done, len(self.steps) * self.tiles * self.views)


@lru_cache(maxsize=2)  # the frames of a video have the same, and those of its views that are transposed another
def seeded_noise(seed: int, shape: tuple[int, ...]) -> Pixels:
    """Gaussian noise, float32, the same for the same seed; not to be written to."""
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
    noise.flags.writeable = False
    return noise
