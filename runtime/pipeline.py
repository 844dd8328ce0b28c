"""Load a bundle, call it on an image array, get a sharp one.

pipeline = load()
result = pipeline(image)                       # (H, W, 3) RGB uint8, uint16 or float
result.image                                   # the same shape and dtype
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from uid.bundles.declarations import UNGUIDED, Bundle, built_in
from uid.bundles.manifest import read_bundle
from uid.bundles.tensors import IMAGE, Array
from uid.engines import Backend, Report, create
from uid.errors import BundleError, InputError, OutOfMemoryError
from uid.runtime.options import AUTO, Options, Result, check_inputs, has_stage, largest_tile
from uid.runtime.pixels import planes, to_float
from uid.runtime.plan import Plans
from uid.runtime.run import ImageRun, Limits, OnStep, Request
from uid.runtime.schedule import Step, coefficients, stages
from uid.runtime.sources import ImageLike, opened
from uid.runtime.transforms import TRANSPOSED


class Pipeline:
    """A bundle on a backend. Engines load and plans are made when first needed.

    Threads may share a pipeline, and pipelines may share a backend: their calls wait for each other, in no certain
    order.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self._backend = backend
        self._plans = Plans(bundle, backend)
        # What "auto" tiles start with, and the largest batch; both shrink for good where memory runs out.
        self._auto = Limits(largest_tile(bundle), backend.largest_batch)

    @property
    def backend(self) -> str:
        """Name of the backend that runs."""
        return self._backend.name

    def __call__(
        self,
        image: ImageLike,
        options: Options | None = None,
        *,
        on_step: OnStep | None = None,
        noise: Mapping[str, Array] | None = None,
        **extra: ImageLike | None,
    ) -> Result:
        """Run the bundle's model on ``image``.

        ``image`` is (H, W, 3) RGB or (H, W) grey; uint8, uint16, or float in [0, 1]. Or it is the name of an image file
        or an image of Pillow's, whose alpha and metadata ``Result.save`` writes beside the new pixels. ``extra`` are
        the further images that the mode declares, by name and of the same kinds: "blur-transfer" takes ``blur_image``,
        whose blur the output gets. ``on_step`` receives (steps done, steps in all) after each step, or after the last
        step of a batch of tiles where the backend runs all steps in one piece. It must not wait for another call of the
        pipeline, which waits for this one. ``noise`` are arrays to use instead of the seed's, by name, such as
        ``latent``: float32, of the shapes that ``runtime.noise.shape_of`` gives for the padded image.

        Raises ``InputError`` for an image or option that does not fit, ``ModelError`` when the model writes NaN or
        infinity, ``OutOfMemoryError`` when the backend's memory does not hold the image or tile.
        """
        options = (options or Options()).resolved(self.bundle)
        given = {name: value for name, value in extra.items() if value is not None}
        check_inputs(self.bundle, options.mode, given)
        pixels, source = opened(image, IMAGE)
        extra_planes = {name: to_float(planes(opened(value, name)[0])) for name, value in given.items()}
        own = {} if noise is None else noise
        if not isinstance(own, Mapping):
            raise InputError(f"noise is a {type(own).__name__}; expected arrays by name, such as {{'latent': array}}")
        if own and (options.transforms or 1) > TRANSPOSED:
            raise InputError(
                f"got noise and {options.transforms} transforms; expected at most {TRANSPOSED}, since the others "
                "exchange height and width",
                option="transforms",
            )
        request = Request(pixels, options, loop_steps(self.bundle, options), extra_planes, own, on_step)
        with self._backend.exclusive():
            result = self._run(request)
        return result if source is None else replace(result, source=source)

    def _run(self, request: Request) -> Result:
        """The result of a request; where memory runs out, within ever smaller limits that its options allow."""
        tile, multiple = request.options.tile, self.bundle.size_multiple
        side = largest_tile(self.bundle) if tile is None else self._auto.tile if tile == AUTO else int(tile)
        limits = Limits(side // multiple * multiple, self._auto.batch)
        while True:
            run = ImageRun(self.bundle, self._backend, self._plans, request, limits)
            try:
                return run.result()
            except OutOfMemoryError as error:
                smaller = run.smaller_limits()
                if smaller is None:
                    raise OutOfMemoryError(f"{error}. {run.advice()}", option="tile") from error
            # Outside the handler: until its end the error holds the frames that hold the plan.
            self._plans.clear()
            limits = smaller
            self._auto = Limits(limits.tile if tile == AUTO else self._auto.tile, limits.batch)


def load(
    bundle: Path | str | None = None, *, backend: str = AUTO, threads: int | None = None, report: Report | None = None
) -> Pipeline:
    """Load the bundle in a folder (None: the built-in one) on a backend.

    ``report`` receives what takes long and why, such as an engine that is built before the first image of a size.
    Raises ``BundleError`` when the bundle is incomplete or altered, ``BackendError`` when the backend cannot run here.
    """
    folder = built_in() if bundle is None else bundle
    if not isinstance(folder, str | Path):
        raise BundleError(f"the bundle is {folder!r}; expected the path of a bundle's folder, or None")
    return Pipeline(read_bundle(Path(folder)), create(backend, threads=threads, report=report))


def loop_steps(bundle: Bundle, options: Options) -> list[Step]:
    """The denoising steps of resolved options, and how each is computed; none where the mode has no loop.

    At guidance scale 1 the conditional branch alone gives the same result, so it runs alone where the bundle has it.
    """
    if not bundle.has_steps(options.mode):
        return []
    count, interval = options.steps or bundle.steps, options.guidance_interval
    if options.guidance == 1.0 and options.cache_interval == 1 and has_stage(bundle, options.mode, UNGUIDED):
        interval = (0.0, 0.0)
    rows = coefficients(bundle.schedule, count)
    return [Step(*step) for step in zip(rows, stages(count, interval, options.cache_interval), strict=True)]
