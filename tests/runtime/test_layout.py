"""Tiles against the whole image."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from uid.runtime.layout import blend_weights, smallest_tile_for, spans

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
def test_the_smallest_tile_needs_no_more_tiles(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(1, max(1, tile // 3)))
    sizes = {"overlap": overlap * MULTIPLE, "multiple": MULTIPLE}
    needed = {side: len(spans(length * MULTIPLE, side * MULTIPLE, **sizes)) for side in range(overlap + 1, tile + 1)}
    least = min(side for side, count in needed.items() if count == needed[tile])
    assert smallest_tile_for(length * MULTIPLE, tile * MULTIPLE, **sizes) == least * MULTIPLE


@given(length=st.integers(1, 60), tile=st.integers(3, 20), overlap=st.integers(1, 6))
def test_weights_add_up_to_one_and_fade(length: int, tile: int, overlap: int) -> None:
    overlap = min(overlap, tile - 1)  # so that some lie over three others
    covered = spans(length * MULTIPLE, tile * MULTIPLE, overlap * MULTIPLE, MULTIPLE)
    total = np.zeros(length * MULTIPLE, np.float32)
    for here, weight in zip(covered, blend_weights(covered), strict=True):
        assert weight.min() >= 0.0
        total[here] += weight
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_tiles_fade_without_a_step() -> None:
    first, second = blend_weights([slice(0, 12), slice(4, 16)])
    np.testing.assert_array_equal(first[4:] + second[:8], np.ones(8))
    np.testing.assert_allclose(second, [*(np.arange(8) + 0.5) / 8, 1, 1, 1, 1])
