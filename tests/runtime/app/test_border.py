"""Whatever is wrong with one file, it is named and the others are done; streams that do not work end nothing."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import inverting_cli
import numpy as np
import pytest
from inverting_cli import InvertingPipeline, draw, shown, tree

from uid.runtime.app import runner
from uid.runtime.app.progress import Lines, printable


class PanicError(BaseException):
    """What some libraries raise is no ``Exception``, as Rust's panics."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OverflowError("too large"),
        RecursionError("too deep"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        PanicError("index out of bounds"),
        PermissionError(13, "Permission denied", "in/b.png"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["read_image", "write_image", "compute"])
def test_any_failure_of_one_file_is_told_and_the_others_are_done(
    uid_run: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, where: str
) -> None:
    images = {name: draw(f"in/{name}.png", seed=index) for index, name in enumerate("abc")}
    target, name = (InvertingPipeline, "__call__") if where == "compute" else (runner, where)
    real = getattr(target, name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        about_b = any("b.png" in str(one) for one in args) or any(
            isinstance(one, np.ndarray) and one.shape == images["b"].shape and np.array_equal(one, images["b"])
            for one in args
        )
        if about_b:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(target, name, failing)
    result = uid_run("in", "-o", "out", "--keep-going", code=1)
    assert tree("out") == ["a.png", "c.png"]
    assert "1 of 3 files failed:\n  in/b.png: " in result.stderr
    assert "Traceback" not in result.output
    assert np.array_equal(shown("out/c.png"), 255 - images["c"])
    debugged = uid_run("in", "-o", "out", "--keep-going", "--debug", code=1)
    assert "Traceback" in debugged.stderr
    assert f"{type(error).__name__}" in debugged.stderr


def test_a_pipeline_that_cannot_be_loaded_ends_the_run_without_a_traceback(
    uid_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("uid.runtime.pipeline.load", no_home)
    draw("in.png")
    assert "RuntimeError: Could not determine home directory." in uid_run("in.png", "-o", "out.png", code=1).stderr


@pytest.mark.skipif(os.name == "nt", reason="needs pipes and links")
def test_only_regular_files_are_taken_and_the_others_are_named(uid_run: Any) -> None:
    draw("in/a.png")
    os.mkfifo("in/pipe.png")
    os.mkfifo("in/film.mp4")
    Path("in/zero.jpg").symlink_to("/dev/zero")
    Path("in/lost.png").symlink_to("nowhere")
    Path("in/link.png").symlink_to("a.png")
    Path("in/raw.xyz").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("in/socket.png")
        result = uid_run("in", "-o", "out")
    assert tree("out") == ["a.png", "link.png"]
    for name, why in {
        "pipe.png": "a named pipe",
        "film.mp4": "a named pipe",
        "zero.jpg": "a device",
        "socket.png": "a socket",
        "lost.png": "No such file",
        "raw.xyz": "no image or video",
    }.items():
        assert f"in/{name} ({why}" in result.stderr
    assert "left out" in result.stderr
    assert "in/zero.jpg is a device" in uid_run("in/zero.jpg", "-o", "x.png", code=2).stderr
    assert "pipe.png" in uid_run("in/pipe.png", "in/a.png", "-o", "out2").stderr
    assert tree("out2") == ["a.png"]


def test_names_that_no_file_can_have_are_refused_in_a_line(uid_run: Any) -> None:
    draw("a.png")
    for inputs, output in ((["x" * 300 + ".png"], "out"), (["a.png"], "y" * 300 + ".png"), (["a.png"], "z" * 300)):
        result = uid_run(*inputs, "-o", output, code=2)
        assert "File name too long" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs rights that can be given up")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    for name in ("below/in/a.png", "below/in/locked/b.png", "below/in/secret.png"):
        draw(tmp_path / name)
    # Root reads everything, unless it gives that up.
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if drop and not shutil.which("setpriv"):
        pytest.skip("needs setpriv, or a user other than root")
    words = [*drop, sys.executable, inverting_cli.__file__, "in", "-o", "out"]
    folder = tmp_path / "below"
    (folder / "out").mkdir()
    locked = [folder / "in/locked", folder / "in/secret.png"]
    try:
        for path in locked:
            path.chmod(0)
        folder.chmod(0o555)  # no place for a record
        options: dict[str, Any] = {"cwd": folder, "capture_output": True, "text": True}
        refused, done = (subprocess.run([*words, *more], **options) for more in ([], ["--keep-going"]))
    finally:
        for path in (folder, *locked):
            path.chmod(0o755)
    assert refused.returncode == 2, refused.stderr
    assert "cannot list in/locked: Permission denied; --keep-going does the rest" in refused.stderr
    assert done.returncode == 1, done.stderr
    assert tree(folder / "out") == ["a.png"]
    assert "in/secret.png: Permission denied" in done.stderr
    assert "not readable  1  in/locked (Permission denied)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "no record is kept" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
def test_an_output_that_is_no_file_is_left(uid_run: Any) -> None:
    draw("in/a.png")
    draw("in/b.png")
    for pipe in ("out/a.png", "c.png", "report.json"):
        Path(pipe).parent.mkdir(exist_ok=True)
        os.mkfifo(pipe)
    assert "out/a.png is a pipe" in uid_run("in", "-o", "out", "--overwrite", "--keep-going", code=1).stderr
    assert "c.png is a pipe" in uid_run("in/a.png", "-o", "c.png", "--overwrite", code=1).stderr
    assert "report.json: it is a pipe" in uid_run("in", "-o", "2", "--report", "report.json", code=2).stderr
    assert all(Path(pipe).is_fifo() for pipe in ("out/a.png", "c.png", "report.json"))
    assert tree("out") == ["b.png"]  # of files
    assert not Path("2").exists()


@pytest.mark.parametrize("report", ["in/a.png", "out/a.png", "out.uid-run.jsonl", "in/../in/a.png"])
def test_a_report_takes_no_ones_place(uid_run: Any, report: str) -> None:
    draw("in/a.png")
    before = Path("in/a.png").read_bytes()
    result = uid_run("in", "-o", "out", "--report", report, code=2)
    assert "choose another file for --report" in result.stderr
    assert Path("in/a.png").read_bytes() == before


def test_a_report_takes_the_place_of_nothing_but_a_report(uid_run: Any) -> None:
    for path in ("in/a.png", "frames/1.png", "precious.jpg"):
        draw(path)
    before = {path: path.read_bytes() for path in Path().rglob("*.*g")}
    for words in ("in -o out", "frames -o out.mp4 --frame-rate 5"):
        for report in before:
            result = uid_run(*words.split(), "--report", str(report), code=2)
            assert "choose another file" in result.stderr
    assert "an output of this run" in uid_run("frames", "-o", "out.mp4", "--report", "frames/new.json", code=2).stderr
    assert {path: path.read_bytes() for path in before} == before
    for _ in range(2):
        uid_run("in", "-o", "out", "--report", "report.json")
    assert json.loads(Path("report.json").read_text())["counts"]["skipped"] == 1


# Standard streams


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full and a POSIX shell")
@pytest.mark.parametrize(
    ("words", "status", "written"),
    [
        ("a.png -o 1.png 2>&-", 0, True),
        ("a.png -o 1.png >&-", 0, True),
        ("a.png -o 1.png <&- >&- 2>&-", 0, True),
        ("a.png -o 1.png 2>/dev/full", 0, True),
        ("a.png -o 1.png --json >/dev/full", 2, True),
        ("a.png -o 1.png --json >&-", 2, True),
        ("a.png -o - >/dev/full", 1, False),
        ("a.png -o - >&-", 1, False),
        ("- -o 1.png <&-", 1, False),
        ("doctor >/dev/full", 1, False),
    ],
)
def test_streams_that_are_closed_or_full(tmp_path: Path, words: str, status: int, written: bool) -> None:
    if "/dev/full" in words and not Path("/dev/full").is_char_device():
        pytest.skip("/dev/full is no device here")
    draw(tmp_path / "a.png")
    command = f"exec {sys.executable} {inverting_cli.__file__} {words}"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert (tmp_path / "1.png").is_file() == written
    assert set(tree(tmp_path)) <= {"a.png", "1.png"}
    if status:
        assert "standard " in done.stderr


def test_what_a_terminal_would_obey_is_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("a\x1b[31mred\x07\u202eb") == "a\\x1b[31mred\\x07\\u202eb"
    lines = Lines(1)
    lines.finish("evil\x1b]0;title\x07.png")
    assert "\x1b" not in capsys.readouterr().err
