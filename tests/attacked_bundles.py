"""Bundles whose files were altered, swapped or linked: each is refused in words, or gives the sound bundle's pixels.

As a program: ``python tests/attacked_bundles.py --count 500``.
"""

import argparse
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fuzz.mutations import flipped
from fuzz.targets import limited

from uid import engines
from uid.bundles.declarations import Bundle, built_in
from uid.bundles.manifest import read_bundle
from uid.engines import Backend
from uid.errors import UIDError, printable
from uid.runtime import Options
from uid.runtime.pipeline import Pipeline

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
Attack = Callable[[random.Random, Path], None]


def change(chance: random.Random, file: Path) -> None:
    """Some bytes are others."""
    file.write_bytes(flipped(chance, file.read_bytes()))


def cut(chance: random.Random, file: Path) -> None:
    """The end is missing."""
    os.truncate(file, chance.randrange(file.stat().st_size))


def remove(chance: random.Random, file: Path) -> None:
    """The file is missing."""
    file.unlink()


def swap(chance: random.Random, file: Path) -> None:
    """Another file of the bundle stands under this name."""
    shutil.copyfile(chance.choice([one for one in sorted(file.parent.iterdir()) if one != file]), file)


def link(chance: random.Random, file: Path) -> None:
    """A link stands there, to a file outside of the bundle."""
    file.unlink()
    file.symlink_to(chance.choice([Path("/etc/passwd"), Path("/dev/zero"), Path("/proc/self/mem")]))


def pipe(chance: random.Random, file: Path) -> None:
    """A named pipe stands there, which no one writes to."""
    file.unlink()
    os.mkfifo(file)


def folder(chance: random.Random, file: Path) -> None:
    """A folder stands there."""
    file.unlink()
    file.mkdir()


def stray(chance: random.Random, file: Path) -> None:
    """Files that the manifest does not list lie beside it, and an ``engines`` folder with a copy that was altered."""
    for kept in ("engines/onnxruntime", "engines"):
        (file.parent / kept).mkdir(parents=True, exist_ok=True)
        (file.parent / kept / file.name).write_bytes(flipped(chance, file.read_bytes()))
    (file.parent / f"{file.name}.data").write_bytes(chance.randbytes(64))


ATTACKS: tuple[Attack, ...] = (change, cut, remove, swap, link, pipe, folder, stray)


@contextmanager
def copied(source: Path, folder: Path) -> Iterator[Path]:
    """A copy of the bundle, and its end."""
    copy = Path(shutil.copytree(source, folder / "bundle"))
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


def outcome(bundle: Path, attack: Callable[[], None], late: bool, backend: Backend, sound: np.ndarray) -> str:
    """What comes of a run on a bundle that is attacked before it is read, or, with ``late``, once it was."""

    def run() -> np.ndarray:
        if not late:
            attack()
        read: Bundle = read_bundle(bundle)
        if late:
            attack()
        pixels: np.ndarray = Pipeline(read, backend)(IMAGE, Options(seed=0)).image
        return pixels

    try:
        with limited():
            same = np.array_equal(run(), sound)
    except UIDError as error:
        return "refused" if str(error) == printable(str(error)) else "FAILED: control characters in an error"
    except Exception as error:
        return f"FAILED: {type(error).__name__}: {str(error)[:100]}"
    return "same pixels" if same else "FAILED: other pixels"


def attacked(count: int, seed: int, folder: Path) -> Counter[str]:
    """How many of ``count`` attacks on the built-in bundle ended in which way; each has an empty cache."""
    chance, source = random.Random(seed), built_in()
    backend = engines.create("onnxruntime", threads=1)
    sound = Pipeline(read_bundle(source), backend)(IMAGE, Options(seed=0)).image
    ends: Counter[str] = Counter()
    for _ in range(count):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        attack, late = chance.choice(ATTACKS), chance.random() < 0.5
        with copied(source, folder) as bundle:
            file = chance.choice(sorted(bundle.glob("*.*")))
            end = outcome(bundle, lambda: attack(chance, file), late, backend, sound)  # noqa: B023
        told = f" ({attack.__name__} {file.name}, {'late' if late else 'early'})" if end.startswith("FAILED") else ""
        ends[end + told] += 1
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        ends = attacked(given.count, given.seed, Path(folder))
    for end, count in ends.most_common():
        print(f"{count:6}  {end}")
    raise SystemExit(any(end.startswith("FAILED") for end in ends))


if __name__ == "__main__":
    main()
