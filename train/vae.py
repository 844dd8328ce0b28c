"""Stages that train the VAE: the small base VAE of ``edge``, then the refined VAE's two phases (appendix A).

The base VAE learns sharp and blurred pictures alike, as Stable Diffusion's did; for ``sd15`` it is given and frozen.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from uid.reference.vae import RefinedDecoder, RefinedEncoder, VAERefiner
from uid.train.loop import Batch, Stage

KL_WEIGHT = 1e-6  # Stable Diffusion's: just enough to keep the latents in bounds


def image_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error, of the pixels and of their differences to the neighbours (where sharpness lies)."""
    loss = F.l1_loss(output, target)
    for dim in (-1, -2):
        loss = loss + F.l1_loss(output.diff(dim=dim), target.diff(dim=dim))
    return loss


class BaseVAE(Stage):
    """Stage "vae": sharp and blurred pictures through encoder, posterior sample and decoder."""

    name = "vae"

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Reconstruction and KL losses."""
        pictures = torch.cat([batch["sharp"], batch["blurred"]])
        posterior = self.vae.encode(pictures * 2.0 - 1.0).latent_dist
        output = self.vae.decode(posterior.sample()).sample / 2.0 + 0.5
        reconstruction, kl = image_loss(output, pictures), posterior.kl().mean()
        psnr = -10.0 * torch.log10(F.mse_loss(output.detach().clamp(0, 1), pictures))
        return {"loss": reconstruction + KL_WEIGHT * kl, "reconstruction": reconstruction, "kl": kl, "psnr": psnr}

    @torch.inference_mode()
    def set_scaling_factor(self, examples: Iterable[Batch]) -> None:
        """Give the latents unit variance, as the diffusion expects: 1 / their deviation over ``examples``."""
        encode = self.vae.encode
        latents = [encode(x["sharp"][None] * 2.0 - 1.0).latent_dist.mode().flatten() for x in examples]
        self.vae.register_to_config(scaling_factor=round(1.0 / float(torch.cat(latents).std()), 5))

    def sheet(self, batch: Batch) -> Tensor:
        """Pictures above their reconstructions."""
        pictures = batch["sharp"][:8]
        output = self.vae.decode(self.vae.encode(pictures * 2.0 - 1.0).latent_dist.mode()).sample / 2.0 + 0.5
        return torch.stack([pictures, output])


class EncoderRefiner(Stage):
    """Stage "encoder-refiner", phase one (eq. 9): the blurred picture's refined latent meets the sharp one's."""

    name = "encoder-refiner"

    def __init__(self, vae: AutoencoderKL, refiner: VAERefiner) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False)
        self.encoder = RefinedEncoder(vae, refiner)
        refiner.encoder.requires_grad_(True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error between latents."""
        with torch.no_grad():
            posterior = self.vae.encode(batch["sharp"] * 2.0 - 1.0).latent_dist
            target = posterior.mode() * self.vae.config.scaling_factor
        return {"loss": F.mse_loss(self.encoder(batch["blurred"])[0], target)}

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred pictures, their refined latents decoded by the base decoder, and the sharp ones."""
        z = self.encoder(batch["blurred"][:8])[0] / self.vae.config.scaling_factor
        return torch.stack([batch["blurred"][:8], self.vae.decode(z).sample / 2.0 + 0.5, batch["sharp"][:8]])


class DecoderRefiner(Stage):
    """Stage "decoder-refiner", phase two (eq. 10): the sharp latent, with the blurred picture's skips, gives the sharp.

    The latent is the sharp picture's, as the diffusion should deliver it; the skips come from the blurred one, as at
    run time.
    """

    name = "decoder-refiner"

    def __init__(self, vae: AutoencoderKL, refiner: VAERefiner) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False)
        self.encoder, self.decoder = RefinedEncoder(vae, refiner).requires_grad_(False), RefinedDecoder(vae, refiner)
        refiner.decoder.requires_grad_(True)

    def restored(self, batch: Batch) -> Tensor:
        """Sharp latents and blurred skips through the refined decoder, (B, 3, H, W) in [0, 1]."""
        with torch.no_grad():
            posterior = self.vae.encode(batch["sharp"] * 2.0 - 1.0).latent_dist
            skips = self.encoder(batch["blurred"])[1]
        return self.decoder(posterior.mode() * self.vae.config.scaling_factor, skips)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Image loss against the sharp picture."""
        output = self.restored(batch)
        psnr = -10.0 * torch.log10(F.mse_loss(output.detach(), batch["sharp"]))
        return {"loss": image_loss(output, batch["sharp"]), "psnr": psnr}

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred pictures, what comes back, and the sharp ones."""
        first = {name: value[:8] for name, value in batch.items()}
        return torch.stack([first["blurred"], self.restored(first), first["sharp"]])
