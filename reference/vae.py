"""The refined VAE (appendix A, fig. 8): refiners beside a frozen Stable Diffusion VAE, joined by skips.

A refiner stands after the residual layers of each encoder level and of each decoder level, before the resolution
changes there, so that level i of the encoder (H / 2^i) meets its mirror in the decoder at the same resolution and
width. What travels over the skip is the encoder refiner's hidden map, kept narrow.
"""

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F


class Refiner(nn.Module):
    """Residual refinement of one level: h + conv(u), u = silu(conv([norm(h), skip])); u is the skip to the mirror."""

    def __init__(self, channels: int, hidden: int, groups: int, skip: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_in = nn.Conv2d(channels + (hidden if skip else 0), hidden, 3, padding=1)
        self.conv_out = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, h: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), skip (B, hidden, H, W) or None -> refined (B, C, H, W), u (B, hidden, H, W)."""
        x = self.norm(h)
        u = F.silu(self.conv_in(x if skip is None else torch.cat([x, skip], dim=1)))
        return h + self.conv_out(u), u


class VAERefiner(ModelMixin, ConfigMixin):
    """The refiners of all levels; ``encoder[i]`` and ``decoder[i]`` are mirrors, i = 0 at full resolution."""

    @register_to_config
    def __init__(self, block_out_channels: tuple[int, ...], hidden: int = 64, norm_num_groups: int = 32) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(Refiner(c, hidden, norm_num_groups, skip=False) for c in block_out_channels)
        self.decoder = nn.ModuleList(Refiner(c, hidden, norm_num_groups, skip=True) for c in block_out_channels)


class RefinedEncoder(nn.Module):
    """Image -> scaled latent and skips: Stable Diffusion's encoder with a refiner in each level."""

    def __init__(self, vae: AutoencoderKL, refiner: VAERefiner) -> None:
        super().__init__()
        self.vae, self.refiners = vae, refiner.encoder

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, H, W) in [0, 1] -> z (B, 4, H/f, W/f), the posterior's mean times the scaling factor; skips."""
        encoder, skips = self.vae.encoder, []
        x = encoder.conv_in(image * 2.0 - 1.0)
        for block, refiner in zip(encoder.down_blocks, self.refiners, strict=True):
            for resnet in block.resnets:
                x = resnet(x, temb=None)
            x, u = refiner(x)
            skips.append(u)
            for downsample in block.downsamplers or ():
                x = downsample(x)
        x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(x))))
        mean = (self.vae.quant_conv(x) if self.vae.quant_conv is not None else x).chunk(2, dim=1)[0]
        return mean * self.vae.config.scaling_factor, skips


class RefinedDecoder(nn.Module):
    """Scaled latent and skips -> image: Stable Diffusion's decoder with a refiner in each level."""

    def __init__(self, vae: AutoencoderKL, refiner: VAERefiner) -> None:
        super().__init__()
        self.vae, self.refiners = vae, refiner.decoder

    def forward(self, z: Tensor, skips: list[Tensor]) -> Tensor:
        """Z (B, 4, H/f, W/f), the encoder's skips -> (B, 3, H, W), clamped to [0, 1]."""
        decoder = self.vae.decoder
        x = z / self.vae.config.scaling_factor
        x = self.vae.post_quant_conv(x) if self.vae.post_quant_conv is not None else x
        # The attention leaves channels-last strides, on which torch 2.13's GroupNorm crashes in the CPU's backward pass
        # where its own weights are frozen.
        x = decoder.mid_block(decoder.conv_in(x)).contiguous()
        for block, refiner, skip in zip(decoder.up_blocks, reversed(self.refiners), reversed(skips), strict=True):
            for resnet in block.resnets:
                x = resnet(x, temb=None)
            x, _ = refiner(x, skip)
            for upsample in block.upsamplers or ():
                x = upsample(x)
        x = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))
        return (x.float() / 2.0 + 0.5).clamp(0.0, 1.0)
