"""Kills runs of ``uid-run`` over a folder at random moments, and looks at what they leave and what a rerun makes.

python tests/kill_runs.py --kills 300
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import inverting_cli
import numpy as np
from inverting_cli import draw, tree
from PIL import Image

IMAGES = 6
LONGEST_S = 3.0  # of a run with these images; a kill after its end hits nothing, and counts as a run
RECORD = "out.uid-run.jsonl"


def command(*words: str) -> list[str]:
    return [sys.executable, inverting_cli.__file__, "in", "-o", "out", "-q", *words]


def kill(folder: Path, seconds: float, number: int, *words: str) -> bool:
    """Run, and kill after some seconds; whether that hit it."""
    process = subprocess.Popen(command(*words), cwd=folder, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    hit = process.poll() is None
    process.send_signal(number)
    process.wait()
    return hit


def partial(folder: Path, expected: dict[str, bytes]) -> list[str]:
    """Outputs under their final names that are not what an undisturbed run makes."""
    out = folder / "out"
    found = (
        [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")] if out.exists() else []
    )
    return [str(path) for path in found if path.read_bytes() != expected.get(path.relative_to(out).as_posix())]


def faults(folder: Path, kills: int, seed: int, numbers: Sequence[int], *words: str) -> Iterator[str]:
    """Kill as often as asked for; after each, rerun every third time to the end. What is wrong, a line each."""
    chosen = random.Random(seed)
    expected = _undisturbed(folder, *words)
    hits = 0
    for turn in range(kills):
        hits += kill(folder, chosen.uniform(0.0, LONGEST_S), chosen.choice(numbers), *words)
        yield from (f"kill {turn}: {name} is not whole" for name in partial(folder, expected))
        if turn % 3 == 2:
            yield from (f"kill {turn}: {fault}" for fault in rerun_faults(folder, expected, *words))
            _cleared(folder)
    print(f"{hits} of {kills} kills hit a run")


def rerun_faults(folder: Path, expected: dict[str, bytes], *words: str) -> Iterator[str]:
    """Run again to the end. What is wrong with what that leaves, a line each."""
    done = subprocess.run(command(*words), cwd=folder, capture_output=True, text=True)
    if done.returncode:
        yield f"the rerun ended with {done.returncode}: {done.stderr}"
    found = _outputs(folder)
    if found != expected:
        yield f"after the rerun {sorted(set(found) ^ set(expected)) or 'contents'} differ"
    if extra := {path.name for path in folder.iterdir()} - {"in", "out", RECORD}:
        yield f"{extra} is left beside the output"


def _undisturbed(folder: Path, *words: str) -> dict[str, bytes]:
    """Draw the images. Returns what a run that is not killed makes of them, and removes it."""
    for index in range(IMAGES):
        draw(folder / "in" / f"{'deep/' if index % 2 else ''}{index}.png", seed=index)
    subprocess.run(command(*words), cwd=folder, check=True)
    expected = _outputs(folder)
    assert all(np.asarray(Image.open(folder / "out" / name)).size for name in expected)
    assert len(expected) == IMAGES
    _cleared(folder)
    return expected


def _outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "out" / name).read_bytes() for name in tree(folder / "out")}


def _cleared(folder: Path) -> None:
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / RECORD).unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("words", nargs="*", default=["--prefetch", "2"], help="such as: -- --workers 2")
    arguments = parser.parse_args()
    numbers = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
    with tempfile.TemporaryDirectory() as name:
        found = list(faults(Path(name), arguments.kills, arguments.seed, numbers, "--steps", "150", *arguments.words))
    print("\n".join(found) or "no fault")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
