"""``uid-run`` as a whole process on a small picture: where the seconds go before the first pixel comes out."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from uid.bench.latency import Size, sample_picture
from uid.bench.rows import device, versions, write_png
from uid.errors import BackendError
from uid.runtime.bundle import Bundle

# What `uid-run` imports before it reads a bundle, and the backend's library.
IMPORTS = "import uid.runtime.cli, uid.runtime.images, uid.runtime.pipeline; uid.engines.create({backend!r})"


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
    load: float  # bundle with its hashes, sessions, reading and writing the picture
    compute: float  # prepare, step and finish
    threads: int
    bundle: str
    trained: bool
    precision: str
    device: str
    versions: dict[str, str]


def starts(
    bundle: Bundle, backend: str, size: Size, steps: int, *, threads: int, warm_up: int, repeats: int
) -> Iterator[StartRow]:
    """``repeats`` starts after ``warm_up`` that do not count. Raises ``BackendError`` when one fails."""
    here, found = device(), versions()
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "blurred.png", Path(folder) / "sharp.png"
        write_png(source, sample_picture(*size))
        run = ["-m", "uid.runtime.cli", str(source), "-o", str(made), "-m", str(bundle.folder), "--backend", backend]
        run += ["--steps", str(steps), "--threads", str(threads), "--tile", str(2 * max(size)), "--json", "--quiet"]
        for repeat in range(-warm_up, repeats):
            made.unlink(missing_ok=True)
            interpreter, _ = timed(["-c", "pass"])
            imports, _ = timed(["-c", IMPORTS.format(backend=backend)])
            seconds, printed = timed(run)
            compute = sum(json.loads(printed)["seconds"].values())
            stages = (interpreter, imports - interpreter, seconds - imports - compute, compute)
            if repeat >= 0:
                yield StartRow(
                    backend,
                    *size,
                    steps,
                    repeat,
                    seconds,
                    *stages,
                    threads=threads,
                    bundle=bundle.name,
                    trained=bundle.trained,
                    precision=bundle.precision,
                    device=here,
                    versions=found,
                )


def timed(words: Sequence[str]) -> tuple[float, str]:
    """Wall seconds of this Python with these words, and what it printed."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise BackendError(f"{' '.join(words)} ended with exit status {done.returncode}: {done.stderr.strip()[-500:]}")
    return seconds, done.stdout
