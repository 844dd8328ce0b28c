"""What an image costs the host beside a GPU: the runtime as its users have it, on a backend that computes nothing.

Splitting, turning, padding and cutting, copies to and from memory that stands for a GPU's, adding up and converting:
that is how many images a second a GPU could be given, were it infinitely fast.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uid.bench.rows import device, versions
from uid.bench.speed.latency import sample_picture
from uid.bundles.declarations import Bundle, Component
from uid.bundles.tensors import Array
from uid.engines import Backend, Buffer, Engine, Launch
from uid.engines.contract import GPU_BATCH
from uid.runtime.options import Options
from uid.runtime.pipeline import Pipeline
from uid.runtime.pixels import PIXELS_IN, PIXELS_OUT


@dataclass(frozen=True)
class HostRow:
    """One image."""

    height: int  # pixels
    width: int
    transforms: int
    tiles: int  # of each view
    repeat: int
    seconds: float
    bundle: str
    device: str
    versions: dict[str, str]


class IdleBuffer(Buffer):
    """Memory that is copied to and from, as a GPU's is."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype, self.memory = shape, dtype, np.zeros(shape, dtype)

    def write(self, array: Array) -> None:
        """Copy a host array in."""
        self.memory[...] = array

    def read(self) -> Array:
        """Copy the contents to a host array of its own."""
        return np.array(self.memory)


class IdleEngine(Engine):
    """A component whose launches do nothing."""

    def __init__(self, component: Component) -> None:
        self.inputs = {spec.name: spec for spec in component.inputs}
        self.outputs = {spec.name: spec for spec in component.outputs}

    def bind(self, buffers: Mapping[str, Buffer]) -> Launch:
        """A launch that does nothing."""
        return lambda: None


class IdleBackend(Backend):
    """Takes and gives uint8 pixels as the backends on a GPU do."""

    name = "idle"
    uint8_pixels = True
    new_sizes_cost = True
    largest_batch = GPU_BATCH

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> IdleBuffer:
        """A new buffer."""
        return IdleBuffer(shape, dtype)

    def load(self, path: Path) -> IdleEngine:
        """One of the graphs that convert pixels."""
        return IdleEngine({part.file: part for part in (PIXELS_IN, PIXELS_OUT)}[path.name])

    def load_component(self, bundle: Bundle, component: Component, sizes: Mapping[str, int]) -> IdleEngine:
        """A component as the manifest declares it."""
        return IdleEngine(component)


def measure(
    bundle: Bundle, sizes: Sequence[tuple[int, int]], transforms: Sequence[int], tile: int | None, repeats: int
) -> Iterator[HostRow]:
    """RGB images of 8 bits of every size, run with each number of transforms, after two that do not count."""
    here, found = device(), versions(("numpy", "opencv-python-headless"))
    for height, width in sizes:
        image = sample_picture(height, width)
        for count in transforms:
            pipeline, options = Pipeline(bundle, IdleBackend()), Options(transforms=count, tile=tile)
            for repeat in range(-2, repeats):
                started = time.perf_counter()
                result = pipeline(image, options)
                seconds = time.perf_counter() - started
                if repeat >= 0:
                    yield HostRow(height, width, count, result.tiles, repeat, seconds, bundle.name, here, found)
