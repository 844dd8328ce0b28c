"""Rows of measurements: what each states beside its figures, and the files they go to."""

import csv
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uid import __version__
from uid.bundles.files import written_whole
from uid.engines.registry import wheels
from uid.engines.trt.library import MODULES
from uid.errors import InputError, OutputError

if TYPE_CHECKING:
    from uid.runtime.options import Options
    from uid.runtime.pipeline import Pipeline

VERSIONS = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "torch", "numpy")


@dataclass(frozen=True)
class LatencyRow:
    """One image by one runner, with all that a reader needs to judge the time."""

    runner: str  # a backend, or the PyTorch reference
    height: int  # pixels
    width: int
    steps: int
    repeat: int
    seconds: float  # of the whole image inside the runner's process, by the wall clock
    prepare: float  # seconds of each stage; step is all of the steps
    step: float
    finish: float
    load_seconds: float  # from the start of the process to the first image, less what that image takes afterwards
    peak_bytes: int  # the largest resident set of the process so far
    flops: int  # of the image run whole, counted from the bundle's graphs
    flop_ceiling: float  # FLOP/s of a large matrix product by the same library with the same threads; 0: not measured
    copy_ceiling: float  # bytes read and written a second by a large copy of the same kind
    psnr: float  # dB against the image of ``against``, at most 100
    max_difference: float  # from it, of 1.0
    against: str
    threads: int
    bundle: str
    trained: bool
    precision: str
    guidance: float
    seed: int
    device: str
    versions: dict[str, str]
    tile: int | None = None  # side of the tiles that it was run in, pixels; None: whole
    gpu_bytes: int = 0  # of the GPUs' memory that the runner's process took: its context, weights, buffers and graph
    captured: bool = False  # whether the backend ran the image in one piece, as one CUDA graph


# -- what a row states ------------------------------------------------------------------------------------------------


def setting(pipeline: "Pipeline", options: "Options") -> dict[str, Any]:
    """What every row of a quality measurement states beside its figures."""
    used = options.resolved(pipeline.bundle)
    return {
        "bundle": pipeline.bundle.name,
        "trained": pipeline.bundle.trained,
        "precision": pipeline.bundle.precision,
        "backend": pipeline.backend,
        "device": device(),
        "steps": used.steps,
        "transforms": used.transforms,
        "guidance": used.guidance,
        "seed": used.seed,
        "versions": versions(("onnxruntime", "onnxruntime-gpu", "openvino", "numpy")),
    }


def versions(distributions: Sequence[str] = VERSIONS) -> dict[str, str]:
    """Versions of this package, of Python, and of those distributions that are installed."""
    found = {"uid": __version__, "python": platform.python_version()}
    for name in distributions:
        for spelled in wheels(name) if name in MODULES else (name,):
            with suppress(metadata.PackageNotFoundError):
                found.setdefault(name, metadata.version(spelled))
    return found


def device() -> str:
    """The machine's processor and NVIDIA GPUs by name."""
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = match[1] if match else platform.processor() or platform.machine()
    return "; ".join([f"{name}, {os.cpu_count()} cores", *gpus()])


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the driver reports; none without a driver."""
    return ask_driver("name")


def gpu_memory() -> int:
    """Bytes of the GPUs' memory that all processes have taken, to a MiB each; 0 without a driver."""
    return sum(int(amount) << 20 for amount in ask_driver("memory.used") if amount.isdigit())


def ask_driver(what: str) -> list[str]:
    """A line from each GPU, without units; none without a driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines() if answer.returncode == 0 else []


# -- files ------------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: Iterable[Any], common: Mapping[str, Any] | None = None) -> None:
    """JSON Lines: each row with what is common to all. The file appears whole, or ``OutputError`` is raised."""
    lines = [json.dumps({**asdict(row), **(common or {})}, allow_nan=False) + "\n" for row in rows]
    with written_whole(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


class RowFile:
    """JSON Lines that grow row by row, so that a run that is cut off keeps what it measured.

    The first row takes the place of what the file held.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.mode = path, "w"

    def add(self, row: Any) -> None:
        """Write a row to the disk. Raises ``OutputError`` where that cannot be done."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open(self.mode, encoding="utf-8") as file:
                file.write(json.dumps(asdict(row), allow_nan=False) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.mode = "a"


def read_rows(path: Path) -> list[LatencyRow]:
    """The rows of ``uid-bench latency`` in a JSON Lines file; raises ``InputError`` for anything else."""
    names = {field.name for field in fields(LatencyRow)}
    needed = {field.name for field in fields(LatencyRow) if field.default is MISSING}
    rows = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            entry = json.loads(line)
            if not isinstance(entry, dict) or not needed <= entry.keys() <= names:
                raise InputError(f"{path}, line {number}: expected a row as `uid-bench latency -o` writes them")
            rows.append(LatencyRow(**entry))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON Lines: {error}") from error
    if not rows:
        raise InputError(f"{path} holds no row; expected the output of `uid-bench latency -o`")
    return rows


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """The rows of one kind as CSV, the versions in one cell."""
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(rows[0])])
        writer.writeheader()
        for row in rows:
            words = " ".join(f"{name} {version}" for name, version in row.versions.items())
            writer.writerow(asdict(row) | {"versions": words})


def write_png(path: Path, pixels: Any) -> None:
    """(H, W, 3) RGB uint8 to a PNG, whatever the suffix. Raises ``OutputError`` when it cannot be written."""
    import cv2

    _, data = cv2.imencode(".png", pixels[:, :, ::-1])
    with written_whole(path) as temporary:
        temporary.write_bytes(data.tobytes())
