"""The whole of DeblurDiff: from a blurred image and text to a sharp image.

Images come in as [0, 1], also to the autoencoder, which is what the published weights were trained with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from uid.families.deblurdiff.configs import (
    CONTROL_WINDOWS,
    LATENT_FACTOR,
    LATENT_SCALE,
    SCHEDULE,
    STEPS,
    WINDOWS,
    Config,
    Tiling,
)
from uid.families.deblurdiff.networks import Denoiser
from uid.families.deblurdiff.operators import tile_cover
from uid.families.deblurdiff.windows import GAUSSIAN, LAST
from uid.runtime.schedule import coefficients


@dataclass(frozen=True)
class Branch:
    """What one branch of guidance is given: the blurred image's latent (B, 4, h, w) and the text (B, L, D)."""

    c_img: Tensor
    text: Tensor


@dataclass(frozen=True)
class Coefficients:
    """A step's numbers, (1,) float32 each, as ``uid.runtime.schedule.ddpm`` computes them."""

    timestep: Tensor
    sqrt_recip_alpha_bar: Tensor
    sqrt_recipm1_alpha_bar: Tensor
    posterior_mean_x0: Tensor
    posterior_mean_latent: Tensor
    posterior_std: Tensor


class DeblurDiff(nn.Module):
    """Every network of the model."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.denoiser = Denoiser(config.unet, config.kernel_network)
        self.vae = AutoencoderKL(**config.vae)
        self.text_encoder = CLIPTextModel(CLIPTextConfig(**config.text_encoder))

    def run_in_windows(self) -> None:
        """Let the transformers run on windows, as the original does above 512 image pixels. Once, after loading."""
        self.denoiser.run_in_windows(WINDOWS, CONTROL_WINDOWS)

    def embedded(self, tokens: Tensor) -> Tensor:
        """Token ids (B, 77) -> (B, 77, D): the text tower's last layer but one, normalised."""
        return self.text_encoder(tokens).last_hidden_state

    def moments(self, image: Tensor, tiling: Tiling | None = None) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of an image's latent; the image is (B, 3, H, W) in [0, 1].

        Of tiles that overlap, the last one's count.
        """
        if tiling is not None:
            side, stride = tiling.side, tiling.stride
            tiles = tile_cover(image, side * LATENT_FACTOR, stride * LATENT_FACTOR, LAST)
            latent = image[:, :, ::LATENT_FACTOR, ::LATENT_FACTOR]  # for its size
            parts = each(lambda piece: torch.cat(self.moments(piece), 1), tiles.cut(image))
            mean, log_variance = tile_cover(latent, side, stride, LAST).merge(parts, image).chunk(2, dim=1)
            return mean, log_variance
        mean, log_variance = self.vae.quant_conv(self.vae.encoder(image)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, image: Tensor, noise: Tensor | None, tiling: Tiling | None = None) -> Tensor:
        """A sample of an image's latent, (B, 4, H / 8, W / 8); None takes the mean."""
        return self.sampled(*self.moments(image, tiling), noise)

    def sampled(self, mean: Tensor, log_variance: Tensor, noise: Tensor | None) -> Tensor:
        """The same from the latent's moments."""
        return LATENT_SCALE * (mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise)

    def better_start(self, image: Tensor, posterior_noise: Tensor, noise: Tensor) -> Tensor:
        """A first latent that holds the image's low frequencies, at the first timestep of every schedule."""
        start, row = self.encode(low_frequencies(image), posterior_noise), dict(coefficients(SCHEDULE, STEPS)[0])
        return (start + row["sqrt_recipm1_alpha_bar"] * noise) / row["sqrt_recip_alpha_bar"]

    def decode(self, latent: Tensor, tiling: Tiling | None = None) -> Tensor:
        """A latent's image, (B, 3, H, W), where 0 is black and 1 white; values go beyond."""

        def run(part: Tensor) -> Tensor:
            return self.vae.decoder(self.vae.post_quant_conv(part / LATENT_SCALE))

        if tiling is None:
            return (run(latent) + 1) / 2
        tiles = tile_cover(latent, tiling.side, tiling.stride, GAUSSIAN, LATENT_FACTOR)
        return (tiles.merge(each(run, tiles.cut(latent)).float(), latent) + 1) / 2

    def noise_estimate(
        self, x: Tensor, t: Tensor, branches: Sequence[Branch], guidance: Tensor | None, tiling: Tiling | None = None
    ) -> Tensor:
        """The noise in ``x``; with guidance ``branches`` are the negative and the positive one, else the positive.

        Both branches run as one batch: what differs between them is the latent, the text, and so the kernels. Tiles'
        estimates are blended.
        """
        if tiling is not None:
            tiles = tile_cover(x, tiling.side, tiling.stride, GAUSSIAN)
            texts, latents = [one.text[tiles.image] for one in branches], [tiles.cut(one.c_img) for one in branches]

            def run(part: Tensor, at: Tensor, *given: Tensor) -> Tensor:
                own = list(map(Branch, given[::2], given[1::2]))
                return self.noise_estimate(part, at, own, guidance).float()

            given = [tensor for pair in zip(latents, texts, strict=True) for tensor in pair]
            return tiles.merge(each(run, tiles.cut(x), t[tiles.image], *given), x)
        used = branches[-1:] if guidance is None else branches
        c_img, text = torch.cat([one.c_img for one in used]), torch.cat([one.text for one in used])
        noise = self.denoiser(torch.cat([x] * len(used)), c_img, torch.cat([t] * len(used)), text).noise
        if guidance is None:
            return noise
        negative, positive = noise.float().unflatten(0, (2, -1))
        return negative + guidance * (positive - negative)

    def step(
        self,
        x: Tensor,
        branches: Sequence[Branch],
        coefficients: Coefficients,
        noise: Tensor,
        guidance: Tensor | None,
        tiling: Tiling | None = None,
    ) -> Tensor:
        """One step of spaced DDPM (Ho et al., 2020, algorithm 2), from ``x`` to the latent before it."""
        t = coefficients.timestep.expand(x.shape[0])
        eps = self.noise_estimate(x.to(branches[0].c_img), t, branches, guidance, tiling)
        return posterior(x, eps.to(x), coefficients, noise)


def each(run: Callable[..., Tensor], *pieces: Tensor) -> Tensor:
    """``run`` for each piece of tensors (N, ...), in little memory; traced, for all at once."""
    if torch.compiler.is_exporting():
        return run(*pieces)
    return torch.cat([run(*one) for one in zip(*(piece.split(1) for piece in pieces), strict=True)])


def posterior(x: Tensor, eps: Tensor, coefficients: Coefficients, noise: Tensor) -> Tensor:
    """A sample of the latent before ``x``, given the noise that is in it."""
    x0 = coefficients.sqrt_recip_alpha_bar * x - coefficients.sqrt_recipm1_alpha_bar * eps
    mean = coefficients.posterior_mean_x0 * x0 + coefficients.posterior_mean_latent * x
    return mean + coefficients.posterior_std * noise


def low_frequencies(image: Tensor, levels: int = 5) -> Tensor:
    """What an "a trous" wavelet transform of an image (B, C, H, W) leaves, smoothed at radius 1, 2, 4, 8 and 16."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=image.dtype, device=image.device)
    kernel = torch.outer(line, line).expand(image.shape[1], 1, 3, 3)
    for level in range(levels):
        radius = 2**level
        padded = nn.functional.pad(image, (radius,) * 4, mode="replicate")
        image = nn.functional.conv2d(padded, kernel, groups=image.shape[1], dilation=radius)
    return image
