"""What a user may choose about a run, and what came out of it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from uid.bundles.manifest import SHALLOW, UNGUIDED, Bundle, Preset
from uid.bundles.tensors import GUIDANCE, Array
from uid.errors import InputError
from uid.runtime.transforms import TRANSFORMS

AUTO = "auto"
WHOLE_LOOP = (0.0, 1.0)


@dataclass(frozen=True)
class Options:
    """How to run a pipeline; None takes the bundle's own default. Raises ``InputError`` for values that none accepts.

    ``guidance_interval`` and ``cache_interval`` are shortcuts, for bundles that were exported with them.
    """

    mode: str = "deblur"  # one of the bundle's, such as "deblur" or "blur-transfer"
    preset: str | None = None  # name of one of the bundle's presets; steps and transforms may still be given
    steps: int | None = None  # denoising steps
    # Flipped and transposed copies of the image, 1 to 8, whose results are averaged: test-time augmentation, or
    # "geometric self-ensemble" (Lim et al., 2017). Up to 4 keep the image's size, the others exchange height and width.
    transforms: int | None = None
    guidance: float | None = None  # classifier-free guidance scale; 1: none
    # Part of the loop, from 0 to 1, whose steps are guided (Kynkaanniemi et al., 2024).
    guidance_interval: tuple[float, float] = WHOLE_LOOP
    # Feature cache ("DeepCache", Ma et al., 2023): every so many guided steps one is computed in full, the others by
    # the U-Net's outermost level on the features that the full one left. 1: all in full.
    cache_interval: int = 1
    seed: int = 0  # of the initial noise; the same seed gives the same image on the same backend
    # Side of a tile in pixels; an image of more than tile * tile pixels is run in tiles. "auto" takes the bundle's own,
    # and half as much when the backend's memory runs out; what fits is used for the pipeline's next images.
    tile: int | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        start, end = self.guidance_interval
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps is {self.steps}; expected 1 or more", option="steps")
        if self.transforms is not None and not 1 <= self.transforms <= TRANSFORMS:
            raise InputError(f"transforms is {self.transforms}; expected 1 to {TRANSFORMS}", option="transforms")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise InputError(f"guidance is {self.guidance}; expected a finite number", option="guidance")
        if not 0.0 <= start < end <= 1.0:
            raise InputError(
                f"guidance interval is {start:g}:{end:g}; expected a part of 0:1 such as 0.2:0.8",
                option="guidance_interval",
            )
        if self.cache_interval < 1:
            raise InputError(
                f"cache interval is {self.cache_interval}; expected 1 (every step in full) or more",
                option="cache_interval",
            )
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; expected 0 or more", option="seed")
        if isinstance(self.tile, str) and self.tile != AUTO:
            raise InputError(f"tile is {self.tile!r}; expected a number of pixels, 'auto' or None", option="tile")
        if isinstance(self.tile, int) and self.tile < 1:
            raise InputError(f"tile is {self.tile}; expected a number of pixels above 0", option="tile")

    def resolved(self, bundle: Bundle) -> "Options":
        """The options with the bundle's defaults in place of None, but for ``tile``.

        Raises ``InputError`` for what the bundle cannot do.
        """
        check_against(self, bundle)
        name = self.preset or bundle.preset
        preset = Preset(bundle.steps, 1) if name is None else bundle.presets[name]
        return replace(
            self,
            preset=name,
            steps=preset.steps if self.steps is None else self.steps,
            transforms=preset.transforms if self.transforms is None else self.transforms,
            guidance=bundle.guidance if self.guidance is None else self.guidance,
        )


def check_against(options: Options, bundle: Bundle) -> None:
    """Raise ``InputError`` for options that are sound in themselves, and that the bundle cannot do."""
    if options.mode not in bundle.modes:
        known = ", ".join(bundle.modes)
        raise InputError(f"bundle {bundle.name!r} has no mode {options.mode!r}; it has {known}", option="mode")
    if options.preset is not None and options.preset not in bundle.presets:
        known = ", ".join(bundle.presets) or "none: give steps and transforms"
        raise InputError(f"bundle {bundle.name!r} has no preset {options.preset!r}; it has {known}", option="preset")
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
    if isinstance(options.tile, int) and options.tile < smallest_tile(bundle):
        raise InputError(
            f"tile is {options.tile}; bundle {bundle.name!r} needs at least {smallest_tile(bundle)}", option="tile"
        )


def check_inputs(bundle: Bundle, mode: str, names: Iterable[str]) -> None:
    """Raise ``InputError`` unless ``names`` are the further images that a mode declares."""
    wanted = [spec.name for spec in bundle.modes[mode].extra_inputs]
    for name in set(wanted) - set(names):
        raise InputError(f"mode {mode!r} needs the image {name}; give it too", option=name)
    for name in set(names) - set(wanted):
        known = ", ".join(wanted) or "no further image"
        raise InputError(f"mode {mode!r} takes {known}, not {name}; leave it out", option=name)


def has_stage(bundle: Bundle, mode: str, stage: str) -> bool:
    """Whether any component of a mode is of a stage."""
    return any(part.stage == stage for part in bundle.parts(mode))


def reads(bundle: Bundle, mode: str, tensor: str) -> bool:
    """Whether any component of a mode reads a tensor."""
    return any(spec.name == tensor for part in bundle.parts(mode) for spec in part.inputs)


def smallest_tile(bundle: Bundle) -> int:
    """Side of the smallest tile in pixels: two size multiples, so that tiles can overlap."""
    return 2 * bundle.size_multiple


@dataclass(frozen=True)
class Result:
    """An image, and how it was made."""

    image: Array  # shape and dtype of the input
    backend: str  # the backend that ran
    options: Options  # those that were used, with the bundle's defaults in place of None
    height: int
    width: int
    seconds: dict[str, float] = field(default_factory=dict)  # by stage: prepare, step, finish
    tiles: int = 1  # of each transform
    tile: int | None = None  # largest side of a tile in pixels; None: the image was run whole
    batch: int = 1  # most tiles and transforms that ran together
    captured: bool = False  # whether the backend ran everything as CUDA graphs
