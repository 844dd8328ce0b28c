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

STEPS = 60


def start(checkpoint: Path, output: Path, *words: str, processes: int) -> list[subprocess.Popen[str]]:
    """``uid-train joint`` as torchrun starts it; every process gets its place by its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    options = ["--size", "16", "--images", "8", "--workers", "0", "--save-every", "3", "--steps", str(STEPS), *words]
    command = [sys.executable, "-m", "uid", "train", "joint", str(checkpoint), "-o", str(output), *options]
    places: list[dict[str, str]] = [{"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(processes)]
    return [
        subprocess.Popen(
            command,
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


def killed(running: list[subprocess.Popen[str]], state: Path) -> None:
    """Kill the processes at once after the second state is there."""
    deadline = time.monotonic() + 250
    while not any(int(path.name[6:]) >= 6 for path in state.glob("state-*")):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in running)
        time.sleep(0.01)
    for process in running:
        process.kill()
    for process in running:
        process.communicate()
    assert not any(int(path.name[6:]) >= STEPS for path in state.glob("state-*"))


def table(output: Path) -> np.ndarray:
    """The losses, (steps, names)."""
    with (output.with_name(output.name + ".training") / "joint" / "losses.csv").open(newline="") as file:
        return np.array([[float(value) for value in row.values()] for row in csv.DictReader(file)])


@pytest.mark.long
def test_two_processes_train_as_one_with_twice_the_batch_and_resume(tmp_path: Path, tiny_checkpoint: Path) -> None:
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    finished(start(tiny_checkpoint, one, "--batch", "4", processes=1))
    said = finished(start(tiny_checkpoint, two, "--batch", "2", processes=2))
    assert "wrote" in said[0]
    assert "wrote" not in said[1]
    np.testing.assert_allclose(table(two)[:10], table(one)[:10], rtol=2e-4)
    np.testing.assert_allclose(table(two), table(one), rtol=0.02)
    state = tmp_path / "again.training" / "joint"
    killed(start(tiny_checkpoint, again, "--batch", "2", processes=2), state)
    finished(start(tiny_checkpoint, again, "--batch", "2", processes=2))
    np.testing.assert_allclose(table(again), table(two), rtol=1e-4)
    assert sorted(path.name for path in (state / f"state-{STEPS:08d}").glob("random_states*")) == [
        "random_states_0.pkl",
        "random_states_1.pkl",
    ]


@pytest.mark.long
def test_one_process_that_is_killed_goes_on(tmp_path: Path, tiny_checkpoint: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    finished(start(tiny_checkpoint, whole, "--batch", "2", processes=1))
    killed(start(tiny_checkpoint, again, "--batch", "2", processes=1), tmp_path / "again.training" / "joint")
    finished(start(tiny_checkpoint, again, "--batch", "2", processes=1))
    np.testing.assert_allclose(table(again), table(whole), rtol=1e-5)
