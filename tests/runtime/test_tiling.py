"""Tiles against the whole picture."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from uid.runtime.tiling import blend, least_tile, rows_of_tiles, spans

MULTIPLE = 4


@given(length=st.integers(1, 60), tile=st.integers(2, 20), data=st.data())
def test_spans_cover_and_overlap(length: int, tile: int, data: st.DataObject) -> None:
    overlap = MULTIPLE * data.draw(st.integers(1, max(1, tile // 3)))
    length, tile = length * MULTIPLE, tile * MULTIPLE
    covered = spans(length, tile, overlap, MULTIPLE)
    assert covered[0].start == 0
    assert covered[-1].stop == length
    assert all(s.start % MULTIPLE == 0 for s in covered)
    assert all(s.stop - s.start == min(length, tile) for s in covered)
    for a, b in itertools.pairwise(covered):
        assert a.start < b.start
        assert a.stop - b.start >= overlap


@given(length=st.integers(8, 200), tile=st.integers(2, 20), data=st.data())
def test_the_least_tile_is_the_least_of_which_no_more_are_needed(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(1, max(1, tile // 3)))
    sizes = {"overlap": overlap * MULTIPLE, "multiple": MULTIPLE}
    needed = {side: len(spans(length * MULTIPLE, side * MULTIPLE, **sizes)) for side in range(overlap + 1, tile + 1)}
    least = min(side for side, count in needed.items() if count == needed[tile])
    assert least_tile(length * MULTIPLE, tile * MULTIPLE, **sizes) == least * MULTIPLE


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_tiles_of_a_pointwise_function_give_the_whole(height: int, width: int) -> None:
    picture = np.random.default_rng(0).random((height * MULTIPLE, width * MULTIPLE, 3), dtype=np.float32)
    rows, columns = (spans(size, 32, 8, MULTIPLE) for size in picture.shape[:2])
    bands = list(rows_of_tiles(lambda row, column: 1.0 - picture[row, column], rows, columns))
    np.testing.assert_allclose(np.concatenate(bands), 1.0 - picture, atol=1e-6)


def test_blend_goes_from_one_to_the_other_without_a_step() -> None:
    joined = blend(np.zeros((1, 12, 3), np.float32), np.ones((1, 12, 3), np.float32), overlap=8, axis=1)
    assert joined.shape == (1, 16, 3)
    steps = np.diff(joined[0, :, 0])
    assert steps.min() >= 0.0
    assert steps.max() <= 1 / 8 + 1e-6
    assert joined[0, 3, 0] == 0.0
    assert joined[0, 12, 0] == 1.0
