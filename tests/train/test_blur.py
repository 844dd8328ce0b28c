"""Synthetic blur against slow, obvious references."""

import numpy as np
import pytest
from scipy.signal import convolve2d

from uid.train.blur import (
    KERNELS,
    LARGEST,
    UNKNOWN_KERNELS,
    blur,
    degrade,
    random_exposure,
    through_jpeg,
    to_linear,
    to_srgb,
)

ALL = {**KERNELS, **UNKNOWN_KERNELS}


def picture(size: int = 48) -> np.ndarray:
    return np.random.default_rng(0).random((size, size, 3), dtype=np.float32)


@pytest.mark.parametrize("name", ALL)
def test_kernels_keep_light_and_place(name: str) -> None:
    for seed in range(50):
        kernel = ALL[name](np.random.default_rng(seed))
        assert kernel.shape == (LARGEST, LARGEST)
        assert kernel.dtype == np.float32
        assert kernel.min() >= 0.0
        assert kernel.sum() == pytest.approx(1.0, abs=1e-5)
        rows, columns = np.mgrid[:LARGEST, :LARGEST] - LARGEST // 2
        assert abs((rows * kernel).sum()) < 1.0
        assert abs((columns * kernel).sum()) < 1.0
        assert kernel.max() < 0.9, "a kernel that blurs nothing"
    again = ALL[name](np.random.default_rng(49))
    np.testing.assert_array_equal(kernel, again)


def test_the_unknown_families_are_not_trained_with() -> None:
    assert not set(KERNELS) & set(UNKNOWN_KERNELS)
    assert not set(KERNELS.values()) & set(UNKNOWN_KERNELS.values())


def test_blur_is_convolution() -> None:
    linear, kernel = picture(), KERNELS["camera shake"](np.random.default_rng(1))
    half = LARGEST // 2
    padded = np.pad(linear, ((half, half), (half, half), (0, 0)), mode="reflect")
    expected = np.stack([convolve2d(padded[..., c], kernel, mode="valid") for c in range(3)], axis=-1)
    np.testing.assert_allclose(blur(linear, kernel), expected, atol=1e-5)


def test_srgb_curve() -> None:
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    np.testing.assert_allclose(to_srgb(to_linear(values)), values, atol=1e-5)
    assert to_linear(np.float32(0.5)) == pytest.approx(0.2140, abs=1e-4)


def test_without_blur_and_noise_nothing_changes() -> None:
    point = np.zeros((LARGEST, LARGEST), np.float32)
    point[LARGEST // 2, LARGEST // 2] = 1.0
    np.testing.assert_allclose(degrade(np.random.default_rng(0), picture(), point), picture(), atol=1e-5)


def test_light_is_spread_in_linear_light() -> None:
    halves = np.zeros((64, 64, 3), np.float32)
    halves[:, ::2] = 1.0
    even = np.zeros((LARGEST, LARGEST), np.float32)
    even[LARGEST // 2] = 1 / LARGEST
    blurred = degrade(np.random.default_rng(0), halves, even)
    assert blurred[32, 32, 0] == pytest.approx(to_srgb(np.float32(0.5)), abs=0.02)  # 0.735, where sRGB values give 0.5


def test_highlights_leave_longer_streaks() -> None:
    light = np.full((64, 64, 3), 0.1, np.float32)
    light[32, 32] = 1.0
    kernel = KERNELS["motion"](np.random.default_rng(3))
    dim, bright = (degrade(np.random.default_rng(0), light, kernel, highlights=h) for h in (1.0, 6.0))
    assert bright.mean() > dim.mean()
    assert bright.max() <= 1.0


def test_noise_is_as_strong_as_asked() -> None:
    white = np.full((256, 256, 3), 0.735, np.float32)
    noisy = degrade(np.random.default_rng(0), white, KERNELS["gaussian"](np.random.default_rng(0)), noise=0.01)
    assert to_linear(noisy).std() == pytest.approx(0.01 * np.sqrt(0.9 * 0.5 + 0.1), rel=0.05)


def test_jpeg_is_near_and_ordered_by_quality() -> None:
    smooth = blur(picture(64), KERNELS["gaussian"](np.random.default_rng(2)))
    errors = [np.abs(through_jpeg(smooth, quality) - smooth).mean() for quality in (30, 60, 95)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


def test_pairs_are_deterministic_and_in_range() -> None:
    for seed in range(20):
        generators = [np.random.default_rng(seed) for _ in range(2)]
        first, second = (random_exposure(rng)(rng, picture()) for rng in generators)
        np.testing.assert_array_equal(first, second)
        assert first.dtype == np.float32
        assert first.min() >= 0.0
        assert first.max() <= 1.0
