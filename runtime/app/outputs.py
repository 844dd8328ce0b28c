"""The image that a job writes: its format, what goes with its pixels, and standard output."""

import sys
from pathlib import Path

import numpy as np

from uid.bundles.tensors import Array
from uid.errors import OutputError
from uid.runtime.app.jobs import Job
from uid.runtime.app.settings import RunSettings
from uid.runtime.media.formats import DecodedImage, format_of, written_format
from uid.runtime.pixels import enlarged


class OutputFolders:
    """The folders that a run puts outputs into."""

    def __init__(self) -> None:
        self._made: set[Path] = set()

    def make(self, folder: Path) -> None:
        """Make one, once: one that is gone later was taken away, with what was in it. Raises ``OutputError``."""
        gone = [made for made in self._made if not made.is_dir()]
        if gone:
            raise OutputError(
                f"the output folder {gone[0]} is gone, with what this run wrote there; it is not made anew"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another output") from error
        self._made.add(folder)


def format_for(job: Job, image: DecodedImage, settings: RunSettings) -> str:
    """The format that a job's output is written in."""
    if job.destination is None:
        return settings.format or written_format(image.format)
    return format_of(job.destination)


def beside(pixels: Array, made: Array, scale: int) -> Array:
    """An output, (H, W, 3), with its input, enlarged to the same size, to the left."""
    return np.hstack([enlarged(pixels, scale), made])


def shown_beside(image: DecodedImage, pixels: Array, scale: int, compare: bool) -> DecodedImage:
    """The image with the pixels of the output; alpha and further channels become as large as these."""

    def fitted(samples: Array | None) -> Array | None:
        if samples is None:
            return None
        height, width = (scale * side for side in samples.shape[:2])
        larger = enlarged(samples, scale).reshape(height, width, *samples.shape[2:])
        return np.hstack([larger, larger]) if compare else larger

    return image.with_pixels(pixels, fitted(image.alpha), fitted(image.extra))


def write_to_stdout(data: bytes) -> None:
    """Write all of it, also where Python runs unbuffered; raises ``OutputError``."""
    left = memoryview(data)
    try:
        while left:  # where Python runs unbuffered, one write may take only a part and report no error
            left = left[sys.stdout.buffer.write(left) :]
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise  # click ends quietly, as a reader that has seen enough expects
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error
