"""What a user may choose about a run, and what came out of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

from uid.bundles import declarations
from uid.bundles.declarations import LARGEST_GUIDANCE, SHALLOW, UNGUIDED, Bundle, Preset
from uid.bundles.tensors import GUIDANCE, Array
from uid.bundles.values import shown
from uid.errors import InputError
from uid.runtime.media.formats import DecodedImage
from uid.runtime.schedule import timesteps
from uid.runtime.sources import save
from uid.runtime.transforms import TRANSFORMS

AUTO = "auto"
WHOLE_LOOP = (0.0, 1.0)
LARGEST_SEED = (1 << 128) - 1


@dataclass(frozen=True)
class Options:
    """How to run a pipeline; None takes the bundle's own default. Raises ``InputError`` for values that none accepts.

    ``guidance_interval`` and ``cache_interval`` are shortcuts, for bundles that were exported with them.
    """

    mode: str = "deblur"  # one of the bundle's, such as "deblur" or "blur-transfer"
    preset: str | None = None  # name of one of the bundle's presets; steps and transforms may still be given
    steps: int | None = None  # denoising steps; None also where the mode has no loop
    # Flipped and transposed copies of the image, 1 to 8, whose results are averaged: test-time augmentation, or
    # "geometric self-ensemble" (Lim et al., 2017). Up to 4 keep the image's size, the others exchange height and width.
    transforms: int | None = None
    guidance: float | None = None  # classifier-free guidance scale; 1: none
    # Part of the loop, from 0 to 1, whose steps are guided (Kynkaanniemi et al., 2024).
    guidance_interval: tuple[float, float] = WHOLE_LOOP
    # Feature cache ("DeepCache", Ma et al., 2023): every so many guided steps one is computed in full, the others by
    # the U-Net's outermost level on the features that the full one left. 1: all in full.
    cache_interval: int = 1
    # Part of the output, 0 to 1, in the blend with the input, in linear light (sRGB's curve); 0: the input.
    strength: float = 1.0
    seed: int = 0  # of the initial noise; the same seed gives the same image on the same backend
    # Side of a tile in pixels; an image of more than tile * tile pixels is run in tiles. "auto" takes the bundle's own,
    # and half as much when the backend's memory runs out; what fits is used for the pipeline's next images.
    tile: int | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.mode, str):
            raise InputError(f"mode is {self.mode!r}; expected a name", option="mode")
        if not isinstance(self.preset, str | None):
            raise InputError(f"preset is {self.preset!r}; expected a name", option="preset")
        check_integer("steps", self.steps, 1)
        check_integer("transforms", self.transforms, 1, TRANSFORMS)
        check_integer("cache_interval", self.cache_interval, 1, optional=False)
        check_integer("seed", self.seed, 0, LARGEST_SEED, optional=False)
        if not isinstance(self.tile, str) or self.tile != AUTO:
            check_integer("tile", self.tile, 1)
        if self.guidance is not None and not is_guidance(self.guidance):
            raise InputError(
                f"guidance is {self.guidance!r}; expected a finite number from -{LARGEST_GUIDANCE:g} to "
                f"{LARGEST_GUIDANCE:g}",
                option="guidance",
            )
        if not (isinstance(self.strength, Real) and 0.0 <= self.strength <= 1.0):
            raise InputError(f"strength is {self.strength!r}; expected a number from 0 to 1", option="strength")
        if not is_interval(self.guidance_interval):
            raise InputError(
                f"guidance interval is {self.guidance_interval!r}; expected a part of (0, 1) such as (0.2, 0.8)",
                option="guidance_interval",
            )
        object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))  # also of a list

    def resolved(self, bundle: Bundle) -> "Options":
        """The options with the bundle's defaults in place of None, but for ``tile``.

        Raises ``InputError`` for what the bundle cannot do.
        """
        check_against(self, bundle)
        name = self.preset or bundle.preset
        preset = Preset(bundle.steps, 1) if name is None else bundle.presets[name]
        steps = preset.steps if self.steps is None else self.steps
        if bundle.has_steps(self.mode):
            timesteps(bundle.schedule, steps)  # which refuses impossible numbers of steps
        return replace(
            self,
            preset=name,
            steps=steps if bundle.has_steps(self.mode) else None,
            transforms=preset.transforms if self.transforms is None else self.transforms,
            guidance=bundle.guidance if self.guidance is None else self.guidance,
        )


def check_integer(name: str, value: object, least: int, most: int | None = None, *, optional: bool = True) -> None:
    """Raise ``InputError`` unless a value is a whole number from ``least`` to ``most``, or None where that is open."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    number: Any = value
    if (value is None and optional) or (whole and least <= number and (most is None or number <= most)):
        return
    what = "a whole number of " if not whole else ""
    limits = f"{least} or more" if most is None else f"{least} to {most}"
    limits += f", or {AUTO!r}" if name == "tile" else ""
    raise InputError(f"{name.replace('_', ' ')} is {shown(value)}; expected {what}{limits}", option=name)


def is_guidance(value: object) -> bool:
    """Whether a value is a finite number that guidance may be."""
    number: Any = value
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and bool(-LARGEST_GUIDANCE <= number <= LARGEST_GUIDANCE)


def is_interval(value: object) -> bool:
    """Whether a value is a pair of numbers, 0 <= start < end <= 1."""
    if not (isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(end, Real) for end in value)):
        return False
    start, end = value
    return bool(0.0 <= start < end <= 1.0)


def check_against(options: Options, bundle: Bundle) -> None:
    """Raise ``InputError`` for options that are sound in themselves, and that the bundle cannot do."""
    check_names(options, bundle)
    check_loop(options, bundle)
    check_tile(options.tile, bundle)


def check_names(options: Options, bundle: Bundle) -> None:
    """Raise ``InputError`` for a mode or a preset that the bundle does not have."""
    if options.mode not in bundle.modes:
        known = ", ".join(bundle.modes)
        raise InputError(f"bundle {bundle.name!r} has no mode {options.mode!r}; it has {known}", option="mode")
    if options.preset is not None and options.preset not in bundle.presets:
        known = ", ".join(bundle.presets) or "none: give steps and transforms"
        raise InputError(f"bundle {bundle.name!r} has no preset {options.preset!r}; it has {known}", option="preset")


def check_loop(options: Options, bundle: Bundle) -> None:
    """Raise ``InputError`` for choices about the denoising loop that the mode's components do not offer."""
    if options.steps is not None and not bundle.has_steps(options.mode):
        raise InputError(
            f"mode {options.mode!r} of bundle {bundle.name!r} has no denoising steps; leave steps out", option="steps"
        )
    if options.guidance not in (None, 1.0) and not reads(bundle, options.mode, GUIDANCE):
        raise InputError(
            f"bundle {bundle.name!r} was exported without guidance; leave it out, or give 1", option="guidance"
        )
    if options.guidance_interval != WHOLE_LOOP and not has_stage(bundle, options.mode, UNGUIDED):
        raise InputError(
            f"bundle {bundle.name!r} has no unguided steps, which a guidance interval needs: export it with shortcuts "
            "from a checkpoint that is run with guidance",
            option="guidance_interval",
        )
    if options.cache_interval > 1 and not has_stage(bundle, options.mode, SHALLOW):
        raise InputError(
            f"bundle {bundle.name!r} has no shallow steps, which a feature cache needs: export it with shortcuts",
            option="cache_interval",
        )


def check_tile(tile: int | str | None, bundle: Bundle) -> None:
    """Raise ``InputError`` for tiles of a side that the bundle cannot run."""
    if not isinstance(tile, Integral):
        return
    if tile < smallest_tile(bundle):
        raise InputError(
            f"tile is {tile}; bundle {bundle.name!r} needs at least {smallest_tile(bundle)}", option="tile"
        )
    if bundle.max_side is not None and tile > bundle.max_side:
        raise InputError(
            f"tile is {tile}; bundle {bundle.name!r} runs at most {bundle.max_side} pixels a side", option="tile"
        )


def check_inputs(bundle: Bundle, mode: str, names: Iterable[str]) -> None:
    """Raise ``InputError`` unless ``names`` are the further images that a mode declares."""
    wanted = [spec.name for spec in bundle.modes[mode].extra_inputs]
    for name in sorted(set(wanted) - set(names)):
        raise InputError(f"mode {mode!r} needs the image {name}; give it too", option=name)
    for name in sorted(set(names) - set(wanted)):
        raise InputError(
            f"mode {mode!r} does not read the image {name}; leave it out, or choose another mode", option=name
        )


def has_stage(bundle: Bundle, mode: str, stage: str) -> bool:
    """Whether any component of a mode is of a stage."""
    return any(part.stage == stage for part in bundle.parts(mode))


def reads(bundle: Bundle, mode: str, tensor: str) -> bool:
    """Whether any component of a mode reads a tensor."""
    return any(spec.name == tensor for part in bundle.parts(mode) for spec in part.inputs)


def smallest_tile(bundle: Bundle) -> int:
    """Side of the smallest tile in pixels."""
    return declarations.smallest_tile(bundle.size_multiple, bundle.min_side)


def largest_tile(bundle: Bundle) -> int:
    """Side of the largest tile in pixels that the bundle takes by default."""
    return min(bundle.tile, bundle.max_side or bundle.tile)


@dataclass(frozen=True, repr=False)
class Result:
    """An image, and how it was made."""

    image: Array  # dtype of the input, and its shape unless the mode enlarges it
    backend: str  # the backend that ran
    options: Options  # those that were used, with the bundle's defaults in place of None
    height: int  # of the input
    width: int
    seconds: dict[str, float] = field(default_factory=dict)  # by stage: prepare, step, finish
    tiles: int = 1  # of each transform
    tile: int | None = None  # largest side of a tile in pixels; None: the image was run whole
    batch: int = 1  # most tiles and transforms that ran together
    captured: bool = False  # whether the backend ran everything as CUDA graphs
    source: DecodedImage | None = None  # the file or Pillow image that it was made of, with all beside its pixels

    def __repr__(self) -> str:
        size, dtype = "x".join(map(str, self.image.shape)), self.image.dtype
        seconds = sum(self.seconds.values())
        return f"Result({size} {dtype}, mode {self.options.mode}, {self.backend}, {seconds:.2f} s)"

    def save(self, path: Path | str, format: str | None = None, *, overwrite: bool = False) -> None:
        """Write the image as a file, with the alpha and metadata of the file or Pillow image that it was made of.

        ``format`` is a key of ``uid.runtime.media.formats.FORMATS`` (None: the suffix's). A float image becomes 8 bit.
        Raises ``OutputError`` where the file exists and ``overwrite`` is False, or it cannot be written or cannot hold
        the image, and ``InputError`` for a suffix of no known format.
        """
        save(self.image, self.source, Path(path), format, overwrite)
