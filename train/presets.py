"""How each configuration is trained, as data."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Preset:
    """What a run is told where its command line says nothing.

    The defaults are the paper's; where it says nothing, what should fit 24 GB at 512 x 512.
    """

    learning_rate: float = 5e-5  # highest, of AdamW (paper: 5e-5)
    size: int = 512  # side of the training images, in pixels
    batch: int = 1  # images at a time in each process
    accumulate: int = 8  # batches for each step
    checkpointing: bool = True  # compute activations again in the backward pass instead of storing them
    mixed_precision: str = "bf16"
    backbone: bool = False  # T_1 and the joint stage train U-Net and image encoder too
    visited: float = 0.0  # share of examples at one of the timesteps that the sampler visits; the rest at any


PAPER = Preset()

# Nothing pretrained is behind it, so all is trained. It is run in a single step, of whose timestep uniform ones would
# show it one example in a thousand; hence half at that one.
EDGE = Preset(3e-4, 128, 8, 1, False, "no", backbone=True, visited=0.5)

PRESETS = {
    "edge": EDGE,
    "edge2": replace(EDGE, size=96, learning_rate=6e-4),
    "tiny": replace(EDGE, size=32, visited=0.0),
}


def preset_of(name: str) -> Preset:
    """How a checkpoint is trained whose index has this name: as its configuration, or as in the paper."""
    return PRESETS.get(name, PAPER)


@dataclass(frozen=True)
class Recipe:
    """What a training does whose only choice is its time."""

    config: str
    size: int = 128  # side of the crops, in pixels
    batch: int = 8
    gpu_batch: int = 96
    learning_rate: float = 6e-4
    warm_up: int = 100  # steps
    fall: float = 0.3  # share of the time, at the end, over which the learning rate falls to a fiftieth
    average: float = 0.998
    places: int = 512  # images that the device holds
    gpu_places: int = 16384


RECIPES = {"edge": Recipe("edge2")}
