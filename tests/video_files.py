"""Videos that tests make, and what is read back from one."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

av = pytest.importorskip("av", reason="needs PyAV: pip install 'uid-runtime[video]'")

WIDTH, HEIGHT, FRAMES = 64, 48, 12
Pixels = NDArray[Any]


def same(pixels: Pixels) -> Pixels:
    return pixels


def inverted(pixels: Pixels) -> Pixels:
    return 255 - pixels


def gradient(index: int, width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """A smooth image whose four corners differ, moving with ``index``."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 3 + index * 3, y * 4, np.full_like(x, 60 + index * 5)], axis=-1).astype(np.uint8)


def make_clip(
    path: Path,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    count: int = FRAMES,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    times: list[int] | None = None,  # milliseconds
    audio: str | None = None,
    mux: dict[str, str] | None = None,
    prepare: Callable[[Any], object] = lambda stream: None,
    draw: Callable[[int], av.VideoFrame] | None = None,
) -> Path:
    with av.open(str(path), "w", container_options=mux or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.codec_context.time_base = Fraction(1, 1000)
        prepare(stream)
        sound = container.add_stream(audio, rate=48000, layout="stereo") if audio else None
        container.start_encoding()
        for index in range(count):
            frame = draw(index) if draw else av.VideoFrame.from_ndarray(gradient(index, *size), format="rgb24")
            frame.pts, frame.time_base = (times[index] if times else index * 40), Fraction(1, 1000)
            container.mux(stream.encode(frame))
            if sound:
                for block in sine(index):
                    container.mux(sound.encode(block))
        for each in filter(None, (stream, sound)):
            container.mux(each.encode(None))
    return path


def sine(index: int) -> Iterator[av.AudioFrame]:
    """40 ms of a tone, for the frame ``index``."""
    samples = np.sin(np.arange(index * 1920, (index + 1) * 1920) * 0.06).astype(np.float32)
    block = av.AudioFrame.from_ndarray(np.stack([samples, samples]), format="fltp", layout="stereo")
    block.sample_rate, block.pts, block.time_base = 48000, index * 1920, Fraction(1, 48000)
    yield block


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def rgb(path: Path) -> Pixels:
    return np.stack([frame.to_ndarray(format="rgb24") for frame in decoded(path)]).astype(float)


def times(path: Path) -> list[Fraction]:
    return [frame.pts * frame.time_base for frame in decoded(path)]


def sound(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as container:
        return [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(audio=0) if p.pts is not None]


def leftovers(folder: Path, *expected: Path) -> set[Path]:
    return set(folder.iterdir()) - set(expected)


def write_frames(folder: Path, **images: Pixels) -> Path:
    folder.mkdir()
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder
