"""What ``uid-run`` does while it runs: messages, records, video, streams, exit status; the model only inverts."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import inverting_cli
import numpy as np
import pytest
from click.testing import Result
from inverting_cli import draw, pixels, shown, tree
from PIL import Image

from uid.errors import OutputError

av = pytest.importorskip("av")


def film(path: Path, frames: int = 4) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 200, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def records(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_an_existing_output_is_an_error_without_an_option(uid_run, loads):
    image = draw("in/a.png")
    draw("out/a.png", seed=1)
    result = uid_run("in", "-o", "out", code=1)
    assert "--overwrite" in result.stderr
    assert "--skip-existing" in result.stderr
    assert records(uid_run("in", "-o", "out", "--skip-existing", "--json"))[0]["skipped"]
    assert np.array_equal(shown("out/a.png"), pixels(1))
    assert not loads
    uid_run("in", "-o", "out", "--overwrite")
    assert np.array_equal(shown("out/a.png"), 255 - image)


def test_a_failure_stops_the_run_without_keep_going(uid_run, loads):
    draw("in/a.png")
    Path("in/b.png").write_bytes(b"no image at all")
    draw("in/c.png")
    result = uid_run("in", "-o", "out", code=1)
    assert tree("out") == ["a.png"]
    assert "error: in/b.png" in result.stderr
    assert "1 file" in result.stderr
    result = uid_run("in", "-o", "out2", "--keep-going", "--json", code=1)
    assert tree("out2") == ["a.png", "c.png"]
    assert "1 of 3 files failed:\n  in/b.png " in result.stderr
    assert [record["ok"] for record in records(result)] == [True, False, True]
    assert records(result)[1]["error"]
    assert len(loads) == 2  # once for each run


def test_json_describes_what_ran(uid_run):
    draw("in.png")
    words = "--steps", "3", "--transforms", "2", "--seed", "7"
    (record,) = records(uid_run("in.png", "-o", "out.png", "--json", *words))
    expected = {"input": "in.png", "output": "out.png", "ok": True, "width": 48, "height": 32, "backend": "inverter"}
    expected |= {
        "mode": "deblur",
        "preset": None,
        "steps": 3,
        "transforms": 2,
        "guidance": 1.5,
        "seed": 7,
        "tiles": 1,
        "tile": None,
        "captured": False,
        "guidance_interval": [0.0, 1.0],
        "strength": 1.0,
        "cache_interval": 1,
        "batch": 1,
    }
    expected |= {"quality": None, "views": 2, "reuse": 1}  # what they were called before
    expected |= {"seconds": {"prepare": 0.25, "step": 0.5, "finish": 0.25}}
    assert record == expected


def test_options_work_by_their_old_names_with_a_note(uid_run):
    draw("in.png")
    result = uid_run("in.png", "-o", "out.png", "--json", "--views", "2", "--reuse=1")
    (record,) = records(result)
    assert (record["transforms"], record["cache_interval"]) == (2, 1)
    assert "note: --views is now called --transforms; the old name will go in version 0.3" in result.stderr
    result = uid_run("in.png", "-o", "out", "--suffix", "--views", "--views", "1")
    assert result.stderr.count("note:") == 1
    assert tree("out") == ["in--views.png"]
    draw("--views.png")
    uid_run("-o", "out2.png", "--", "--views.png")


def test_compare_puts_the_input_beside_the_output(uid_run):
    image = np.dstack([pixels(), pixels(1)[..., 0]])
    Image.fromarray(image).save("in.png")
    uid_run("in.png", "-o", "out.png", "--compare")
    sharp = np.dstack([255 - image[..., :3], image[..., 3]])
    assert np.array_equal(shown("out.png"), np.hstack([image, sharp]))


def test_random_weights_are_warned_of_and_quiet_shows_errors_only(uid_run):
    draw("in.png")
    assert uid_run("in.png", "-o", "out.png").stderr.count("random") == 1
    assert uid_run("in.png", "-o", "out2.png", "--quiet").output == ""
    assert "exists" in uid_run("in.png", "-o", "out2.png", "--quiet", code=1).stderr


# Video


def test_video_becomes_video_or_frames_and_back(uid_run, tmp_path, monkeypatch):
    film(tmp_path / "in.mp4")
    monkeypatch.setattr("uid.runtime.app.progress.LINE_INTERVAL_S", 0.0)
    result = uid_run("in.mp4", "-o", "out.mp4", "--json")
    assert len(frames_of(Path("out.mp4"))) == 4
    assert abs(int(frames_of(Path("out.mp4"))[0].mean()) - 55) < 8
    (record,) = records(result)
    assert record["frames"] == 4
    assert record["seconds"]["step"] == pytest.approx(4 * 0.5)
    assert "fps" in result.stderr
    uid_run("in.mp4", "-o", "frames")
    assert len(tree("frames")) == 4
    assert "exists" in uid_run("in.mp4", "-o", "frames", code=1).stderr
    uid_run("frames", "-o", "again.mp4", "--frame-rate", "30000/1001")
    assert len(frames_of(Path("again.mp4"))) == 4


@pytest.mark.parametrize("name", ["out.mp4", "frames"])
def test_a_video_of_which_only_the_end_was_missing(uid_run, tmp_path, monkeypatch, name):
    def failing(*words):
        raise OutputError("the disk is full")

    film(tmp_path / "in.mp4")
    with monkeypatch.context() as patch:
        patch.setattr("uid.runtime.media.work.Work.joined", failing)
        assert "the disk is full" in uid_run("in.mp4", "-o", name, code=1).stderr
    result = uid_run("in.mp4", "-o", name, "--json")
    assert "4 frames, all of them done by an earlier run" in result.stderr
    (record,) = records(result)
    assert (record["ok"], record["frames"], record["seconds"]) == (True, 4, {})
    assert {"mode", "steps", "quality", "backend"} <= set(record)


# In a process of its own


def spawn(*args: str, cwd: Path, **streams: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, inverting_cli.__file__, *args], cwd=cwd, stderr=subprocess.PIPE, **streams)


def test_an_image_goes_through_standard_input_and_output(tmp_path):
    image = draw(tmp_path / "in.png")
    process = spawn("-", "-o", "-", "--format", "bmp", cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, err = process.communicate((tmp_path / "in.png").read_bytes(), timeout=300)
    assert process.returncode == 0, err
    result = Image.open(io.BytesIO(out))
    assert result.format == "BMP"
    assert np.array_equal(np.asarray(result), 255 - image)
    assert b"random" in err


@pytest.mark.parametrize("name", ["in.png", "in.mp4"])
def test_ctrl_c_leaves_no_partial_file(tmp_path, name):
    draw(tmp_path / "in.png")
    film(tmp_path / "in.mp4", frames=3)
    out = tmp_path / "out"
    out.mkdir()
    process = spawn(name, "-o", f"out/{name}", "--steps", "100000", cwd=tmp_path)
    assert b"random" in process.stderr.readline()  # the pipeline is loaded and has begun
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.decode().splitlines() == ["interrupted: what was written is whole, no partial file is left"]
    assert tree(out) == []


def test_a_terminal_gets_bars_and_standard_output_stays_clean(tmp_path):
    draw(tmp_path / "in/a.png")
    draw(tmp_path / "in/b.png")
    ours, theirs = pty.openpty()
    args = [sys.executable, inverting_cli.__file__, "in", "-o", "out", "--json", "--steps", "300"]
    process = subprocess.Popen(
        args, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"}
    )
    os.close(theirs)
    terminal = b""
    while chunk := _read(ours):
        terminal += chunk
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert [json.loads(line)["ok"] for line in out.splitlines()] == [True, True]
    assert b"300 steps" in terminal
    assert b"/2 files" in terminal


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux reports that the other side of a terminal is closed
        return b""


# doctor


def test_doctor_is_a_command_only_by_that_very_name(tmp_path):
    draw(tmp_path / "doctor.png")
    (tmp_path / "doctor.png").rename(tmp_path / "doctor")
    process = spawn("doctor", cwd=tmp_path, stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    for word in (b"onnxruntime", b"video: PyAV", b"built-in bundle: "):
        assert word in out
    process = spawn("./doctor", "-o", "out.png", cwd=tmp_path)
    process.communicate(timeout=300)
