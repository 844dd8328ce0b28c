"""What is fuzzed: each target takes altered bytes, and may raise nothing but the project's own errors."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.mutations import flipped, mutated

from uid.bundles.manifest import read_bundle
from uid.bundles.onnx_data import external_data
from uid.engines import Backend
from uid.engines.trt.sidecar import MALFORMED, read_sidecar
from uid.errors import UIDError
from uid.runtime import Options
from uid.runtime.pipeline import Pipeline

CORPUS = Path(__file__).with_name("corpus")
LONGEST = 20  # seconds that an altered file may take


class TooLongError(Exception):
    """An altered file that was worked on for too long."""


class Fuzzer:
    """Alters files of a bundle and engine sidecars at random; ``failures`` has what was not refused in words."""

    def __init__(self, bundle: Path, folder: Path, backend: Backend, seed: int) -> None:
        """``bundle`` is sound, and altered in copies below ``folder``."""
        self.chance, self.backend, self.folder = random.Random(seed), backend, folder
        self.bundle = Path(shutil.copytree(bundle, folder / "bundle"))
        self.manifests = [json.loads((bundle / "manifest.json").read_bytes()), *corpus("manifests")]
        self.sidecars = corpus("sidecars")
        self.graphs = {path.name: path.read_bytes() for path in sorted(bundle.glob("*.onnx"))}
        self.constants = (bundle / "constants.safetensors").read_bytes()
        self.failures: list[tuple[str, bytes, Exception]] = []
        self.counts = dict.fromkeys(("manifest", "sidecar", "graph", "constants"), 0)

    def run(self, seconds: float, least: int = 0) -> None:
        """Fuzz for so long, and try each target at least ``least`` times."""
        end = time.monotonic() + seconds
        targets: dict[str, Callable[[], tuple[bytes, Callable[[], object]]]] = {
            "manifest": self.manifest,
            "sidecar": self.sidecar,
            "graph": self.graph,
            "constants": self.constants_file,
        }
        while time.monotonic() < end or min(self.counts.values()) < least:
            name = min(self.counts, key=lambda one: self.counts[one] * (4 if one != "manifest" else 1))
            self.counts[name] += 1
            data, use = targets[name]()
            try:
                with limited():
                    use()
            except UIDError as error:
                if not str(error).replace("\n", "").isprintable():
                    self.failures.append((name, data, error))
            except Exception as error:
                self.failures.append((name, data, error))

    def manifest(self) -> tuple[bytes, Callable[[], object]]:
        """An altered manifest, and an image through its bundle."""
        data = mutated(self.chance, self.chance.choice(self.manifests))
        return data, lambda: self.use_bundle({"manifest.json": data})

    def graph(self) -> tuple[bytes, Callable[[], object]]:
        """An altered graph, whose references are looked for."""
        data = flipped(self.chance, self.chance.choice(list(self.graphs.values())))
        return data, lambda: external_data(data, "a graph")

    def constants_file(self) -> tuple[bytes, Callable[[], object]]:
        """Altered constants, which the manifest vouches for."""
        data = flipped(self.chance, self.constants)
        manifest = self.manifests[0] | {
            "files": self.manifests[0]["files"] | {"constants.safetensors": hashlib.sha256(data).hexdigest()}
        }
        files = {"manifest.json": json.dumps(manifest).encode(), "constants.safetensors": data}
        return data, lambda: self.use_bundle(files)

    def sidecar(self) -> tuple[bytes, Callable[[], object]]:
        """An altered sidecar of an engine."""
        data = mutated(self.chance, self.chance.choice(self.sidecars))

        def use() -> None:
            path = self.folder / "part.engine"
            path.with_suffix(".json").write_bytes(data)
            try:
                read_sidecar(path)
            except MALFORMED:
                return

        return data, use

    def use_bundle(self, files: dict[str, bytes]) -> None:
        """Read the bundle with these files in place of its own, and sharpen an image."""
        for name in ("manifest.json", "constants.safetensors"):
            original = json.dumps(self.manifests[0]).encode() if name == "manifest.json" else self.constants
            (self.bundle / name).write_bytes(files.get(name, original))
        bundle = read_bundle(self.bundle)
        image = np.zeros((8, 12, 3), np.uint8)
        pipeline = Pipeline(bundle, self.backend)
        for mode in list(bundle.modes)[:1]:
            steps = 2 if bundle.has_steps(mode) else None
            pipeline(image, Options(mode=mode, steps=steps, transforms=1))
            pipeline(image, Options(mode=mode))


def corpus(kind: str) -> list[Any]:
    """The JSON files of the corpus to start from."""
    return [json.loads(path.read_bytes()) for path in sorted((CORPUS / kind).glob("*.json"))]


@contextmanager
def limited() -> Iterator[None]:
    """Raise ``TooLongError`` in the block after ``LONGEST`` seconds, on systems that can."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TooLongError(f"it took more than {LONGEST} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def save(failures: list[tuple[str, bytes, Exception]], folder: Path) -> list[str]:
    """Write what failed into ``folder``; returns a line for each."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, data, error in failures:
        path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        lines.append(f"{path}: {type(error).__name__}: {str(error)[:200]}{os.linesep}")
    return lines
