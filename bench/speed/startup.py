"""``uid-run`` as a whole process on a small image: where the seconds go before the first pixel comes out.

And the same image by the PyTorch reference, which is what the process would be without an export.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from uid.bench.rows import device, versions, write_png
from uid.bench.speed.latency import sample_picture
from uid.bench.speed.lineup import PYTORCH, Size
from uid.bundles.declarations import Bundle
from uid.bundles.tensors import Array
from uid.errors import BackendError

# What each imports before it reads its model, and the backend's library.
IMPORTS = "import uid.runtime.app.cli, uid.runtime.media.decode, uid.runtime.pipeline; uid.engines.create({backend!r})"
TORCH_IMPORTS = "import uid.families.uid_diff.checkpoint, uid.runtime.media.decode, uid.runtime.pipeline"


@dataclass(frozen=True)
class StartRow:
    """One start. The stages are differences between whole processes that go ever further, so they add up."""

    backend: str
    height: int  # pixels
    width: int
    steps: int
    repeat: int
    seconds: float  # the whole process, by the wall clock
    interpreter: float  # a Python that does nothing
    imports: float  # of uid-run, and of the backend's library
    load: float  # bundle with its hashes, sessions, reading and writing the image
    compute: float  # prepare, step and finish
    threads: int
    bundle: str
    trained: bool
    precision: str
    device: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Repeats:
    """How often a process is started, and with how many threads."""

    threads: int
    warm_up: int  # starts that do not count
    counted: int


def starts(
    bundle: Bundle, backend: str, size: Size, steps: int, repeats: Repeats, checkpoint: Path | None = None
) -> Iterator[StartRow]:
    """Start a process again and again, with the bundle's default preset.

    Backend "pytorch" is the reference on ``checkpoint``. Raises ``BackendError`` when a start fails.
    """
    common: dict[str, Any] = {
        "threads": repeats.threads,
        "bundle": bundle.name,
        "trained": bundle.trained,
        "precision": bundle.precision,
        "device": device(),
        "versions": versions(),
    }
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "blurred.png", Path(folder) / "sharp.png"
        write_png(source, sample_picture(*size))
        if backend == PYTORCH:
            imports = TORCH_IMPORTS
            run = reference_words(bundle, checkpoint, source, made, steps, repeats.threads)
        else:
            imports = IMPORTS.format(backend=backend)
            run = ["-m", "uid.runtime.app.cli", str(source), "-o", str(made), "-m", str(bundle.folder)]
            run += ["--backend", backend, "--threads", str(repeats.threads)]
            run += ["--steps", str(steps)] if steps else []
            run += ["--tile", str(2 * max(size)), "--json", "--quiet"]
        for repeat in range(-repeats.warm_up, repeats.counted):
            made.unlink(missing_ok=True)
            interpreter, _ = timed(["-c", "pass"])
            imported, _ = timed(["-c", imports])
            seconds, printed = timed(run)
            compute = sum(json.loads(printed)["seconds"].values())
            stages = (interpreter, imported - interpreter, seconds - imported - compute, compute)
            if repeat >= 0:
                yield StartRow(backend, *size, steps, repeat, seconds, *stages, **common)


def reference_words(
    bundle: Bundle, checkpoint: Path | None, source: Path, made: Path, steps: int, threads: int
) -> list[str]:
    """The words after "python" that run the PyTorch reference on an image file."""
    transforms = bundle.presets[bundle.preset].transforms if bundle.preset else 1
    settings = {
        "checkpoint": str(checkpoint),
        "source": str(source),
        "made": str(made),
        "steps": steps,
        "transforms": transforms,
        "guidance": bundle.guidance,
        "threads": threads,
    }
    return ["-m", __name__, json.dumps(settings)]


def timed(words: Sequence[str]) -> tuple[float, str]:
    """Wall seconds of this Python with these words, and what it printed."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise BackendError(f"{' '.join(words)} ended with exit status {done.returncode}: {done.stderr.strip()[-500:]}")
    return seconds, done.stdout


def reference(
    checkpoint: str, source: str, made: str, steps: int, transforms: int, guidance: float, threads: int
) -> dict[str, float]:
    """Sharpen the image ``source`` into ``made`` with PyTorch; returns the seconds of its stages."""
    from uid.bench.speed.runners import STAGES, Task, TorchRunner
    from uid.runtime.media.decode import read_image
    from uid.runtime.media.encode import write_image
    from uid.runtime.pixels import interleaved, like, planes, to_float
    from uid.runtime.transforms import transformed, transformed_back

    runner = TorchRunner(Task(Path(checkpoint), guidance, 0, threads), Path(checkpoint))
    picture = read_image(Path(source))
    given = to_float(planes(picture.pixels))
    results = [runner.run(interleaved(list(transformed(given, number))), steps) for number in range(transforms)]
    made_planes = [transformed_back(planes(result.image), number) for number, result in enumerate(results)]
    mean: Array = np.mean(made_planes, axis=0)
    write_image(replace(picture, pixels=like(mean, picture.pixels)), Path(made))
    return {stage: sum(result.stages[stage] for result in results) for stage in STAGES}


if __name__ == "__main__":
    print(json.dumps({"seconds": reference(**json.loads(sys.argv[1]))}))  # as uid-run --json has it
