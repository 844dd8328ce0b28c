"""A linear autoencoder on patches: the base VAE of a model that two cores run and that must hold a photo.

Photos have most of their energy in few directions of a patch's space. With the Karhunen-Loeve transform (principal
components) of 4 x 4 patches, 16 of the 48 directions hold a sharp photo at 36 dB, 24 at 41 dB and 32 at 47 dB, and
nothing has to be trained by gradients. A linear map has no norms either, so a flat image stays exactly flat.

The class has the parts that `vae.RefinedEncoder` and `vae.RefinedDecoder` look for in Stable Diffusion's autoencoder;
those that have nothing to do here are identities.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

LOG_VARIANCE = -30.0  # of the posterior: none
WHITENING = 0.5  # a direction is divided by its deviation to this power: 0 leaves pixels, 1 makes noise of fine detail


class Posterior(NamedTuple):
    """What ``encode`` gives, as diffusers' autoencoders name it."""

    latent_dist: DiagonalGaussianDistribution


class Decoded(NamedTuple):
    """What ``decode`` gives."""

    sample: Tensor  # (B, 3 p^2, h, w)


class Level(nn.Module):
    """The one level, at the resolution of the patches; it has no layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.resnets = nn.ModuleList()
        self.downsamplers = self.upsamplers = None


class Half(nn.Module):
    """Encoder or decoder: one linear map, before or behind the level."""

    def __init__(self, conv_in: nn.Module, conv_out: nn.Module) -> None:
        super().__init__()
        self.conv_in, self.conv_out = conv_in, conv_out
        self.mid_block, self.conv_norm_out, self.conv_act = nn.Identity(), nn.Identity(), nn.Identity()
        self.down_blocks = self.up_blocks = nn.ModuleList([Level()])


class PatchVAE(ModelMixin, ConfigMixin):
    """Patches (B, 3 p^2, h, w) in [-1, 1] <-> latents (B, C, h, w), one 1 x 1 convolution each way.

    ``in_channels`` is 3 p^2 for patches of p x p pixels; ``norm_num_groups`` is for the refiners.
    """

    quant_conv = post_quant_conv = None

    @register_to_config
    def __init__(
        self,
        in_channels: int = 48,
        latent_channels: int = 32,
        block_out_channels: tuple[int, ...] = (48,),
        norm_num_groups: int = 8,
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = Half(nn.Identity(), nn.Conv2d(in_channels, 2 * latent_channels, 1))
        self.decoder = Half(nn.Conv2d(latent_channels, in_channels, 1), nn.Identity())

    def encode(self, patches: Tensor) -> Posterior:
        """The posterior of each latent: its mean, and a variance of nearly 0."""
        return Posterior(DiagonalGaussianDistribution(self.encoder.conv_out(patches)))

    def decode(self, z: Tensor) -> Decoded:
        """The patches of latents."""
        return Decoded(self.decoder.conv_in(z))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set both maps to the principal directions of patches, each batch (B, 3 p^2, h, w) in [-1, 1].

        The latents have unit variance on average over the channels.
        """
        count, total, products = 0, torch.tensor(0.0), torch.tensor(0.0)
        for patches in batches:
            rows = patches.permute(0, 2, 3, 1).flatten(0, 2).double()
            count, total, products = count + len(rows), total + rows.sum(0), products + rows.T @ rows
        mean = total / count
        variances, directions = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        kept = self.config.latent_channels
        deviations = variances.flip(0)[:kept].clamp_min(1e-12).sqrt()
        scale = deviations**-WHITENING
        scale /= (scale * deviations).square().mean().sqrt()
        directions = directions.flip(1)[:, :kept].T  # (C, 3 p^2)
        analysis, synthesis = scale[:, None] * directions, (directions / scale[:, None]).T
        set_linear(
            self.encoder.conv_out,
            torch.cat([analysis, torch.zeros_like(analysis)]),
            torch.cat([-analysis @ mean, torch.full((kept,), LOG_VARIANCE)]),
        )
        set_linear(self.decoder.conv_in, synthesis, mean)


def set_linear(convolution: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Give a 1 x 1 convolution the matrix (out, in) and the offset (out,)."""
    convolution.load_state_dict({"weight": weight[:, :, None, None], "bias": bias})
