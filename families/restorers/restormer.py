"""Restormer, "Efficient Transformer for High-Resolution Image Restoration" (Zamir et al., 2022), with the published
names of its weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uid.errors import CheckpointError
from uid.families.restorers.layers import ChannelNorm, named, numbers, size

EPSILON = 1e-5  # of the normalisations
LEVELS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")


@dataclass(frozen=True)
class RestormerConfig:
    """The size of a Restormer. Each level has twice the channels of the one above it, and half its sides."""

    width: int  # channels of the first level
    blocks: tuple[int, ...]  # of each level, the lowest last; as many on the way up
    refinement: int  # blocks after the last level
    heads: tuple[int, ...]  # of each level
    hidden: tuple[int, ...]  # channels inside each level's feed-forward parts
    bias: bool = False  # whether convolutions have one
    norm_bias: bool = True  # whether normalisations have one
    channels: int = 3  # of the image


class ChannelAttention(nn.Module):
    """Attention between channels (section 3.1): every output channel is a mixture of a head's channels."""

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        if channels % heads:
            raise CheckpointError(f"{channels} channels cannot be split between {heads} heads")
        self.heads, triple = heads, 3 * channels
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, triple, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(triple, triple, 3, padding=1, groups=triple, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value, each (B, C, H, W)."""
        return self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        query, key, value = (part.unflatten(1, (self.heads, -1)).flatten(0, 1).flatten(2) for part in self.split(x))
        # Sums over all pixels: too many for float16.
        query, key = (F.normalize(one.float(), dim=-1) for one in (query, key))
        alike = torch.bmm(query, key.transpose(1, 2)).unflatten(0, (-1, self.heads))
        weights = (alike * self.temperature.float()).softmax(-1).flatten(0, 1)
        mixed = torch.bmm(weights.to(x.dtype), value).reshape(x.shape)
        result: Tensor = self.project_out(mixed)
        return result


class GatedConvolution(nn.Module):
    """The feed-forward part (section 3.2): one half of the channels gates the other."""

    def __init__(self, channels: int, hidden: int, bias: bool) -> None:
        super().__init__()
        double = 2 * hidden
        self.project_in = nn.Conv2d(channels, double, 1, bias=bias)
        self.dwconv = nn.Conv2d(double, double, 3, padding=1, groups=double, bias=bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        result: Tensor = self.project_out(F.gelu(gate) * value)
        return result


class RestormerBlock(nn.Module):
    """Attention and feed-forward part, both residual."""

    def __init__(self, channels: int, heads: int, hidden: int, config: RestormerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = (named(body=ChannelNorm(channels, EPSILON, bias=config.norm_bias)) for _ in range(2))
        self.attn = ChannelAttention(channels, heads, config.bias)
        self.ffn = GatedConvolution(channels, hidden, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.ffn(self.norm2(x))
        return result


def down(channels: int) -> nn.Sequential:
    """Half the sides, twice the channels."""
    return named(body=nn.Sequential(nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2)))


def up(channels: int) -> nn.Sequential:
    """Twice the sides, half the channels."""
    return named(body=nn.Sequential(nn.Conv2d(channels, channels * 2, 3, padding=1, bias=False), nn.PixelShuffle(2)))


class Restormer(nn.Module):
    """A U-shaped network that adds a correction to the image."""

    size_multiple = 8  # three times half of a side

    def __init__(self, config: RestormerConfig) -> None:
        super().__init__()
        width, bias = config.width, config.bias

        def level(depth: int, count: int, *, doubled: bool = False) -> nn.Sequential:
            # Nothing halves the channels of the first level on the way up.
            wide = depth + doubled
            made = (
                RestormerBlock(width * 2**wide, config.heads[depth], config.hidden[wide], config) for _ in range(count)
            )
            return nn.Sequential(*made)

        self.patch_embed = named(proj=nn.Conv2d(config.channels, width, 3, padding=1, bias=False))
        self.encoder_level1, self.encoder_level2, self.encoder_level3, self.latent = (
            level(depth, count) for depth, count in enumerate(config.blocks)
        )
        self.down1_2, self.down2_3, self.down3_4 = (down(width * factor) for factor in (1, 2, 4))
        self.up4_3, self.up3_2, self.up2_1 = (up(width * factor) for factor in (8, 4, 2))
        self.reduce_chan_level3 = nn.Conv2d(width * 8, width * 4, 1, bias=bias)
        self.reduce_chan_level2 = nn.Conv2d(width * 4, width * 2, 1, bias=bias)
        self.decoder_level3 = level(2, config.blocks[2])
        self.decoder_level2 = level(1, config.blocks[1])
        self.decoder_level1 = level(0, config.blocks[0], doubled=True)
        self.refinement = level(0, config.refinement, doubled=True)
        self.output = nn.Conv2d(width * 2, config.channels, 3, padding=1, bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the same, restored; both sides are multiples of ``size_multiple``."""
        first = self.encoder_level1(self.patch_embed(image))
        second = self.encoder_level2(self.down1_2(first))
        third = self.encoder_level3(self.down2_3(second))
        x = self.latent(self.down3_4(third))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(x), third], 1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(x), second], 1)))
        x = self.decoder_level1(torch.cat([self.up2_1(x), first], 1))
        result: Tensor = self.output(self.refinement(x)) + image
        return result


def config_of(weights: Mapping[str, Tensor]) -> RestormerConfig | None:
    """The size of the Restormer that has these weights, by their names and shapes; None where it is none."""
    needed = ("patch_embed.proj.weight", "encoder_level1.0.attn.temperature", "encoder_level1.0.attn.qkv.weight")
    if any(key not in weights for key in needed):
        return None
    return RestormerConfig(
        width=size(weights, "patch_embed.proj.weight", 0),
        blocks=tuple(numbers(weights, level) for level in LEVELS),
        refinement=numbers(weights, "refinement"),
        heads=tuple(size(weights, f"{level}.0.attn.temperature", 0) for level in LEVELS),
        hidden=tuple(size(weights, f"{level}.0.ffn.project_out.weight", 1) for level in LEVELS),
        bias="encoder_level1.0.attn.qkv.bias" in weights,
        norm_bias="encoder_level1.0.norm1.body.bias" in weights,
        channels=size(weights, "patch_embed.proj.weight", 1, 3),
    )


def published() -> RestormerConfig:
    """The configuration published for motion deblurring."""
    return RestormerConfig(48, (4, 6, 6, 8), 4, (1, 2, 4, 8), (127, 255, 510, 1021))
