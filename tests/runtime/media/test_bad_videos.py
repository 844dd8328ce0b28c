"""Videos and frame folders that cannot be read or written are refused by name, and leave nothing behind."""

import re
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from video_files import (
    FRAMES,
    HEIGHT,
    WIDTH,
    Pixels,
    av,
    gradient,
    leftovers,
    make_clip,
    same,
    sine,
    write_frames,
)

from uid.errors import InputError, OutputError, UIDError
from uid.install import how_to_install
from uid.runtime.media.video import process_video


def test_sound_that_the_container_cannot_carry_is_refused(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", audio="wavpack")
    with pytest.raises(OutputError, match=r"\.mp4 cannot carry wavpack"):
        process_video(source, tmp_path / "out.mp4", same)
    assert not leftovers(tmp_path, source)


def test_unfit_frame_folders_are_refused(tmp_path: Path) -> None:
    image, other = gradient(0), gradient(0, 32, 32)
    folders = {
        "holds no images": write_frames(tmp_path / "empty"),
        "no number": write_frames(tmp_path / "nameless", cover=image),
        "000002.png is 32x32, but the first frame is 64x48": write_frames(
            tmp_path / "sizes", **{"000001": image, "000002": other}
        ),
        "2.png is transparent in places": write_frames(
            tmp_path / "alpha", **{"1": image, "2": np.dstack([image, image[..., 0]])}
        ),
        "2.png has 16 bits a channel, but the first frame 8": write_frames(
            tmp_path / "deep", **{"1": image, "2": image[..., 0].astype(np.uint16) * 256}
        ),
    }
    for message, folder in folders.items():
        with pytest.raises(InputError, match=message):
            process_video(folder, tmp_path / "out.mp4", same)
    assert not leftovers(tmp_path, *folders.values())


def test_folder_in_use_is_not_touched(tmp_path: Path) -> None:
    source, folder = make_clip(tmp_path / "in.mp4"), write_frames(tmp_path / "out", mine=gradient(0))
    with pytest.raises(OutputError, match="empty or a new folder"):
        process_video(source, folder, same)
    assert [path.name for path in folder.iterdir()] == ["mine.png"]
    (folder / "mine.png").unlink()
    assert process_video(source, folder, same).frames == FRAMES == len(list(folder.iterdir()))


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "frames"])
def test_interrupt_leaves_nothing(tmp_path: Path, name: str) -> None:
    def interrupted(pixels: Pixels) -> Pixels:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return pixels

    calls: list[int] = []
    source = make_clip(tmp_path / "in.mp4", audio="aac")
    with pytest.raises(KeyboardInterrupt):
        process_video(source, tmp_path / name, interrupted)
    assert not leftovers(tmp_path, source)


def cut(path: Path, part: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])


def scramble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : third + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(data)


def noise(index: int) -> av.VideoFrame:
    pixels = np.random.default_rng(index).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return av.VideoFrame.from_ndarray(pixels, format="rgb24")


@pytest.mark.parametrize("part", [0.5, 0.8])
@pytest.mark.parametrize("audio", ["aac", None])
@pytest.mark.parametrize(
    ("name", "mux"),
    [("in.mp4", {"movflags": "faststart"}), ("in.mkv", {}), ("in.webm", {}), ("in.mp4", {})],
    ids=["faststart", "mkv", "webm", "mp4"],
)
def test_video_cut_off_in_the_middle_is_refused(
    tmp_path: Path, name: str, mux: dict[str, str], audio: str | None, part: float, capfd: pytest.CaptureFixture[str]
) -> None:
    webm = name.endswith("webm")
    source = make_clip(
        tmp_path / name,
        codec="libvpx" if webm else "libx264",
        audio="libopus" if webm and audio else audio,
        mux=mux,
        draw=noise,
    )
    cut(source, part)
    readable = r"\d+ of 1\d frames read, 0\.\d+ s of 0\.\d+ s" if name != "in.mp4" or mux else "cut off or damaged"
    with pytest.raises(InputError, match=readable):
        process_video(source, tmp_path / "out.mp4", same)
    assert not leftovers(tmp_path, source)
    assert capfd.readouterr().err == ""  # FFmpeg does not talk over a progress bar


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_damaged_video_is_refused(tmp_path: Path, codec: str) -> None:
    source = make_clip(tmp_path / "in.mp4", codec=codec, draw=noise)
    scramble(source)
    with pytest.raises(InputError, match="damaged"):
        process_video(source, tmp_path / "out.mp4", same)
    assert not leftovers(tmp_path, source)


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="stereo")
        for index in range(10):
            for block in sine(index):
                container.mux(stream.encode(block))
        container.mux(stream.encode(None))


def two_sizes(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for index, size in enumerate([(WIDTH, HEIGHT)] * 2 + [(32, 32)] * 2):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = *size, "yuvj420p", Fraction(1, 25)
            frame = av.VideoFrame.from_ndarray(gradient(0, *size), format="rgb24").reformat(format="yuvj420p")
            for packet in encoder.encode(frame) + encoder.encode(None):
                packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 25)
                container.mux(packet)


def half_transparent(index: int) -> av.VideoFrame:
    pixels = np.dstack([gradient(index), np.full((HEIGHT, WIDTH), 255 if index < 5 else 128, np.uint8)])
    return av.VideoFrame.from_ndarray(pixels, format="rgba")


UNFIT: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": ("does not exist", lambda path: None),
    "empty": ("empty file", lambda path: path.write_bytes(b"")),
    "text": ("not a video", lambda path: path.write_text("hello " * 500)),
    "sound only": ("no video stream", sound_only),
    "no frames": (
        "holds no frames",
        lambda path: make_clip(path.with_suffix(".avi"), codec="mpeg4", count=0).rename(path),
    ),
    "alpha": (
        "transparent",
        lambda path: make_clip(path, codec="ffv1", pixel_format="yuva420p", draw=half_transparent),
    ),
    "VP9 alpha": (
        "transparent",
        lambda path: make_clip(path, codec="libvpx-vp9", pixel_format="yuva420p", draw=half_transparent),
    ),
    "concat list": (
        "not a video",
        lambda path: path.write_text(f"ffconcat version 1.0\nfile {make_clip(path.with_name('other.mp4')).name}\n"),
    ),
    "HLS list": (
        "not a video",
        lambda path: path.write_text(f"#EXTM3U\n#EXTINF:1,\n{make_clip(path.with_name('other.ts')).name}\n"),
    ),
    "two sizes": (r"changes from \(64, 48\) to \(32, 32\) pixels at frame 3", two_sizes),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_input_is_refused(tmp_path: Path, case: str) -> None:
    message, write = UNFIT[case]
    source = tmp_path / "in.mkv"
    write(source)
    with pytest.raises(InputError, match=message):
        process_video(source, tmp_path / "out.mp4", same)
    assert not [path for path in leftovers(tmp_path, source) if "other" not in path.name]


@pytest.mark.parametrize("change", [lambda p: p[:-2], lambda p: p.astype(np.float32), lambda p: p[..., 0]])
def test_transform_that_changes_shape_or_dtype_is_refused(tmp_path: Path, change: Callable[[Pixels], Pixels]) -> None:
    source = make_clip(tmp_path / "in.mp4")
    with pytest.raises(InputError, match=r"\(48, 64, 3\) uint8"):
        process_video(source, tmp_path / "out.mp4", change)
    assert not leftovers(tmp_path, source)


def test_contradictory_paths_and_options_are_refused(tmp_path: Path) -> None:
    source, folder = make_clip(tmp_path / "in.mp4"), write_frames(tmp_path / "in", **{"1": gradient(0)})
    cases: list[tuple[type[UIDError], str, Path, Path, Fraction | None]] = [
        (InputError, "input itself", source, source, None),
        (InputError, "both folders", folder, tmp_path / "out", None),
        (InputError, "not a video", folder / "1.png", tmp_path / "out.mp4", None),
        (InputError, "own timestamps", source, tmp_path / "out.mp4", Fraction(25)),
        (InputError, "more than 0", folder, tmp_path / "out.mp4", Fraction(0)),
        (OutputError, r"expected \.mp4", source, tmp_path / "out.avi", None),
    ]
    for error, message, start, end, rate in cases:
        with pytest.raises(error, match=message):
            process_video(start, end, same, frame_rate=rate)
    assert not leftovers(tmp_path, source, folder)


def test_missing_pyav_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_clip(tmp_path / "in.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=re.escape(how_to_install("video"))):
        process_video(source, tmp_path / "out.mp4", same)
