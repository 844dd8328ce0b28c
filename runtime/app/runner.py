"""A run over many files: one pipeline, one job after another, a record of each."""

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from uid.bundles.tensors import Array
from uid.command import with_flag
from uid.errors import OutputError, UIDError
from uid.runtime.app.jobs import Job
from uid.runtime.app.progress import Quiet
from uid.runtime.app.settings import RunSettings
from uid.runtime.media.decode import read_image
from uid.runtime.media.encode import encode_image, write_image
from uid.runtime.media.video import process_video
from uid.runtime.options import check_inputs
from uid.runtime.pixels import enlarged

if TYPE_CHECKING:  # the engines' libraries take seconds to import: usage is checked before
    from uid.runtime.options import Result
    from uid.runtime.pipeline import Pipeline

Record = dict[str, Any]  # what --json prints for one file
FLAGS = {"blur_image": "blur-from"}  # where the flag that mends an error is not called like the argument
# Names of earlier versions, printed beside the new ones until 0.3.
OLD_KEYS = {"preset": "quality", "transforms": "views", "cache_interval": "reuse"}


@dataclass
class JobRunner:
    """Does jobs one after another with one pipeline, which is loaded when the first job needs it."""

    settings: RunSettings
    reporter: Quiet
    done: int = 0  # jobs written or skipped
    failures: list[str] = field(default_factory=list)  # one line for each job that failed

    def run(self, jobs: Sequence[Job]) -> None:
        """Do ``jobs`` in order; with ``keep_going`` also those after a failed one.

        A job that fails is reported and put into ``failures``. Raises ``UIDError`` for what stops every job: a bundle,
        backend, option or further image that cannot be used.
        """
        for job in jobs:
            self.reporter.start(job.input_name)
            present = _is_present(job.destination) and not self.settings.overwrite
            self._report(job, self._left_alone(job) if present else self._attempted(job))
            if self.failures and not self.settings.keep_going:
                return

    @cached_property
    def pipeline(self) -> "Pipeline":
        """The loaded bundle, able to do what was asked for."""
        from uid.runtime.pipeline import load

        settings = self.settings
        loaded = load(settings.model, backend=settings.backend, threads=settings.threads, report=self.reporter.note)
        options = settings.options.resolved(loaded.bundle)
        check_inputs(loaded.bundle, options.mode, settings.extra_images)
        if not loaded.bundle.trained:
            name = loaded.bundle.name
            self.reporter.note(f"warning: the weights of bundle {name} are random: no output is a deblurred image")
        return loaded

    @cached_property
    def extra_images(self) -> dict[str, Array]:
        """The further images that the mode reads, by input name."""
        limit = self.settings.max_pixels
        return {name: read_image(path, max_pixels=limit).pixels for name, path in self.settings.extra_images.items()}

    @property
    def _scale(self) -> int:
        """How many times as high and wide as the input an output is."""
        return self.pipeline.bundle.output_scale(self.settings.options.mode)

    def _left_alone(self, job: Job) -> Record:
        if self.settings.skip_existing:
            return {"ok": True, "skipped": True}
        # A folder may hold what the user never meant to lose, so that --overwrite does not empty one.
        is_folder = job.destination is not None and job.destination.is_dir()
        remedy = "choose a new or empty folder" if is_folder else "give --overwrite to replace it"
        return _failed(OutputError(f"{job.output_name} exists; {remedy}, or --skip-existing to leave it"))

    def _attempted(self, job: Job) -> Record:
        _ = self.pipeline, self.extra_images  # loaded here, since a failure to load is not the job's
        try:
            return {"ok": True} | (self._video(job) if job.video else self._image(job))
        except UIDError as error:
            return _failed(error)

    def _image(self, job: Job) -> Record:
        source = job.source or sys.stdin.buffer.read()
        name = "standard input" if job.source is None else None
        image = read_image(source, name=name, max_pixels=self.settings.max_pixels)
        result = self._sharpened(image.pixels, self.reporter.on_step)
        written = dataclasses.replace(image, pixels=self._shown(image.pixels, result))
        if image.alpha is not None:
            alpha = enlarged(image.alpha, self._scale)
            written = dataclasses.replace(written, alpha=np.hstack([alpha, alpha]) if self.settings.compare else alpha)
        if job.destination is None:
            _write_to_stdout(encode_image(written, self.settings.format or image.format))
        else:
            write_image(written, job.destination)
        return _record(result)

    def _video(self, job: Job) -> Record:
        seconds: Counter[str] = Counter()
        record: Record = {}

        def transform(frame: Array) -> Array:
            result = self._sharpened(frame)
            seconds.update(result.seconds)
            record.update(_record(result), seconds=dict(seconds))
            return self._shown(frame, result)

        assert job.source is not None, "standard input carries images only"
        assert job.destination is not None, "standard output carries images only"
        video = process_video(
            job.source,
            job.destination,
            transform,
            on_frame=self.reporter.on_frame,
            frame_rate=self.settings.frame_rate if job.source.is_dir() else None,
            columns=2 if self.settings.compare else 1,
            scale=self._scale,
        )
        return record | {"frames": video.frames}

    def _sharpened(self, pixels: Array, on_step: Callable[[int, int], None] | None = None) -> "Result":
        extra: dict[str, Any] = self.extra_images
        return self.pipeline(pixels, self.settings.options, on_step=on_step, **extra)

    def _shown(self, pixels: Array, result: "Result") -> Array:
        return np.hstack([enlarged(pixels, self._scale), result.image]) if self.settings.compare else result.image

    def _report(self, job: Job, outcome: Record) -> None:
        if outcome["ok"]:
            self.done += 1
            self.reporter.finish(f"{job.input_name} -> {job.output_name}: {_summary(outcome)}")
        else:
            named = outcome["error"].startswith(f"{job.input_name} ")
            self.failures.append(outcome["error"] if named else f"{job.input_name}: {outcome['error']}")
            self.reporter.error(self.failures[-1])
        if self.settings.json:
            click.echo(json.dumps({"input": job.input_name, "output": job.output_name} | outcome))


def _is_present(destination: Path | None) -> bool:
    """Whether something is there that would be replaced; an empty folder for frames is nothing."""
    if destination is None:
        return False
    return any(destination.iterdir()) if destination.is_dir() else os.path.lexists(destination)


def _write_to_stdout(data: bytes) -> None:
    left = memoryview(data)
    try:
        while left:  # where Python runs unbuffered, one write may take only a part and report no error
            left = left[sys.stdout.buffer.write(left) :]
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise  # click ends quietly, as a reader that has seen enough expects
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error


def _failed(error: UIDError) -> Record:
    return {"ok": False, "error": with_flag(error, FLAGS)}


def _record(result: "Result") -> Record:
    """All of a result but its pixels."""
    options = dataclasses.asdict(result.options)
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name not in ("image", "options")}
    return options | {old: options[new] for new, old in OLD_KEYS.items()} | fields


def _summary(outcome: Record) -> str:
    if outcome.get("skipped"):
        return "exists, skipped"
    frames = f"{outcome['frames']} frames of " if "frames" in outcome else ""
    steps = "" if outcome["steps"] is None else f", {outcome['steps']} steps"
    size = f"{outcome['width']}x{outcome['height']}{steps}"
    return f"{frames}{size}, {sum(outcome['seconds'].values()):.1f} s on {outcome['backend']}"
