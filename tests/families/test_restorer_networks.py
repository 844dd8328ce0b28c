"""The networks that are written here, against the published checkpoints' sizes and against slow, obvious references."""

from itertools import product
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402  (torch is there)
from torch import Tensor, nn  # noqa: E402

from uid.families.restorers import fftformer, nafnet, restormer  # noqa: E402
from uid.families.restorers.layers import ChannelNorm  # noqa: E402


def seeded(module: nn.Module) -> Any:
    """The module with random weights, none of which leaves anything as it is."""
    generator = torch.Generator().manual_seed(0)
    for weight in module.requires_grad_(False).parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) / max(1, weight[0].numel()) ** 0.5)
    return module.eval()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# Tensors and numbers of the checkpoints that their authors publish.
@pytest.mark.parametrize(
    ("module", "network", "tensors", "numbers"),
    [
        pytest.param(restormer, restormer.Restormer, 494, 26_126_644, id="restormer"),
        pytest.param(fftformer, fftformer.FFTformer, 535, 16_560_474, id="fftformer"),
        pytest.param(nafnet, nafnet.NAFNet, 664, 67_888_835, id="nafnet"),
    ],
)
def test_the_published_sizes(module: Any, network: Any, tensors: int, numbers: int) -> None:
    with torch.device("meta"):
        weights = network(module.published()).state_dict()
    assert (len(weights), sum(weight.numel() for weight in weights.values())) == (tensors, numbers)
    assert module.config_of(weights) == module.published()
    assert module.config_of({key: weight for key, weight in weights.items() if ".0." not in key}) is None


@pytest.mark.parametrize("bias", [True, False])
def test_normalisation(bias: bool) -> None:
    norm, x = seeded(ChannelNorm(5, 1e-3, bias=bias)), random(2, 5, 3, 4)
    for b, row, column in product(range(2), range(3), range(4)):
        pixel = x[b, :, row, column]
        centre = pixel.mean() if bias else 0.0
        expected = (pixel - centre) / (pixel.var(unbiased=False) + 1e-3).sqrt() * norm.weight + (
            norm.bias if bias else 0
        )
        torch.testing.assert_close(norm(x)[b, :, row, column], expected)


def test_channel_attention_mixes_the_channels_of_each_head() -> None:
    attention, x = seeded(restormer.ChannelAttention(6, 2, False)), random(2, 6, 4, 5)
    mixed = torch.empty_like(x)
    for image, features in enumerate(attention.qkv_dwconv(attention.qkv(x))):
        query, key, value = features.chunk(3)
        for head in range(2):
            own = range(3 * head, 3 * head + 3)
            for channel in own:
                alike = [(query[channel] * key[i]).sum() / query[channel].norm() / key[i].norm() for i in own]
                weights = (torch.stack(alike) * attention.temperature[head, 0, 0]).softmax(0)
                mixed[image, channel] = sum(weight * value[i] for weight, i in zip(weights, own, strict=True))
    torch.testing.assert_close(attention(x), attention.project_out(mixed))


def as_patches(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)


def as_image(patches: Tensor) -> Tensor:
    batch, channels, rows, columns, _, _ = patches.shape
    return patches.transpose(3, 4).reshape(batch, channels, 8 * rows, 8 * columns)


def test_matrices_are_fourier_transforms_of_patches() -> None:
    x, y = random(2, 3, 16, 24), random(2, 3, 24, 16).transpose(2, 3)
    torch.testing.assert_close(fftformer.pixels(fftformer.spectra(x)), x)
    transformed = torch.fft.rfft2(as_patches(x)) * torch.fft.rfft2(as_patches(y))
    convolved = fftformer.pixels(fftformer.product(fftformer.spectra(x), fftformer.spectra(y)))
    torch.testing.assert_close(convolved, as_image(torch.fft.irfft2(transformed, s=(8, 8))), atol=1e-4, rtol=1e-5)


def test_the_feed_forward_part_weighs_frequencies() -> None:
    """Also where both factors of a pair of conjugates differ, as trained ones do."""
    gate, x = seeded(fftformer.SpectralGate(2, 3, True)), random(2, 2, 16, 24)
    weighed = torch.fft.irfft2(torch.fft.rfft2(as_patches(gate.project_in(x))) * gate.fft, s=(8, 8))
    first, second = gate.dwconv(as_image(weighed)).chunk(2, dim=1)
    torch.testing.assert_close(gate(x), gate.project_out(F.gelu(first) * second), atol=1e-5, rtol=1e-5)


def test_spectral_attention_multiplies_spectra() -> None:
    attention, x = seeded(fftformer.SpectralAttention(2, False)), random(2, 2, 16, 24)
    query, key, value = attention.to_hidden_dw(attention.to_hidden(x)).chunk(3, dim=1)
    spectrum = torch.fft.rfft2(as_patches(query)) * torch.fft.rfft2(as_patches(key))
    weights = attention.norm(as_image(torch.fft.irfft2(spectrum, s=(8, 8))))
    torch.testing.assert_close(attention(x), attention.project_out(value * weights), atol=1e-5, rtol=1e-5)


def test_halving_is_bilinear() -> None:
    layer, x = fftformer.resized(nn.AvgPool2d(2), 3, 6).body[0], random(2, 3, 16, 24)
    torch.testing.assert_close(layer(x), F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False))
