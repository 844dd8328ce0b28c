"""Load a bundle, call it on an image array, get a sharp one.

pipeline = load()
result = pipeline(image)                       # (H, W, 3) RGB uint8, uint16 or float
result.image                                   # the same shape and dtype
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from uid.engines import Array, Backend, Engine, create
from uid.errors import InputError
from uid.runtime.bundle import Bundle, built_in, read_bundle
from uid.runtime.plan import STATE, Plan, resolve
from uid.runtime.schedule import StepRow, ddim
from uid.runtime.tiling import rows_of_tiles, spans

Pixels = npt.NDArray[np.float32]

PLANS_KEPT = 2  # a picture's own size and its tiles', or two sizes in turn
TILE_OVERLAP = 8  # neighbouring tiles share at least 1 / this of a tile


@dataclass(frozen=True)
class Options:
    """How to run a pipeline; None takes the bundle's own default."""

    mode: str = "deblur"  # "deblur" or "blur-transfer"
    steps: int | None = None  # denoising steps
    guidance: float | None = None  # classifier-free guidance scale
    seed: int = 0  # of the initial noise; the same seed gives the same image on the same backend
    tile: int | None = None  # side of a tile in pixels; an image of more than tile * tile pixels is run in tiles


@dataclass(frozen=True)
class Result:
    """An image, and how it was made."""

    image: Array  # shape and dtype of the input
    backend: str  # the backend that ran
    mode: str
    steps: int
    guidance: float
    seed: int
    height: int
    width: int
    tiles: int
    seconds: dict[str, float]  # per stage: prepare, step, finish


class Pipeline:
    """A bundle on a backend. Engines load and plans are made when first needed. Not to be shared between threads."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self._backend = backend
        self._engines: dict[str, Engine] = {}
        self._plans: OrderedDict[tuple[object, ...], Plan] = OrderedDict()

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
        is told (steps done, steps in all) after each. Raises ``InputError`` for an image or option that does not
        fit, ``ModelError`` when the model writes NaN or infinity.
        """
        options = options or Options()
        self._check(options, blur_image)
        steps = self.bundle.steps if options.steps is None else options.steps
        guidance = self.bundle.guidance if options.guidance is None else options.guidance
        run = _Run(self, options, ddim(self.bundle.schedule, steps), guidance, blur_image, on_step)
        pixels = to_float(image, "image")
        output = run.whole(pixels)
        return Result(
            image=like(output, image),
            backend=self.backend,
            mode=options.mode,
            steps=steps,
            guidance=guidance,
            seed=options.seed,
            height=image.shape[0],
            width=image.shape[1],
            tiles=run.tiles,
            seconds=run.seconds,
        )

    def _check(self, options: Options, blur_image: Array | None) -> None:
        """Refuse contradictory options before any work."""
        if options.mode not in self.bundle.modes:
            raise InputError(
                f"bundle {self.bundle.name!r} has no mode {options.mode!r}; it has {sorted(self.bundle.modes)}"
            )
        transfers = self._reads(options.mode, "blur_image")
        if transfers and blur_image is None:
            raise InputError(f"mode {options.mode!r} needs the image whose blur is taken (blur_image, --blur-from)")
        if blur_image is not None and not transfers:
            raise InputError(f"mode {options.mode!r} takes no blur_image; drop it, or choose mode 'blur-transfer'")
        if options.guidance is not None and not math.isfinite(options.guidance):
            raise InputError(f"guidance is {options.guidance}; expected a finite number")
        if options.seed < 0:
            raise InputError(f"seed is {options.seed}; expected 0 or more")
        if options.tile is not None and options.tile < 2 * self.bundle.size_multiple:
            raise InputError(
                f"tile is {options.tile}; bundle {self.bundle.name!r} needs at least {2 * self.bundle.size_multiple}"
            )

    def _reads(self, mode: str, tensor: str) -> bool:
        """Whether any component of a mode reads a tensor."""
        parts = (self.bundle.components[name] for name in self.bundle.modes[mode].components)
        return any(spec.name == tensor for part in parts for spec in part.inputs)

    def _plan(self, mode: str, sizes: Mapping[str, int]) -> Plan:
        """The plan for a mode at these sizes; the most recent ones are kept."""
        key = (mode, *sorted(sizes.items()))
        if key not in self._plans:
            task = self.bundle.modes[mode]
            parts = [(self.bundle.components[name], self._engine(name)) for name in task.components]
            constants = {tensor: self.bundle.constants[k] for tensor, k in task.constants.items()}
            while len(self._plans) >= PLANS_KEPT:
                self._plans.popitem(last=False)
            self._plans[key] = Plan(self._backend, parts, sizes, constants)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _engine(self, name: str) -> Engine:
        """A component's engine, loaded once."""
        if name not in self._engines:
            self._engines[name] = self._backend.load(self.bundle.folder / self.bundle.components[name].file)
        return self._engines[name]


def load(bundle: Path | None = None, *, backend: str = "auto", threads: int | None = None) -> Pipeline:
    """Load a bundle (None: the built-in one) on a backend.

    Raises ``BundleError`` when the bundle is incomplete or altered, ``BackendError`` when the backend cannot run here.
    """
    return Pipeline(read_bundle(bundle or built_in()), create(backend, threads=threads))


class _Run:
    """One call of a pipeline: the numbers that hold for all of its tiles, and what adds up over them."""

    def __init__(
        self,
        pipeline: Pipeline,
        options: Options,
        rows: list[StepRow],
        guidance: float,
        blur_image: Array | None,
        on_step: Callable[[int, int], None] | None,
    ) -> None:
        self.pipeline, self.bundle, self.options = pipeline, pipeline.bundle, options
        self.rows, self.guidance, self.on_step = rows, guidance, on_step
        self.blur = None if blur_image is None else planar(to_float(blur_image, "blur_image"))
        self.seconds = dict.fromkeys(("prepare", "step", "finish"), 0.0)
        self.tiles, self.steps_done = 1, 0

    def whole(self, pixels: Pixels) -> Pixels:
        """The picture (H, W, 3), padded by reflection to the size multiple, run whole or in tiles, and cropped."""
        height, width = pixels.shape[:2]
        padded = pad(pixels, self.bundle.size_multiple)
        noise = self.noise(*padded.shape[:2])
        rows, columns = self.layout(*padded.shape[:2])
        self.tiles = len(rows) * len(columns)
        factor = padded.shape[0] // noise.shape[2]

        def run_tile(row: slice, column: slice) -> Pixels:
            top, left = (slice(s.start // factor, s.stop // factor) for s in (row, column))
            return self.tile(padded[row, column], noise[:, :, top, left])

        output = np.empty_like(pixels)
        top = 0
        for band in rows_of_tiles(run_tile, rows, columns):
            output[top : top + len(band)] = band[: height - top, :width]
            top += len(band)
        return output

    def layout(self, height: int, width: int) -> tuple[list[slice], list[slice]]:
        """Rows and columns of tiles; one of each when the picture is within the limit."""
        multiple = self.bundle.size_multiple
        tile = (self.options.tile or self.bundle.tile) // multiple * multiple
        if height * width <= tile * tile:
            return [slice(0, height)], [slice(0, width)]
        overlap = max(1, tile // TILE_OVERLAP // multiple) * multiple
        return spans(height, tile, overlap, multiple), spans(width, tile, overlap, multiple)

    def noise(self, height: int, width: int) -> Pixels:
        """The seed's Gaussian noise for the whole padded picture; tiles take their parts of it."""
        parts = (self.bundle.components[name] for name in self.bundle.modes[self.options.mode].components)
        state = next(spec for part in parts for spec in part.inputs if spec.name == STATE)
        shape = resolve(state.shape, {"height": height, "width": width})
        return np.random.Generator(np.random.PCG64(self.options.seed)).standard_normal(shape, dtype=np.float32)

    def tile(self, pixels: Pixels, noise: Pixels) -> Pixels:
        """Run one tile, (h, w, 3) in [0, 1] -> the same."""
        images = {"image": planar(pixels)}
        sizes = {"height": pixels.shape[0], "width": pixels.shape[1]}
        if self.blur is not None:
            images["blur_image"] = self.blur
            sizes |= {"blur_height": self.blur.shape[2], "blur_width": self.blur.shape[3]}
        plan = self.pipeline._plan(self.options.mode, sizes)
        output, seconds = plan.run(images, noise, self.rows, self.guidance, self.count_step)
        for stage, value in seconds.items():
            self.seconds[stage] += value
        tile: Pixels = output[0].transpose(1, 2, 0)
        return tile

    def count_step(self) -> None:
        """Tell the caller that a step is done."""
        self.steps_done += 1
        if self.on_step is not None:
            self.on_step(self.steps_done, len(self.rows) * self.tiles)


def to_float(image: Array, name: str) -> Pixels:
    """An image array as (H, W, 3) float32 in [0, 1]; raises ``InputError`` for other shapes, dtypes or ranges."""
    if not isinstance(image, np.ndarray):
        raise InputError(f"{name} is a {type(image).__name__}; expected a numpy array")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or 0 in image.shape:
        raise InputError(f"{name} has shape {image.shape}; expected (H, W, 3) RGB or (H, W) grey")
    if image.dtype in (np.uint8, np.uint16):
        pixels = image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    elif np.issubdtype(image.dtype, np.floating):
        pixels = image.astype(np.float32)
        if not (pixels.min() >= 0.0 and pixels.max() <= 1.0):
            raise InputError(f"{name} has values from {pixels.min()} to {pixels.max()}; expected floats in [0, 1]")
    else:
        raise InputError(f"{name} has dtype {image.dtype}; expected uint8, uint16 or float in [0, 1]")
    return np.repeat(pixels[:, :, None], 3, axis=2) if image.ndim == 2 else pixels


def like(pixels: Pixels, image: Array) -> Array:
    """(H, W, 3) float32 in [0, 1] in the shape and dtype of ``image``; integers are rounded, grey is the mean."""
    if image.ndim == 2:
        pixels = pixels.mean(axis=2)
    if np.issubdtype(image.dtype, np.floating):
        return pixels.astype(image.dtype)
    return np.rint(pixels * np.iinfo(image.dtype).max).astype(image.dtype)


def planar(pixels: Pixels) -> Pixels:
    """(H, W, 3) -> (1, 3, H, W), contiguous."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def pad(pixels: Pixels, multiple: int) -> Pixels:
    """Extend the lower and right edges by reflection to multiples of ``multiple``."""
    height, width = (-size % multiple for size in pixels.shape[:2])
    return np.pad(pixels, ((0, height), (0, width), (0, 0)), mode="reflect") if height or width else pixels
