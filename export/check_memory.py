"""What a check of a bundle's layers will take, told and held against what there is before it starts.

A tensor inside a graph grows with a power of the image's side: attention with the fourth. So the tensors' sizes at two
small sides tell those at any.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uid.bundles.declarations import Bundle, smallest_tile
from uid.bundles.tensors import resolve
from uid.engines import Report
from uid.errors import InputError
from uid.export.compare_layers import CHUNK_BYTES, Pair

LIBRARIES = 450 << 20  # of this program's libraries and a bundle's graphs, as measured
# Largest tensors that are there at a time: a node's inputs and output in ONNX Runtime, what it gives out, and NumPy's
# copies. An upper bound: with a tiny model at 64 pixels 0.8 GB are told and 0.66 taken.
LARGEST_AT_A_TIME = 6


def check_room(
    bundle: Bundle, exact: Bundle, components: Sequence[str], side: int, folder: Path, report: Report
) -> None:
    """Report how much memory a check at ``side`` pixels takes.

    Raises ``InputError`` when that is more than the machine has free. ``folder`` is for the graphs that are run.
    """
    largest = max(largest_tensor(bundle, exact, name, side, folder) for name in components)
    needed, free = LIBRARIES + CHUNK_BYTES + LARGEST_AT_A_TIME * largest, free_memory()
    report(f"at {side} x {side} pixels this takes up to {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free")
    if needed > free:
        raise InputError(
            f"at {side} x {side} pixels the largest tensor has {largest / 1e9:.1f} GB, and the check would take "
            f"{needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free: take a smaller size",
            option="size",
        )


def largest_tensor(bundle: Bundle, exact: Bundle, name: str, side: int, folder: Path) -> int:
    """Bytes of the largest tensor inside a component, in float32, where images have this side."""
    small = smallest_tile(bundle.size_multiple, bundle.min_side)
    if side <= 2 * small:
        return max(sizes_at(bundle, exact, name, max(side, small), folder).values())
    first, second = (sizes_at(bundle, exact, name, times * small, folder) for times in (1, 2))
    growth = side / (2 * small)
    return round(max(size * growth ** math.log2(size / first[key]) for key, size in second.items() if first[key]))


def sizes_at(bundle: Bundle, exact: Bundle, name: str, side: int, folder: Path) -> dict[str, int]:
    """Bytes of every tensor inside a component, in float32, on zeros."""
    part = bundle.components[name]
    side = math.ceil(side / bundle.size_multiple) * bundle.size_multiple
    sizes = {symbol: 1 if symbol == "batch" else side for symbol in part.symbols}
    zeros = {spec.name: np.zeros(resolve(spec.shape, sizes), spec.dtype) for spec in part.inputs}
    return Pair(bundle, exact, name, zeros, folder).sizes()


def free_memory() -> int:
    """Bytes that programs can still take without swapping; where the system does not tell, no limit is known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(line.split() for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 1 << 62
    return int(found[1]) * 1024
