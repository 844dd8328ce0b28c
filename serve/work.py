"""One image: bytes in, bytes out, as ``uid-run`` does it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from uid.errors import InputError
from uid.runtime.app.outputs import shown_beside
from uid.runtime.media.decode import read_image
from uid.runtime.media.encode import Encoding, check_writable, encode_image, not_carried
from uid.runtime.media.formats import MAX_PIXELS, DecodedImage
from uid.runtime.options import Options, Result
from uid.runtime.pipeline import Pipeline


class BadOptionError(InputError):
    """Options that the bundle cannot do."""


class AbandonedError(Exception):
    """Nobody waits for the image any more."""


@dataclass(frozen=True)
class Wanted:
    """What a client asks for; the fields are options of ``uid-run``."""

    options: Options = field(default_factory=Options)
    encoding: Encoding = field(default_factory=Encoding)
    preview: tuple[int, int, int, int] | None = None  # left, top, width, height
    salvage: bool = False


@dataclass
class Job:
    """An image to sharpen."""

    data: bytes  # of an image file
    name: str  # that errors call it
    wanted: Wanted
    choose_format: Callable[[str], str]  # from the input's format to the output's, keys of FORMATS
    further: Mapping[str, bytes] = field(default_factory=dict)  # files of the mode's further images, by input name
    max_pixels: int = MAX_PIXELS
    submitted: float = field(default_factory=time.monotonic)
    abandoned: bool = False  # set by who no longer waits
    progress: tuple[int, int] = (0, 0)  # steps done, steps in all

    def check(self) -> None:
        """Raise ``AbandonedError`` where nobody waits any more."""
        if self.abandoned:
            raise AbandonedError

    def on_step(self, done: int, total: int) -> None:
        """Note progress, and end what nobody waits for. Raises ``AbandonedError``."""
        self.progress = (done, total)
        self.check()


@dataclass(frozen=True)
class Answer:
    """A sharpened image."""

    data: bytes  # of an image file
    format: str  # a key of FORMATS
    result: Result  # how it was made; its image is dropped
    warnings: tuple[str, ...]  # what was wrong with the input, and what the output has no place for
    queued: float  # seconds
    computed: float


def sharpened(job: Job, pipeline: Pipeline) -> Answer:
    """The answer to a job, byte for byte the file that ``uid-run`` writes with the same options.

    Raises ``InputError`` and ``OutputError`` for what the client can mend, other errors as the pipeline does, and
    ``AbandonedError``.
    """
    job.check()
    started = time.monotonic()
    try:
        job.wanted.options.resolved(pipeline.bundle)
    except InputError as error:
        raise BadOptionError(str(error), option=error.option) from error
    read = partial(read_image, max_pixels=job.max_pixels)
    image = read(job.data, name=job.name, salvage=job.wanted.salvage)
    if job.wanted.preview is not None:
        image = image.cropped(*job.wanted.preview)
    format, scale = job.choose_format(image.format), pipeline.bundle.output_scale(job.wanted.options.mode)
    check_writable(image, format, scale=scale)
    further: dict[str, Any] = {name: read(data, name=name).pixels for name, data in job.further.items()}
    job.check()
    result = pipeline(image.pixels, job.wanted.options, on_step=job.on_step, **further)
    job.check()
    data = encode_image(shown_beside(image, result.image, scale, False), format, job.wanted.encoding)
    return Answer(
        data=data,
        format=format,
        result=_without_image(result),
        warnings=_warnings(image, format),
        queued=started - job.submitted,
        computed=time.monotonic() - started,
    )


def _without_image(result: Result) -> Result:
    return replace(result, image=np.empty((0, 0, 3), result.image.dtype))


def _warnings(image: DecodedImage, format: str) -> tuple[str, ...]:
    return (
        *image.warnings,
        *(f"{format} has no place for {what}; it is left out" for what in not_carried(image, format)),
    )
