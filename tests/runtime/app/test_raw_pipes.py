"""Raw frames through standard input and output; the model only inverts."""

import subprocess
import sys
from pathlib import Path

import inverting_cli
import numpy as np
import pytest
from video_files import gradient, make_clip, rgb

COUNT, HEIGHT, WIDTH = 5, 48, 64


def run(cwd: Path, *words: str, data: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, inverting_cli.__file__, *words], cwd=cwd, input=data, capture_output=True, timeout=300
    )


@pytest.mark.parametrize("format", ["rgb24", "rgb48le"])
def test_frames_go_in_and_out(tmp_path, format):
    frames = np.stack([gradient(index) for index in range(COUNT)])
    if format == "rgb48le":
        frames = frames.astype("<u2") * 257 - frames % 3
    words = "-", "-o", "-", "--raw", format, "--raw-size", f"{WIDTH}x{HEIGHT}", "--no-steady"
    result = run(tmp_path, *words, data=frames.tobytes())
    assert result.returncode == 0, result.stderr
    expected = np.iinfo(frames.dtype).max - frames
    assert np.array_equal(np.frombuffer(result.stdout, frames.dtype).reshape(frames.shape), expected)


def test_a_pipe_becomes_a_video_and_a_video_a_pipe(tmp_path):
    frames = np.stack([gradient(index) for index in range(COUNT)])
    size = "--raw", "rgb24", "--raw-size", f"{WIDTH}x{HEIGHT}"
    result = run(tmp_path, "-", "-o", "out.mp4", *size, "--frame-rate", "50", data=frames.tobytes())
    assert result.returncode == 0, result.stderr
    assert np.abs(rgb(tmp_path / "out.mp4") - (255.0 - frames)).mean() < 3
    make_clip(tmp_path / "in.mp4", count=COUNT)
    result = run(tmp_path, "in.mp4", "-o", "-", "--raw", "rgb24")
    assert result.returncode == 0, result.stderr
    back = np.frombuffer(result.stdout, np.uint8).reshape(frames.shape)
    assert np.abs(back - (255 - rgb(tmp_path / "in.mp4"))).mean() < 3


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (("-", "-o", "-", "--raw", "rgb24"), b"give their size (--raw-size)", 1),
        (("-", "-o", "-", "--raw", "rgb24", "--raw-size", "64x47"), b"end within frame 6: ", 1),
        (("in.mp4", "-o", "out.mp4", "--raw", "rgb24"), b"name one of them with -", 2),
        (("-", "-o", "out.png", "--raw", "rgb24", "--raw-size", "8x8"), b"cannot write frames to out.png", 2),
        (("-", "-o", "-", "--raw-size", "8x8"), b"give their format", 2),
        (("-", "-o", "-", "--raw", "rgb24", "--raw-size", "0x8"), b"is not a size", 2),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, words, message, code):
    make_clip(tmp_path / "in.mp4", count=2)
    result = run(tmp_path, *words, data=bytes(COUNT * HEIGHT * WIDTH * 3))
    assert result.returncode == code
    assert message in b" ".join(result.stderr.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]
