"""Stages that train the diffusion: the small text-conditional base of ``edge``, then the paper's three tasks.

T_1 deblurs (eq. 4), T_2 transfers blur (eq. 6), T_3 reconstructs (eq. 7); T_1 and T_2 are warmed up alone, then all
three are trained together (eq. 8). All predict the noise of a latent. Prompts are dropped now and then, so that the
empty prompt means something and guidance has two branches to compare.
"""

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uid.families.uid_diff.model import BLURRY_PROMPT, SHARP_PROMPT, Conditions, UIDDiff
from uid.train.loop import Batch, Stage
from uid.train.vae import LATENT_WEIGHT, base_images, base_latents, exchanged, psnr, restoration_loss

PROMPT_DROPOUT = 0.1  # share of examples that see the empty prompt
VISITED = 0.5  # share of examples at a timestep that the checkpoint's own number of steps visits; the rest at any


def structure_side(model: UIDDiff) -> dict[str, nn.Module]:
    """What T_1 trains in the paper, by component name."""
    return {"structure_extractor": model.structure.q_former, "adapter": model.step.adapter}


def blur_side(model: UIDDiff) -> dict[str, nn.Module]:
    """What T_2 trains in the paper, by component name."""
    return {"blur_extractor": model.blur.q_former, "blur_projections": model.blur_projections}


def pretrained_side(model: UIDDiff) -> dict[str, nn.Module]:
    """What the paper takes from Stable Diffusion and CLIP and leaves frozen; ``edge`` has to learn it."""
    return {"unet": model.step.unet, "image_encoder": model.structure.image_encoder}


def unused(without: Collection[str]) -> set[str]:
    """Components that no task trains once those in ``without`` are left out."""
    blur = {"blur_extractor", "blur_projections"} if {"T_2", "T_3"} <= set(without) else set()
    return blur | ({"structure_extractor"} if "Q_s" in without else set())


class DiffusionStage(Stage):
    """What these stages share: latents, noise, prompts and the loss. All of ``model`` is frozen but ``trained``.

    ``steps`` is the number of denoising steps that the checkpoint is used with.
    """

    def __init__(self, model: UIDDiff, trained: dict[str, nn.Module], steps: int) -> None:
        super().__init__()
        self.model, self.trained, self.steps = model.requires_grad_(False), trained, steps
        for module in trained.values():
            module.requires_grad_(True)
        if "image_encoder" in trained:  # on a CPU the fused attention takes a third of a step in its backward pass
            model.structure.image_encoder.set_attn_implementation("eager")

    def task_losses(self, batch: Batch, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Each task's noise loss, and their sum, from one pass of every network.

        T_1 (eq. 4) is ``sharp`` under the sharp prompt, given ``blurred``; T_2 (eq. 6) ``y_3`` under the blurry one,
        given its structure and the blur of ``y_2``; T_3 (eq. 7) ``y_2`` from its own structure and its own blur.
        """
        wanted = [batch[{"T_1": "sharp", "T_2": "y_3", "T_3": "y_2"}[task]] for task in tasks]
        given = [self.given(batch, task) for task in tasks]
        prompts = [SHARP_PROMPT if task == "T_1" else BLURRY_PROMPT for task in tasks for _ in batch["sharp"]]
        with torch.no_grad():
            z_y = self.model.encoder(torch.cat(given))[0]
        f_s = self.structure(torch.cat(given))
        f_b = self.blurs(batch["y_2"], tasks) if set(tasks) != {"T_1"} else None
        losses = self.noise_losses(self.latents(torch.cat(wanted)), self.text(prompts), (z_y, f_s), f_b)
        each = {task: loss.mean() for task, loss in zip(tasks, losses.chunk(len(tasks)), strict=True)}
        return {"loss": torch.stack(list(each.values())).sum(), **each}

    def given(self, batch: Batch, task: str) -> Tensor:
        """What a task takes the structure of. For half of T_2's examples that is ``x_3``, ``y_3`` before its blur.

        z_y should be no shortcut to ``y_3``, since the refined encoder was trained to give the latent of the sharp
        image. But it falls short of that, and what it leaves tells the blur where f_b should. A sharp image is what
        transfer is used on; a domain of blurred images alone does not have it.
        """
        if task != "T_2":
            return batch[{"T_1": "blurred", "T_3": "y_2"}[task]]
        half = len(batch["y_3"]) // 2 if "x_3" in batch else 0
        return torch.cat([batch.get("x_3", batch["y_3"])[:half], batch["y_3"][half:]])

    def blurs(self, y_2: Tensor, tasks: Sequence[str]) -> Tensor:
        """f_b for each task in turn; T_1 has none, and zeros add nothing to the attention (eq. 5, without biases)."""
        f_b = self.model.blur(y_2)
        return torch.cat([torch.zeros_like(f_b) if task == "T_1" else f_b for task in tasks])

    def structure(self, images: Tensor) -> Tensor:
        """f_s of (B, 3, H, W) in [0, 1]."""
        return self.model.structure(images)

    def sampled(self, images: Tensor, blur: Tensor | None = None, *, seed: int | None = None) -> Tensor:
        """What the model makes of images, unguided: sharp, or with the blur of ``blur``."""
        prompt = SHARP_PROMPT if blur is None else BLURRY_PROMPT
        z_y, skips = self.model.encoder(images)
        f_s = self.structure(images)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        noise = torch.randn(z_y.shape, generator=generator).to(z_y.device)
        f_b = None if blur is None else self.model.blur(blur)
        z = self.model.denoise(noise, Conditions(z_y, f_s, self.model.prompts(prompt), f_b), self.steps, 1.0)
        return self.model.decoder(z, skips)

    def latents(self, images: Tensor) -> Tensor:
        """The base VAE's latents of (B, 3, H, W) in [0, 1], a posterior sample with unit variance."""
        return base_latents(self.model.encoder.vae, images, sample=True)

    def text(self, prompts: list[str]) -> Tensor:
        """Embeddings (B, L, D) of prompts, some of which are dropped while training."""
        dropped = torch.rand(len(prompts)) < PROMPT_DROPOUT
        kept = ["" if drop and self.training else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
        embeddings = {prompt: self.model.prompts(prompt)[1] for prompt in dict.fromkeys(kept)}
        return torch.stack([embeddings[prompt] for prompt in kept])

    def noise_losses(
        self, z: Tensor, text: Tensor, condition: tuple[Tensor, Tensor] | None, f_b: Tensor | None = None
    ) -> Tensor:
        """Squared error of the predicted noise (or velocity) at a random timestep of each latent, (B,)."""
        scheduler = self.model.scheduler
        t = self.timesteps(len(z)).to(z.device)
        eps = torch.randn_like(z)
        x_t = scheduler.add_noise(z, eps, t)
        velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(z, eps, t) if velocity else eps
        residuals: dict[str, object] = {}
        if condition is not None:
            down, middle = self.model.step.adapter(x_t, condition[0], t, condition[1])
            residuals = {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
        blur = None if f_b is None else {"f_b": f_b}
        output = self.model.step.unet(x_t, t, text, cross_attention_kwargs=blur, **residuals).sample
        return (output - target).square().mean(dim=(1, 2, 3))

    def timesteps(self, count: int) -> Tensor:
        """(count,) of 0 to 999: uniform as in the paper, but a share of those that the sampler will visit."""
        scheduler = self.model.scheduler
        t = torch.randint(0, scheduler.config.num_train_timesteps, (count,))
        scheduler.set_timesteps(self.steps)
        visited = scheduler.timesteps[torch.randint(0, self.steps, (count,))]
        return torch.where(torch.rand(count) < VISITED, visited, t)


class BaseDiffusion(DiffusionStage):
    """Stage "base": U-Net and text encoder learn sharp and blurred images under the two prompts."""

    name = "base"

    def __init__(self, model: UIDDiff, *, steps: int) -> None:
        super().__init__(model, {"unet": model.step.unet, "text_encoder": model.text_encoder}, steps)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The noise loss over both halves of the pairs."""
        count = len(batch["sharp"])
        z = self.latents(torch.cat([batch["sharp"], batch["blurred"]]))
        text = self.text([SHARP_PROMPT] * count + [BLURRY_PROMPT] * count)
        return {"loss": self.noise_losses(z, text, None).mean()}

    def sheet(self, batch: Batch) -> Tensor:
        """Sharp images, and their latents noised to the middle and denoised in one step."""
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
        return base_images(self.model.encoder.vae, z_0)


class Deblurring(DiffusionStage):
    """Stage "deblur", T_1 (eq. 4): the sharp latent's noise, given f_s and z_y of its blurred image.

    Trains the structure extractor and the adapter; with ``backbone`` also U-Net and image encoder, for ``edge``, which
    has no pretrained ones. At ``sd15`` the backbone stays frozen, as in the paper.
    """

    name = "deblur"

    def __init__(self, model: UIDDiff, *, steps: int, backbone: bool) -> None:
        super().__init__(model, structure_side(model) | (pretrained_side(model) if backbone else {}), steps)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The noise loss of the sharp images under the sharp prompt."""
        return self.task_losses(batch, ["T_1"])

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred images, what the model makes of them, and the sharp ones."""
        blurred = batch["blurred"][:4]
        return torch.stack([blurred, self.sampled(blurred), batch["sharp"][:4]])


class BlurTransfer(DiffusionStage):
    """Stage "blur-transfer", T_2 (eq. 6): y_3 from its own structure and the blur of y_2, under the blurry prompt.

    The warm-up of the blur extractor and of its projections W'_k, W'_v; the rest of the model stays as T_1 left it.
    """

    name = "blur-transfer"

    def __init__(self, model: UIDDiff, *, steps: int) -> None:
        super().__init__(model, blur_side(model), steps)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The noise loss of the blurred images y_3."""
        return self.task_losses(batch, ["T_2"])

    def sheet(self, batch: Batch) -> Tensor:
        """Images that give the blur, sharp images that take it, and what comes of them."""
        y_2, sharp = batch["y_2"][:4], batch["sharp"][:4]
        return torch.stack([y_2, sharp, self.sampled(sharp, y_2)])


class Joint(DiffusionStage):
    """Stage "joint" (eq. 8): T_1, T_2 and T_3 at 1 : 1 : 1.

    T_3 (eq. 7) gives y_4 back from its own structure and its own blur. A task in ``without`` is left out, and with
    "Q_s" the structure features are zeros: the paper's ablations.
    """

    name = "joint"

    def __init__(self, model: UIDDiff, *, steps: int, backbone: bool, without: Collection[str] = ()) -> None:
        trained = structure_side(model) | blur_side(model) | (pretrained_side(model) if backbone else {})
        kept = {name: module for name, module in trained.items() if name not in unused(without)}
        super().__init__(model, kept, steps)
        self.without = frozenset(without)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each task's noise loss, and their sum."""
        return self.task_losses(batch, [task for task in ("T_1", "T_2", "T_3") if task not in self.without])

    def structure(self, images: Tensor) -> Tensor:
        """f_s, or zeros without Q_s."""
        f_s = super().structure(images)
        return torch.zeros_like(f_s) if "Q_s" in self.without else f_s

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred, deblurred, sharp; then the images that give a blur, and the sharp ones with it."""
        blurred, sharp, y_2 = batch["blurred"][:4], batch["sharp"][:4], batch["y_2"][:4]
        return torch.stack([blurred, self.sampled(blurred), sharp, y_2, self.sampled(sharp, y_2)])


class Delivery(DiffusionStage):
    """Stage "delivery": the refiners, with latents as the diffusion delivers them rather than as they should be.

    A quarter of each batch is blur transfer: a sharp image's skips with the latent of its blurred image give the
    blurred image. So the decoder follows the latent, where skips alone would tell it enough to deblur.
    """

    name = "delivery"

    def __init__(self, model: UIDDiff, *, steps: int) -> None:
        super().__init__(model, {"vae_refiner": model.refiner}, steps)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Image loss of both tasks and eq. 9; how much nearer to the sharp images the deblurred ones came, in dB."""
        turned = len(batch["sharp"]) // 4
        given, wanted = exchanged(batch["blurred"], batch["sharp"], turned)
        z_y, skips = self.model.encoder(given)
        latents = self.latents(wanted)
        z = torch.cat([latents[:turned], self.delivered(given[turned:], z_y[turned:].detach())])
        output = self.model.decoder.unclamped(z, skips)
        image, latent = restoration_loss(output, wanted), F.mse_loss(z_y[turned:], latents[turned:])
        gain = psnr(output[turned:], wanted[turned:]) - psnr(given[turned:], wanted[turned:])
        return {"loss": image + LATENT_WEIGHT * latent, "image": image, "latent": latent, "gain": gain}

    @torch.no_grad()
    def delivered(self, blurred: Tensor, z_y: Tensor) -> Tensor:
        """The diffusion's latents of blurred images, unguided."""
        prompts = self.model.prompts(SHARP_PROMPT)
        return self.model.denoise(
            torch.randn_like(z_y), Conditions(z_y, self.structure(blurred), prompts), self.steps, 1.0
        )

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred images, what the model makes of them, and the sharp ones."""
        blurred = batch["blurred"][:8]
        return torch.stack([blurred, self.sampled(blurred), batch["sharp"][:8]])
