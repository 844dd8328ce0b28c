"""Made images: reproducible, in range, and like photos in what a deblurring network learns from."""

import numpy as np
import pytest

from uid.train import statistics
from uid.train.blur import blur
from uid.train.procedural import procedural_image


@pytest.mark.parametrize(("height", "width"), [(64, 64), (16, 16), (47, 130)])
def test_shape_type_and_range(height: int, width: int) -> None:
    for seed in range(8):
        made = procedural_image(np.random.default_rng(seed), height, width)
        assert made.shape == (height, width, 3)
        assert made.dtype == np.float32
        assert np.isfinite(made).all()
        assert made.min() >= 0
        assert made.max() <= 1


def test_generator_state_decides_the_image() -> None:
    rng = np.random.default_rng(3)
    first, second = procedural_image(rng, 64, 64), procedural_image(rng, 64, 64)
    np.testing.assert_array_equal(first, procedural_image(np.random.default_rng(3), 64, 64))
    assert np.abs(first - second).mean() > 0.01
    assert np.abs(first - procedural_image(np.random.default_rng(4), 64, 64)).mean() > 0.01


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5])
def test_slope_of_noise_of_known_spectrum(exponent: float) -> None:
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256))
    frequency[0, 0] = np.inf
    white = np.random.default_rng(0).normal(size=(256, 256))
    grey = np.fft.irfft2(np.fft.rfft2(white) * frequency**-exponent)
    image = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    assert statistics.spectrum_slope(image) == pytest.approx(-2 * exponent, abs=0.15)


def test_gradient_statistics_of_a_ramp_and_of_noise() -> None:
    ramp = np.repeat(np.linspace(0, 1, 101, dtype=np.float32)[None, :, None], 3, axis=2).repeat(101, axis=0)
    assert statistics.gradient_quantile(0.9)(ramp) == pytest.approx(-2, abs=1e-3)
    noise = np.random.default_rng(0).normal(0.5, 0.1, (128, 128, 1)).astype(np.float32).repeat(3, axis=2)
    assert statistics.gradient_kurtosis(noise) == pytest.approx(np.log10(3), abs=0.02)


def test_made_images_are_statistically_like_photos() -> None:
    table = statistics.compare(statistics.photo_crops(), statistics.made_pictures(48))
    tolerance = dict.fromkeys(table, 0.15) | {"PSNR after blur, dB": 1.5, "power slope, 1/4 to 1/2": 0.5}
    tolerance |= {"saturation": 0.1, "luminance deviation": 0.04, "luminance mean": 0.08}
    far = {name: row for name, row in table.items() if abs(row.real.mean - row.made.mean) > tolerance[name]}
    assert not far


def test_softened_images_are_told_from_photos() -> None:
    kernel = statistics.fixed_kernels()[2]
    soft = [blur(image, kernel) for image in statistics.made_pictures(8)]
    row = statistics.compare(statistics.photo_crops()[:4], soft)["PSNR after blur, dB"]
    assert row.made.mean > row.real.mean + 3
