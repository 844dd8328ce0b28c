"""Several processes train as one with as large a batch, and a run that is killed goes on as it would have gone."""

import csv
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from uid.runtime.media.encode import write_image
from uid.runtime.media.formats import DecodedImage


def start(checkpoint: Path, output: Path, stage: str, *options: object, processes: int) -> list[subprocess.Popen[str]]:
    """``uid-train STAGE`` as torchrun starts it; every process gets its place by its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    images = output.with_name("sharp")
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 24, 3)).astype(np.uint8)
        write_image(DecodedImage(pixels, None, False, None, None, "png"), images / f"{i}.png")
    data = ["--sharp", str(images), "--size", "16", "--workers", "0"]
    command = [sys.executable, "-m", "uid", "train", stage, str(checkpoint), "-o", str(output), *data]
    places: list[dict[str, str]] = [{"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(processes)]
    return [
        subprocess.Popen(
            [*command, *map(str, options)],
            env=common | place if processes > 1 else dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for place in places
    ]


def finished(running: list[subprocess.Popen[str]]) -> list[str]:
    """What the processes say; they must end well."""
    said = [process.communicate(timeout=280)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(said)
    return said


def killed(running: list[subprocess.Popen[str]], folder: Path) -> None:
    """Kill the processes at once after the second state is there; the last one must not be."""
    deadline = time.monotonic() + 280
    while not any(step >= 4 for step in states(folder)):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in running)
        time.sleep(0.01)
    for process in running:
        process.kill()
    for process in running:
        process.communicate()
    assert max(states(folder)) < STEPS


def states(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("state-")) for path in folder.glob("state-*")]


def losses(folder: Path) -> np.ndarray:
    """(steps, names)."""
    with (folder / "losses.csv").open(newline="") as file:
        return np.array([[float(value) for value in row.values()] for row in csv.DictReader(file)])


STEPS = 24  # of the runs that are killed


@pytest.mark.long
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path, tiny_checkpoint: Path) -> None:
    finished(start(tiny_checkpoint, tmp_path / "one", "joint", "--steps", 5, "--batch", 4, processes=1))
    said = finished(start(tiny_checkpoint, tmp_path / "two", "joint", "--steps", 5, "--batch", 2, processes=2))
    assert "wrote" in said[0]
    assert "wrote" not in said[1]
    one, two = (losses(tmp_path / f"{name}.training" / "joint") for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=2e-4)
    written = {path.name for path in (tmp_path / "two.training" / "joint" / "state-00000005").iterdir()}
    assert {"trained.safetensors", "random_states_0.pkl", "random_states_1.pkl"} <= written


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_goes_on_as_it_would_have_gone(
    tmp_path: Path, tiny_checkpoint: Path, processes: int
) -> None:
    options = ("vae", "--steps", STEPS, "--save-every", 2, "--batch", 2)
    finished(start(tiny_checkpoint, tmp_path / "whole", *options, processes=processes))
    whole, again = (tmp_path / f"{name}.training" / "vae" for name in ("whole", "again"))
    killed(start(tiny_checkpoint, tmp_path / "again", *options, processes=processes), again)
    finished(start(tiny_checkpoint, tmp_path / "again", *options, processes=processes))
    np.testing.assert_allclose(losses(again), losses(whole), rtol=1e-4)
    assert states(again) == [STEPS]
