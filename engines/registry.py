"""The table of backends. An error about one that cannot run here says what to install."""

import importlib
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from uid.engines.contract import Backend, Report
from uid.errors import BackendError, BundleError, printable
from uid.install import how_to_install

PROBE = Path(__file__).with_name("probe.onnx")  # y = Identity(x), float32[1]


@dataclass(frozen=True)
class BackendEntry:
    """Where a backend is made, and what brings it."""

    factory: str  # "module:function" taking the thread count, imported when first used
    distributions: tuple[str, ...]  # any of these brings it
    install: str  # how to install it when none of them is there; or the extra that brings it, in brackets
    needs: str = ""  # what else it takes
    device: str = "cpu"  # "cpu" or "cuda", where it computes

    def remedy(self) -> str:
        """The command that installs it, and what else it takes."""
        command = how_to_install(self.install[1:-1]) if self.install.startswith("[") else self.install
        return f"{command}; needs {self.needs}" if self.needs else command


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend works on this machine, and its version or what it lacks."""

    name: str
    available: bool
    detail: str


def wheels(name: str) -> tuple[str, ...]:
    """What the distribution of a TensorRT may be called: the whole of it, for one CUDA, or its Python module alone."""
    return (name, *(f"{name}-{cuda}{part}" for cuda in ("cu13", "cu12") for part in ("", "-bindings")))


# In the order in which "auto" tries them: the fastest first, as measured (docs/engine-notes.md).
BACKENDS = {
    "tensorrt": BackendEntry(
        "uid.engines.trt.backend:create_tensorrt",
        wheels("tensorrt"),
        "[tensorrt]",
        "an NVIDIA GPU and driver",
        device="cuda",
    ),
    "tensorrt-rtx": BackendEntry(
        "uid.engines.trt.backend:create_tensorrt_rtx",
        wheels("tensorrt-rtx"),
        "[tensorrt-rtx]",
        "an NVIDIA RTX GPU and driver",
        device="cuda",
    ),
    "onnxruntime-cuda": BackendEntry(
        "uid.engines.ort.cuda:create_cuda",
        ("onnxruntime-gpu",),
        "[cuda]",
        "an NVIDIA GPU and driver",
        device="cuda",
    ),
    "openvino-bf16": BackendEntry("uid.engines.openvino_cpu:create_bf16", ("openvino",), "[openvino]"),
    "onnxruntime": BackendEntry(
        "uid.engines.ort.cpu:create_cpu",
        # All of them bring the CPU too.
        ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-trt-rtx"),
        "pip install onnxruntime",
    ),
    "openvino": BackendEntry("uid.engines.openvino_cpu:create_f32", ("openvino",), "[openvino]"),
}


def create(name: str = "auto", *, threads: int | None = None, report: Report | None = None) -> Backend:
    """Make the backend called ``name``; "auto" takes the one that ``$UID_BACKEND`` names, or the first that works here.

    ``threads`` limits the CPU threads (None: one per core). ``report`` receives what takes long, such as an engine that
    is built (None: nothing does). Raises ``BackendError`` for an unknown name, or when the backend cannot run here.
    """
    if name == "auto":
        name = os.environ.get("UID_BACKEND") or first_working()
    backend = made(name, threads)
    if report is not None:
        backend.report = lambda line: report(printable(line))
    if backend.doubt:
        check(backend)
        backend.report(backend.doubt)
    return backend


def made(name: str, threads: int | None) -> Backend:
    """The backend called ``name``, not tried yet."""
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}; expected auto, {', '.join(BACKENDS)}")
    entry = BACKENDS[name]
    if not installed(entry):
        raise BackendError(f"backend {name} is not installed: {entry.remedy()}")
    module, function = entry.factory.split(":")
    try:
        backend: Backend = getattr(importlib.import_module(module), function)(threads)
    except ImportError as error:
        raise BackendError(f"backend {name} does not load: {error}. To mend it: {entry.remedy()}") from error
    return backend


def first_working() -> str:
    """Name of the first backend that works here; those after it are not tried."""
    for name in BACKENDS:
        if probe(name).available:
            return name
    raise BackendError("no backend works here; `uid-run doctor` says what to install")


def report() -> list[BackendStatus]:
    """Every backend with whether it works here, in order of preference."""
    return [probe(name) for name in BACKENDS]


def probe(name: str) -> BackendStatus:
    """Try a backend: what computes is trusted, not what claims that it could."""
    try:
        check(made(name, None))
    except (BackendError, BundleError) as error:
        return BackendStatus(name, False, str(error))
    return BackendStatus(name, True, installed(BACKENDS[name]))


def check(backend: Backend) -> None:
    """Run a one-node graph; raises ``BackendError`` if it computes something else."""
    x, y = (backend.allocate((1,), np.dtype(np.float32)) for _ in range(2))
    x.write(np.ones(1, np.float32))
    backend.load(PROBE).bind({"x": x, "y": y})()
    if y.read() != 1:
        raise BackendError(f"backend {backend.name} computed {y.read()} where it should have copied 1; do not use it")


def installed(entry: BackendEntry) -> str:
    """Name and version of the distribution that brings a backend, or "" when there is none."""
    for distribution in entry.distributions:
        try:
            return f"{distribution} {metadata.version(distribution)}"
        except metadata.PackageNotFoundError:
            continue
    return ""
