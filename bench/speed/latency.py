"""Images by every runner in turn, each in its own process, and each image held against the reference's.

The turns are what makes times comparable: what slows the machine for a while slows every runner, and which runner goes
first changes from repeat to repeat.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import DTypeLike

from uid.bench.rows import LatencyRow, device, gpu_memory, gpus, versions
from uid.bench.speed.flops import picture_flops
from uid.bench.speed.lineup import (
    ONNXRUNTIME,
    ORACLE_WORDS,
    PYTORCH,
    Measurement,
    Report,
    Runner,
    Size,
    backend_runner,
    default_size,
    torch_runner,
    usable_cores,
)
from uid.bench.speed.oracle import Oracle, Terms
from uid.bench.speed.roofline import Roofline
from uid.bench.speed.runners import Task, TimedImage
from uid.bench.speed.workers import Spec, Worker
from uid.bundles.declarations import Bundle
from uid.bundles.tensors import Array
from uid.errors import BackendError
from uid.runtime.pixels import padded

NOT_MEASURED = Roofline(0.0, 0.0)
PSNR_CAP = 100.0  # dB, for equal images: JSON has no infinity


@dataclass
class Crew:
    """Runners that still run, by name; one that fails leaves, and the report says why."""

    workers: dict[str, Worker]
    report: Report

    def drop(self, name: str, error: BackendError) -> None:
        """Go on without a runner."""
        self.report(f"{error}; the others go on")
        self.workers.pop(name).close()

    def turn(self, number: int, image: Array, steps: int) -> Iterator[tuple[str, TimedImage]]:
        """One image by each, another one going first in each turn."""
        names = list(self.workers)
        first = number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            try:
                yield name, self.workers[name].call("run", image, steps)
            except BackendError as error:
                self.drop(name, error)


def measure(measurement: Measurement, report: Report) -> Iterator[LatencyRow]:
    """Every size, number of steps and repeat by every runner, as they are made.

    ``report`` is told what happens, and what fails. Raises ``BackendError`` when the oracle fails, without which no row
    could say whether it is right.
    """
    peaks = {runner.name: NOT_MEASURED for runner in measurement.runners}
    if measurement.peaks:
        peaks = measured_peaks(measurement.runners, report)
    runners = tuple(runner for runner in measurement.runners if runner.name in peaks)
    measurement = replace(measurement, runners=runners)
    for size in measurement.sizes:
        image = sample_picture(*size, measurement.dtype)
        expected = oracle_pictures(measurement, image, report)
        # A process per size: the peak of its memory never falls again.
        with started(measurement, image, report) as (crew, starts):
            for steps in measurement.steps:
                row = row_maker(measurement, peaks, starts, expected[steps], size, steps)
                for number in range(-measurement.warm_up, measurement.repeats):
                    for name, picture in crew.turn(number, image, steps):
                        if number >= 0:
                            yield row(name, number, picture)
                report(f"{size[0]}x{size[1]}, {steps} steps: {', '.join(crew.workers) or 'no runner left'}")


def measured_peaks(runners: Sequence[Runner], report: Report) -> dict[str, Roofline]:
    """Peak rates by runner; a runner without is left out. Those of one library are measured once."""
    measured: dict[Spec, Roofline] = {}
    for spec in dict.fromkeys(runner.roofline for runner in runners):
        report(f"{spec.name}: measuring its peak rates")
        try:
            with Worker(spec) as worker:
                measured[spec] = worker.call("measure")
        except BackendError as error:
            report(f"{error}; left out")
    return {runner.name: measured[runner.roofline] for runner in runners if runner.roofline in measured}


def oracle_pictures(measurement: Measurement, image: Array, report: Report) -> dict[int, Array]:
    """What every image should be, by the number of steps."""
    if isinstance(measurement.oracle, Oracle):
        return dict.fromkeys(measurement.steps, measurement.oracle.image)
    report(f"{measurement.against}: images to compare with")
    with Worker(measurement.oracle.pictures) as worker:
        return {steps: worker.call("run", image, steps).image for steps in measurement.steps}


def bundle_oracle(bundle: Bundle, size: Size | None, steps: int | None, threads: int | None) -> Oracle:
    """The bundle's image by ONNX Runtime on the CPU."""
    task = Task(bundle.folder, bundle.guidance, 0, threads or usable_cores())
    runner, against = backend_runner(ONNXRUNTIME, task, bundle.precision), f"{ONNXRUNTIME}, {bundle.precision} bundle"
    return made_by(runner, task, against, size or default_size(bundle), steps or bundle.steps)


def checkpoint_oracle(checkpoint: Path, size: Size | None, steps: int | None, threads: int | None) -> Oracle:
    """The checkpoint's image by PyTorch in float32."""
    from uid.families.registry import read_index

    index = read_index(checkpoint)
    task = Task(checkpoint, index["guidance"], 0, threads or usable_cores())
    runner, side = torch_runner(PYTORCH, task, checkpoint), min(512, index["tile"])
    return made_by(runner, task, ORACLE_WORDS, size or (side, side), steps or index["steps"])


def made_by(runner: Runner, task: Task, against: str, size: Size, steps: int) -> Oracle:
    """A runner's image, in a process of its own."""
    with Worker(runner.pictures) as worker:
        image = worker.call("run", sample_picture(*size), steps).image
    return Oracle(image, against, Terms(*size, steps, task.guidance, task.seed))


@dataclass(frozen=True)
class Start:
    """What it takes before a runner is ready."""

    load_seconds: float
    gpu_bytes: int  # of the GPUs' memory that were taken meanwhile


@contextmanager
def started(measurement: Measurement, image: Array, report: Report) -> Iterator[tuple[Crew, dict[str, Start]]]:
    """The runners, each ready for images of this size, and what this took; one after the other."""
    with ExitStack() as stack:
        crew, starts, few = Crew({}, report), {}, min(2, *measurement.steps)  # some samplers take no single step
        for runner in measurement.runners:
            report(f"{runner.name}: loading")
            taken = gpu_memory()
            try:
                worker = stack.enter_context(Worker(runner.pictures))
                worker.call("run", image, few)
                first = time.perf_counter() - worker.started
                seconds = max(0.0, first - worker.call("run", image, few).seconds)
                if gpus():  # no library gives back what it took; a graph of more steps takes more
                    worker.call("run", image, max(measurement.steps))
                starts[runner.name] = Start(seconds, gpu_memory() - taken)
                crew.workers[runner.name] = worker
            except BackendError as error:
                report(f"{error}; the others go on")
        yield crew, starts


def row_maker(
    measurement: Measurement,
    peaks: Mapping[str, Roofline],
    starts: Mapping[str, Start],
    expected: Array,
    size: Size,
    steps: int,
) -> Callable[[str, int, TimedImage], LatencyRow]:
    """Makes rows of one size and number of steps."""
    bundle, task = measurement.bundle, measurement.task
    flops = sum(picture_flops(bundle, *padded(size, bundle.size_multiple), steps).values())
    here, found = device(), versions()

    def row(name: str, repeat: int, picture: TimedImage) -> LatencyRow:
        psnr, difference = agreement(picture.image, expected)
        return LatencyRow(
            runner=name,
            height=size[0],
            width=size[1],
            steps=steps,
            repeat=repeat,
            seconds=picture.seconds,
            **picture.stages,
            load_seconds=starts[name].load_seconds,
            peak_bytes=picture.peak_bytes,
            gpu_bytes=starts[name].gpu_bytes,
            captured=picture.captured,
            flops=flops,
            flop_ceiling=peaks[name].flops,
            copy_ceiling=peaks[name].copy,
            psnr=psnr,
            max_difference=difference,
            against=measurement.against,
            threads=task.threads,
            bundle=bundle.name,
            trained=bundle.trained,
            precision=bundle.precision,
            guidance=task.guidance,
            seed=task.seed,
            device=here,
            versions=found,
            tile=task.tile,
        )

    return row


def sample_picture(height: int, width: int, dtype: DTypeLike = np.uint8) -> Array:
    """Smooth random colours with some grain, the same in every run: (H, W, 3), integers or floats in [0, 1]."""
    rng = np.random.default_rng(0)
    coarse = rng.random((max(2, height // 32), max(2, width // 32), 3), dtype=np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels = (smooth + 0.02 * rng.standard_normal(smooth.shape, dtype=np.float32)).clip(0.0, 1.0)
    return np.rint(pixels * 255).astype(np.uint8) if dtype == np.uint8 else pixels.astype(dtype)


def agreement(image: Array, expected: Array) -> tuple[float, float]:
    """PSNR in dB, at most ``PSNR_CAP``, and the largest difference, of 1.0; an image of another shape has none."""
    if image.shape != expected.shape or image.dtype != expected.dtype:
        return 0.0, 1.0
    white = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1
    difference = np.abs(image.astype(np.float64) - expected) / white
    if not np.isfinite(difference).all():
        return 0.0, 1.0
    error = float(np.square(difference).mean())
    return min(PSNR_CAP, -10.0 * np.log10(error)) if error else PSNR_CAP, float(difference.max())
