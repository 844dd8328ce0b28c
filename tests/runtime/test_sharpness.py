"""The blur effect against scikit-image's, and what it says of photos."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uid.runtime import sharpness
from uid.runtime.sharpness import SHARP, blur_effect

measure = pytest.importorskip("skimage.measure", reason="scikit-image has the reference")


@given(
    height=st.integers(8, 70), width=st.integers(8, 40), band=st.integers(1, 80), seed=st.integers(0, 999),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
)  # fmt: skip
def test_it_is_the_published_measure_in_bands_of_any_height(
    height: int, width: int, band: int, seed: int, dtype: type
) -> None:
    values = np.random.default_rng(seed).random((height, width))
    values = np.cumsum(values - values.mean(), axis=seed % 2)
    grey = (values - values.min()) / (np.ptp(values) or 1.0)
    pixels = grey if dtype is np.float32 else grey * np.iinfo(dtype).max
    pixels = np.repeat(pixels.astype(dtype)[..., None], 3, axis=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharpness, "BAND", band)
        found = blur_effect(pixels)
    top = 1.0 if dtype is np.float32 else np.iinfo(dtype).max
    assert found == pytest.approx(measure.blur_effect(pixels[..., 0].astype(np.float64) / top), abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 40, 3), (40, 2, 3), (64, 64, 3)])
def test_what_has_no_gradients_is_neither(shape: tuple[int, ...]) -> None:
    assert blur_effect(np.full(shape, 90, np.uint8)) is None


def test_photos_are_told_from_blurred_ones() -> None:
    photos = pytest.importorskip("uid.train.held_out", reason="the lean install has no photos")
    for name, sharp in photos.held_out().items():
        found = blur_effect(sharp)
        assert found is not None
        assert found < SHARP, name
        for case in photos.cases(name, sharp, noise=1 / 255, jpeg=None):
            found = blur_effect(case.blurred)
            assert found is not None
            assert found > SHARP, (name, case.kernel)
