"""Blur on the training device, against what does it for one image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from uid.train.blur import Exposure, random_exposure, through_jpeg
from uid.train.data import made_image
from uid.train.device_blur import Exposures, degraded, drawn, stacked
from uid.train.device_blur import through_jpeg as jpeg_of_batch

SHARP = np.stack([made_image((5, i))[:96, :128].astype(np.float32) / np.float32(255.0) for i in range(6)])
PLANAR = torch.from_numpy(SHARP.transpose(0, 3, 1, 2).copy())


def exposures(**changes: object) -> list[Exposure]:
    rng = np.random.default_rng(3)
    return [replace(random_exposure(rng), **changes) for _ in SHARP]


def interleaved(images: torch.Tensor) -> np.ndarray:
    return images.numpy().transpose(0, 2, 3, 1)


def test_without_noise_and_jpeg_it_is_the_camera_of_one_image() -> None:
    chosen = exposures(noise=0.0, jpeg=None)
    expected = [one(np.random.default_rng(0), sharp) for one, sharp in zip(chosen, SHARP, strict=True)]
    np.testing.assert_allclose(interleaved(degraded(PLANAR, stacked(chosen))), expected, atol=2e-4)


@pytest.mark.parametrize("quality", [80, 90, 95])
def test_jpeg_is_that_of_libjpeg_but_for_its_rounding(quality: int) -> None:
    expected = np.stack([through_jpeg(image, quality) for image in SHARP])
    lossy = interleaved(jpeg_of_batch(PLANAR, torch.full((len(SHARP),), float(quality))))
    loss, difference = np.abs(expected - SHARP).mean(), np.abs(lossy - expected).mean()
    assert difference < 0.5 / 255
    assert difference < 0.5 * loss


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    grey = torch.full((1, 3, 256, 256), 0.5)
    (one,) = exposures(noise=0.02, jpeg=None, tone=1.0, highlights=1.0)[:1]
    rng = np.random.default_rng(0)
    expected = one(rng, interleaved(grey)[0]).std()
    assert degraded(grey, stacked([one])).std().item() == pytest.approx(expected, rel=0.02)


def test_rows_follow_the_images() -> None:
    bank = drawn(np.random.default_rng(0), 9)
    index = torch.tensor([8, 0, 3])
    rows = bank.rows(index)
    assert isinstance(rows, Exposures)
    quiet = replace(rows, noise=torch.zeros(3))
    alone = [degraded(PLANAR[i : i + 1], quiet.rows(torch.tensor([i]))) for i in range(3)]
    torch.testing.assert_close(degraded(PLANAR[:3], quiet), torch.cat(alone), atol=1e-5, rtol=0)
