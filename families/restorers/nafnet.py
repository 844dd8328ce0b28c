"""NAFNet, "Simple Baselines for Image Restoration" (Chen et al., 2022), with the published names of its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uid.errors import CheckpointError
from uid.families.restorers.layers import ChannelNorm, numbers, size

EPSILON = 1e-6  # of the normalisations


@dataclass(frozen=True)
class NAFNetConfig:
    """The size of a NAFNet."""

    width: int  # channels at full resolution; twice as many at each level below
    encoders: tuple[int, ...]  # blocks of each level, on the way down
    middle: int
    decoders: tuple[int, ...]  # the same on the way up, the lowest level first
    channels: int = 3  # of the image


def gated(x: Tensor) -> Tensor:
    """The product of both halves of the channels: "SimpleGate"."""
    first, second = x.chunk(2, dim=1)
    return first * second


class NAFBlock(nn.Module):
    """Two residual parts: a gated depthwise convolution with channel attention, and a gated 1 x 1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        double = 2 * channels
        self.norm1, self.norm2 = (ChannelNorm(channels, EPSILON) for _ in range(2))
        self.conv1 = nn.Conv2d(channels, double, 1)
        self.conv2 = nn.Conv2d(double, double, 3, padding=1, groups=double)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.conv4 = nn.Conv2d(channels, double, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.beta, self.gamma = (nn.Parameter(torch.zeros(1, channels, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        y = gated(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.beta * self.conv3(y * self.sca(y))
        result: Tensor = x + self.gamma * self.conv5(gated(self.conv4(self.norm2(x))))
        return result


def blocks(count: int, channels: int) -> nn.Sequential:
    """Some blocks in a row."""
    return nn.Sequential(*(NAFBlock(channels) for _ in range(count)))


class NAFNet(nn.Module):
    """A U-shaped network of NAFBlocks that adds a correction to the image."""

    def __init__(self, config: NAFNetConfig) -> None:
        super().__init__()
        width, levels = config.width, len(config.encoders)
        if len(config.decoders) != levels:
            raise CheckpointError(f"it has {levels} levels of encoders and {len(config.decoders)} of decoders")
        self.size_multiple = 2**levels
        self.intro = nn.Conv2d(config.channels, width, 3, padding=1)
        self.ending = nn.Conv2d(width, config.channels, 3, padding=1)
        self.encoders = nn.ModuleList(blocks(count, width * 2**i) for i, count in enumerate(config.encoders))
        self.downs = nn.ModuleList(nn.Conv2d(width * 2**i, width * 2 ** (i + 1), 2, 2) for i in range(levels))
        self.middle_blks = blocks(config.middle, width * 2**levels)
        widths = [width * 2 ** (levels - i) for i in range(levels)]
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, 2 * wide, 1, bias=False), nn.PixelShuffle(2)) for wide in widths
        )
        self.decoders = nn.ModuleList(
            blocks(count, wide // 2) for count, wide in zip(config.decoders, widths, strict=True)
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the same, sharp; both sides are multiples of ``size_multiple``."""
        x, skips = self.intro(image), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for decoder, up, skip in zip(self.decoders, self.ups, reversed(skips), strict=True):
            x = decoder(up(x) + skip)
        result: Tensor = self.ending(x) + image
        return result


def config_of(weights: Mapping[str, Tensor]) -> NAFNetConfig | None:
    """The size of the NAFNet that has these weights, by their names and shapes; None where it is none."""
    needed = ("intro.weight", "ending.weight", "encoders.0.0.beta", "middle_blks.0.beta", "downs.0.weight")
    if any(key not in weights for key in needed):
        return None

    def each(prefix: str) -> tuple[int, ...]:
        return tuple(numbers(weights, f"{prefix}.{i}") for i in range(numbers(weights, prefix)))

    return NAFNetConfig(
        width=size(weights, "intro.weight", 0),
        encoders=each("encoders"),
        middle=numbers(weights, "middle_blks"),
        decoders=each("decoders"),
        channels=size(weights, "intro.weight", 1, 3),
    )


def published(sizes: Sequence[int] = (1, 1, 1, 28), width: int = 64) -> NAFNetConfig:
    """The configuration published for motion deblurring (GoPro)."""
    return NAFNetConfig(width, tuple(sizes), 1, (1,) * len(sizes))
