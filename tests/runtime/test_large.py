"""A large image is run from the top down in bounded memory, with the result of a small one."""

import numpy as np
import pytest

from uid.runtime import run
from uid.runtime.canvas import Canvas
from uid.runtime.layout import first_needed
from uid.runtime.options import Options
from uid.runtime.pipeline import load
from uid.runtime.pixels import extend
from uid.runtime.transforms import transformed

RNG = np.random.default_rng(4)


@pytest.fixture(scope="module")
def pipeline():
    return load(backend="onnxruntime", threads=2)


@pytest.mark.parametrize(("shape", "transforms"), [((150, 211, 3), 8), ((211, 150), 2), ((300, 64, 3), 4)])
def test_rows_that_are_done_one_by_one_are_those_of_the_whole(pipeline, monkeypatch, shape, transforms):
    image = RNG.integers(0, 256, shape, dtype=np.uint16) * 257
    image[:40, :64] = 30_000  # which stays
    options = Options(transforms=transforms, tile=96)
    whole = pipeline(image, options).image
    monkeypatch.setattr(run, "LARGE", 0)
    monkeypatch.setattr(run, "BAND", 16)
    banded = pipeline(image, options)
    assert banded.tiles > 1
    assert np.abs(banded.image.astype(int) - whole).max() <= 1  # sums in another order


@pytest.mark.parametrize("number", range(8))
def test_top_of_a_view(number):
    canvas = Canvas((3, 50, 70))
    rows = np.broadcast_to(np.arange(50)[None, :, None], (3, 50, 70))
    part = np.s_[:, 5:20, 7:33]
    assert canvas.top(transformed(canvas.sums, number)[part]) == transformed(rows, number)[part].min()


def test_released_rows_are_zero_and_the_others_stay():
    canvas = Canvas((3, 600, 1024))
    canvas.sums[:] = 1
    canvas.release(slice(100, 200))
    assert canvas.sums[:, :100].all()
    assert canvas.sums[:, 200:].all()


@pytest.mark.parametrize("kind", ["reflect", "zeros"])
def test_first_needed_is_enough_to_reflect(kind):
    values = RNG.integers(0, 255, (3, 50, 41), dtype=np.uint8)
    whole = extend(values, 64, 64, kind)
    for start in (0, 16, 32, 48):
        top = first_needed(slice(start, 64), 50)
        part = extend(values[:, top:], 64 - top, 64, kind)[:, start - top :]
        np.testing.assert_array_equal(part, whole[:, start:])
