"""FFTformer, "Efficient Frequency Domain-based Transformers for High-Quality Image Deblurring" (Kong et al., 2023),
with the published names of its weights.

Its layers work on the spectra of patches of 8 x 8 pixels. A transform of so few pixels is a product with a fixed
matrix, which every engine has and runs fast: ONNX's DFT takes twelve times as long in ONNX Runtime, fails in OpenVINO,
and is none of TensorRT's operators.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uid.families.restorers.layers import ChannelNorm, named, numbers, size

EPSILON = 1e-5  # of the normalisations
PATCH = 8  # side of a patch in pixels
HALF = PATCH // 2 + 1  # columns of a real patch's spectrum; the others are conjugates of these
LEVELS = ("encoder_level1", "encoder_level2", "encoder_level3")
# Row and column of the frequencies that determine a real patch. In the first and the last column, the lower rows are
# conjugates of upper ones.
FREQUENCIES = [(row, column) for column in range(HALF) for row in range(HALF if column in (0, HALF - 1) else PATCH)]


def spectrum_matrices() -> tuple[Tensor, Tensor, Tensor]:
    """What makes spectra of patches, patches of spectra, and of a published mask a factor for each frequency.

    A spectrum is the real parts of ``FREQUENCIES``, then the imaginary ones. Shapes: (64, 68), (68, 64), (40, 34).
    """
    pixels, bins = PATCH * PATCH, len(FREQUENCIES)
    unit = torch.eye(pixels, dtype=torch.float64).reshape(pixels, PATCH, PATCH)
    whole = torch.fft.rfft2(unit)
    forward = torch.stack([whole[:, row, column] for row, column in FREQUENCIES], 1)
    half = torch.zeros(2 * bins, PATCH, HALF, dtype=torch.complex128)
    mask = torch.zeros(PATCH, HALF, bins, dtype=torch.float64)
    for i, (row, column) in enumerate(FREQUENCIES):
        mirrored = -row % PATCH if column in (0, HALF - 1) else row
        for part, value in ((i, torch.tensor(1.0 + 0j)), (bins + i, torch.tensor(1j))):
            half[part, mirrored, column] = value.conj()
            half[part, row, column] = value
        mask[row, column, i] += 0.5  # a transform back takes the mean of both factors of a pair
        mask[mirrored, column, i] += 0.5
    backward = torch.fft.irfft2(half, s=(PATCH, PATCH)).flatten(1)
    return torch.cat([forward.real, forward.imag], 1).float(), backward.float(), mask.flatten(0, 1).float()


TO_SPECTRUM, FROM_SPECTRUM, MASK_FACTORS = spectrum_matrices()


def spectra(x: Tensor) -> Tensor:
    """(B, C, H, W) -> its patches' spectra, (B, C, H / 8, W / 8, 68), in float32."""
    batch, channels, height, width = x.shape
    rows, columns = height // PATCH, width // PATCH
    patches = x.float().reshape(batch, channels, rows, PATCH, columns, PATCH).transpose(3, 4)
    return patches.reshape(batch, channels, rows, columns, PATCH * PATCH) @ TO_SPECTRUM.to(x.device)


def pixels(spectrum: Tensor) -> Tensor:
    """The spectra of patches, (B, C, H / 8, W / 8, 68) -> the pixels, (B, C, H, W), in float32."""
    batch, channels, rows, columns, _ = spectrum.shape
    patches = spectrum @ FROM_SPECTRUM.to(spectrum.device)
    patches = patches.reshape(batch, channels, rows, columns, PATCH, PATCH).transpose(3, 4)
    return patches.reshape(batch, channels, rows * PATCH, columns * PATCH)


def product(first: Tensor, second: Tensor) -> Tensor:
    """The products of spectra, frequency by frequency: those of circular convolutions."""
    (a, b), (c, d) = first.chunk(2, -1), second.chunk(2, -1)
    return torch.cat([a * c - b * d, a * d + b * c], -1)


@dataclass(frozen=True)
class FFTformerConfig:
    """The size of an FFTformer. Each level has twice the channels of the one above it, and half its sides."""

    width: int  # channels of the first level
    blocks: tuple[int, ...]  # of each level, the lowest last; as many on the way up
    refinement: int  # blocks after the last level
    hidden: tuple[int, ...]  # channels inside each level's feed-forward parts
    fused: tuple[int, ...]  # the same where the first and the second level on the way up meet those on the way down
    bias: bool = False  # whether convolutions have one
    channels: int = 3  # of the image


class SpectralAttention(nn.Module):
    """Attention by products of spectra (section 3.1): queries and keys are convolved, patch by patch."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        six = 6 * channels
        self.to_hidden = nn.Conv2d(channels, six, 1, bias=bias)
        self.to_hidden_dw = nn.Conv2d(six, six, 3, padding=1, groups=six, bias=bias)
        self.project_out = nn.Conv2d(2 * channels, channels, 1, bias=bias)
        self.norm = named(body=ChannelNorm(2 * channels, EPSILON))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        hidden = self.to_hidden_dw(self.to_hidden(x))
        third = hidden.shape[1] // 3
        both, value = hidden.split([2 * third, third], dim=1)
        query, key = spectra(both).chunk(2, dim=1)
        weights = self.norm(pixels(product(query, key))).to(x.dtype)
        result: Tensor = self.project_out(value * weights)
        return result


class SpectralGate(nn.Module):
    """The feed-forward part (section 3.2), which first weighs the frequencies of each patch."""

    def __init__(self, channels: int, hidden: int, bias: bool) -> None:
        super().__init__()
        double = 2 * hidden
        self.project_in = nn.Conv2d(channels, double, 1, bias=bias)
        self.dwconv = nn.Conv2d(double, double, 3, padding=1, groups=double, bias=bias)
        self.fft = nn.Parameter(torch.ones(double, 1, 1, PATCH, HALF))
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        mask = self.fft.float().flatten(-2) @ MASK_FACTORS.to(x.device)
        weighed = pixels(spectra(self.project_in(x)) * torch.cat([mask, mask], -1)).to(x.dtype)
        gate, value = self.dwconv(weighed).chunk(2, dim=1)
        result: Tensor = self.project_out(F.gelu(gate) * value)
        return result


class FFTformerBlock(nn.Module):
    """Attention, on the way up alone, and feed-forward part, both residual."""

    def __init__(self, channels: int, hidden: int, bias: bool, *, attention: bool = False) -> None:
        super().__init__()
        self.attention = attention
        if attention:
            self.norm1 = named(body=ChannelNorm(channels, EPSILON))
            self.attn = SpectralAttention(channels, bias)
        self.norm2 = named(body=ChannelNorm(channels, EPSILON))
        self.ffn = SpectralGate(channels, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        if self.attention:
            x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.ffn(self.norm2(x))
        return result


class Fusion(nn.Module):
    """Where the way up meets the way down: one map of features from two."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        double = 2 * channels
        self.att_channel = FFTformerBlock(double, hidden, False)
        self.conv, self.conv2 = (nn.Conv2d(double, double, 1) for _ in range(2))

    def forward(self, upward: Tensor, downward: Tensor) -> Tensor:
        """Twice (B, C, H, W) -> the same."""
        joined = self.conv2(self.att_channel(self.conv(torch.cat([upward, downward], 1))))
        first, second = joined.chunk(2, dim=1)
        result: Tensor = first + second
        return result


def resized(resize: nn.Module, channels: int, outputs: int) -> nn.Sequential:
    """Another size of image, then another number of channels."""
    return named(body=nn.Sequential(resize, nn.Conv2d(channels, outputs, 3, padding=1, bias=False)))


class FFTformer(nn.Module):
    """A U-shaped network that adds a correction to the image."""

    size_multiple = 4 * PATCH  # patches of the last level, at a quarter of each side

    def __init__(self, config: FFTformerConfig) -> None:
        super().__init__()
        width, bias = config.width, config.bias

        def level(depth: int, count: int, *, attention: bool = True) -> nn.Sequential:
            wide, hidden = width * 2**depth, config.hidden[depth]
            return nn.Sequential(*(FFTformerBlock(wide, hidden, bias, attention=attention) for _ in range(count)))

        self.patch_embed = named(proj=nn.Conv2d(config.channels, width, 3, padding=1, bias=False))
        self.encoder_level1, self.encoder_level2, self.encoder_level3 = (
            level(depth, count, attention=False) for depth, count in enumerate(config.blocks)
        )
        # The mean of 2 x 2 pixels is what the original's bilinear halving gives.
        self.down1_2, self.down2_3 = (resized(nn.AvgPool2d(2), one, 2 * one) for one in (width, 2 * width))
        self.up3_2, self.up2_1 = (
            resized(nn.Upsample(scale_factor=2, mode="bilinear"), one, one // 2) for one in (4 * width, 2 * width)
        )
        self.decoder_level1, self.decoder_level2, self.decoder_level3 = (
            level(depth, count) for depth, count in enumerate(config.blocks)
        )
        self.refinement = level(0, config.refinement)
        self.reduce_chan_level2 = nn.Conv2d(4 * width, 2 * width, 1, bias=bias)  # published, and used by nothing
        self.fuse1, self.fuse2 = (Fusion(width * 2**i, hidden) for i, hidden in enumerate(config.fused))
        self.output = nn.Conv2d(width, config.channels, 3, padding=1, bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the same, sharp; both sides are multiples of ``size_multiple``."""
        first = self.encoder_level1(self.patch_embed(image))
        second = self.encoder_level2(self.down1_2(first))
        x = self.decoder_level3(self.encoder_level3(self.down2_3(second)))
        x = self.decoder_level2(self.fuse2(self.up3_2(x), second))
        x = self.decoder_level1(self.fuse1(self.up2_1(x), first))
        result: Tensor = self.output(self.refinement(x)) + image
        return result


def config_of(weights: Mapping[str, Tensor]) -> FFTformerConfig | None:
    """The size of the FFTformer that has these weights, by their names and shapes; None where it is none."""
    if any(key not in weights for key in ("patch_embed.proj.weight", "encoder_level1.0.ffn.fft")):
        return None
    return FFTformerConfig(
        width=size(weights, "patch_embed.proj.weight", 0),
        blocks=tuple(numbers(weights, level) for level in LEVELS),
        refinement=numbers(weights, "refinement"),
        hidden=tuple(size(weights, f"{level}.0.ffn.project_out.weight", 1) for level in LEVELS),
        fused=tuple(size(weights, f"fuse{i}.att_channel.ffn.project_out.weight", 1) for i in (1, 2)),
        bias="encoder_level1.0.ffn.project_in.bias" in weights,
        channels=size(weights, "patch_embed.proj.weight", 1, 3),
    )


def published() -> FFTformerConfig:
    """The configuration published for motion deblurring (GoPro)."""
    return FFTformerConfig(48, (6, 6, 12), 4, (144, 288, 576), (255, 510))
