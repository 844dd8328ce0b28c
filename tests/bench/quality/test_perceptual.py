"""GMSD, HaarPSI and VIF against slow references that follow the papers pixel by pixel."""

import importlib
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from uid.bench.quality.perceptual import gmsd, haarpsi, vif
from uid.bench.quality.photos import held_out
from uid.train.blur import RgbImage

Plane = NDArray[np.float64]
SHARP = held_out(["chelsea"])["chelsea"][100:152, 90:140]
NOISY = (SHARP + 0.05 * np.random.default_rng(0).standard_normal(SHARP.shape)).clip(0.0, 1.0).astype(np.float32)
SOFT = ((SHARP + np.roll(SHARP, 1, axis=0) + np.roll(SHARP, 2, axis=1)) / 3).astype(np.float32)


def channels(image: RgbImage) -> tuple[Plane, Plane, Plane]:
    """Y, I and Q, from 0 to 255."""
    r, g, b = (255.0 * image[..., number].astype(np.float64) for number in range(3))
    return (
        0.299 * r + 0.587 * g + 0.114 * b,
        0.596 * r - 0.274 * g - 0.322 * b,
        0.211 * r - 0.523 * g + 0.312 * b,
    )


def halved(plane: Plane) -> Plane:
    height, width = (size // 2 for size in plane.shape)
    return plane.reshape(height, 2, width, 2).mean(axis=(1, 3))


def at(plane: Plane, row: int, column: int) -> float:
    """A pixel; 0 beyond the border."""
    inside = 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]
    return float(plane[row, column]) if inside else 0.0


def everywhere(plane: Plane) -> Iterator[tuple[int, int]]:
    return itertools.product(range(plane.shape[0]), range(plane.shape[1]))


def slow_gmsd(image: RgbImage, sharp: RgbImage) -> float:
    planes = [halved(channels(one)[0]) for one in (image, sharp)]
    values = []
    for row, column in everywhere(planes[0]):
        sizes = []
        for plane in planes:
            across = sum(at(plane, row + i, column - 1) - at(plane, row + i, column + 1) for i in (-1, 0, 1)) / 3
            down = sum(at(plane, row - 1, column + i) - at(plane, row + 1, column + i) for i in (-1, 0, 1)) / 3
            sizes.append(math.hypot(across, down))
        a, b = sizes
        values.append((2 * a * b + 170) / (a * a + b * b + 170))
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def slow_haar(plane: Plane, row: int, column: int, scale: int, turned: bool) -> float:
    """The difference of two halves of a square of 2**scale pixels, whose middle is at the pixel's lower right."""
    side, total = 2**scale, 0.0
    for i, j in itertools.product(range(side), range(side)):
        sign = 1 if (i if turned else j) < side // 2 else -1
        total += sign * at(plane, row + i - side // 2 + 1, column + j - side // 2 + 1) / side
    return abs(total)


def slow_haarpsi(image: RgbImage, sharp: RgbImage) -> float:
    (y, *colours), (y_sharp, *colours_sharp) = ([halved(one) for one in channels(each)] for each in (image, sharp))

    def alike(a: float, b: float) -> float:
        return (2 * a * b + 30) / (a * a + b * b + 30)

    def mean_of_four(plane: Plane, row: int, column: int) -> float:
        return abs(sum(at(plane, row + i, column + j) for i in (0, 1) for j in (0, 1)) / 4)

    above = below = 0.0
    for row, column in everywhere(y):
        weights = []
        for turned in (False, True):
            both = [[slow_haar(p, row, column, scale, turned) for scale in (1, 2, 3)] for p in (y, y_sharp)]
            local = (alike(both[0][0], both[1][0]) + alike(both[0][1], both[1][1])) / 2
            weights.append(max(both[0][2], both[1][2]))
            above += weights[-1] / (1 + math.exp(-4.2 * local))
        pairs = zip(colours, colours_sharp, strict=True)
        local = sum(alike(mean_of_four(p, row, column), mean_of_four(q, row, column)) for p, q in pairs) / 2
        weights.append(sum(weights) / 2)
        above += weights[-1] / (1 + math.exp(-4.2 * local))
        below += sum(weights)
    return (math.log(above / below / (1 - above / below)) / 4.2) ** 2


def slow_vif(image: RgbImage, sharp: RgbImage) -> float:
    x, y = channels(sharp)[0], channels(image)[0]
    kept = total = 0.0
    for size in (17, 9, 5, 3):
        line = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * (size / 5) ** 2))
        window = np.outer(line, line) / line.sum() ** 2

        def windows(plane: Plane, size: int = size) -> list[list[Plane]]:
            steps = [range(extent - size + 1) for extent in plane.shape]
            return [[plane[row : row + size, column : column + size] for column in steps[1]] for row in steps[0]]

        if size < 17:
            x, y = (np.array([[(window * one).sum() for one in line] for line in windows(p)])[::2, ::2] for p in (x, y))
        for a, b in zip(itertools.chain(*windows(x)), itertools.chain(*windows(y)), strict=True):
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            gain = (window * (a - mean_a) * (b - mean_b)).sum() / (var_a + 1e-10)
            rest = var_b - gain * gain * var_a if gain > 0 else var_b
            kept += math.log2(1 + max(gain, 0.0) ** 2 * var_a / (rest + 2))
            total += math.log2(1 + var_a / 2)
    return kept / total


@pytest.mark.parametrize("image", [NOISY, SOFT], ids=["noisy", "soft"])
def test_against_slow_references(image: RgbImage) -> None:
    assert gmsd(image, SHARP) == pytest.approx(slow_gmsd(image, SHARP), abs=1e-9)
    assert haarpsi(image, SHARP) == pytest.approx(slow_haarpsi(image, SHARP), abs=1e-9)
    assert vif(image, SHARP) == pytest.approx(slow_vif(image, SHARP), abs=1e-6)


def test_equal_images_score_full_marks_also_where_there_is_nothing_to_see() -> None:
    for image in (SHARP, np.full((64, 64, 3), 0.5, np.float32)):
        assert gmsd(image, image) == 0.0
        assert haarpsi(image, image) == pytest.approx(1.0)
        assert vif(image, image) == pytest.approx(1.0)


def test_they_agree_with_piq() -> None:
    piq = pytest.importorskip("piq", reason="needs pip install 'uid-runtime[metrics]'")
    torch = importlib.import_module("torch")
    sharp, image = (torch.tensor(one.transpose(2, 0, 1)[None].astype(np.float64)) for one in (SHARP, NOISY))
    assert gmsd(NOISY, SHARP) == pytest.approx(float(piq.gmsd(image, sharp)), abs=1e-6)
    assert haarpsi(NOISY, SHARP) == pytest.approx(float(piq.haarpsi(image, sharp)), abs=1e-3)  # its Q is rounded
    assert vif(NOISY, SHARP) == pytest.approx(float(piq.vif_p(image, sharp)), abs=1e-6)
