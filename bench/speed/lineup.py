"""Who runs in a measurement: backends, the PyTorch reference in its kinds, and whose image is the right one."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from uid.bench.speed.oracle import Oracle, Terms, read_oracle
from uid.bench.speed.runners import Task
from uid.bench.speed.workers import Spec, Worker
from uid.bundles.manifest import Bundle
from uid.engines import BACKENDS, BackendStatus, installed, probe
from uid.errors import BackendError, InputError

PYTORCH, ONNXRUNTIME = "pytorch", "onnxruntime"
# The reference's kinds by name, and what each has of ``TorchRunner``.
REFERENCES: dict[str, dict[str, bool]] = {
    PYTORCH: {},
    "pytorch-compiled": {"compiled": True},
    "pytorch-fp16": {"half": True},
    "pytorch-fp16-channels-last": {"half": True, "channels_last": True},
    "pytorch-fp16-compiled": {"half": True, "compiled": True},
}
ORACLE_WORDS = f"{PYTORCH}, fp32"

Size = tuple[int, int]  # height and width in pixels
Report = Callable[[str], None]


@dataclass(frozen=True)
class Runner:
    """What is timed, and what measures its library's peak rates, in a process of its own, for that takes memory."""

    name: str
    pictures: Spec
    roofline: Spec


@dataclass(frozen=True)
class Measurement:
    """What is measured, and how often."""

    bundle: Bundle
    task: Task
    runners: tuple[Runner, ...]
    oracle: Runner | Oracle  # whose image all others are held against
    against: str  # what it is, in words
    sizes: tuple[Size, ...]
    steps: tuple[int, ...]
    repeats: int = 7
    warm_up: int = 2
    dtype: DTypeLike = np.uint8  # of the images, as most come
    peaks: bool = True  # whether to measure the peak rates of the libraries


def plan(
    bundle: Bundle,
    *,
    checkpoint: Path | None,
    backends: Sequence[str],
    sizes: Sequence[Size],
    steps: Sequence[int],
    threads: int | None,
    report: Report,
    oracle: Path | None = None,
    tile: int | None = None,
    **more: Any,
) -> Measurement:
    """Which runners there are, and which of them is the oracle: PyTorch if it can be, or else ONNX Runtime on the CPU.

    ``backends`` may name some of ``REFERENCES`` too, which need ``checkpoint``; none: all backends that work here.
    ``oracle`` is an image that was kept: with it PyTorch runs only where it is named. ``tile`` is the side of the
    tiles that images run in; None: whole. Raises ``BackendError`` for a backend that was named and does not work,
    ``InputError`` for what does not go together.
    """
    if tile is not None and checkpoint is not None:
        raise InputError("PyTorch runs images whole: leave --tile or --checkpoint out")
    task = Task(bundle.folder, bundle.guidance, 0, threads or usable_cores(), tile)
    named = [name for name in dict.fromkeys(backends) if name in REFERENCES]
    others = [name for name in backends if name not in REFERENCES]
    engines = working(others) if others or not named else []
    runners = [backend_runner(name, task, bundle.precision) for name in engines]
    runners += reference_runners(named, task, checkpoint, oracle is None, report)
    sizes, steps = tuple(sizes or [default_size(bundle)]), tuple(steps or [bundle.steps])
    judge: Runner | Oracle
    judge, against = backend_runner(ONNXRUNTIME, task, bundle.precision), f"{ONNXRUNTIME}, {bundle.precision} bundle"
    if oracle is not None:
        judge = kept_oracle(oracle, task, sizes, steps)
        against = judge.against
    elif any(runner.name == PYTORCH for runner in runners):
        judge, against = next(runner for runner in runners if runner.name == PYTORCH), ORACLE_WORDS
    return Measurement(bundle, task, tuple(runners), judge, against, sizes, steps, **more)


def reference_runners(
    named: Sequence[str], task: Task, checkpoint: Path | None, judges: bool, report: Report
) -> list[Runner]:
    """The reference as it is named; in float32 too where it ``judges`` the others."""
    if checkpoint is None:
        if named:
            raise InputError(f"{named[0]} needs the PyTorch model: give --checkpoint, or leave it out")
        return []
    wanted = dict.fromkeys([PYTORCH, *named] if judges else named)
    if wanted and importlib.util.find_spec("torch") is None:
        report("pytorch left out: torch is not installed; pip install 'uid-runtime[export]'")
        return []
    return [torch_runner(name, task, checkpoint) for name in wanted]


def kept_oracle(path: Path, task: Task, sizes: Sequence[Size], steps: Sequence[int]) -> Oracle:
    """An image that was kept, if it is of the one size and number of steps that are to be run."""
    if len(sizes) > 1 or len(steps) > 1:
        raise InputError("the oracle is one image: give one --size and one --steps with it")
    kept = read_oracle(path)
    kept.check(Terms(*sizes[0], steps[0], task.guidance, task.seed))
    return kept


def working(names: Sequence[str]) -> list[str]:
    """The named backends, each of which must work; no names: those that do.

    Each is tried in a process of its own, which may crash, and which gives back what it took of a GPU.
    """
    if not names:
        return [name for name in BACKENDS if tried(name).available]
    for name in names:
        status = tried(name)
        if not status.available:
            raise BackendError(status.detail)
    return list(dict.fromkeys(names))


def tried(name: str) -> BackendStatus:
    """Whether a backend works here."""
    if name not in BACKENDS or not installed(BACKENDS[name]):
        return probe(name)  # which then loads nothing
    try:
        with Worker(Spec(name, "uid.bench.speed.runners:Trial", (name,))) as worker:
            status: BackendStatus = worker.call("status")
            return status
    except BackendError as error:
        return BackendStatus(name, False, str(error))


def backend_runner(name: str, task: Task, precision: str) -> Runner:
    """A bundle on a backend."""
    roofline = Spec(name, "uid.bench.speed.roofline:EngineRoofline", (name, task.threads, precision))
    return Runner(name, Spec(name, "uid.bench.speed.runners:EngineRunner", (task, name)), roofline)


def torch_runner(name: str, task: Task, checkpoint: Path) -> Runner:
    """One of ``REFERENCES``."""
    flags = {"half": False, "compiled": False, "channels_last": False, **REFERENCES[name]}
    pictures = Spec(name, "uid.bench.speed.runners:TorchRunner", (task, checkpoint, *flags.values()))
    precise = f"{PYTORCH}-fp16" if flags["half"] else PYTORCH
    roofline = Spec(precise, "uid.bench.speed.roofline:TorchRoofline", (task.threads, flags["half"]))
    return Runner(name, pictures, roofline)


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_size(bundle: Bundle) -> Size:
    """512 x 512, which Stable Diffusion 1.5 is made for, or the bundle's tile where that is smaller."""
    side = min(512, bundle.tile)
    return side, side
