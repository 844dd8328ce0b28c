"""Folders: what was done before is left, what has changed is done again, and two runs never disturb each other."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import inverting_cli
import numpy as np
import pytest
from inverting_cli import InvertingPipeline, draw, shown, tree
from PIL import Image, ImageFilter
from video_files import make_clip

from uid.errors import OutputError
from uid.runtime.app import runner
from uid.runtime.app.record import OutputRecord

RECORD = "out.uid-run.jsonl"


def states(uid_run: Any, *words: str, code: int = 0) -> dict[str, str]:
    """What became of each input of a run of in/ to out/."""
    result = uid_run("in", "-o", "out", "--json", *words, code=code)
    records = [json.loads(line) for line in result.stdout.splitlines()]
    return {
        Path(one["input"]).name: one["why"] if one.get("skipped") else "done" if one["ok"] else "failed"
        for one in records
    }


def test_a_rerun_does_what_is_left_what_changed_and_what_failed(uid_run: Any, loads: list[Any]) -> None:
    for index, name in enumerate(("a.png", "b.png", "deep/c.png")):
        draw(f"in/{name}", seed=index)
    Path("in/bad.png").write_bytes(b"no image at all")
    first = {"a.png": "done", "b.png": "done", "c.png": "done", "bad.png": "failed"}
    assert states(uid_run, "--keep-going", code=1) == first
    left = dict.fromkeys(("a.png", "b.png", "c.png"), "done before")
    loads.clear()
    assert states(uid_run, "--keep-going", code=1) == left | {"bad.png": "failed"}
    assert not loads, "nothing to compute"

    changed = draw("in/b.png", seed=7)  # by its contents: not by its time
    os.utime("in/a.png")
    draw("in/bad.png", seed=8)
    Path("out/deep/c.png").unlink()
    assert states(uid_run) == {"a.png": "done before", "b.png": "done", "bad.png": "done", "c.png": "done"}
    assert np.array_equal(shown("out/b.png"), 255 - changed)
    assert set(states(uid_run, "--steps", "3").values()) == {"done"}
    assert set(states(uid_run, "--steps", "3").values()) == {"done before"}


def test_an_output_that_someone_changed_is_no_longer_ours(uid_run: Any) -> None:
    draw("in/a.png")
    states(uid_run)
    touched = Path("out/a.png")
    os.utime(touched, (1, 1))
    assert states(uid_run) == {"a.png": "done before"}
    draw(touched, seed=5)
    assert states(uid_run, code=1) == {"a.png": "failed"}
    assert np.array_equal(shown(touched), inverting_cli.pixels(5))
    assert states(uid_run, "--skip-existing") == {"a.png": "exists"}
    assert states(uid_run, "-y") == {"a.png": "done"}


def test_a_line_that_a_kill_cut_off_is_no_line(uid_run: Any) -> None:
    draw("in/a.png")
    states(uid_run)
    record = Path(RECORD)
    whole = record.read_bytes()
    for cut in (1, 30, len(whole.splitlines()[-1])):
        record.write_bytes(whole[:-cut])
        expected = "failed" if cut > 1 else "done before"  # the output is there, and nothing says that it is ours
        assert states(uid_run, code=int(cut > 1)) == {"a.png": expected}
    record.write_text("my own notes\n")
    assert "is no record" in uid_run("in", "-o", "out", code=2).stderr
    assert record.read_text() == "my own notes\n"


def test_the_report_and_the_table_name_everything(uid_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, name in enumerate("abc"):
        draw(f"in/{name}.png", seed=index)
    Path("in/b.png").write_bytes(b"no image at all")
    Path("in/notes.txt").touch()
    result = uid_run("in", "-o", "out", "--report", "report.json", code=1)
    report = json.loads(Path("report.json").read_text())
    counts = {"done": 1, "skipped": 0, "failed": 1, "not_reached": 1, "not_readable": 0, "left_out": 1}
    assert report["counts"] == counts
    assert [(one["input"], one["ok"]) for one in report["files"]] == [
        ("in/a.png", True),
        ("in/b.png", False),
        ("in/c.png", False),
    ]
    assert report["files"][2]["pending"]
    assert report["left_out"][0]["path"] == "in/notes.txt"
    for words in ("not reached  1  in/c.png", "left out     1  in/notes.txt"):
        assert words in result.stderr


def test_a_dry_run_tells_and_touches_nothing(uid_run: Any, loads: list[Any]) -> None:
    for index, name in enumerate("abc"):
        draw(f"in/{name}.png", seed=index)
    result = uid_run("in", "-o", "out", "--dry-run")
    assert result.stdout.count("would be done") == 3
    assert result.stderr == ""
    assert tree(".") == ["in/a.png", "in/b.png", "in/c.png"]
    Path("in/notes.txt").write_text("none")
    assert "left out  1  in/notes.txt" in uid_run("in", "-o", "out", "--dry-run").stderr
    Path("in/notes.txt").unlink()
    states(uid_run)
    draw("in/b.png", seed=9)
    Path("in/c.png").unlink()
    draw("in/d.png")
    draw("out/d.png")
    before = {name: Path(name).read_bytes() for name in tree(".")}
    loads.clear()
    told = uid_run("in", "-o", "out", "--dry-run", code=1).stdout
    assert "in/a.png -> out/a.png: would be skipped: done before" in told
    assert "in/b.png -> out/b.png: would be replaced: its input or the options have changed" in told
    assert "in/d.png -> out/d.png: error: out/d.png exists" in told
    assert {name: Path(name).read_bytes() for name in tree(".")} == before
    assert not loads


@pytest.mark.parametrize("threads", ["1", "3"])
def test_prefetching_changes_neither_results_nor_order(uid_run: Any, threads: str) -> None:
    images = {f"{index:02}.png": draw(f"in/{index:02}.png", seed=index) for index in range(12)}
    Path("in/05.png").write_bytes(b"no image at all")
    result = uid_run("in", "-o", "out", "--json", "--keep-going", "--prefetch", threads, code=1)
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(one["input"]).name for one in records] == list(images)
    for name, image in images.items():
        assert name == "05.png" or np.array_equal(shown(f"out/{name}"), 255 - image)
    assert not Path("out/05.png").exists()


def test_reading_and_writing_go_on_beside_the_computing(uid_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an image is computed, the one after it is read and the one before it is written."""
    for index in range(4):
        draw(f"in/{index}.png", seed=index)
    begun: set[str] = set()

    def noted(name: str) -> None:
        real = getattr(runner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            path = next(one for one in args if isinstance(one, Path))
            begun.add(f"{name} {path.name}")
            return real(*args, **kwargs)

        monkeypatch.setattr(runner, name, wrapped)

    noted("read_image")
    noted("write_image")
    real = InvertingPipeline.__call__
    number = iter(range(4))

    def computing(*args: Any, **kwargs: Any) -> Any:
        index = next(number)
        wanted = {f"read_image {index + 1}.png"} if 0 < index < 3 else set()
        wanted |= {f"write_image {index - 1}.png"} if index else set()
        limit = time.monotonic() + 60
        while not wanted <= begun:
            assert time.monotonic() < limit, f"{wanted - begun} waits for the computing"
            time.sleep(0.01)
        return real(*args, **kwargs)

    monkeypatch.setattr(InvertingPipeline, "__call__", computing)
    uid_run("in", "-o", "out")
    assert len(tree("out")) == 4


# Two runs at once


@contextmanager
def running(folder: Path, *words: str) -> "Iterator[subprocess.Popen[str]]":
    """A run that is ended at the end of the block, if need be."""
    process = subprocess.Popen(
        [sys.executable, inverting_cli.__file__, *words],
        cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def waited_for(path: Path) -> None:
    limit = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < limit, f"{path} does not appear"
        time.sleep(0.02)


def test_the_second_run_on_an_output_folder_is_told(tmp_path: Path, uid_run: Any) -> None:
    draw("in/a.png")
    with running(tmp_path, "in", "-o", "out", "--steps", "100000") as first:
        waited_for(tmp_path / RECORD)
        time.sleep(0.5)
        (tmp_path / "link").symlink_to("out")
        for name in ("out", "link", "in/../out"):
            assert "another run is writing to" in uid_run("in", "-o", name, code=2).stderr
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 143
    assert states(uid_run) == {"a.png": "done"}


def test_of_two_runs_that_make_one_file_one_wins(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    for turn in range(4):
        words = ["a.png", "-o", f"{turn}.png", "--steps"]
        with running(tmp_path, *words, "300") as one, running(tmp_path, *words, "301") as other:
            told = [process.communicate(timeout=100)[1] for process in (one, other)]
        assert sorted((one.returncode, other.returncode)) == [0, 1], told
        assert any("exists; give --overwrite" in text or "made by another program" in text for text in told)
    assert len(tree(tmp_path)) == 5


def test_an_output_folder_that_vanishes_is_an_error(uid_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(4):
        draw(f"in/{'deep/' if index == 3 else ''}{index}.png", seed=index)
    real = runner.write_image

    def vanishing(image: Any, path: Path, *args: Any, **kwargs: Any) -> None:
        real(image, path, *args, **kwargs)
        if path.name == "1.png":
            shutil.rmtree("out")

    monkeypatch.setattr(runner, "write_image", vanishing)
    result = uid_run("in", "-o", "out", "--keep-going", code=1)
    assert not Path("out").exists()
    assert "2 of 4 files failed" in result.stderr
    assert "is gone" in result.stderr


def test_a_private_output_stays_private(uid_run: Any) -> None:
    draw("in/a.png")
    make_clip(Path("in/b.mp4"))
    states(uid_run)
    for path in Path("out").iterdir():
        path.chmod(0o600)
    draw("in/a.png", seed=3)
    make_clip(Path("in/b.mp4"), codec="mpeg4")
    for words in ([], ["-y"]):
        assert states(uid_run, *words) == {"a.png": "done", "b.mp4": "done"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in Path("out").iterdir()} == {0o600}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize(
    ("mode", "umask", "made"),
    [(0o600, 0o022, 0o600), (0o640, 0o022, 0o640), (0o444, 0o022, 0o644), (0o644, 0o077, 0o600), (0o660, 0o002, 0o660)],
)
def test_what_others_may_not_read_becomes_nothing_that_they_may(uid_run: Any, mode: int, umask: int, made: int) -> None:
    draw("in/a.png")
    make_clip(Path("in/a.mp4"))
    draw("frames/1.png")
    for path in (*Path("in").iterdir(), Path("frames/1.png")):
        path.chmod(mode)
    before = os.umask(umask)
    try:
        uid_run("in", "-o", "out")
        uid_run("in/a.mp4", "-o", "images")
        uid_run("frames", "-o", "film.mp4")
    finally:
        os.umask(before)
    outputs = [Path("out/a.png"), Path("out/a.mp4"), Path("film.mp4"), *Path("images").iterdir()]
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in outputs} == {oct(made)}


def test_a_record_is_held_by_one_and_goes_away_empty(tmp_path: Path) -> None:
    with OutputRecord(tmp_path / "out") as record:
        assert record.path == tmp_path / RECORD
        with pytest.raises(OutputError, match="another run"):
            OutputRecord(tmp_path / "out")
    assert not (tmp_path / RECORD).exists()


def test_watch_does_what_comes_and_tries_nothing_twice(tmp_path: Path) -> None:
    pytest.importorskip("watchfiles", reason="needs watchfiles")
    draw(tmp_path / "in/a.png")
    with running(tmp_path, "in", "-o", "out", "--watch", "--keep-going", "--report", "r.json") as process:
        waited_for(tmp_path / "out/a.png")
        time.sleep(1.0)
        (tmp_path / "in/bad.png").write_bytes(b"no image at all")
        draw(tmp_path / "in/deep/b.png", seed=1)
        waited_for(tmp_path / "out/deep/b.png")
        draw(tmp_path / "in/c.png", seed=2)
        waited_for(tmp_path / "out/c.png")
        time.sleep(1.0)  # the report is told after the file is there
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("error: in/bad.png") == 1
    told = {one["input"]: one["ok"] for one in json.loads((tmp_path / "r.json").read_text())["files"]}
    assert told == {"in/a.png": True, "in/bad.png": False, "in/deep/b.png": True, "in/c.png": True}
    assert tree(tmp_path / "out") == ["a.png", "c.png", "deep/b.png"]


def test_sharp_images_are_left_where_that_is_wanted(uid_run: Any) -> None:
    sharp = draw("in/sharp.png")  # noise
    blurred = np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(3)))
    Image.fromarray(blurred).save("in/blurred.png")
    Image.new("RGB", (40, 30), "teal").save("in/flat.png")
    found = states(uid_run, "--skip-sharp")
    assert found.pop("sharp.png").startswith("sharp already: its blur effect is 0.")
    assert found == {"blurred.png": "done", "flat.png": "done"}
    assert tree("out") == ["blurred.png", "flat.png"]
    alone = uid_run("in/sharp.png", "-o", "alone.png", "--skip-sharp")
    assert "sharp already" in alone.stderr
    assert not Path("alone.png").exists()
    again = states(uid_run, "--skip-sharp")
    assert again == {"sharp.png": "sharp already, as before", "blurred.png": "done before", "flat.png": "done before"}
    assert states(uid_run) == {"sharp.png": "done", "blurred.png": "done before", "flat.png": "done before"}
    draw("in/blurred.png", seed=3)  # sharp now; what was made before is of another image
    why = states(uid_run, "--skip-sharp")["blurred.png"]
    assert "out/blurred.png is of another run, and stays as it is" in why
    assert states(uid_run)["blurred.png"] == "done"


def test_videos_are_never_left_for_being_sharp(uid_run: Any) -> None:
    Path("in.mp4").touch()
    assert "--skip-sharp is for images" in uid_run("in.mp4", "-o", "out.mp4", "--skip-sharp", code=2).stderr
