"""Workers: several processes do what one does, and one that dies costs nothing but time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import inverting_cli
import pytest
from inverting_cli import DEADLY, draw, tree

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes in /proc")
RECORD = "out.uid-run.jsonl"


def begun(folder: Path, *words: str) -> "subprocess.Popen[str]":
    words = ("in", "-o", "out", *words)
    command = [sys.executable, inverting_cli.__file__, *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ran(folder: Path, *words: str, code: int = 0) -> tuple[dict[str, dict[str, object]], str]:
    """The record of each input by its name, and what was told."""
    process = begun(folder, "--json", *words)
    out, err = process.communicate(timeout=250)
    assert process.returncode == code, err
    records = [json.loads(line) for line in out.splitlines()]
    return {Path(one["input"]).name: one for one in records}, err


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in tree(folder)}


def workers_of(pid: int) -> list[int]:
    """The workers of a run, which may have ended itself."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (process / "cmdline").read_bytes()
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if b"spawn_main" in words and parent == pid:
                found.append(int(process.name))
    return found


def waited_for(what: Callable[[], bool]) -> None:
    limit = time.monotonic() + 100
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.02)


def ended(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return True


def test_workers_do_what_one_process_does(tmp_path: Path) -> None:
    for index in range(5):
        draw(tmp_path / f"in/{'deep/' if index % 2 else ''}{index}.png", seed=index)
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    alone, _ = ran(tmp_path, "--keep-going", code=1)
    expected = contents(tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.png"):
        path.unlink()
    (tmp_path / RECORD).unlink()

    together, told = ran(tmp_path, "--keep-going", "--workers", "2", "--report", "report.json", code=1)
    assert together == alone
    assert contents(tmp_path / "out") == expected
    assert told.count("random") == 1, "a warning of the whole run is shown once"
    report = json.loads((tmp_path / "report.json").read_text())
    assert {Path(one["input"]).name for one in report["files"] if one["ok"]} == {f"{index}.png" for index in range(5)}
    assert report["counts"]["failed"] == 1

    draw(tmp_path / "in/0.png", seed=9)
    again, _ = ran(tmp_path, "--keep-going", "--workers", "2", code=1)
    assert [name for name, one in again.items() if one["ok"] and not one.get("skipped")] == ["0.png"]


@pytest.mark.long
def test_a_failure_stops_the_others_without_keep_going(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.png").write_bytes(b"no image")
    for index in range(1, 9):
        draw(tmp_path / f"in/{index}.png")
    records, told = ran(tmp_path, "--workers", "2", "--steps", "400", code=1)
    assert not records["0.png"]["ok"]
    assert len(records) < 9
    assert "--keep-going does them" in told


@pytest.mark.long
def test_a_backend_that_does_not_work_ends_the_run(tmp_path: Path) -> None:
    draw(tmp_path / "in/0.png")
    draw(tmp_path / "in/1.png")
    records, told = ran(tmp_path, "--workers", "2", "--backend", "none", code=2)
    assert records == {}
    assert "\nerror: no backend none; expected auto" in told


def test_the_image_of_a_killed_worker_is_done_anew(tmp_path: Path) -> None:
    images = {f"{index}.png": draw(tmp_path / f"in/{index}.png", seed=index) for index in range(4)}
    process = begun(tmp_path, "--json", "--workers", "2", "--steps", "1500")
    waited_for(lambda: len(workers_of(process.pid)) == 2)
    time.sleep(1)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert {Path(json.loads(line)["input"]).name for line in out.splitlines()} == set(images)
    assert tree(tmp_path / "out") == sorted(images)


@pytest.mark.long
def test_an_image_that_ends_its_process_fails_and_the_rest_goes_on(tmp_path: Path) -> None:
    for index in range(4):
        draw(tmp_path / f"in/{index}.png", seed=index, height=DEADLY if index == 1 else 32)
    records, told = ran(tmp_path, "--workers", "2", "--keep-going", code=1)
    assert [name for name, one in sorted(records.items()) if not one["ok"]] == ["1.png"]
    assert "in/1.png: its worker was ended by signal 9, and the next one too" in told
    assert tree(tmp_path / "out") == ["0.png", "2.png", "3.png"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_workers_end_with_their_parent(tmp_path: Path, name: str) -> None:
    for index in range(4):
        draw(tmp_path / f"in/{index}.png", seed=index)
    process = begun(tmp_path, "--workers", "2", "--steps", "100000")
    waited_for(lambda: len(workers_of(process.pid)) == 2)
    time.sleep(1)
    workers = workers_of(process.pid)
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=100)
    waited_for(lambda: all(map(ended, workers)))
    assert process.returncode == (-9 if name == "SIGKILL" else 128 + getattr(signal, name))
    assert tree(tmp_path) == [f"in/{index}.png" for index in range(4)] + [RECORD]


def test_no_more_is_begun_after_a_failure(tmp_path: Path) -> None:
    for index in range(12):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{index}.png").write_bytes(b"no image")
    records, _ = ran(tmp_path, "--workers", "2", code=1)
    assert len(records) <= 2
