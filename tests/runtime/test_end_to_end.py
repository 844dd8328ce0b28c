"""uid-run as a process or command, on real bundles."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from uid.runtime import Options, load
from uid.runtime.app import cli
from uid.runtime.media.decode import read_image
from uid.runtime.media.encode import write_image
from uid.runtime.media.formats import DecodedImage

MakeToy = Callable[..., Path]
UID_RUN = [sys.executable, "-m", "uid.runtime.app.cli"]
VIDEO = pytest.mark.skipif(find_spec("av") is None, reason="needs PyAV")


def photo(path: Path, size: tuple[int, int] = (20, 28), seed: int = 0, dtype: type[np.generic] = np.uint8) -> Path:
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(seed).integers(0, top, (*size, 3), endpoint=True).astype(dtype)
    write_image(DecodedImage(pixels, None, False, None, None, "png"), path)
    return path


def blocks(pixels: np.ndarray) -> np.ndarray:
    """Means of 8 x 8 pixels, which a video's halved chroma keeps."""
    return pixels.reshape(pixels.shape[0] // 8, 8, -1, 8, 3).mean(axis=(1, 3))


def uid_run(*words: object) -> Result:
    return CliRunner().invoke(cli.run, [str(word) for word in words])


def test_a_folder_through_the_real_model(tmp_path: Path, tiny_bundle: Path) -> None:
    names = ["a.png", "deep/b.png", "deep/er/c.tif"]
    for i, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        photo(tmp_path / "in" / name, seed=i, dtype=np.uint16 if i else np.uint8)
    result = uid_run(tmp_path / "in", "-o", tmp_path / "out", "-m", tiny_bundle, "--steps", 2, "--seed", 4, "--json")
    assert result.exit_code == 0, result.output
    pipeline = load(tiny_bundle)
    for name in names:
        expected = pipeline(read_image(tmp_path / "in" / name).pixels, Options(steps=2, seed=4)).image
        np.testing.assert_array_equal(read_image(tmp_path / "out" / name).pixels, expected, strict=True)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["ok"] for line in lines] == [True] * 3
    assert {"input", "output", "backend", "steps", "guidance", "seed", "seconds", "width", "height", "tiles"} <= set(
        lines[0]
    )
    assert "weights of bundle tiny are random" in result.stderr


def test_compare_shows_both(tmp_path: Path, tiny_bundle: Path) -> None:
    source = photo(tmp_path / "a.png")
    assert uid_run(source, "-o", tmp_path / "b.png", "-m", tiny_bundle, "--steps", 1, "--compare").exit_code == 0
    both = read_image(tmp_path / "b.png").pixels
    assert both.shape == (20, 56, 3)
    np.testing.assert_array_equal(both[:, :28], read_image(source).pixels)


def test_blur_transfer(tmp_path: Path, tiny_bundle: Path) -> None:
    source, blur = photo(tmp_path / "a.png"), photo(tmp_path / "blur.png", (33, 40), seed=1)
    words = [source, "-o", tmp_path / "b.png", "-m", tiny_bundle, "--steps", 2, "--mode", "blur-transfer"]
    result = uid_run(*words, "--blur-from", blur)
    assert result.exit_code == 0, result.output
    options = Options(mode="blur-transfer", steps=2)
    expected = load(tiny_bundle)(read_image(source).pixels, options, blur_image=read_image(blur).pixels).image
    np.testing.assert_array_equal(read_image(tmp_path / "b.png").pixels, expected)


def test_threads_do_not_change_much(tmp_path: Path, tiny_bundle: Path) -> None:
    source = photo(tmp_path / "a.png")
    for threads in (1, 2):
        words = ["-o", tmp_path / f"{threads}.png", "-m", tiny_bundle, "--steps", 2, "--threads", threads]
        assert uid_run(source, *words).exit_code == 0
    one, two = (read_image(tmp_path / f"{threads}.png").pixels.astype(int) for threads in (1, 2))
    assert np.abs(one - two).max() <= 1


def test_nan_fails_the_file_and_writes_nothing(tmp_path: Path, make_toy: MakeToy) -> None:
    bundle = make_toy(nan_below=400.0)
    result = uid_run(photo(tmp_path / "a.png"), "-o", tmp_path / "out" / "b.png", "-m", bundle)
    assert result.exit_code == 1
    assert "NaN or infinity in step" in result.stderr
    assert not (tmp_path / "out" / "b.png").exists()


def test_one_bad_file_among_good_ones(tmp_path: Path, make_toy: MakeToy) -> None:
    bundle = make_toy()
    (tmp_path / "in").mkdir()
    for name in ("a", "c"):
        photo(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "b.png").write_bytes(b"not an image")
    result = uid_run(tmp_path / "in", "-o", tmp_path / "out", "-m", bundle, "--keep-going")
    assert result.exit_code == 1
    assert "b.png" in result.stderr
    assert "expected a PNG" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "tpu"], "unknown backend 'tpu'; expected auto"),
        (["--model", "/nowhere"], "is not a bundle"),
        (["--mode", "blur-transfer"], "has no mode 'blur-transfer'; it has deblur (--mode)"),
        (["--tile", "4"], "needs at least 8"),
        (["--steps", "1001"], "got 1001 steps; expected 1 to 1000"),
    ],
)
def test_wrong_usage(tmp_path: Path, make_toy: MakeToy, words: list[str], message: str) -> None:
    source = photo(tmp_path / "a.png")
    model = [] if "--model" in words else ["-m", make_toy()]
    result = uid_run(source, "-o", tmp_path / "b.png", *model, *words)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert not (tmp_path / "b.png").exists()


def test_full_disk_and_unwritable_output(tmp_path: Path, make_toy: MakeToy) -> None:
    """A limit on the size of files stands for a full disk: the write fails half way."""
    source, bundle = photo(tmp_path / "a.png", (200, 200)), make_toy()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    words = [*UID_RUN, str(source), "-m", str(bundle), "--steps", "1", "-o"]
    full = [*words, str(tmp_path / "out" / "b.png")]
    done = subprocess.run(full, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1, done.stderr
    assert "cannot write" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
    done = subprocess.run([*words, str(source / "b.png")], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_leaves_no_partial_file(tmp_path: Path, tiny_bundle: Path) -> None:
    source = photo(tmp_path / "a.png", (256, 256))
    words = [*UID_RUN, str(source), "-o", str(tmp_path / "out" / "b.png"), "-m", str(tiny_bundle), "--steps", "900"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stderr is not None
    assert "random" in process.stderr.readline()  # the model is loaded, the steps begin
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_pipe_in_and_out(tmp_path: Path, make_toy: MakeToy) -> None:
    source, bundle = photo(tmp_path / "a.png"), make_toy()
    words = [*UID_RUN, "-", "-o", "-", "-m", str(bundle), "--steps", "3"]
    done = subprocess.run(words, input=source.read_bytes(), capture_output=True, check=True)
    expected = load(bundle)(read_image(source).pixels, Options(steps=3)).image
    np.testing.assert_array_equal(read_image(done.stdout).pixels, expected)


@VIDEO
def test_video_frames_are_the_pipelines(tmp_path: Path, make_toy: MakeToy) -> None:
    bundle, frames = make_toy(), tmp_path / "frames"
    for i in range(5):
        photo(frames / f"{i}.png", (32, 48), seed=i)
    result = uid_run(frames, "-o", tmp_path / "clip.mkv", "-m", bundle, "--steps", 30, "--frame-rate", 10)
    assert result.exit_code == 0, result.output
    capture = cv2.VideoCapture(str(tmp_path / "clip.mkv"))
    for i in range(5):
        read, frame = capture.read()
        assert read
        expected = load(bundle)(read_image(frames / f"{i}.png").pixels, Options(steps=30)).image
        assert np.abs(frame[:, :, ::-1].astype(int) - expected).mean() < 6
    assert not capture.read()[0]


@VIDEO
def test_video_compared(tmp_path: Path, make_toy: MakeToy) -> None:
    for i in range(3):
        photo(tmp_path / "frames" / f"{i}.png", (32, 48), seed=i)
    words = [tmp_path / "frames", "-m", make_toy(), "--steps", 2, "--compare"]
    result = uid_run(*words, "-o", tmp_path / "clip.mp4")
    assert result.exit_code == 0, result.output
    read, frame = cv2.VideoCapture(str(tmp_path / "clip.mp4")).read()
    assert read
    assert frame.shape == (32, 96, 3)
    blurred = read_image(tmp_path / "frames" / "0.png").pixels
    np.testing.assert_allclose(blocks(frame[:, :48, ::-1]), blocks(blurred), atol=8)
    assert np.abs(blocks(frame[:, 48:, ::-1]) - blocks(blurred)).mean() > 8


def test_doctor_tells_of_backends_and_the_built_in_bundle() -> None:
    done = subprocess.run([*UID_RUN, "doctor"], capture_output=True, text=True, check=True).stdout
    assert "works    backend onnxruntime" in done
    assert "backend onnxruntime-cuda" in done
    assert "built-in bundle: edge, trained" in done
