"""The calls: which commands they run, what each may take, and what it cannot do without.

The order is that of truth per minute. Every runner has a command, and so a process, of its own: no two hold a GPU's
memory together. All images of a model and size are held against one, made once and kept.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uid.bench.speed.lineup import REFERENCES
from uid.bundles.declarations import built_in
from uid.bundles.manifest import MANIFEST

INDEX = "model_index.json"  # of a checkpoint
EXPORT = "export"


@dataclass(frozen=True)
class Command:
    """One command, and what it takes."""

    words: tuple[str, ...]
    limit: float  # seconds that it may take
    least: float = 5.0  # seconds that it takes at the very least: with fewer left it is not started
    needs: tuple[Path, ...] = ()  # what must be there; it is waited for while it is being made
    makes: Path | None = None  # where that is already there, it is not made again
    shows: int = 0  # lines of what it printed last that are shown


@dataclass(frozen=True)
class Call:
    """Commands that run one after another, within a budget of seconds."""

    seconds: float
    commands: Sequence[Command]

    def stretched(self, times: float) -> "Call":
        """The same with so many times the seconds."""
        commands = [replace(command, limit=times * command.limit) for command in self.commands]
        return Call(times * self.seconds, commands)


@dataclass(frozen=True)
class Scale:
    """What is measured."""

    preset: str  # of the random model that stands for the method at full size
    small: str  # of the one that is made while that is exported
    rtx: str  # backends
    ort: str
    square: str  # sizes of images
    wide: str
    steps: int  # of the model at full size
    patience: float = 1.0  # what budgets and limits, which are those of a lent GPU's host, are multiplied with


GPU = Scale("sd15", "edge", "tensorrt-rtx", "onnxruntime-cuda", "512x512", "720x1280", 30)
REHEARSAL = Scale("tiny", "tiny", "onnxruntime", "onnxruntime", "64x64", "64x96", 2, patience=6.0)  # on any CPU


@dataclass(frozen=True)
class CallModel:
    """A bundle, what it was exported from, and whose images its own are held against."""

    name: str
    bundle: Path
    checkpoint: Path | None = None  # None: held against ONNX Runtime on the CPU
    steps: int = 1
    alike: str = ""  # the model that makes the same images, of which the oracle is kept

    def oracle(self, size: str) -> Path:
        """The image that its images of this size are held against."""
        return self.bundle.with_name(f"oracle-{self.alike or self.name}-{size}.npz")


class CallPlan:
    """All calls. ``work`` is a folder for what is large; logs and rows are in ``work/results/CALL``."""

    def __init__(self, work: Path, scale: Scale) -> None:
        self.work, self.scale = work, scale
        self.made = CallModel("made", work / "made")
        self.edge = CallModel("edge", work / "edge")
        self.full = CallModel(scale.preset, work / "full", work / "checkpoint", scale.steps)
        self.plain = CallModel("edge-plain", work / "edge-plain", alike="edge")
        self.full_plain = replace(
            self.full, name=f"{scale.preset}-plain", bundle=work / "full-plain", alike=scale.preset
        )

    def calls(self) -> Mapping[str, Call]:
        """By name, in the order in which they are to be made; ``export`` is what goes on behind them."""
        planned = {
            "first": Call(180, [*self.look(), *self.first()]),
            "rtx": Call(240, self.rtx()),
            "ort": Call(240, self.ort()),
            "pytorch": Call(240, self.pytorch()),
            EXPORT: Call(900, self.export()),
        }
        return {name: call.stretched(self.scale.patience) for name, call in planned.items()}

    def results(self, call: str) -> Path:
        """Where a call's logs and rows are."""
        return self.work / "results" / call

    # -- the calls ----------------------------------------------------------------------------------------------------

    def look(self) -> list[Command]:
        """What machine this is, and whether the device layer works on it."""
        return [
            Command(("nvidia-smi",), 20, shows=12),
            Command((sys.executable, "-m", "pip", "list"), 30),
            Command(("uid-run", "doctor"), 60, shows=12),
            tests("tests/engines/test_cuda_device.py", limit=60, least=10),
        ]

    def first(self) -> list[Command]:
        """Whether TensorRT-RTX computes right here, on a random model of the built-in one's size, made here.

        The built-in one and what brings TensorRT-RTX are together too much for one transfer.
        """
        checkpoint, size = self.work / "made-checkpoint", self.scale.square
        return [
            *exported(self.scale.small, checkpoint, self.made, half=False, limits=(60, 120)),
            proof(self.made, self.scale.rtx, size),
            oracle(self.made, size),
            self.latency("first", self.made, self.scale.rtx, size, limit=60, least=15),
            tests("tests/engines/trt/test_on_gpu.py", "-k", "tensorrt-rtx", limit=120, least=45),
        ]

    def rtx(self) -> list[Command]:
        """The built-in model and the one at full size on TensorRT-RTX."""
        size = self.scale.square
        return [
            *self.edge_here(),
            self.latency("rtx", self.edge, self.scale.rtx, size, limit=60, least=15),
            oracle(self.full, size),
            self.latency("rtx", self.full, self.scale.rtx, size, limit=210, least=60),
        ]

    def ort(self) -> list[Command]:
        """ONNX Runtime on the graphs that were made for it, PyTorch without a compiler, and the portable graphs."""
        size, backend = self.scale.square, self.scale.ort
        return [
            *self.edge_here(),
            self.latency("ort", self.edge, backend, size, limit=60, least=15),
            oracle(self.full, size),
            self.latency("ort", self.full, backend, size, limit=120, least=40),
            self.latency("ort", self.full, "pytorch-fp16", size, limit=90, least=40),
            self.latency("ort", self.full, "pytorch-fp16-channels-last", size, limit=90, least=40),
            portable(self.full, self.full_plain),
            self.latency("ort", self.full_plain, backend, size, limit=90, least=40),
            portable(self.edge, self.plain),
            self.latency("ort", self.plain, backend, size, limit=60, least=15),
        ]

    def pytorch(self) -> list[Command]:
        """PyTorch compiled into CUDA graphs, and a wide image with what time is left."""
        square, wide = self.scale.square, self.scale.wide
        return [
            oracle(self.full, square),
            self.latency("pytorch", self.full, "pytorch-fp16-compiled", square, limit=200, least=100),
            oracle(self.full, wide),
            self.latency("pytorch", self.full, self.scale.rtx, wide, limit=150, least=60),
            self.latency("pytorch", self.full, "pytorch-fp16-channels-last", wide, limit=90, least=40),
        ]

    def export(self) -> list[Command]:
        """The random model at full size, in float16, which takes minutes of a CPU."""
        return exported(self.scale.preset, self.work / "checkpoint", self.full, half=True, limits=(300, 900))

    # -- what they share ----------------------------------------------------------------------------------------------

    def edge_here(self) -> list[Command]:
        """The built-in model where it stays: what is sent along with a later call may not hold it."""
        source = built_in()
        copy = ("cp", "-r", str(source), str(self.edge.bundle))
        return [
            Command(copy, 20, 1, (source / MANIFEST,), self.edge.bundle / MANIFEST),
            oracle(self.edge, self.scale.square),
        ]

    def latency(self, call: str, model: CallModel, runner: str, size: str, *, limit: float, least: float) -> Command:
        """One runner's images of a size."""
        rows = self.results(call) / f"{model.name}-{size}-{runner}.jsonl"
        words = ["-m", str(model.bundle), "--backend", runner, "--size", size, "--steps", str(model.steps)]
        words += ["--oracle", str(model.oracle(size))]
        if runner in REFERENCES:
            words += ["--checkpoint", str(model.checkpoint)]
        else:
            words += ["--no-peaks"]  # engines of ten sizes would be built for them
        words += ["--repeats", "5", "--warm-up", "1", "-o", str(rows)]
        needs = (model.bundle / MANIFEST, model.oracle(size))
        return Command(("uid-bench", "latency", *words), limit, least, needs, shows=8)  # its table


# -- commands ---------------------------------------------------------------------------------------------------------


def tests(file: str, *words: str, limit: float, least: float) -> Command:
    """The tests of a file that need a GPU."""
    pytest = (sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "--tb=short", file, *words)
    return Command(pytest, limit, least, shows=2)  # how many there were, and why the last one was skipped


def exported(
    preset: str, checkpoint: Path, model: CallModel, *, half: bool, limits: tuple[float, float]
) -> list[Command]:
    """A random checkpoint and its bundle, in float32 or float16; ``limits`` in seconds of the two."""
    random = ("uid-export", "random", preset, str(checkpoint), *(["--half"] if half else []))
    bundle = ("uid-export", "bundle", str(checkpoint), "-o", str(model.bundle), "--image-steps", "1")
    precision, index = ("--precision", "fp16" if half else "fp32"), checkpoint / INDEX
    return [
        Command(random, limits[0], makes=index),
        Command((*bundle, *precision), limits[1], 20, (index,), model.bundle / MANIFEST),
    ]


def proof(model: CallModel, backend: str, size: str) -> Command:
    """Whether a backend computes right: no library's own word is taken for it."""
    words = (sys.executable, "-m", "uid.bench.hardware.proof", str(model.bundle), backend, size)
    return Command(words, 90, 15, (model.bundle / MANIFEST,), shows=1)


def oracle(model: CallModel, size: str) -> Command:
    """The image that others are held against."""
    source = ("-m", str(model.bundle)) if model.checkpoint is None else ("--checkpoint", str(model.checkpoint))
    needs = model.bundle / MANIFEST if model.checkpoint is None else model.checkpoint / INDEX
    path, terms = model.oracle(size), ("--size", size, "--steps", str(model.steps))
    return Command(("uid-bench", "oracle", *source, *terms, "-o", str(path)), 90, 10, (needs,), path)


def portable(model: CallModel, copy: CallModel) -> Command:
    """The same bundle without what was made of its graphs for one library."""
    words = (sys.executable, "-m", "uid.bench.hardware.portable", str(model.bundle), str(copy.bundle))
    return Command(words, 30, 5, (model.bundle / MANIFEST,), copy.bundle / MANIFEST, shows=4)
