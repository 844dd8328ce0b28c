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

PRESETS = {"edge": EDGE, "tiny": replace(EDGE, size=32, visited=0.0)}


def preset_of(name: str) -> Preset:
    """How a checkpoint is trained whose index has this name: as its configuration, or as in the paper."""
    return PRESETS.get(name, PAPER)
