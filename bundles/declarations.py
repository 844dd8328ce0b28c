"""What a bundle declares: its components, modes, presets and noise, as values. ``manifest`` reads and writes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uid.bundles.tensors import IMAGE, OUTPUT, Array, TensorSpec, factor_of

BUILT_IN = Path(__file__).parent / "models"
PREPARE, FINISH = "prepare", "finish"
FULL, SHALLOW, UNGUIDED = "step", "step-shallow", "step-unguided"
STEPS = (FULL, SHALLOW, UNGUIDED)  # ways to compute a denoising step; a mode with any always has the first
STAGES = (PREPARE, *STEPS, FINISH)

TRANSFORMS = 8  # flips and transpositions of an image
LARGEST_SIDE = 1 << 16  # that a manifest may ask for, in pixels
LARGEST_GUIDANCE = 1000.0  # in either direction

# What a manifest may choose. The first of each is what a manifest without the choice means.
REFLECT, ZEROS = PADDINGS = ("reflect", "zeros")  # what the lower and right edges are extended with
NEAREST, DOWN = ROUNDINGS = ("nearest", "down")  # of outputs that are integers
NO_COLOUR_FIX, ADAIN, WAVELET, FLAT = COLOUR_FIXES = ("none", "adain", "wavelet", "flat")
ONCE, PER_STEP = DRAWS = ("once", "per-step")  # how often noise is drawn
DDIM, DDPM = "ddim", "ddpm"
# By sampler the coefficients of a step, each a tensor that the step's components may read.
SAMPLERS = {
    DDIM: ("timestep", "alpha_bar", "alpha_bar_prev"),
    DDPM: (
        "timestep",
        "sqrt_recip_alpha_bar",
        "sqrt_recipm1_alpha_bar",
        "posterior_mean_x0",
        "posterior_mean_latent",
        "posterior_std",
    ),
}
COEFFICIENTS = tuple(dict.fromkeys(name for names in SAMPLERS.values() for name in names))


@dataclass(frozen=True)
class Component:
    """One ONNX graph of a bundle: its stage, and its named tensors with symbolic shapes."""

    name: str
    file: str
    stage: str  # one of ``STAGES``
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: Mapping[str, str] = field(default_factory=dict)  # backend or library -> its own graph of the component

    @property
    def symbols(self) -> frozenset[str]:
        """The symbols in the shapes of the inputs."""
        return frozenset().union(*(spec.symbols for spec in self.inputs))


@dataclass(frozen=True)
class Noise:
    """Gaussian noise that components read, drawn from the run's seed. A tile takes its part of the image's."""

    spec: TensorSpec  # float32; sizes are numbers, "batch", and "height" and "width" or parts of them
    draw: str = ONCE  # one of ``DRAWS``


@dataclass(frozen=True)
class Mode:
    """One task of a bundle: the components that it runs, in order, and what they read from outside."""

    prompt: str
    components: tuple[str, ...]
    constants: Mapping[str, str]  # input name -> key in the constants file
    inputs: tuple[TensorSpec, ...] = ()  # images: ``image``, and those that the mode needs beside it
    noise: tuple[Noise, ...] = ()  # drawn in this order
    colour_fix: str = NO_COLOUR_FIX  # one of ``COLOUR_FIXES``; how the input's colours are given to the output
    negative_prompt: str | None = None  # what guidance leads away from; None: the empty prompt, or no guidance

    @property
    def extra_inputs(self) -> tuple[TensorSpec, ...]:
        """The images that the mode needs beside the one that it changes."""
        return tuple(spec for spec in self.inputs if spec.name != IMAGE)


@dataclass(frozen=True)
class Preset:
    """A named balance of quality and speed, and what was measured of it (see ``uid-bench tradeoff``)."""

    steps: int  # denoising steps; 0 where the bundle has none
    transforms: int  # flipped and transposed copies whose results are averaged, 1 to 8
    figures: Mapping[str, float] = field(default_factory=dict)  # such as the PSNR to the first preset's images, in dB


@dataclass(frozen=True)
class Bundle:
    """A checked bundle."""

    folder: Path
    digest: str  # sha256 of the manifest, and so of all that the bundle holds
    name: str
    family: str
    trained: bool
    precision: str  # "fp32" or "fp16"
    size_multiple: int  # image height and width are padded to multiples of this
    tile: int  # an image of more than tile * tile pixels is run in tiles of this side
    presets: Mapping[str, Preset]  # by name, the best first; may be empty
    preset: str | None  # the default one; None: ``steps`` without transforms
    steps: int  # default number of denoising steps; 0: no mode has any
    guidance: float  # default guidance scale
    schedule: Mapping[str, Any]  # the sampler and its numbers, see ``runtime.schedule``; empty without steps
    components: Mapping[str, Component]
    modes: Mapping[str, Mode]
    constants: Mapping[str, Array]
    padding: str = REFLECT  # one of ``PADDINGS``
    rounding: str = NEAREST  # one of ``ROUNDINGS``
    min_side: int = 1  # an image's smaller side is padded to this at least
    max_side: int | None = None  # a longer side is cut into tiles, however few pixels the image has; None: no limit
    files: Mapping[str, str] = field(default_factory=dict)  # of the graphs and weights: name below the folder -> sha256

    def parts(self, mode: str) -> list[Component]:
        """The components that a mode runs, in order."""
        return [self.components[name] for name in self.modes[mode].components]

    def has_steps(self, mode: str) -> bool:
        """Whether a mode has a denoising loop."""
        return any(part.stage in STEPS for part in self.parts(mode))

    def output_scale(self, mode: str) -> int:
        """How many times as high and wide as the image a mode's output is."""
        outputs = [spec for part in self.parts(mode) for spec in part.outputs if spec.name == OUTPUT]
        return factor_of(outputs[0].shape[-1]) if outputs else 1


def smallest_tile(size_multiple: int, min_side: int) -> int:
    """Side of the smallest tile in pixels: two size multiples, so that tiles can overlap, or the smallest image."""
    return max(2 * size_multiple, min_side + -min_side % size_multiple)


def built_in(name: str = "edge") -> Path:
    """Folder of a bundle that the package contains."""
    return BUILT_IN / name
