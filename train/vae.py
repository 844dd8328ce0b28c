"""Stages that train the VAE: the small base VAE of ``edge``, then the refined VAE (appendix A).

The base VAE learns sharp and blurred images alike, as Stable Diffusion's did; for ``sd15`` it is given and frozen. The
second phase of the refined VAE needs the diffusion and so lies beside it, in ``uid.train.diffusion``. ``edge`` trains
the refiners of both halves together (``JointRefiner``): its encoder refiner serves the skips as much as the latent, and
the skips are only as good as what the decoder makes of them.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from uid.families.uid_diff.model import UIDDiff
from uid.families.uid_diff.vae import from_patches, to_patches
from uid.train.stage import Batch, Choices, Draws, Stage

KL_WEIGHT = 1e-6  # Stable Diffusion's: just enough to keep the latents in bounds
LATENT_WEIGHT = 0.1  # of eq. 9 beside the image loss
ERROR_FLOOR = 1e-4  # mean squared error, 40 dB: below it an image has nothing more to teach
TRANSFERS = 1 / 8  # share of examples that turn round, so that the decoder follows its latent


def image_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the pixels and of their spectrum, where one blurred edge touches many frequencies."""
    spectrum = torch.view_as_real(torch.fft.rfft2(output - target, norm="ortho"))
    return F.l1_loss(output, target) + spectrum.abs().mean()


def restoration_loss(output: Tensor, target: Tensor) -> Tensor:
    """A tenth of the log of each image's mean squared error: as much for a dB of an easy image as of a hard one."""
    return 0.1 * torch.log((output - target).square().mean(dim=(1, 2, 3)) + ERROR_FLOOR).mean()


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Of each image (B,), in dB, at most 40."""
    errors = (output.detach().clamp(0.0, 1.0) - target).square().mean(dim=(1, 2, 3))
    return -10.0 * torch.log10(errors.clamp_min(ERROR_FLOOR))


def base_latents(vae: AutoencoderKL, images: Tensor, draws: Draws | None = None) -> Tensor:
    """The base VAE's latents of (B, 3, H, W) in [0, 1], float32 of unit variance: the posterior's mean, or a sample."""
    with torch.no_grad():
        posterior = vae.encode(to_patches(images, vae)).latent_dist
        z = posterior.mean.float()
        if draws is not None:
            z = z + posterior.std.float() * draws.normal(z.shape[1:])
        return z * vae.config.scaling_factor


def base_images(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """What the base VAE's decoder makes of latents with unit variance, (B, 3, H, W), not clamped."""
    return from_patches(vae.decode(z / vae.config.scaling_factor).sample, vae)


class BaseVAE(Stage):
    """Stage "vae": sharp and blurred images through encoder, posterior sample and decoder."""

    def __init__(self, model: UIDDiff, choices: Choices) -> None:
        super().__init__(model, {"vae": model.encoder.vae})
        self.vae = model.encoder.vae

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Reconstruction and KL losses."""
        images = torch.cat([batch["sharp"], batch["blurred"]])
        posterior = self.vae.encode(to_patches(images, self.vae)).latent_dist
        eps = Draws(batch["key"], images.device, times=2).normal(posterior.mean.shape[1:])
        output = from_patches(self.vae.decode(posterior.mean + posterior.std * eps).sample, self.vae)
        reconstruction, kl = image_loss(output, images), posterior.kl().mean()
        loss = reconstruction + KL_WEIGHT * kl
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl, "psnr": psnr(output, images).mean()}

    @torch.inference_mode()
    def finish(self, examples: Iterable[Batch]) -> None:
        """Give the latents unit variance, as the diffusion expects: 1 / their deviation over ``examples``."""
        self.vae.register_to_config(scaling_factor=1.0)
        latents = [base_latents(self.vae, x["sharp"][None].to(self.vae.device)).flatten() for x in examples]
        self.vae.register_to_config(scaling_factor=round(1.0 / float(torch.cat(latents).std()), 5))

    def sheet(self, batch: Batch) -> Tensor:
        """Images above their reconstructions."""
        images = batch["sharp"][:8]
        z = base_latents(self.vae, images)
        return torch.stack([images, base_images(self.vae, z)])


class EncoderRefiner(Stage):
    """Stage "encoder-refiner", phase one (eq. 9): the blurred image's refined latent meets the sharp one's."""

    def __init__(self, model: UIDDiff, choices: Choices) -> None:
        super().__init__(model, {"vae_refiner": model.refiner})
        model.refiner.requires_grad_(False)
        model.refiner.encoder.requires_grad_(True)
        self.vae, self.encoder = model.encoder.vae, model.encoder

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error between latents."""
        return {"loss": F.mse_loss(self.encoder(batch["blurred"])[0], base_latents(self.vae, batch["sharp"]))}

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred images, their refined latents decoded by the base decoder, and the sharp ones."""
        blurred, sharp = batch["blurred"][:8], batch["sharp"][:8]
        return torch.stack([blurred, base_images(self.vae, self.encoder(blurred)[0]), sharp])


class JointRefiner(Stage):
    """Stage "refiner", both phases at once: images through the refined VAE, without the diffusion.

    Most examples are blurred images that come back sharp. In the others the skips are the sharp image's and the
    latent is the blurred one's, which must come back: what blur transfer asks of the decoder. Without them it learns to
    take everything from the skips, and nothing that the diffusion makes can change the image.
    """

    def __init__(self, model: UIDDiff, choices: Choices) -> None:
        super().__init__(model, {"vae_refiner": model.refiner})
        self.vae, self.encoder, self.decoder = model.encoder.vae, model.encoder, model.decoder

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Image loss against the image that is wanted; of those that come back sharp, eq. 9 and the gain in dB."""
        turned = (Draws(batch["key"], batch["sharp"].device).uniform() < TRANSFERS).view(-1, 1, 1, 1)
        given = torch.where(turned, batch["sharp"], batch["blurred"])
        wanted = torch.where(turned, batch["blurred"], batch["sharp"])
        latents = base_latents(self.vae, wanted)
        z_y, skips = self.encoder(given)
        output = self.decoder.unclamped(torch.where(turned, latents, z_y), skips)
        straight = ~turned.flatten() / (1.0 - TRANSFERS)  # weights whose mean is one, on average
        image, errors = restoration_loss(output, wanted), (z_y - latents).square().mean(dim=(1, 2, 3))
        latent, gain = ((straight * x).mean() for x in (errors, psnr(output, wanted) - psnr(given, wanted)))
        return {"loss": image + LATENT_WEIGHT * latent, "image": image, "latent": latent, "gain": gain}

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred images, what comes back, and the sharp ones."""
        blurred, sharp = batch["blurred"][:8], batch["sharp"][:8]
        return torch.stack([blurred, self.decoder(*self.encoder(blurred)), sharp])
