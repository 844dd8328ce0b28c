"""Stages that train the diffusion: the small text-conditional base of ``edge``, then the paper's three tasks.

T_1 deblurs (eq. 4), T_2 transfers blur (eq. 6), T_3 reconstructs (eq. 7); T_1 and T_2 are warmed up alone, then all
three are trained together (eq. 8). All predict the noise of a latent. Prompts are dropped now and then, so that the
empty prompt means something and guidance has two branches to compare. Last, the decoder refiner learns from the latents
that the diffusion delivers (eq. 10).
"""

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uid.families.uid_diff.ddim import ddim_update
from uid.families.uid_diff.model import BLURRY_PROMPT, SHARP_PROMPT, Conditions, UIDDiff
from uid.train.stage import Batch, Choices, Draws, Stage
from uid.train.vae import base_images, base_latents, psnr

PROMPT_DROPOUT = 0.1  # share of examples that see the empty prompt
PROMPTS = {"T_1": SHARP_PROMPT, "T_2": BLURRY_PROMPT, "T_3": BLURRY_PROMPT}
TARGETS = {"T_1": "sharp", "T_2": "y_3", "T_3": "y_2"}  # the image whose noise a task predicts
STRUCTURE = {"T_1": "blurred", "T_3": "y_2"}  # the image whose structure the adapter gives it; T_2 has none


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
    """What these stages share: latents, noise, prompts and the loss."""

    def __init__(self, model: UIDDiff, trained: dict[str, nn.Module], choices: Choices) -> None:
        super().__init__(model, trained)
        self.model, self.choices = model, choices
        if "image_encoder" in trained:  # on a CPU the fused attention takes a third of a step in its backward pass
            model.structure.image_encoder.set_attn_implementation("eager")

    def task_losses(self, batch: Batch, tasks: Collection[str]) -> dict[str, Tensor]:
        """Each task's noise loss, and their mean (eq. 8), from one pass of every network.

        T_1 (eq. 4) is ``sharp`` under the sharp prompt, given ``blurred``; T_3 (eq. 7) ``y_2`` under the blurry one,
        from its own structure and its own blur; T_2 (eq. 6) ``y_3`` under the blurry one, given the blur of ``y_2`` and
        nothing else, unless ``structured_transfer`` is chosen.
        """
        order = [task for task in ("T_1", "T_3", "T_2") if task in tasks]  # those that the adapter serves come first
        draws = Draws(batch["key"], batch["sharp"].device, times=len(order))
        z = self.latents(torch.cat([batch[TARGETS[task]] for task in order]), draws)
        text = self.text([PROMPTS[task] for task in order for _ in batch["key"]], draws)
        given = [batch[STRUCTURE[task]] for task in order if task in STRUCTURE]
        if "T_2" in tasks and self.choices.structured_transfer:
            given.append(self.transferred(batch, draws))
        condition = self.conditions(torch.cat(given)) if given else None
        losses = self.noise_losses(z, text, draws, condition, self.blurs(batch, order))
        each = dict(zip(order, losses.unflatten(0, (len(order), -1)).mean(dim=1), strict=True))
        return {"loss": losses.mean(), **{task: each[task] for task in sorted(each)}}

    def transferred(self, batch: Batch, draws: Draws) -> Tensor:
        """What T_2 takes the structure of, not as eq. 6 has it: ``y_3``, or for half of the examples ``x_3``.

        Transfer is used on sharp images, and z_y of ``y_3`` would tell what f_b should. A domain of files has no
        ``x_3``, which is ``y_3`` before its blur.
        """
        sharp = (draws.uniform() < 0.5)[: len(batch["key"])].view(-1, 1, 1, 1)
        return torch.where(sharp, batch.get("x_3", batch["y_3"]), batch["y_3"])

    def conditions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """z_y and f_s of (B, 3, H, W) in [0, 1]."""
        with torch.no_grad():
            z_y = self.model.encoder(images)[0]
        return z_y, self.structure(images)

    def blurs(self, batch: Batch, tasks: Sequence[str]) -> Tensor | None:
        """f_b for each task in turn; T_1 has none, and zeros add nothing to the attention (eq. 5, without biases)."""
        if set(tasks) == {"T_1"}:
            return None
        f_b = self.model.blur(batch["y_2"])
        return torch.cat([torch.zeros_like(f_b) if task == "T_1" else f_b for task in tasks])

    def structure(self, images: Tensor) -> Tensor:
        """f_s of (B, 3, H, W) in [0, 1]."""
        return self.model.structure(images)

    def delivered(self, images: Tensor, keys: Sequence[int], blur: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The latents that the model makes of images as it is run, sharp or with the blur of ``blur``; their skips."""
        z_y, skips = self.model.encoder(images)
        prompts = self.model.prompts(SHARP_PROMPT if blur is None else BLURRY_PROMPT)
        f_b = None if blur is None else self.model.blur(blur)
        noise = Draws(keys, z_y.device).normal(z_y.shape[1:])
        conditions = Conditions(z_y, self.structure(images), prompts, f_b)
        return self.model.denoise(noise, conditions, self.choices.steps, self.choices.guidance), skips

    def sampled(self, images: Tensor, keys: Sequence[int], blur: Tensor | None = None) -> Tensor:
        """What the model makes of images (B, 3, H, W) in [0, 1], as it is run: the same."""
        return self.model.decoder(*self.delivered(images, keys, blur))

    def latents(self, images: Tensor, draws: Draws) -> Tensor:
        """The base VAE's latents of (B, 3, H, W) in [0, 1], a posterior sample with unit variance."""
        return base_latents(self.model.encoder.vae, images, draws)

    def text(self, prompts: list[str], draws: Draws) -> Tensor:
        """Embeddings (B, L, D) of prompts, some of which are dropped."""
        pairs = {prompt: self.model.prompts(prompt) for prompt in dict.fromkeys(prompts)}  # the empty one's come first
        empty, given = torch.stack([pairs[prompt] for prompt in prompts], dim=1)
        return torch.where((draws.uniform() < PROMPT_DROPOUT)[:, None, None], empty, given)

    def noise_losses(
        self,
        z: Tensor,
        text: Tensor,
        draws: Draws,
        condition: tuple[Tensor, Tensor] | None = None,
        f_b: Tensor | None = None,
    ) -> Tensor:
        """Squared error of the predicted noise (velocity, or x_0) at a random timestep of each latent, (B,).

        ``condition``: z_y and f_s of the first latents; the adapter adds nothing to the others.
        """
        scheduler = self.model.scheduler
        t, eps = self.timesteps(draws), draws.normal(z.shape[1:])
        x_t = scheduler.add_noise(z, eps, t)
        added: dict[str, object] = {}
        to_output: Tensor | None = None
        if condition is not None:
            count = len(condition[0])
            residuals = self.model.step.adapter(x_t[:count], condition[0], t[:count], condition[1])
            down = [followed_by_zeros(x, len(z)) for x in residuals.down]
            middle = followed_by_zeros(residuals.middle, len(z))
            added = {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
            to_output = None if residuals.output is None else followed_by_zeros(residuals.output, len(z))
        blur = None if f_b is None else {"f_b": f_b}
        output = self.model.step.unet(x_t, t, text, cross_attention_kwargs=blur, **added).sample.float()
        output = output if to_output is None else output + to_output
        return (output - self.target(z, eps, t)).square().mean(dim=(1, 2, 3))

    def target(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network predicts: the noise, the velocity or the latent itself."""
        scheduler = self.model.scheduler
        if scheduler.config.prediction_type == "v_prediction":
            velocity: Tensor = scheduler.get_velocity(z, eps, t)
            return velocity
        return z if scheduler.config.prediction_type == "sample" else eps

    def timesteps(self, draws: Draws) -> Tensor:
        """(B,) of 0 to 999: uniform, but for a share ``visited`` of those that the sampler will visit."""
        scheduler = self.model.scheduler
        t = draws.below(scheduler.config.num_train_timesteps)
        if not self.choices.visited:
            return t
        scheduler.set_timesteps(self.choices.steps)
        visited = scheduler.timesteps.to(t.device)[draws.below(self.choices.steps)]
        return torch.where(draws.uniform() < self.choices.visited, visited, t)


def followed_by_zeros(x: Tensor, count: int) -> Tensor:
    """(B, ...) -> (count, ...)."""
    return F.pad(x, [0] * (2 * x.ndim - 1) + [count - len(x)])


class BaseDiffusion(DiffusionStage):
    """Stage "base": U-Net and text encoder learn sharp and blurred images under the two prompts."""

    def __init__(self, model: UIDDiff, choices: Choices) -> None:
        super().__init__(model, {"unet": model.step.unet, "text_encoder": model.text_encoder}, choices)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The noise loss over both halves of the pairs."""
        count, draws = len(batch["key"]), Draws(batch["key"], batch["sharp"].device, times=2)
        z = self.latents(torch.cat([batch["sharp"], batch["blurred"]]), draws)
        text = self.text([SHARP_PROMPT] * count + [BLURRY_PROMPT] * count, draws)
        return {"loss": self.noise_losses(z, text, draws).mean()}

    def sheet(self, batch: Batch) -> Tensor:
        """Sharp images, and their latents noised to the middle and denoised in one step."""
        sharp, draws = batch["sharp"][:8], Draws(batch["key"][:8], batch["sharp"].device)
        text = self.model.prompts(SHARP_PROMPT)[1:].expand(len(sharp), -1, -1)
        return torch.stack([sharp, self.denoised(self.latents(sharp, draws), text, draws)])

    def denoised(self, z: Tensor, text: Tensor, draws: Draws) -> Tensor:
        """Decoded estimate of ``z`` from its noised version at timestep 300."""
        t = torch.full((len(z),), 300, device=z.device)
        x_t = self.model.scheduler.add_noise(z, draws.normal(z.shape[1:]), t)
        alpha_bar = self.model.scheduler.alphas_cumprod.to(z.device)[300]
        output = self.model.step.unet(x_t, t, text).sample.float()
        z_0 = ddim_update(x_t, output, alpha_bar, torch.ones_like(alpha_bar), self.model.step.prediction_type)
        return base_images(self.model.encoder.vae, z_0)


class Deblurring(DiffusionStage):
    """Stage "deblur", T_1 (eq. 4): the sharp latent's noise, given f_s and z_y of its blurred image.

    Trains the structure extractor and the adapter; with ``backbone`` also U-Net and image encoder, for ``edge``, which
    has no pretrained ones. At ``sd15`` the backbone stays frozen, as in the paper.
    """

    def __init__(self, model: UIDDiff, choices: Choices) -> None:
        super().__init__(model, structure_side(model) | (pretrained_side(model) if choices.backbone else {}), choices)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The noise loss of the sharp images under the sharp prompt."""
        return self.task_losses(batch, ["T_1"])

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred images, what the model makes of them, and the sharp ones."""
        blurred = batch["blurred"][:4]
        return torch.stack([blurred, self.sampled(blurred, batch["key"][:4]), batch["sharp"][:4]])


class BlurTransfer(DiffusionStage):
    """Stage "blur-transfer", T_2 (eq. 6): the noise of y_3, given the blur of y_2, under the blurry prompt.

    The warm-up of the blur extractor and of its projections W'_k, W'_v; the rest of the model stays as T_1 left it.
    """

    def __init__(self, model: UIDDiff, choices: Choices) -> None:
        super().__init__(model, blur_side(model), choices)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The noise loss of the blurred images y_3."""
        return self.task_losses(batch, ["T_2"])

    def sheet(self, batch: Batch) -> Tensor:
        """Images that give the blur, sharp images that take it, and what comes of them."""
        y_2, sharp = batch["y_2"][:4], batch["sharp"][:4]
        return torch.stack([y_2, sharp, self.sampled(sharp, batch["key"][:4], y_2)])


class Joint(DiffusionStage):
    """Stage "joint" (eq. 8): the mean of T_1, T_2 and T_3.

    T_3 (eq. 7) gives y_4, which here is y_2, back from its own structure and its own blur. A task in ``without`` is
    left out, and with "Q_s" the structure features are zeros: the paper's ablations.
    """

    def __init__(self, model: UIDDiff, choices: Choices) -> None:
        trained = structure_side(model) | blur_side(model) | (pretrained_side(model) if choices.backbone else {})
        left_out = unused(choices.without)
        super().__init__(model, {name: part for name, part in trained.items() if name not in left_out}, choices)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each task's noise loss, and their mean."""
        return self.task_losses(batch, {"T_1", "T_2", "T_3"} - self.choices.without)

    def structure(self, images: Tensor) -> Tensor:
        """f_s, or zeros without Q_s."""
        if "Q_s" not in self.choices.without:
            return super().structure(images)
        return images.new_zeros(len(images), *self.model.structure.q_former.query_tokens.shape[1:])

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred, deblurred, sharp; then the images that give a blur, and the sharp ones with it."""
        keys, blurred, sharp, y_2 = (batch[name][:4] for name in ("key", "blurred", "sharp", "y_2"))
        return torch.stack([blurred, self.sampled(blurred, keys), sharp, y_2, self.sampled(sharp, keys, y_2)])


class DecoderRefiner(DiffusionStage):
    """Stage "decoder-refiner", phase two of the refined VAE (eq. 10), after the diffusion is trained.

    The latent is what the diffusion delivers, in as many steps and as guided as the checkpoint is run; the skips are
    the blurred image's. The encoder refiner stays as phase one left it.
    """

    def __init__(self, model: UIDDiff, choices: Choices) -> None:
        super().__init__(model, {"vae_refiner": model.refiner}, choices)
        model.refiner.encoder.requires_grad_(False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error of the images; how much nearer to the sharp ones they came, in dB."""
        blurred, sharp = batch["blurred"], batch["sharp"]
        with torch.no_grad():
            z, skips = self.delivered(blurred, batch["key"])
        output = self.model.decoder.unclamped(z, skips)
        gain = (psnr(output, sharp) - psnr(blurred, sharp)).mean()
        return {"loss": F.mse_loss(output, sharp), "gain": gain}

    def sheet(self, batch: Batch) -> Tensor:
        """Blurred images, what the model makes of them, and the sharp ones."""
        blurred = batch["blurred"][:4]
        return torch.stack([blurred, self.sampled(blurred, batch["key"][:4]), batch["sharp"][:4]])
