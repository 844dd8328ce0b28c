"""The stage "restore": the whole chain as it is used, from the sampler's noise to pixels, trained end to end.

A loss on noise at random timesteps teaches a network to denoise; what a user sees after one step is another matter.
Here the sampler's own steps run, the decoder follows, and the loss compares images, as one-step restorers are trained
("One-Step Effective Diffusion Network", Wu et al., 2024). The paper has no such stage.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from uid.families.uid_diff.model import UIDDiff
from uid.train.diffusion import DiffusionStage, pretrained_side, structure_side
from uid.train.stage import Batch, Choices
from uid.train.vae import psnr

FLOOR = 1e-4  # mean squared error, 40 dB: below it an image has nothing more to teach
GRADIENT_WEIGHT = 0.5  # of the differences between neighbours, beside the pixels


def log_error(difference: Tensor) -> Tensor:
    """A tenth of the log of each image's mean squared difference: as much for a dB of any image."""
    return 0.1 * torch.log(difference.square().mean(dim=(1, 2, 3)) + FLOOR).mean()


def image_loss(output: Tensor, target: Tensor) -> Tensor:
    """``log_error`` of the pixels, and of their differences along both axes, where an edge is."""
    difference = output - target
    slopes = [log_error(difference.diff(dim=axis)) for axis in (2, 3)]
    return log_error(difference) + GRADIENT_WEIGHT * 0.5 * (slopes[0] + slopes[1])


class Restoration(DiffusionStage):
    """Stage "restore": structure extractor, image encoder, adapter and U-Net, in as many steps as the model is used."""

    def __init__(self, model: UIDDiff, choices: Choices) -> None:
        super().__init__(model, structure_side(model) | pretrained_side(model), choices)

    def restored(self, images: Tensor, keys: Sequence[int]) -> Tensor:
        """The images deblurred, (B, 3, H, W), not clamped."""
        z, skips = self.delivered(images, keys)
        return self.model.decoder.unclamped(z, skips)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The image loss, and how much nearer to the sharp images the deblurred ones came, in dB."""
        blurred, sharp = batch["blurred"], batch["sharp"]
        output = self.restored(blurred, batch["key"])
        return {"loss": image_loss(output, sharp), "gain": (psnr(output, sharp) - psnr(blurred, sharp)).mean()}

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred images, what the model makes of them, and the sharp ones."""
        blurred = batch["blurred"][:8]
        return torch.stack([blurred, self.sampled(blurred, batch["key"][:8]), batch["sharp"][:8]])
