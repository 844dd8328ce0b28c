"""Kills ``uid-run --cluster local`` in the middle of a folder: an actor, the driver, or the node under them.

python tests/kill_cluster.py --kills 20
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from inverting_cli import draw, tree

ACTOR, DRIVER, NODE = "actor", "driver", "node"
NAMES = {ACTOR: "ray::Computer", NODE: "raylet"}  # of processes
RECORD = "out.uid-run.jsonl"
WAIT = 300.0  # seconds; ends what hangs
CLUSTER = ("--cluster", "local", "--workers", "2", "--threads", "1")
OPTIONS = ("--preset", "fast", "--backend", "onnxruntime", "--json", "--quiet")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "uid", "in", "-o", "out", *OPTIONS, *words]


def begun(folder: Path) -> "subprocess.Popen[str]":
    log = (folder / "log").open("w")
    return subprocess.Popen(command(*CLUSTER), cwd=folder, stdout=log, stderr=subprocess.STDOUT, text=True)


def outputs(folder: Path) -> dict[str, bytes]:
    """All files of the output folder, hidden ones too."""
    out = folder / "out"
    return {name: (out / name).read_bytes() for name in tree(out)} if out.exists() else {}


def victim(driver: "subprocess.Popen[str]", kind: str) -> psutil.Process:
    """A process of that kind, of this run."""
    whole = psutil.Process(driver.pid)
    if kind == DRIVER:
        return whole
    found = [one for one in whole.children(recursive=True) if " ".join(one.cmdline()).startswith(NAMES[kind])]
    if kind == NODE:
        found = [one for one in whole.children(recursive=True) if one.name() == NAMES[kind]]
    return random.choice(found)


def turn_faults(folder: Path, kind: str, after: int, expected: dict[str, bytes]) -> Iterator[str]:
    """Kill once so many outputs are there, and run again. What is wrong, a line each."""
    driver = begun(folder)
    end = time.monotonic() + WAIT
    while len(list((folder / "out").glob("*.png"))) < after:
        if driver.poll() is not None or time.monotonic() > end:
            yield f"the run ended with {driver.poll()} before the kill: {(folder / 'log').read_text()[-2000:]}"
            return
        time.sleep(0.01)
    victim(driver, kind).kill()
    code = driver.wait(WAIT)
    made = outputs(folder)
    yield from (f"{name} is not whole" for name, data in made.items() if not hidden(name) and data != expected[name])
    if kind == ACTOR and (code or made != expected):
        log = (folder / "log").read_text()[-2000:]
        yield f"an actor died, and the run ended with {code} and {len(made)} outputs: {log}"
    whole = sum(not hidden(name) for name in made)
    done = subprocess.run(command(*CLUSTER), cwd=folder, capture_output=True, text=True, timeout=WAIT)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or outputs(folder) != expected:
        yield f"the rerun ended with {done.returncode} and {len(outputs(folder))} outputs: {done.stderr[-2000:]}"
    if (skipped := sum("skipped" in row for row in rows)) != whole:
        yield f"{whole} outputs were there, but the rerun left {skipped}"
    if extra := {path.name for path in folder.iterdir()} - {"in", "out", "log", RECORD}:
        yield f"{extra} is left beside the output"
    print(f"{kind} killed after {after}: exit {code}, {whole} whole; the rerun left {skipped}", flush=True)


def hidden(name: str) -> bool:
    return Path(name).name.startswith(".")


def faults(folder: Path, images: int, kinds: Sequence[str], seed: int) -> Iterator[str]:
    """For each kind, in the middle of a folder of images. What is wrong, a line each."""
    chance = random.Random(seed)
    for index in range(images):
        draw(folder / "in" / f"{index:03}.png", seed=index)
    subprocess.run(command(), cwd=folder, check=True, capture_output=True)
    expected = outputs(folder)
    assert len(expected) == images
    for turn, kind in enumerate(kinds):
        shutil.rmtree(folder / "out")
        (folder / RECORD).unlink()
        after = chance.randint(1, images - 20)
        yield from (f"turn {turn}, {kind}: {fault}" for fault in turn_faults(folder, kind, after, expected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kinds = [(ACTOR, DRIVER, NODE)[index % 3] for index in range(arguments.kills)]
    with tempfile.TemporaryDirectory() as name:
        found = list(faults(Path(name), arguments.images, kinds, arguments.seed))
    print("\n".join(found) or "no fault")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
