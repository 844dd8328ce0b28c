"""A video as a job of a run: its frames sharpened, blended and written."""

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uid import __version__, stop
from uid.bundles.tensors import Array
from uid.runtime.app.border import Record
from uid.runtime.app.computing import Computing, at_once
from uid.runtime.app.jobs import Job
from uid.runtime.app.outputs import beside
from uid.runtime.app.progress import Quiet
from uid.runtime.app.report import options_record, record_of
from uid.runtime.app.settings import RunSettings
from uid.runtime.media.raw_pipe import RawPipe
from uid.runtime.media.video import VideoOptions, process_video
from uid.runtime.temporal import Steadied

if TYPE_CHECKING:
    from uid.runtime.options import Result


@dataclass(frozen=True)
class VideoRun:
    """What all videos of a run have in common."""

    settings: RunSettings
    pipeline: Computing
    extra_images: Mapping[str, Array]  # those that the mode reads too, by input name
    reporter: Quiet

    def record_of(self, job: Job, placing: Callable[[Path], None]) -> Record:
        """How a video was made. ``placing`` is told of a file that is about to get its name. Raises ``UIDError``."""
        settings, steadied = self.settings, Steadied()
        scale = self.pipeline.bundle.output_scale(settings.options.mode)
        seconds: Counter[str] = Counter()
        used = settings.options.resolved(self.pipeline.bundle)
        record = options_record(used) | {"backend": self.pipeline.backend, "seconds": {}}

        def sharpened(frame: Array) -> "Result":
            extra: dict[str, Any] = dict(self.extra_images)
            return self.pipeline(frame, settings.options, **extra)

        def shown(frame: Array, result: "Result") -> Array:
            seconds.update(result.seconds)
            record.update(record_of(result), seconds=dict(seconds))
            made = steadied(frame, result.image) if settings.steady else result.image
            return beside(frame, made, scale) if settings.compare else made

        pipe = settings.raw or "rgb24"
        video = process_video(
            job.source or RawPipe(sys.stdin.buffer, pipe, settings.raw_size),
            job.destination or RawPipe(sys.stdout.buffer, pipe),
            shown,
            first=sharpened,
            on_frame=self._on_frame,
            frame_rate=settings.frame_rate if job.source is None or job.source.is_dir() else None,
            columns=2 if settings.compare else 1,
            scale=scale,
            options=self._options(placing),
        )
        return record | {"frames": video.frames}

    def _options(self, placing: Callable[[Path], None]) -> VideoOptions:
        settings = self.settings
        used = settings.options.resolved(self.pipeline.bundle)
        images = {name: hashlib.sha256(image.tobytes()).hexdigest() for name, image in self.extra_images.items()}
        key = repr((__version__, self.pipeline.bundle.digest, self.pipeline.backend, used, images, settings.steady))
        return VideoOptions(
            selection=settings.selection,
            wanted=settings.wanted,
            max_pixels=settings.max_pixels,
            salvage=settings.salvage,
            looks_back=1 if settings.steady else 0,
            at_once=at_once(self.pipeline),
            key=key,
            report=self.reporter.note,
            placing=placing,
        )

    def _on_frame(self, done: int, total: int | None) -> None:
        stop.check()
        self.reporter.on_frame(done, total)
