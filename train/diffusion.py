"""Stages that train the diffusion: the small text-conditional base of ``edge``, and deblurring (T_1, eq. 4).

Both predict the noise of a latent. Prompts are dropped now and then, so that the empty prompt means something and
guidance has two branches to compare.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uid.reference.model import BLURRY_PROMPT, SHARP_PROMPT, UIDDiff
from uid.train.loop import Batch, Stage

PROMPT_DROPOUT = 0.1  # share of examples that see the empty prompt


class DiffusionStage(Stage):
    """What both stages share: latents, noise, prompts and the loss. All of ``model`` is frozen but ``trained``."""

    def __init__(self, model: UIDDiff, trained: dict[str, nn.Module]) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        for module in trained.values():
            module.requires_grad_(True)

    def latents(self, pictures: Tensor) -> Tensor:
        """The base VAE's latents of (B, 3, H, W) in [0, 1], a posterior sample with unit variance."""
        vae = self.model.encoder.vae
        with torch.no_grad():
            return vae.encode(pictures * 2.0 - 1.0).latent_dist.sample() * vae.config.scaling_factor

    def text(self, prompts: list[str]) -> Tensor:
        """Embeddings (B, L, D) of prompts, some of which are dropped while training."""
        dropped = torch.rand(len(prompts)) < PROMPT_DROPOUT
        kept = ["" if drop and self.training else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
        embeddings = {prompt: self.model.prompts(prompt)[1] for prompt in dict.fromkeys(kept)}
        return torch.stack([embeddings[prompt] for prompt in kept])

    def noise_loss(self, z: Tensor, text: Tensor, condition: tuple[Tensor, Tensor] | None) -> Tensor:
        """Mean squared error of the predicted noise (or velocity) at a random timestep of each latent."""
        scheduler = self.model.scheduler
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(z),), device=z.device)
        eps = torch.randn_like(z)
        x_t = scheduler.add_noise(z, eps, t)
        velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(z, eps, t) if velocity else eps
        residuals: dict[str, object] = {}
        if condition is not None:
            down, middle = self.model.step.adapter(x_t, condition[0], t, condition[1])
            residuals = {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
        return F.mse_loss(self.model.step.unet(x_t, t, text, **residuals).sample, target)


class BaseDiffusion(DiffusionStage):
    """Stage "base": U-Net and text encoder learn sharp and blurred pictures under the two prompts."""

    name = "base"

    def __init__(self, model: UIDDiff) -> None:
        super().__init__(model, {"unet": model.step.unet, "text_encoder": model.text_encoder})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The noise loss over both halves of the pairs."""
        count = len(batch["sharp"])
        z = self.latents(torch.cat([batch["sharp"], batch["blurred"]]))
        return {"loss": self.noise_loss(z, self.text([SHARP_PROMPT] * count + [BLURRY_PROMPT] * count), None)}

    def sheet(self, batch: Batch) -> Tensor:
        """Sharp pictures, and their latents noised to the middle and denoised in one step."""
        z = self.latents(batch["sharp"][:8])
        return torch.stack([batch["sharp"][:8], self.denoised(z, self.text([SHARP_PROMPT] * len(z)))])

    def denoised(self, z: Tensor, text: Tensor) -> Tensor:
        """Decoded estimate of ``z`` from its noised version at timestep 300, under an epsilon-predicting U-Net."""
        t = torch.full((len(z),), 300, device=z.device)
        x_t = self.model.scheduler.add_noise(z, torch.randn_like(z), t)
        alpha_bar = self.model.scheduler.alphas_cumprod.to(z.device)[300]
        output = self.model.step.unet(x_t, t, text).sample
        if self.model.scheduler.config.prediction_type == "v_prediction":
            z_0 = alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * output
        else:
            z_0 = (x_t - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
        vae = self.model.encoder.vae
        return vae.decode(z_0 / vae.config.scaling_factor).sample / 2.0 + 0.5


class Deblurring(DiffusionStage):
    """Stage "deblur", T_1 (eq. 4): the sharp latent's noise, given f_s and z_y of its blurred picture.

    Trains the structure extractor and the adapter; with ``backbone`` also U-Net and image encoder, for ``edge``, which
    has no pretrained ones. At ``sd15`` the backbone stays frozen, as in the paper.
    """

    name = "deblur"

    def __init__(self, model: UIDDiff, *, backbone: bool) -> None:
        trained: dict[str, nn.Module] = {"structure_extractor": model.structure.q_former, "adapter": model.step.adapter}
        if backbone:
            trained |= {"unet": model.step.unet, "image_encoder": model.structure.image_encoder}
        super().__init__(model, trained)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The noise loss of the sharp pictures under the sharp prompt."""
        with torch.no_grad():
            z_y = self.model.encoder(batch["blurred"])[0]
        condition = (z_y, self.model.structure(batch["blurred"]))
        text = self.text([SHARP_PROMPT] * len(z_y))
        return {"loss": self.noise_loss(self.latents(batch["sharp"]), text, condition)}

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred pictures, what ten guided steps make of them, and the sharp ones."""
        blurred = batch["blurred"][:4]
        side = blurred.shape[-1] // self.model.latent_factor
        noise = torch.randn(len(blurred), self.model.step.unet.config.in_channels, side, side, device=blurred.device)
        deblurred = [self.model.deblur(y[None], n[None], steps=10)[0] for y, n in zip(blurred, noise, strict=True)]
        return torch.stack([blurred, torch.stack(deblurred), batch["sharp"][:4]])
