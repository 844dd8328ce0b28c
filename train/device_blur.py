"""The blur of ``uid.train.blur`` for whole batches, on the device that trains.

A GPU takes more examples a second than its host can blur. So the host only draws what an exposure is made of, and the
device does to a batch what ``degrade`` does to one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from uid.train.blur import LARGEST, Exposure, Random, random_exposure

BLOCK = 8  # side of JPEG's blocks
# JPEG's luma and chroma tables at quality 50 (ITU-T T.81, annex K), row by row.
LUMA = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
CHROMA = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""
TO_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


@dataclass(frozen=True)
class Exposures:
    """What blurs N images, one row each; all float32 on one device."""

    kernel: Tensor  # (N, LARGEST, LARGEST)
    highlights: Tensor  # (N,), as in ``uid.train.blur.degrade``, and so are the others
    noise: Tensor  # (N,)
    tone: Tensor  # (N,)
    jpeg: Tensor  # (N,) quality from 1 to 100; 0 for none

    def rows(self, index: Tensor) -> "Exposures":
        """Some of them."""
        return Exposures(*(getattr(self, one.name)[index] for one in fields(self)))

    def put(self, first: int, others: "Exposures") -> None:
        """Overwrite rows from ``first`` on."""
        for one in fields(self):
            getattr(self, one.name)[first : first + len(others.tone)] = getattr(others, one.name)

    @staticmethod
    def empty(count: int, device: torch.device) -> "Exposures":
        """Room for ``count`` rows."""
        kernels = torch.empty(count, LARGEST, LARGEST, device=device)
        return Exposures(kernels, *(torch.empty(count, device=device) for _ in range(4)))


def drawn(rng: Random, count: int) -> Exposures:
    """``count`` exposures as ``random_exposure`` draws them, on the CPU."""
    return stacked([random_exposure(rng) for _ in range(count)])


def stacked(exposures: Sequence[Exposure]) -> Exposures:
    """Exposures as rows."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)

    return Exposures(
        torch.from_numpy(np.stack([one.kernel for one in exposures])),
        column([one.highlights for one in exposures]),
        column([one.noise for one in exposures]),
        column([one.tone for one in exposures]),
        column([one.jpeg or 0 for one in exposures]),
    )


def degraded(sharp: Tensor, exposures: Exposures, generator: torch.Generator | None = None) -> Tensor:
    """What a camera makes of sharp images (B, 3, H, W) sRGB in [0, 1], one exposure each; H and W multiples of 8.

    The same steps as ``uid.train.blur.degrade``, in float32.
    """
    tone = per_image(exposures.tone)
    linear = to_linear(sharp ** (1.0 / tone))
    brighter = per_image(exposures.highlights) - 1.0
    light = blurred(linear * (1.0 + brighter * linear.amin(dim=1, keepdim=True) ** 8), exposures.kernel).clamp_min(0.0)
    grain = torch.randn(light.shape, generator=generator, device=light.device)
    light = light + per_image(exposures.noise) * (0.9 * light.clamp_max(1.0) + 0.1).sqrt() * grain
    image = to_srgb(light) ** tone
    compressed = through_jpeg(image, exposures.jpeg.clamp_min(1.0))
    return torch.where(per_image(exposures.jpeg) > 0, compressed, image)


def per_image(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values[:, None, None, None]


def blurred(linear: Tensor, kernel: Tensor) -> Tensor:
    """Each image convolved with its own kernel, reflecting at the border. (B, 3, H, W), (B, k, k) -> (B, 3, H, W)."""
    batch, channels, height, width = linear.shape
    pad = LARGEST // 2
    padded = F.pad(linear, (pad, pad, pad, pad), mode="reflect").transpose(0, 1)  # colours as a batch, images as groups
    flipped = kernel.flip(1, 2)[:, None]  # conv2d correlates
    return F.conv2d(padded, flipped, groups=batch).view(channels, batch, height, width).transpose(0, 1)


def to_linear(srgb: Tensor) -> Tensor:
    """SRGB values in [0, 1] to linear light (IEC 61966-2-1)."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Tensor) -> Tensor:
    """Linear light to sRGB values in [0, 1] (IEC 61966-2-1)."""
    clipped = linear.clamp(0.0, 1.0)
    return torch.where(clipped <= 0.0031308, clipped * 12.92, 1.055 * clipped.clamp_min(1e-9) ** (1 / 2.4) - 0.055)


def through_jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] after JPEG without subsampling, at a quality (B,) from 1 to 100 each."""
    batch, _, height, width = image.shape
    colours = TO_YCC.to(image)
    ycc = torch.einsum("ij,bjhw->bihw", colours, (image * 255.0).round()).round()
    ycc[:, 0] -= 128.0
    blocks = F.unfold(ycc, BLOCK, stride=BLOCK).view(batch, 3, BLOCK, BLOCK, -1)
    transform = cosines().to(image)
    coefficients = torch.einsum("ui,vj,bcijn->bcuvn", transform, transform, blocks)
    table = tables(quality)[..., None]
    coefficients = (coefficients / table).round() * table
    blocks = torch.einsum("ui,vj,bcuvn->bcijn", transform, transform, coefficients)
    back = F.fold(blocks.reshape(batch, 3 * BLOCK * BLOCK, -1), (height, width), BLOCK, stride=BLOCK).round()
    back[:, 0] += 128.0
    rgb = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(TO_YCC).to(image), back)
    return rgb.round().clamp(0.0, 255.0) / 255.0


def cosines() -> Tensor:
    """The orthonormal discrete cosine transform of 8 values, (8, 8), a frequency a row."""
    i = torch.arange(BLOCK, dtype=torch.float32)
    rows = torch.cos(torch.pi * (2.0 * i[None] + 1.0) * i[:, None] / (2 * BLOCK)) * (2.0 / BLOCK) ** 0.5
    rows[0] /= 2.0**0.5
    return rows


def tables(quality: Tensor) -> Tensor:
    """The steps of quantisation, (B, 3, 8, 8), at qualities (B,), as libjpeg scales JPEG's tables."""
    base = torch.tensor([[float(step) for step in table.split()] for table in (LUMA, CHROMA, CHROMA)])
    scale = torch.where(quality < 50, 5000.0 / quality, 200.0 - 2.0 * quality)[:, None, None]
    return ((base.to(quality) * scale + 50.0) / 100.0).floor().clamp(1.0, 255.0).view(-1, 3, BLOCK, BLOCK)
