"""A run over many files: one pipeline, files read, computed and written at the same time, a record of each."""

import json
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from uid import stop
from uid.bundles.files import mode_like
from uid.bundles.tensors import Array
from uid.errors import OutputError
from uid.runtime.app import computing
from uid.runtime.app.border import SHORT_OF_MEMORY, Record, guarded
from uid.runtime.app.computing import Computing
from uid.runtime.app.decision import REDO, Decider, Decision
from uid.runtime.app.devices import spread
from uid.runtime.app.jobs import Job
from uid.runtime.app.outputs import OutputFolders, beside, format_for, shown_beside, write_to_stdout
from uid.runtime.app.overlap import Overlap
from uid.runtime.app.progress import Quiet
from uid.runtime.app.record import OutputRecord
from uid.runtime.app.report import record_of, summary
from uid.runtime.app.settings import RunSettings
from uid.runtime.app.side_by_side import SideBySide
from uid.runtime.app.video_job import VideoRun
from uid.runtime.media.decode import read_image, read_stream
from uid.runtime.media.encode import check_writable, encode_image, not_carried, write_image
from uid.runtime.media.formats import DecodedImage
from uid.runtime.media.work import sweep
from uid.runtime.sharpness import SHARP, blur_effect

if TYPE_CHECKING:  # the engines' libraries take seconds to import: usage is checked before
    from uid.runtime.app.workers import Workers

Made = TypeVar("Made")
LARGE = 32_000_000  # pixels of an image beside which no other is held in memory


@dataclass(frozen=True)
class ReadImage:
    """An image that was read, and what was decided about it."""

    image: DecodedImage
    decision: Decision


@dataclass(frozen=True)
class MadeImage:
    """An image to write, with the record of how it was made."""

    image: DecodedImage
    decision: Decision
    record: Record


@dataclass
class JobRunner:
    """Does jobs in order with one pipeline, which is loaded when the first job needs it."""

    settings: RunSettings
    reporter: Quiet
    record: OutputRecord | None = None  # of the output folder; None: none is kept
    done: int = 0  # jobs written or left
    failures: list[str] = field(default_factory=list)  # one line for each job that failed
    records: list[Record] = field(default_factory=list)  # of every job that was done, left or failed
    _folders: OutputFolders = field(default_factory=OutputFolders)
    _told: set[tuple[str, str]] = field(default_factory=set)  # what was lost in which format, and has been said
    _loading: threading.Lock = field(default_factory=threading.Lock)

    def run(self, jobs: Sequence[Job]) -> None:
        """Do ``jobs`` in order; with ``keep_going`` also those after a failed one.

        A job that fails is reported and put into ``failures``. Raises ``UIDError`` for what stops every job: a bundle,
        backend, option or further image that cannot be used.
        """
        crew = self._crew(len(jobs))
        try:
            with closing(crew.outcomes(jobs)) as outcomes:  # which ends its threads and processes
                for job, outcome in outcomes:
                    stop.check()
                    self._report(job, outcome)
                    if self.failures and not self.settings.keep_going:
                        crew.stopping = True
        finally:
            if "pipeline" in self.__dict__:
                computing.close(self.pipeline)

    def _crew(self, jobs: int) -> "Overlap[ReadImage, MadeImage] | SideBySide | Workers":
        """Who does so many jobs."""
        if self.settings.cluster is not None:
            return SideBySide(self._done_beside, whole=self._done_alone, is_alone=_is_alone, at_once=self._at_once)
        if jobs > 1 and len(spread(self.settings.device, self.settings.workers)) > 1:
            from uid.runtime.app.workers import Workers

            return Workers(self.settings, self._decided, self._note_of_worker, self.reporter.line)
        return Overlap(
            self._begun,
            self._computed,
            self._written,
            whole=self._done_alone,
            is_alone=_is_alone,
            is_large=lambda read: read.image.pixels.size > 3 * LARGE,
            workers=self.settings.prefetch,
        )

    def _note_of_worker(self, name: str, values: tuple[Any, ...]) -> None:
        """Put into the record what a worker asks for; the options are this run's, and not those with its own device."""
        output, source, _, *more = values
        if self.record is not None:
            getattr(self.record, name)(output, source, self.decider.options, *more)

    @cached_property
    def decider(self) -> Decider:
        """What is to be done of what was asked for."""
        return Decider(self.settings, self.record)

    @cached_property
    def pipeline(self) -> Computing:
        """The loaded bundle, able to do what was asked for."""
        return computing.loaded(self.settings, self.reporter.note)

    def _load(self) -> None:
        """Have the pipeline and the further images ready: a failure to load them is not a job's."""
        with self._loading:
            _ = self.pipeline, self.extra_images

    def _at_once(self) -> int:
        """How many jobs are worth having in hand; one, until the first needs the pipeline."""
        return computing.at_once(self.pipeline) + 2 * self.settings.prefetch if "pipeline" in self.__dict__ else 1

    @cached_property
    def extra_images(self) -> dict[str, Array]:
        """The further images that the mode reads, by input name."""
        limit = self.settings.max_pixels
        return {name: read_image(path, max_pixels=limit).pixels for name, path in self.settings.extra_images.items()}

    @property
    def _scale(self) -> int:
        """How many times as high and wide as the input an output is."""
        return self.pipeline.bundle.output_scale(self.settings.options.mode)

    def _guarded(self, work: Callable[[], Made], source: str = "") -> Made | Record:
        """What ``work`` makes, or the record of its failure with ``source``, the digest of the input."""
        made = guarded(work, self.reporter.error_text if self.settings.debug else None)
        return {**made, "sha256": source} if isinstance(made, dict) else made

    def _begun(self, job: Job) -> ReadImage | Record:
        """The image of a job that is to be done, or how it ended before; runs on another thread."""
        decision = self._decided(job)
        if isinstance(decision, dict):
            return decision
        return self._guarded(lambda: self._taken(job, decision), decision.source)

    def _taken(self, job: Job, decision: Decision) -> ReadImage | Record:
        """The image of a job, or the record of one that is left as it is since it is sharp."""
        image = self._read(job)
        effect = blur_effect(image.pixels) if self.settings.skip_sharp else None
        if effect is None or effect >= SHARP:
            return ReadImage(image, decision)
        why = f"sharp already: its blur effect is {effect:.2f}, below {SHARP}"
        if decision.what == REDO and job.destination is not None and job.destination.exists():
            why += f"; {job.output_name} is of another run, and stays as it is"
        elif self.record is not None and job.destination is not None:
            self.record.sharp(job.destination, decision.source, self.decider.options)
        return {"ok": True, "skipped": True, "why": why}

    def _decided(self, job: Job) -> Decision | Record:
        """What to do about a job that is to be done, or how it ended before."""
        decision = self._guarded(lambda: self.decider.decide(job))
        if isinstance(decision, dict) or (ended := decision.ended()) is None:
            return decision
        if job.video and job.destination is not None:
            sweep(job.destination)
        return ended

    def _computed(self, job: Job, read: ReadImage) -> MadeImage | Record:
        """The image to write; in the caller's thread."""
        self._load()
        self.reporter.start(job.input_name)

        def compute() -> MadeImage:
            format = format_for(job, read.image, self.settings)
            check_writable(read.image, format, columns=2 if self.settings.compare else 1, scale=self._scale)
            self._warn(job, read.image, format)
            extra: dict[str, Any] = self.extra_images
            result = self.pipeline(read.image.pixels, self.settings.options, on_step=self._on_step, **extra)
            compare = self.settings.compare
            pixels = beside(read.image.pixels, result.image, self._scale) if compare else result.image
            image = shown_beside(read.image, pixels, self._scale, compare)
            return MadeImage(image, read.decision, {"ok": True} | record_of(result))

        return self._guarded(compute, read.decision.source)

    def _written(self, job: Job, made: MadeImage) -> Record:
        """Write what was made; runs on another thread."""

        def write() -> Record:
            self._write(job, made.image, made.decision)
            return made.record

        return self._guarded(write, made.decision.source)

    def _done_alone(self, job: Job) -> Record:
        """A whole job in the caller's thread."""
        decision = self._decided(job)
        return decision if isinstance(decision, dict) else self.done_as_decided(job, decision)

    def done_as_decided(self, job: Job, decision: Decision) -> Record:
        """The record of a job that is to be done, all of it in the caller's thread."""
        self._load()  # before the file, as where many are done
        if job.video:
            self.reporter.start(job.input_name)
            return self._guarded(lambda: self._video(job, decision), decision.source)
        return self._finished(job, self._guarded(lambda: self._taken(job, decision), decision.source))

    def _done_beside(self, job: Job) -> Record:
        """A whole job, on a thread of its own."""
        return self._finished(job, self._begun(job))

    def _finished(self, job: Job, read: ReadImage | Record) -> Record:
        """The record of a job whose image was read, once it is written."""
        made = self._computed(job, read) if isinstance(read, ReadImage) else read
        del read  # the input of a large image, which the encoder needs the memory of
        return self._written(job, made) if isinstance(made, MadeImage) else made

    def _on_step(self, done: int, total: int) -> None:
        stop.check()
        self.reporter.on_step(done, total)

    def _read(self, job: Job) -> DecodedImage:
        """The image, or the part of it that is run."""
        settings, name = self.settings, None
        source: Path | bytes | None = job.source
        if source is None:
            name = "standard input"
            source = read_stream(sys.stdin.buffer, name)
        image = read_image(source, name=name, max_pixels=settings.max_pixels, salvage=settings.salvage)
        return image.cropped(*settings.preview) if settings.preview else image

    def _warn(self, job: Job, image: DecodedImage, format: str) -> None:
        """Say what was wrong with a file, and once per run what a file of the format has no place for."""
        for warning in image.warnings:
            self.reporter.note(f"warning: {job.input_name}: {warning}")
        for what in not_carried(image, format):
            if (what, format) not in self._told:
                self._told.add((what, format))
                self.reporter.note(f"warning: {format} has no place for {what}; it is left out")

    def _write(self, job: Job, image: DecodedImage, decision: Decision) -> None:
        if job.destination is None:
            write_to_stdout(encode_image(image, format_for(job, image, self.settings), self.settings.encoding))
            return
        self._folders.make(job.destination.parent)
        note = partial(self._note_made, job.destination, decision.source)
        mode = mode_like(job.source) if job.source else 0o666
        how: dict[str, Any] = {"replace": decision.what == REDO, "parents": False, "before": note, "mode": mode}
        write_image(image, job.destination, encoding=self.settings.encoding, **how)

    def _note_made(self, output: Path, source: str, file: Path) -> None:
        """Note an image that is whole, and about to be put in place."""
        if self.record is not None:
            self.record.done(output, source, self.decider.options, file)

    def _video(self, job: Job, decision: Decision) -> Record:
        def placing(file: Path) -> None:
            if job.destination is not None:
                self._note_made(job.destination, decision.source, file)

        if job.destination is not None:
            self._folders.make(job.destination.parent)
        run = VideoRun(self.settings, self.pipeline, self.extra_images, self.reporter)
        return {"ok": True} | run.record_of(job, placing)

    def _report(self, job: Job, outcome: Record) -> None:
        source, _ = outcome.pop("sha256", ""), outcome.pop(SHORT_OF_MEMORY, None)
        if outcome["ok"]:
            self.done += 1
            self.reporter.finish(f"{job.input_name} -> {job.output_name}: {summary(outcome)}")
        else:
            named = outcome["error"].startswith((f"{job.input_name} ", f"{job.input_name}: "))
            self.failures.append(outcome["error"] if named else f"{job.input_name}: {outcome['error']}")
            self.reporter.error(self.failures[-1])
        self._note_in_record(job, outcome, source)
        self.records.append({"input": job.input_name, "output": job.output_name} | outcome)
        if self.settings.json:
            try:
                click.echo(json.dumps(self.records[-1]))
            except BrokenPipeError:
                raise
            except OSError as error:
                raise OutputError(f"cannot write to standard output: {error.strerror or error}") from error

    def _note_in_record(self, job: Job, outcome: Record, source: str) -> None:
        if self.record is None or job.destination is None or outcome.get("skipped"):
            return
        if outcome["ok"]:
            if job.video:
                self.record.done(job.destination, source, self.decider.options)
        elif self.record.done_as_before(job.destination) is None:
            self.record.failed(job.destination, source, self.decider.options, outcome["error"])


def _is_alone(job: Job) -> bool:
    """Whether a job is done where Ctrl-C ends a wait: what it reads may have to be waited for."""
    return job.video or job.source is None
