"""Pictures by every runner in turn, each in its own process, and each picture held against the reference's.

The turns are what makes times comparable: what slows the machine for a while slows every runner, and which runner goes
first changes from repeat to repeat.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import DTypeLike

from uid.bench.ceiling import Ceiling
from uid.bench.flops import picture_flops
from uid.bench.rows import Row, device, gpu_memory, gpus, versions
from uid.bench.runners import Picture, Task
from uid.bench.workers import Spec, Worker
from uid.engines import Array, probe
from uid.engines import report as backends_here
from uid.errors import BackendError, InputError
from uid.runtime.bundle import Bundle
from uid.runtime.pixels import padded

PYTORCH, ONNXRUNTIME = "pytorch", "onnxruntime"
PSNR_CAP = 100.0  # dB, for equal pictures: JSON has no infinity

Size = tuple[int, int]  # height and width in pixels
Report = Callable[[str], None]


@dataclass(frozen=True)
class Runner:
    """What is timed, and what its library can do at most; the latter in a process of its own, for it takes memory."""

    name: str
    pictures: Spec
    ceiling: Spec


@dataclass(frozen=True)
class Measurement:
    """What is measured, and how often."""

    bundle: Bundle
    task: Task
    runners: tuple[Runner, ...]
    oracle: Runner  # whose pictures all others are held against
    against: str  # what it is, in words
    sizes: tuple[Size, ...]
    steps: tuple[int, ...]
    repeats: int = 7
    warm_up: int = 2
    dtype: DTypeLike = np.uint8  # of the pictures, as most come


# -- who runs ---------------------------------------------------------------------------------------------------------


def plan(
    bundle: Bundle,
    *,
    checkpoint: Path | None,
    backends: Sequence[str],
    sizes: Sequence[Size],
    steps: Sequence[int],
    threads: int | None,
    report: Report,
    half: bool = False,
    compiled: bool = False,
    tile: int | None = None,
    **more: Any,
) -> Measurement:
    """Which runners there are, and which of them is the oracle: PyTorch if it can be, or else ONNX Runtime on the CPU.

    No ``backends``: all that work here. ``half`` adds PyTorch in float16, and ``compiled`` the last of these through
    torch.compile. ``tile`` is the side of the tiles that pictures run in; None: whole. Raises ``BackendError`` for a
    backend that was named and does not work, ``InputError`` for ``half`` or ``compiled`` without ``checkpoint`` and
    ``tile`` with it.
    """
    if (half or compiled) and checkpoint is None:
        raise InputError("--half and --compile need the PyTorch model: give --checkpoint, or leave them out")
    if tile is not None and checkpoint is not None:
        raise InputError("PyTorch runs pictures whole: leave --tile or --checkpoint out")
    task = Task(bundle.folder, bundle.guidance, 0, threads or usable_cores(), tile)
    runners = [backend_runner(name, task, bundle.precision) for name in working(backends)]
    oracle, against = backend_runner(ONNXRUNTIME, task, bundle.precision), f"{ONNXRUNTIME}, {bundle.precision} bundle"
    if checkpoint is not None and importlib.util.find_spec("torch") is None:
        report("pytorch left out: torch is not installed; pip install 'uid-runtime[export]'")
    elif checkpoint is not None:
        oracle, against = torch_runner(task, checkpoint), f"{PYTORCH}, fp32"
        runners.append(oracle)
        if half:
            runners.append(torch_runner(task, checkpoint, half=True))
        if compiled:
            runners.append(torch_runner(task, checkpoint, half=half, compiled=True))
    sizes, steps = tuple(sizes or [default_size(bundle)]), tuple(steps or [bundle.steps])
    return Measurement(bundle, task, tuple(runners), oracle, against, sizes, steps, **more)


def working(names: Sequence[str]) -> list[str]:
    """The named backends, each of which must work; no names: those that do."""
    if not names:
        return [status.name for status in backends_here() if status.available]
    for name in names:
        status = probe(name)
        if not status.available:
            raise BackendError(status.detail)
    return list(dict.fromkeys(names))


def backend_runner(name: str, task: Task, precision: str) -> Runner:
    """A bundle on a backend."""
    ceiling = Spec(name, "uid.bench.ceiling:EngineCeiling", (name, task.threads, precision))
    return Runner(name, Spec(name, "uid.bench.runners:EngineRunner", (task, name)), ceiling)


def torch_runner(task: Task, checkpoint: Path, *, half: bool = False, compiled: bool = False) -> Runner:
    """The reference."""
    precise = f"{PYTORCH}-fp16" if half else PYTORCH
    name = f"{precise}-compiled" if compiled else precise
    pictures = Spec(name, "uid.bench.runners:TorchRunner", (task, checkpoint, half, compiled))
    return Runner(name, pictures, Spec(precise, "uid.bench.ceiling:TorchCeiling", (task.threads, half)))


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_size(bundle: Bundle) -> Size:
    """512 x 512, which Stable Diffusion 1.5 is made for, or the bundle's tile where that is smaller."""
    side = min(512, bundle.tile)
    return side, side


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Crew:
    """Runners that still run, by name; one that fails leaves, and the report says why."""

    workers: dict[str, Worker]
    report: Report

    def drop(self, name: str, error: BackendError) -> None:
        """Go on without a runner."""
        self.report(f"{error}; the others go on")
        self.workers.pop(name).close()

    def turn(self, number: int, image: Array, steps: int) -> Iterator[tuple[str, Picture]]:
        """One picture by each, another one going first in each turn."""
        names = list(self.workers)
        first = number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            try:
                yield name, self.workers[name].call("run", image, steps)
            except BackendError as error:
                self.drop(name, error)


def measure(measurement: Measurement, report: Report) -> list[Row]:
    """Every size, number of steps and repeat by every runner. ``report`` is told what happens, and what fails.

    Raises ``BackendError`` when the oracle fails, without which no row could say whether it is right.
    """
    ceilings = measured_ceilings(measurement.runners, report)
    runners = tuple(runner for runner in measurement.runners if runner.name in ceilings)
    measurement = replace(measurement, runners=runners)
    rows: list[Row] = []
    for size in measurement.sizes:
        image = sample_picture(*size, measurement.dtype)
        expected = oracle_pictures(measurement, image, report)
        # A process per size: the peak of its memory never falls again.
        with started(measurement, image, report) as (crew, starts):
            for steps in measurement.steps:
                row = row_maker(measurement, ceilings, starts, expected[steps], size, steps)
                for number in range(-measurement.warm_up, measurement.repeats):
                    taken = list(crew.turn(number, image, steps))
                    rows += [row(name, number, picture) for name, picture in taken if number >= 0]
                report(f"{size[0]}x{size[1]}, {steps} steps: {', '.join(crew.workers) or 'no runner left'}")
    return rows


def measured_ceilings(runners: Sequence[Runner], report: Report) -> dict[str, Ceiling]:
    """Best rates by runner; a runner without is left out. Those of one library are measured once."""
    measured: dict[Spec, Ceiling] = {}
    for spec in dict.fromkeys(runner.ceiling for runner in runners):
        report(f"{spec.name}: what it can do at most")
        try:
            with Worker(spec) as worker:
                measured[spec] = worker.call("measure")
        except BackendError as error:
            report(f"{error}; left out")
    return {runner.name: measured[runner.ceiling] for runner in runners if runner.ceiling in measured}


def oracle_pictures(measurement: Measurement, image: Array, report: Report) -> dict[int, Array]:
    """What every picture should be, by the number of steps."""
    report(f"{measurement.against}: pictures to compare with")
    with Worker(measurement.oracle.pictures) as worker:
        return {steps: worker.call("run", image, steps).image for steps in measurement.steps}


@dataclass(frozen=True)
class Start:
    """What it takes before a runner is ready."""

    load_seconds: float
    gpu_bytes: int  # of the GPUs' memory that were taken meanwhile


@contextmanager
def started(measurement: Measurement, image: Array, report: Report) -> Iterator[tuple[Crew, dict[str, Start]]]:
    """The runners, each ready for pictures of this size, and what this took; one after the other."""
    with ExitStack() as stack:
        crew, starts = Crew({}, report), {}
        for runner in measurement.runners:
            report(f"{runner.name}: loading")
            taken = gpu_memory()
            try:
                worker = stack.enter_context(Worker(runner.pictures))
                worker.call("run", image, 1)
                first = time.perf_counter() - worker.started
                seconds = max(0.0, first - worker.call("run", image, 1).seconds)
                if gpus():  # no library gives back what it took; a graph of more steps takes more
                    worker.call("run", image, max(measurement.steps))
                starts[runner.name] = Start(seconds, gpu_memory() - taken)
                crew.workers[runner.name] = worker
            except BackendError as error:
                report(f"{error}; the others go on")
        yield crew, starts


def row_maker(
    measurement: Measurement,
    ceilings: Mapping[str, Ceiling],
    starts: Mapping[str, Start],
    expected: Array,
    size: Size,
    steps: int,
) -> Callable[[str, int, Picture], Row]:
    """Makes rows of one size and number of steps."""
    bundle, task = measurement.bundle, measurement.task
    flops = sum(picture_flops(bundle, *padded(size, bundle.size_multiple), steps).values())
    here, found = device(), versions()

    def row(name: str, repeat: int, picture: Picture) -> Row:
        psnr, difference = agreement(picture.image, expected)
        return Row(
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
            flops=flops,
            flop_ceiling=ceilings[name].flops,
            copy_ceiling=ceilings[name].copy,
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
    """PSNR in dB, at most ``PSNR_CAP``, and the largest difference, of 1.0; a picture of another shape has none."""
    if image.shape != expected.shape or image.dtype != expected.dtype:
        return 0.0, 1.0
    white = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1
    difference = np.abs(image.astype(np.float64) - expected) / white
    if not np.isfinite(difference).all():
        return 0.0, 1.0
    error = float(np.square(difference).mean())
    return min(PSNR_CAP, -10.0 * np.log10(error)) if error else PSNR_CAP, float(difference.max())
