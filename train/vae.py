"""Stages that train the VAE: the small base VAE of ``edge``, then the refined VAE's two phases (appendix A).

The base VAE learns sharp and blurred images alike, as Stable Diffusion's did; for ``sd15`` it is given and frozen.
``edge`` trains the refiners of both halves together (``JointRefiner``): its encoder refiner serves the skips as much as
the latent, and the skips are only as good as what the decoder makes of them.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from uid.families.uid_diff.vae import RefinedDecoder, RefinedEncoder, VAERefiner, from_patches, to_patches
from uid.train.loop import Batch, Stage

KL_WEIGHT = 1e-6  # Stable Diffusion's: just enough to keep the latents in bounds
LATENT_WEIGHT = 0.1  # of eq. 9 beside the image loss
ERROR_FLOOR = 1e-4  # mean squared error, 40 dB: below it an image has nothing more to teach
TRANSFERS = 1 / 8  # of a batch: examples that turn round, so that the decoder follows its latent


def image_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the pixels and of their spectrum, where one blurred edge touches many frequencies."""
    spectrum = torch.view_as_real(torch.fft.rfft2(output - target, norm="ortho"))
    return F.l1_loss(output, target) + spectrum.abs().mean()


def restoration_loss(output: Tensor, target: Tensor) -> Tensor:
    """A tenth of the log of each image's mean squared error: as much for a dB of an easy image as of a hard one."""
    return 0.1 * torch.log((output - target).square().mean(dim=(1, 2, 3)) + ERROR_FLOOR).mean()


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the images, in dB, each at most 40."""
    errors = (output.detach().clamp(0.0, 1.0) - target).square().mean(dim=(1, 2, 3))
    return -10.0 * torch.log10(errors.clamp_min(ERROR_FLOOR)).mean()


def base_latents(vae: AutoencoderKL, images: Tensor, *, sample: bool = False) -> Tensor:
    """The base VAE's latents of (B, 3, H, W) in [0, 1], with unit variance: the posterior's mean, or a sample of it."""
    with torch.no_grad():
        posterior = vae.encode(to_patches(images, vae)).latent_dist
        return (posterior.sample() if sample else posterior.mode()) * vae.config.scaling_factor


def base_images(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """What the base VAE's decoder makes of latents with unit variance, (B, 3, H, W), not clamped."""
    return from_patches(vae.decode(z / vae.config.scaling_factor).sample, vae)


class BaseVAE(Stage):
    """Stage "vae": sharp and blurred images through encoder, posterior sample and decoder."""

    name = "vae"

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae, self.trained = vae.requires_grad_(True), {"vae": vae}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Reconstruction and KL losses."""
        images = torch.cat([batch["sharp"], batch["blurred"]])
        posterior = self.vae.encode(to_patches(images, self.vae)).latent_dist
        output = from_patches(self.vae.decode(posterior.sample()).sample, self.vae)
        reconstruction, kl = image_loss(output, images), posterior.kl().mean()
        loss = reconstruction + KL_WEIGHT * kl
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl, "psnr": psnr(output, images)}

    @torch.inference_mode()
    def set_scaling_factor(self, examples: Iterable[Batch]) -> None:
        """Give the latents unit variance, as the diffusion expects: 1 / their deviation over ``examples``."""
        self.vae.register_to_config(scaling_factor=1.0)
        latents = [base_latents(self.vae, x["sharp"][None]).flatten() for x in examples]
        self.vae.register_to_config(scaling_factor=round(1.0 / float(torch.cat(latents).std()), 5))

    def sheet(self, batch: Batch) -> Tensor:
        """Images above their reconstructions."""
        images = batch["sharp"][:8]
        z = base_latents(self.vae, images)
        return torch.stack([images, base_images(self.vae, z)])


class JointRefiner(Stage):
    """Stage "refiner", both phases at once: images through the refined VAE, without the diffusion.

    Most examples are blurred images that come back sharp. In the others the skips are the sharp image's and the
    latent is the blurred one's, which must come back: what blur transfer asks of the decoder. Without them it learns to
    take everything from the skips, and nothing that the diffusion makes can change the image.
    """

    name = "refiner"

    def __init__(self, vae: AutoencoderKL, refiner: VAERefiner) -> None:
        super().__init__()
        self.vae, self.trained = vae.requires_grad_(False), {"vae_refiner": refiner}
        self.encoder, self.decoder = RefinedEncoder(vae, refiner), RefinedDecoder(vae, refiner)
        refiner.requires_grad_(True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Image loss against the image that is wanted, and eq. 9."""
        turned = round(TRANSFERS * len(batch["sharp"]))
        given, wanted = exchanged(batch["blurred"], batch["sharp"], turned)
        latents = base_latents(self.vae, wanted)
        z_y, skips = self.encoder(given)
        output = self.decoder.unclamped(torch.cat([latents[:turned], z_y[turned:]]), skips)
        image, latent = restoration_loss(output, wanted), F.mse_loss(z_y[turned:], latents[turned:])
        gains = [psnr(output[i], wanted[i]) - psnr(given[i], wanted[i]) for i in (slice(turned, None), slice(turned))]
        losses = {"loss": image + LATENT_WEIGHT * latent, "image": image, "latent": latent, "gain": gains[0]}
        return losses | ({"transfer_gain": gains[1]} if turned else {})

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred images, what comes back, and the sharp ones."""
        blurred, sharp = batch["blurred"][:8], batch["sharp"][:8]
        return torch.stack([blurred, self.decoder(*self.encoder(blurred)), sharp])


def exchanged(a: Tensor, b: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Two batches after their first ``count`` examples changed places."""
    return torch.cat([b[:count], a[count:]]), torch.cat([a[:count], b[count:]])


class EncoderRefiner(Stage):
    """Stage "encoder-refiner", phase one (eq. 9): the blurred image's refined latent meets the sharp one's."""

    name = "encoder-refiner"

    def __init__(self, vae: AutoencoderKL, refiner: VAERefiner) -> None:
        super().__init__()
        self.vae, self.trained = vae.requires_grad_(False), {"vae_refiner": refiner}
        self.encoder = RefinedEncoder(vae, refiner)
        refiner.encoder.requires_grad_(True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error between latents."""
        return {"loss": F.mse_loss(self.encoder(batch["blurred"])[0], base_latents(self.vae, batch["sharp"]))}

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred images, their refined latents decoded by the base decoder, and the sharp ones."""
        blurred, sharp = batch["blurred"][:8], batch["sharp"][:8]
        return torch.stack([blurred, base_images(self.vae, self.encoder(blurred)[0]), sharp])


class DecoderRefiner(Stage):
    """Stage "decoder-refiner", phase two (eq. 10): the sharp latent, with the blurred image's skips, gives the sharp.

    The latent is the sharp image's, as the diffusion should deliver it; the skips come from the blurred one, as at
    run time.
    """

    name = "decoder-refiner"

    def __init__(self, vae: AutoencoderKL, refiner: VAERefiner) -> None:
        super().__init__()
        self.vae, self.trained = vae.requires_grad_(False), {"vae_refiner": refiner}
        self.encoder, self.decoder = RefinedEncoder(vae, refiner).requires_grad_(False), RefinedDecoder(vae, refiner)
        refiner.decoder.requires_grad_(True)

    def restored(self, batch: Batch) -> Tensor:
        """Sharp latents and blurred skips through the refined decoder, (B, 3, H, W), not clamped."""
        with torch.no_grad():
            skips = self.encoder(batch["blurred"])[1]
        return self.decoder.unclamped(base_latents(self.vae, batch["sharp"]), skips)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Image loss against the sharp image."""
        output = self.restored(batch)
        return {"loss": restoration_loss(output, batch["sharp"]), "psnr": psnr(output, batch["sharp"])}

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred images, what comes back, and the sharp ones."""
        first = {name: value[:8] for name, value in batch.items()}
        return torch.stack([first["blurred"], self.restored(first), first["sharp"]])
