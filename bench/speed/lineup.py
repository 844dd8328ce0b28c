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
from uid.bundles.declarations import Bundle
from uid.engines import BACKENDS, BackendStatus, installed, probe
from uid.errors import BackendError, InputError
from uid.install import how_to_install

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


@dataclass(frozen=True)
class Choice:
    """What a user chose to measure; what is left out has a default that fits the bundle."""

    checkpoint: Path | None = None  # what the bundle was exported from, for PyTorch
    backends: Sequence[str] = ()  # or kinds of the reference; none: all backends that work here
    sizes: Sequence[Size] = ()  # none: ``default_size``
    steps: Sequence[int] = ()  # none: the bundle's
    threads: int | None = None  # None: every core that this process may use
    oracle: Path | None = None  # a stored image; None: one that is made now
    tile: int | None = None  # side of the tiles that images run in; None: whole


def plan(bundle: Bundle, choice: Choice, report: Report, **more: Any) -> Measurement:
    """Which runners there are, and which of them is the oracle: PyTorch if it can be, or else ONNX Runtime on the CPU.

    With a stored oracle PyTorch runs only where it is named. ``more`` are further fields of ``Measurement``. Raises
    ``BackendError`` for a backend that was named and does not work, ``InputError`` for choices that contradict.
    """
    if choice.tile is not None and choice.checkpoint is not None:
        raise InputError("PyTorch runs images whole: leave the tile or the checkpoint out", option="tile")
    task = Task(bundle.folder, bundle.guidance, 0, choice.threads or usable_cores(), choice.tile)
    runners = chosen_runners(bundle, task, choice.checkpoint, choice.backends, choice.oracle is None, report)
    sizes, steps = tuple(choice.sizes or [default_size(bundle)]), tuple(choice.steps or [bundle.steps])
    judge, against = chosen_oracle(bundle, task, runners)
    if choice.oracle is not None:
        judge = stored_oracle(choice.oracle, task, sizes, steps)
        against = judge.against
    return Measurement(bundle, task, tuple(runners), judge, against, sizes, steps, **more)


def chosen_runners(
    bundle: Bundle, task: Task, checkpoint: Path | None, names: Sequence[str], judges: bool, report: Report
) -> list[Runner]:
    """The runners that are named, or all that work here; PyTorch too where it ``judges`` the others."""
    named = [name for name in dict.fromkeys(names) if name in REFERENCES]
    others = [name for name in names if name not in REFERENCES]
    engines = working(others) if others or not named else []
    runners = [backend_runner(name, task, bundle.precision) for name in engines]
    return runners + reference_runners(named, task, checkpoint, judges, report)


def chosen_oracle(bundle: Bundle, task: Task, runners: Sequence[Runner]) -> tuple[Runner | Oracle, str]:
    """Whose image is the right one, and its name in words: PyTorch where it runs, or else ONNX Runtime on the CPU."""
    for runner in runners:
        if runner.name == PYTORCH:
            return runner, ORACLE_WORDS
    return backend_runner(ONNXRUNTIME, task, bundle.precision), f"{ONNXRUNTIME}, {bundle.precision} bundle"


def reference_runners(
    named: Sequence[str], task: Task, checkpoint: Path | None, judges: bool, report: Report
) -> list[Runner]:
    """The reference as it is named; in float32 too where it ``judges`` the others."""
    if checkpoint is None:
        if named:
            raise InputError(
                f"{named[0]} needs the PyTorch model: give its checkpoint, or leave it out", option="checkpoint"
            )
        return []
    wanted = dict.fromkeys([PYTORCH, *named] if judges else named)
    if wanted and importlib.util.find_spec("torch") is None:
        report(f"pytorch left out: torch is not installed; {how_to_install('export')}")
        return []
    return [torch_runner(name, task, checkpoint) for name in wanted]


def stored_oracle(path: Path, task: Task, sizes: Sequence[Size], steps: Sequence[int]) -> Oracle:
    """An image that was stored, if it is of the one size and number of steps that are to be run."""
    if len(sizes) > 1 or len(steps) > 1:
        raise InputError("the oracle is one image: give one size and one number of steps with it", option="oracle")
    stored = read_oracle(path)
    stored.check(Terms(*sizes[0], steps[0], task.guidance, task.seed))
    return stored


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
