"""Views of planes, and what is added to them, against numpy's own turns."""

import numpy as np
import pytest

from uid.runtime.transforms import TRANSFORMS, add, transformed, transformed_back


@pytest.mark.parametrize("number", range(TRANSFORMS))
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 4), (33, 2)])
def test_what_is_added_to_a_view_is_added_to_the_image(number: int, size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    total, values = (generator.random((3, *size), dtype=np.float32) for _ in range(2))
    view = np.ascontiguousarray(transformed(values, number))
    np.testing.assert_array_equal(transformed_back(view, number), values)
    expected = total + values
    add(transformed(total, number), view)
    np.testing.assert_array_equal(total, expected)


def test_a_part_is_added_to_its_place_alone() -> None:
    total = np.zeros((3, 6, 9), np.float32)
    part = transformed(total, 6)[:, 2:5, 1:3]
    add(part, np.ones((3, 5, 4), np.float32)[:, :3, :2])
    assert total.sum() == 3 * 3 * 2
    np.testing.assert_array_equal(part, np.ones((3, 3, 2)))


def test_the_eight_views_of_a_square_differ() -> None:
    square = np.arange(9.0).reshape(1, 3, 3)
    assert len({transformed(square, number).tobytes() for number in range(TRANSFORMS)}) == TRANSFORMS
