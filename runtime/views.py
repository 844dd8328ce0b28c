"""Views: the eight ways to turn and mirror planes, (..., H, W), by number; 0 is as they are, from 4 on (..., W, H).

Nothing is copied, so that what is added to a view's planes is added to the picture's.
"""

from uid.engines import Array

VIEWS = 8  # ways to turn and mirror a square
TRANSPOSED = 4  # from this number on, height and width are exchanged


def turned(planes: Array, number: int) -> Array:
    """View ``number``; a view of the memory, too."""
    return mirrored(planes.swapaxes(-2, -1) if number >= TRANSPOSED else planes, number)


def turned_back(planes: Array, number: int) -> Array:
    """The planes of which ``planes`` are view ``number``."""
    back = mirrored(planes, number)
    return back.swapaxes(-2, -1) if number >= TRANSPOSED else back


def mirrored(planes: Array, number: int) -> Array:
    """As they are, by half a turn, upside down, or left to right, for the last two bits of ``number``."""
    down, right = ((1, 1), (-1, -1), (-1, 1), (1, -1))[number % 4]
    return planes[..., ::down, ::right]


def add(total: Array, values: Array) -> None:
    """Add planes (C, H, W) to others in place, transposed beforehand if ``total`` is a transposed view of memory.

    Numpy alone would go through one of the two across its rows, which takes ten times as long.
    """
    if abs(total.strides[-1]) <= abs(total.strides[-2]):
        total += values
        return
    import cv2

    for place, plane in zip(total.swapaxes(-2, -1), values, strict=True):
        place += cv2.transpose(plane)
