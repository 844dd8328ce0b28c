"""Every script in examples/ that is meant to be run as it is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PHOTO = EXAMPLES / "astronaut_blurred.jpg"
NOT_RUN = {
    "make_photo.py",  # writes the photo that is committed
    "train_edge.sh",  # takes hours
}


def run(folder: Path, name: str, *words: object, timeout: float = 300) -> str:
    """Run an example in a folder, with this environment's commands on the path; what it printed."""
    interpreter = [sys.executable] if name.endswith(".py") else ["sh"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [*interpreter, str(EXAMPLES / name), *map(str, words)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def pixels(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None, path
    return image


def small_photo(path: Path, side: int = 96) -> Path:
    cv2.imwrite(str(path), pixels(PHOTO)[:side, :side])
    return path


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    scripts = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    assert {name for name in scripts if f'"{name}"' in source} == scripts


def test_a_folder_of_photos(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.jpg"):
        small_photo(tmp_path / "photos" / name)
    assert "2 files" in run(tmp_path, "folder_of_photos.sh", "photos", "out")
    assert pixels(tmp_path / "out" / "a.png").shape == (96, 96, 3)
    assert len((tmp_path / "sharp.jsonl").read_text().splitlines()) == 2


def test_the_folder_by_default_is_the_one_with_the_example_photo(tmp_path: Path) -> None:
    run(tmp_path, "folder_of_photos.sh")
    assert pixels(tmp_path / "sharp" / PHOTO.name).shape == pixels(PHOTO).shape


def test_a_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels(PHOTO)[:64, :96], format="bgr24")))
        container.mux(stream.encode(None))
    run(tmp_path, "video.sh", "clip.mp4", "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [(frame.width, frame.height) for frame in frames] == [(96, 64)] * 2


def test_the_python_interface(tmp_path: Path) -> None:
    source = small_photo(tmp_path / "a.png")
    assert "1 steps, 1 transforms" in run(tmp_path, "python_api.py", source, "out.png")
    assert pixels(tmp_path / "out.png").shape == (96, 96, 3)


def test_an_own_checkpoint(tmp_path: Path, tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    """With a bundle that was exported before, which the script then uses."""
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    shutil.copy(small_photo(tmp_path / "a.png", 64), tmp_path / "photo.png")
    run(tmp_path, "own_checkpoint.sh", "checkpoint", "photo.png")
    assert pixels(tmp_path / "sharp.png").shape == (64, 64, 3)


@pytest.mark.slow
def test_an_own_checkpoint_from_nothing(tmp_path: Path) -> None:
    shutil.copy(small_photo(tmp_path / "a.png", 64), tmp_path / "photo.png")
    run(tmp_path, "own_checkpoint.sh", "checkpoint", "photo.png", timeout=3600)
    assert pixels(tmp_path / "sharp.png").shape == (64, 64, 3)
