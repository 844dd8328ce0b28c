"""A run over many files: one pipeline, one job after another, a record of each."""

import dataclasses
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import numpy as np
from numpy.typing import NDArray

from uid.errors import InputError, OutputError, UIDError
from uid.runtime.images import MAX_PIXELS, encode_image, read_image, write_image
from uid.runtime.jobs import Job, Naming
from uid.runtime.progress import Quiet
from uid.runtime.video import process_video

if TYPE_CHECKING:  # the engines' libraries take seconds to import: usage is checked before
    from uid.runtime.pipeline import Options, Pipeline, Result

Pixels = NDArray[Any]  # (height, width, 3) RGB, uint8 or uint16
Record = dict[str, Any]  # what --json prints for one file


@dataclass(frozen=True)
class Settings:
    """What the command line asks for. Raises ``InputError`` when two settings contradict each other."""

    inputs: tuple[str, ...]  # files, globs, folders, or - alone
    output: str  # a file, a folder or -
    model: Path | None = None  # a bundle; None: the built-in one
    backend: str = "auto"
    mode: str = "deblur"
    blur_from: Path | None = None  # the picture whose blur is taken, with blur-transfer
    quality: str | None = None  # None: the bundle's default
    steps: int | None = None  # None: the quality's, or the bundle's own
    views: int | None = None  # None: the quality's, or 1
    guidance: float | None = None  # None: the bundle's own
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # the part of the loop in which it acts
    reuse: int = 1  # of so many steps one is computed in full
    seed: int = 0
    tile: int | Literal["auto"] | None = None  # pixels; None: the bundle's own
    threads: int | None = None  # None: the backend's choice
    suffix: str = ""  # added to each output's stem
    format: str | None = None  # of written pictures; None: as the input
    overwrite: bool = False
    skip_existing: bool = False
    recursive: bool = True
    frame_rate: Fraction | None = None  # frames per second, of a video made from a folder of frames
    max_pixels: int = MAX_PIXELS
    compare: bool = False  # write the input to the left of the output
    keep_going: bool = False
    json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.overwrite and self.skip_existing:
            raise InputError("--overwrite and --skip-existing contradict each other; give one of them")
        if self.mode == "blur-transfer" and self.blur_from is None:
            raise InputError("--mode blur-transfer needs --blur-from IMAGE, the picture whose blur is taken")
        if self.mode != "blur-transfer" and self.blur_from is not None:
            raise InputError("--blur-from is for --mode blur-transfer only; add that mode or leave --blur-from out")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise InputError(f"--guidance is {self.guidance}; expected a finite number")
        if self.json and self.output == "-":
            raise InputError("--json and -o - both write to standard output; name an output file")

    @property
    def other_inputs(self) -> tuple[Path, ...]:
        """Files that are read beside ``inputs``."""
        return () if self.blur_from is None else (self.blur_from,)

    @property
    def naming(self) -> Naming:
        """How outputs in a folder are named."""
        return Naming(self.suffix, self.format, self.recursive)

    @property
    def options(self) -> "Options":
        """What the pipeline is told for each picture."""
        from uid.runtime.pipeline import Options

        return Options(
            mode=self.mode,
            quality=self.quality,
            steps=self.steps,
            views=self.views,
            guidance=self.guidance,
            guidance_interval=self.guidance_interval,
            reuse=self.reuse,
            seed=self.seed,
            tile=self.tile,
        )


@dataclass
class Batch:
    """Does jobs one after another with one pipeline, which is loaded when the first job needs it."""

    settings: Settings
    reporter: Quiet
    done: int = 0  # jobs written or skipped
    failures: list[str] = field(default_factory=list)  # one line for each job that failed

    def run(self, jobs: Sequence[Job]) -> None:
        """Do ``jobs`` in order; with ``keep_going`` those after a failed one too.

        A job that fails is reported and put into ``failures``. Raises ``UIDError`` for what stops every job: a bundle,
        backend or blur picture that cannot be loaded.
        """
        for job in jobs:
            self.reporter.start(job.input_name)
            present = _is_present(job.destination) and not self.settings.overwrite
            self._report(job, self._left_alone(job) if present else self._attempted(job))
            if self.failures and not self.settings.keep_going:
                return

    @cached_property
    def pipeline(self) -> "Pipeline":
        """The loaded bundle, able to do the mode that was asked for."""
        from uid.runtime import pipeline

        settings = self.settings
        loaded = pipeline.load(
            settings.model, backend=settings.backend, threads=settings.threads, report=self.reporter.note
        )
        if settings.mode not in loaded.bundle.modes:
            modes = ", ".join(loaded.bundle.modes)
            raise InputError(f"bundle {loaded.bundle.name} cannot do --mode {settings.mode}; it does {modes}")
        if not loaded.bundle.trained:
            name = loaded.bundle.name
            self.reporter.note(f"warning: the weights of bundle {name} are random: no output is a deblurred picture")
        return loaded

    @cached_property
    def blur_image(self) -> Pixels | None:
        """The picture whose blur is taken."""
        path = self.settings.blur_from
        return None if path is None else read_image(path, max_pixels=self.settings.max_pixels).pixels

    def _left_alone(self, job: Job) -> Record:
        if self.settings.skip_existing:
            return {"ok": True, "skipped": True}
        # A folder may hold what the user never meant to lose, so that --overwrite does not empty one.
        is_folder = job.destination is not None and job.destination.is_dir()
        remedy = "choose a new or empty folder" if is_folder else "give --overwrite to replace it"
        return _failed(OutputError(f"{job.output_name} exists; {remedy}, or --skip-existing to leave it"))

    def _attempted(self, job: Job) -> Record:
        _ = self.pipeline, self.blur_image  # loaded here, since a failure to load is not the job's
        try:
            return {"ok": True} | (self._video(job) if job.video else self._picture(job))
        except UIDError as error:
            return _failed(error)

    def _picture(self, job: Job) -> Record:
        source = job.source or sys.stdin.buffer.read()
        name = "standard input" if job.source is None else None
        picture = read_image(source, name=name, max_pixels=self.settings.max_pixels)
        result = self._sharpened(picture.pixels, self.reporter.on_step)
        written = dataclasses.replace(picture, pixels=self._shown(picture.pixels, result))
        if self.settings.compare and picture.alpha is not None:
            written = dataclasses.replace(written, alpha=np.hstack([picture.alpha, picture.alpha]))
        if job.destination is None:
            _write_to_stdout(encode_image(written, self.settings.format or picture.format))
        else:
            write_image(written, job.destination)
        return _measured(result)

    def _video(self, job: Job) -> Record:
        seconds: Counter[str] = Counter()
        measured: Record = {}

        def transform(frame: Pixels) -> Pixels:
            result = self._sharpened(frame)
            seconds.update(result.seconds)
            measured.update(_measured(result), seconds=dict(seconds))
            return self._shown(frame, result)

        assert job.source is not None, "standard input carries pictures only"
        assert job.destination is not None, "standard output carries pictures only"
        video = process_video(
            job.source,
            job.destination,
            transform,
            on_frame=self.reporter.on_frame,
            frame_rate=self.settings.frame_rate if job.source.is_dir() else None,
            columns=2 if self.settings.compare else 1,
        )
        return measured | {"frames": video.frames}

    def _sharpened(self, pixels: Pixels, on_step: Callable[[int, int], None] | None = None) -> "Result":
        return self.pipeline(pixels, self.settings.options, blur_image=self.blur_image, on_step=on_step)

    def _shown(self, pixels: Pixels, result: "Result") -> Pixels:
        return np.hstack([pixels, result.image]) if self.settings.compare else result.image

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
    return {"ok": False, "error": str(error)}


def _measured(result: "Result") -> Record:
    """All of a result but its pixels."""
    return {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "image"}


def _summary(outcome: Record) -> str:
    if outcome.get("skipped"):
        return "exists, skipped"
    frames = f"{outcome['frames']} frames of " if "frames" in outcome else ""
    size = f"{outcome['width']}x{outcome['height']}, {outcome['steps']} steps"
    return f"{frames}{size}, {sum(outcome['seconds'].values()):.1f} s on {outcome['backend']}"
