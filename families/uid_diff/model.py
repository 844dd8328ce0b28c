"""UID-Diff, image to image: the slow, readable path that every backend is compared with."""

from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from uid.families.uid_diff import blur_attention, unet
from uid.families.uid_diff.adapter import Adapter
from uid.families.uid_diff.conditioning import Extractor, QFormer
from uid.families.uid_diff.ddim import ddim_update, guide
from uid.families.uid_diff.vae import RefinedDecoder, RefinedEncoder, VAERefiner, patch_size

SHARP_PROMPT = "sharp and clean image"  # deblurring
BLURRY_PROMPT = "blurry image"  # blur transfer and reconstruction


class StepCoefficients(NamedTuple):
    """What the schedule gives a step, (1,) float32 each."""

    timestep: Tensor
    alpha_bar: Tensor  # at this timestep
    alpha_bar_prev: Tensor  # at the next one


class Conditions(NamedTuple):
    """What every step of a loop reads."""

    z_y: Tensor  # the blurry image's latent, (B, C, h, w)
    f_s: Tensor  # structure, (B, 16, D)
    prompts: Tensor  # (2, L, D): the empty prompt's, then the conditional one's
    f_b: Tensor | None = None  # blur, (B, 16, D)


class CachedFeatures(NamedTuple):
    """What a full step leaves for later ones that compute the U-Net's outermost level alone."""

    deep: Tensor  # (P * B, C, h, w), what the last level reads; P prompts
    residuals: list[Tensor]  # the adapter's, of that level, (B, C, h, w) each
    output: Tensor | None = None  # the adapter's, of the prediction


class DenoisingStep(nn.Module):
    """x_t -> x_{t-1}: adapter once, U-Net on both guidance branches, guidance and DDIM update in float32.

    The adapter reads f_s and not the text, so its residuals serve both branches. The unconditional branch has the
    empty prompt; f_b, where given, goes to both, so that guidance acts on the text alone.
    """

    def __init__(self, adapter: Adapter, unet: UNet2DConditionModel, prediction_type: str) -> None:
        super().__init__()
        self.adapter, self.unet, self.prediction_type = adapter, unet, prediction_type

    def forward(
        self,
        x_t: Tensor,
        z_y: Tensor,
        f_s: Tensor,
        prompt: Tensor,
        coefficients: StepCoefficients,
        guidance_scale: Tensor | None = None,
        f_b: Tensor | None = None,
    ) -> tuple[Tensor, CachedFeatures]:
        """One full step, and the features that it leaves for later ones.

        x_t (B, C, h, w) float32; z_y (B, C, h, w) the blurry image's latent; f_s, f_b (B, 16, D); prompt (2, L, D),
        empty then conditional; guidance_scale (1,) float32. Without guidance_scale, which stands for 1, the
        conditional branch runs alone: prompt (1, L, D). x_{t-1} is float32.
        """
        x = x_t.to(z_y.dtype)
        timestep, text = coefficients.timestep, repeated(prompt, x.shape[0])
        residuals = self.adapter(x, z_y, timestep, f_s)
        output, deep = unet.predict(self.unet, x, timestep, text, residuals.down, residuals.middle, f_b)
        cached = CachedFeatures(deep, residuals.down[: unet.level_size(self.unet)], residuals.output)
        return self.update(x_t, output, residuals.output, coefficients, guidance_scale), cached

    def shallow(
        self,
        x_t: Tensor,
        prompt: Tensor,
        coefficients: StepCoefficients,
        guidance_scale: Tensor | None,
        cached: CachedFeatures,
        f_b: Tensor | None = None,
    ) -> Tensor:
        """One step by the U-Net's outermost level, on what an earlier full step left for the deeper ones."""
        x = x_t.to(cached.deep.dtype)
        text = repeated(prompt, x.shape[0])
        output = unet.shallow(self.unet, x, coefficients.timestep, text, cached.residuals, cached.deep, f_b)
        return self.update(x_t, output, cached.output, coefficients, guidance_scale)

    def update(
        self,
        x_t: Tensor,
        output: Tensor,
        residual: Tensor | None,
        coefficients: StepCoefficients,
        guidance_scale: Tensor | None,
    ) -> Tensor:
        """x_{t-1} from the U-Net's output (P * B, C, h, w) under each prompt and the adapter's residual, in float32."""
        output = output.float() if residual is None else output.float() + unet.like(residual, output).float()
        if guidance_scale is not None:
            # Not by chunk(2), whose count of chunks the exporter cannot tell for a batch of unknown size.
            unconditional, conditional = output.unflatten(0, (2, -1))
            output = guide(unconditional, conditional, guidance_scale)
        return ddim_update(x_t, output, coefficients.alpha_bar, coefficients.alpha_bar_prev, self.prediction_type)


def repeated(prompt: Tensor, batch: int) -> Tensor:
    """Embeddings (P, L, D) for a batch, (P * B, L, D), prompt by prompt."""
    return prompt[:, None].expand(-1, batch, -1, -1).flatten(0, 1)


class UIDDiff(nn.Module):
    """All components of one checkpoint, and the two tasks they serve."""

    def __init__(
        self,
        *,
        image_encoder: CLIPVisionModel,
        structure_extractor: QFormer,
        blur_extractor: QFormer,
        structure_ids: Tensor,
        blur_ids: Tensor,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        adapter: Adapter,
        unet: UNet2DConditionModel,
        blur_projections: blur_attention.BlurProjections,
        vae: AutoencoderKL,
        vae_refiner: VAERefiner,
        scheduler: DDIMScheduler,
    ) -> None:
        super().__init__()
        blur_attention.attach(unet, blur_projections)
        self.structure = Extractor(image_encoder, structure_extractor, structure_ids)
        self.blur = Extractor(image_encoder, blur_extractor, blur_ids)
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.blur_projections = blur_projections
        self.encoder = RefinedEncoder(vae, vae_refiner)
        self.step = DenoisingStep(adapter, unet, scheduler.config.prediction_type)
        self.decoder = RefinedDecoder(vae, vae_refiner)
        self.scheduler = scheduler
        self.refiner = vae_refiner
        self.eval().requires_grad_(False)

    @property
    def latent_factor(self) -> int:
        """Image pixels per latent pixel, along each side."""
        vae = self.encoder.vae
        return patch_size(vae) * int(2 ** (len(vae.config.block_out_channels) - 1))

    @property
    def size_multiple(self) -> int:
        """Image height and width must be multiples of this: the VAE's factor times the U-Net's."""
        return int(self.latent_factor * 2 ** (len(self.step.unet.config.block_out_channels) - 1))

    @property
    def skips(self) -> list[tuple[int, int]]:
        """Each skip of the refined VAE: its channels, and image pixels per pixel along each side."""
        patch, config = patch_size(self.encoder.vae), self.refiner.config
        levels = [(width, patch * 2**i) for i, width in enumerate(config.hidden)]
        return [*levels, (config.pixel_channels, patch)] if config.pixel_channels else levels

    def prompts(self, text: str) -> Tensor:
        """Prompt embeddings (2, L, D): the empty prompt's, then ``text``'s."""
        ids = self.tokenizer(
            ["", text],
            padding="max_length",
            max_length=self.text_encoder.config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder(ids.to(self.text_encoder.device)).last_hidden_state

    @torch.inference_mode()
    def sample(
        self,
        image: Tensor,
        noise: Tensor,
        prompt: str,
        steps: int,
        guidance: float,
        blur_image: Tensor | None = None,
        *,
        interval: tuple[float, float] = (0.0, 1.0),
        cache_interval: int = 1,
    ) -> Tensor:
        """DDIM from ``noise`` (B, C, h, w) under ``prompt``, conditioned on ``image`` (B, 3, H, W) in [0, 1].

        ``interval`` and ``cache_interval`` as in ``denoise``.
        """
        z_y, skips = self.encoder(image)
        f_b = None if blur_image is None else self.blur(blur_image)
        f_s, prompts = self.structure(image), self.prompts(prompt)
        conditions = Conditions(z_y, f_s, prompts, f_b)
        z = self.denoise(noise, conditions, steps, guidance, interval=interval, cache_interval=cache_interval)
        return self.decoder(z.to(z_y.dtype), skips)

    def denoise(
        self,
        noise: Tensor,
        conditions: Conditions,
        steps: int,
        guidance: float,
        *,
        interval: tuple[float, float] = (0.0, 1.0),
        cache_interval: int = 1,
    ) -> Tensor:
        """The loop alone: every DDIM step from ``noise`` to the latent, (B, C, h, w) float32.

        Guidance acts in the steps that begin inside ``interval``, from 0, the first step, to 1, the end. Of those, the
        first and every ``cache_interval``-th after it are computed in full, the others from its features.
        """
        self.scheduler.set_timesteps(steps)
        device, alpha_bars = noise.device, self.scheduler.alphas_cumprod.to(noise.device)
        visited = self.scheduler.timesteps.tolist()
        z_y, f_s, prompts, f_b = conditions
        x, cached, left = noise, None, 0  # so many steps may still use the cached features
        for i, t in enumerate(visited):
            last = i == len(visited) - 1
            previous = self.scheduler.final_alpha_cumprod.to(device) if last else alpha_bars[visited[i + 1]]
            timestep = torch.tensor([float(t)], device=device)
            coefficients = StepCoefficients(timestep, alpha_bars[t][None], previous[None])
            inside = interval[0] <= i / steps < interval[1]
            guided = inside and guidance != 1.0
            prompt, scale = (prompts, torch.tensor([guidance], device=device)) if guided else (prompts[1:], None)
            if inside and cached is not None and left > 0:
                x = self.step.shallow(x, prompt, coefficients, scale, cached, f_b)
                left -= 1
            else:
                x, cached = self.step(x, z_y, f_s, prompt, coefficients, scale, f_b)
                left = cache_interval - 1 if inside else 0
        return x

    def deblur(self, image: Tensor, noise: Tensor, *, steps: int = 30, guidance: float = 7.5) -> Tensor:
        """Sharpen ``image`` (T_1 of the paper). (B, 3, H, W) in [0, 1] -> the same."""
        return self.sample(image, noise, SHARP_PROMPT, steps, guidance)

    def blur_transfer(
        self, image: Tensor, blur_image: Tensor, noise: Tensor, *, steps: int = 30, guidance: float = 7.5
    ) -> Tensor:
        """Give sharp ``image`` the blur pattern of ``blur_image`` (appendix C). (B, 3, H, W) in [0, 1] -> the same."""
        return self.sample(image, noise, BLURRY_PROMPT, steps, guidance, blur_image)
