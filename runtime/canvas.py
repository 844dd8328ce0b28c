"""The sums of a large image's tiles, in memory that is given back row by row."""

import math
import mmap

import numpy as np

from uid.runtime.pixels import Planes


class Canvas:
    """Planes of zeros, (3, H, W) float32, whose rows take no memory once they are done with, where the system can.

    Memory is taken as rows are written. So between the first tile and the last row that is done with, it holds no more
    than the tiles that overlap.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        size = 4 * math.prod(shape)
        # Windows has no flags; there, rows keep their memory.
        private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
        self._memory = mmap.mmap(-1, size, flags=private) if private else mmap.mmap(-1, size)
        self.sums: Planes = np.frombuffer(self._memory, np.float32).reshape(shape)

    def top(self, view: Planes) -> int:
        """The first row of the canvas that a view of it has, which may be flipped or transposed."""
        base, address = (one.__array_interface__["data"][0] for one in (self.sums, view))
        steps = zip(view.strides, view.shape, strict=True)
        lowest = address + sum(min(0, stride * (size - 1)) for stride, size in steps)
        return int(lowest - base) % self.sums.strides[0] // self.sums.strides[1]

    def release(self, rows: slice) -> None:
        """Give back the memory of rows, whose values are lost."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        plane, row = self.sums.strides[:2]
        for start in range(0, len(self.sums) * plane, plane):
            first = -(-(start + rows.start * row) // mmap.PAGESIZE) * mmap.PAGESIZE
            last = (start + rows.stop * row) // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first:
                self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)
