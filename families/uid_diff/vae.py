"""The refined VAE (appendix A, fig. 8): refiners beside a frozen Stable Diffusion VAE, joined by skips.

A refiner stands after the residual layers of each encoder level and of each decoder level, before the resolution
changes there, so that level i of the encoder meets its mirror in the decoder at the same resolution and width. What
travels over the skip is the encoder refiner's hidden map.

Two things that ``edge`` adds, both off at ``sd15``: the VAE works on patches (its ``in_channels`` are 3 patch^2), which
leaves nothing to compute at full resolution; and the pixels themselves are one more skip, so that the decoder refiners
say how the image should differ from the one that came in.
"""

from math import isqrt

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F


def patch_size(vae: AutoencoderKL) -> int:
    """Side of the patches that the VAE takes for pixels: 1 for Stable Diffusion's."""
    return isqrt(vae.config.in_channels // 3)


def to_patches(image: Tensor, vae: AutoencoderKL) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3 p^2, H/p, W/p) in [-1, 1], as the VAE's encoder takes it."""
    return F.pixel_unshuffle(image * 2.0 - 1.0, patch_size(vae))


def from_patches(patches: Tensor, vae: AutoencoderKL) -> Tensor:
    """What the VAE's decoder gives, (B, 3 p^2, H/p, W/p) in [-1, 1] -> float32 (B, 3, H, W) in [0, 1], not clamped."""
    return F.pixel_shuffle(patches.float() / 2.0 + 0.5, patch_size(vae))


def zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution that gives nothing yet, so that what it is added to starts out unchanged."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class ResidualBlock(nn.Module):
    """x + a v, where v = conv(relu(conv(norm(x)))) and a, one number a channel, follows from v's mean over the image.

    The channel attention (Zhang et al., 2018) lets all of an image tell each place how it is blurred.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.squeeze = nn.Conv2d(channels, channels // 4, 1)
        self.excite = zeroed(nn.Conv2d(channels // 4, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        v = self.conv_2(F.relu(self.conv_1(self.norm(x))))
        mean = F.adaptive_avg_pool2d(v, 1)
        return x + 2.0 * torch.sigmoid(self.excite(F.relu(self.squeeze(mean)))) * v


class Refiner(nn.Module):
    """Residual refinement of one level: h + conv(norm(u)), u = blocks(silu(conv([norm(h), skip]))); u is the skip.

    The norms keep every tensor in the range of float16. Without that of u, a level that has no use for h drowns it.
    """

    def __init__(self, channels: int, hidden: int, blocks: int, groups: int, skip: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_in = nn.Conv2d(channels + (hidden if skip else 0), hidden, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(hidden, groups) for _ in range(blocks)))
        self.norm_out = nn.GroupNorm(groups, hidden, eps=1e-6)
        self.conv_out = zeroed(nn.Conv2d(hidden, channels, 3, padding=1))

    def forward(self, h: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), skip (B, hidden, H, W) or None -> refined (B, C, H, W), u (B, hidden, H, W)."""
        x = self.norm(h)
        u = self.blocks(F.silu(self.conv_in(x if skip is None else torch.cat([x, skip], dim=1))))
        return h + self.conv_out(self.norm_out(u)), u


class VAERefiner(ModelMixin, ConfigMixin):
    """The refiners of all levels; ``encoder[i]`` and ``decoder[i]`` are mirrors, i = 0 at the highest resolution.

    ``hidden`` and ``blocks`` give each level's width and depth. With ``pixel_channels`` (the VAE's ``in_channels``) the
    image is a skip too, and ``pixels`` finishes the decoder.
    """

    @register_to_config
    def __init__(
        self,
        block_out_channels: tuple[int, ...],
        hidden: tuple[int, ...],
        blocks: tuple[int, ...],
        pixel_channels: int = 0,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()
        levels = list(zip(block_out_channels, hidden, blocks, strict=True))
        self.encoder = nn.ModuleList(Refiner(c, h, n, norm_num_groups, skip=False) for c, h, n in levels)
        self.decoder = nn.ModuleList(Refiner(c, h, n, norm_num_groups, skip=True) for c, h, n in levels)
        if pixel_channels:
            self.pixels = zeroed(nn.Conv2d(2 * pixel_channels + hidden[0], pixel_channels, 3, padding=1))


class RefinedEncoder(nn.Module):
    """Image -> scaled latent and skips: Stable Diffusion's encoder with a refiner in each level."""

    def __init__(self, vae: AutoencoderKL, refiner: VAERefiner) -> None:
        super().__init__()
        self.vae, self.refiners, self.pixel_skip = vae, refiner.encoder, hasattr(refiner, "pixels")

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, H, W) in [0, 1] -> z (B, C, H/f, W/f), the posterior's mean times the scaling factor; skips."""
        encoder, skips = self.vae.encoder, []
        patches = to_patches(image, self.vae)
        x = encoder.conv_in(patches)
        for block, refiner in zip(encoder.down_blocks, self.refiners, strict=True):
            for resnet in block.resnets:
                x = resnet(x, temb=None)
            x, u = refiner(x)
            skips.append(u)
            for downsample in block.downsamplers or ():
                x = downsample(x)
        x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(x))))
        mean = (self.vae.quant_conv(x) if self.vae.quant_conv is not None else x).chunk(2, dim=1)[0]
        return mean * self.vae.config.scaling_factor, [*skips, patches] if self.pixel_skip else skips


class RefinedDecoder(nn.Module):
    """Scaled latent and skips -> image: Stable Diffusion's decoder with a refiner in each level."""

    def __init__(self, vae: AutoencoderKL, refiner: VAERefiner) -> None:
        super().__init__()
        self.vae, self.refiners, self.pixels = vae, refiner.decoder, getattr(refiner, "pixels", None)

    def forward(self, z: Tensor, skips: list[Tensor]) -> Tensor:
        """Z (B, C, H/f, W/f), the encoder's skips -> float32 (B, 3, H, W), clamped to [0, 1]."""
        return self.unclamped(z, skips).clamp(0.0, 1.0)

    def unclamped(self, z: Tensor, skips: list[Tensor]) -> Tensor:
        """The same without the last step, through which no gradient would come back."""
        decoder = self.vae.decoder
        x = z / self.vae.config.scaling_factor
        x = self.vae.post_quant_conv(x) if self.vae.post_quant_conv is not None else x
        # The attention leaves channels-last strides, on which torch 2.13's GroupNorm crashes in the CPU's backward pass
        # where its own weights are frozen.
        x = decoder.mid_block(decoder.conv_in(x)).contiguous()
        levels = zip(decoder.up_blocks, reversed(self.refiners), reversed(skips[: len(self.refiners)]), strict=True)
        for block, refiner, skip in levels:
            for resnet in block.resnets:
                x = resnet(x, temb=None)
            x, u = refiner(x, skip)
            for upsample in block.upsamplers or ():
                x = upsample(x)
        x = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))
        if self.pixels is not None:
            x = skips[-1] + self.pixels(torch.cat([x, skips[-1], u], dim=1))
        return from_patches(x, self.vae)
