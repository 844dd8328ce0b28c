"""Videos written by program, processed, and read back."""

import gc
import weakref
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from video_files import (
    FRAMES,
    HEIGHT,
    WIDTH,
    Pixels,
    av,
    decoded,
    gradient,
    inverted,
    leftovers,
    make_clip,
    rgb,
    same,
    sound,
    times,
    write_frames,
)

from uid.runtime.media.formats import is_video_path
from uid.runtime.media.prefetch import QUEUED
from uid.runtime.media.video import process_video

LUMA = {1: (0.2126, 0.0722), 6: (0.299, 0.114)}  # AVColorSpace -> (Kr, Kb), BT.709 and BT.601


def test_transform_is_applied_to_every_frame(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4")
    seen: list[tuple[int, int | None]] = []
    result = process_video(source, tmp_path / "out.mp4", inverted, on_frame=lambda *progress: seen.append(progress))
    assert result.frames == FRAMES
    assert seen == [(index + 1, FRAMES) for index in range(FRAMES)]
    before, after = rgb(source), rgb(tmp_path / "out.mp4")
    assert np.abs(after - (255 - before)).mean() < 3


@pytest.mark.parametrize("source_name", ["in.mp4", "in.mkv"])
@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv", "out.m4v"])
def test_variable_frame_rate_and_sound_survive(tmp_path: Path, source_name: str, name: str) -> None:
    stamps = [0, 30, 50, 110, 200, 230, 300, 310, 400, 410, 440, 470]
    source = make_clip(tmp_path / source_name, times=stamps, audio="aac")
    result = process_video(source, tmp_path / name, same)
    assert result.audio_streams == 1
    assert times(tmp_path / name) == [Fraction(stamp, 1000) for stamp in stamps]
    before, after = sound(source), sound(tmp_path / name)
    assert [data for _, data in after] == [data for _, data in before]
    np.testing.assert_allclose([t for t, _ in after], [t for t, _ in before], atol=0.001)  # Matroska's milliseconds


def test_ticks_that_no_millisecond_divides_are_kept(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", mux={"video_track_timescale": "30000"}, times=[i * 33 for i in range(12)])
    process_video(source, tmp_path / "out.mp4", same)
    assert times(tmp_path / "out.mp4") == times(source)


def test_attachments_are_ignored_and_odd_names_accepted(tmp_path: Path) -> None:
    source = tmp_path / "12:30 %03d.mkv"
    with av.open(f"file:{source}", "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.add_attachment("note.txt", "text/plain", b"hello")
        for index in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gradient(index), format="rgb24")))
        container.mux(stream.encode(None))
    assert process_video(source, tmp_path / "a:b.mp4", same).frames == FRAMES


def solid(color: tuple[int, int, int], matrix: int, full: bool) -> av.VideoFrame:
    """One colour as Y'CbCr 4:2:0, by the definition of ITU-R BT.601 and BT.709."""
    (kr, kb), (red, green, blue) = LUMA[matrix], (value / 255 for value in color)
    y = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - y) / 2 / (1 - kb), (red - y) / 2 / (1 - kr)
    values = (255 * y, 255 * cb + 128, 255 * cr + 128) if full else (16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr)
    frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(bytes([round(value)]) * plane.buffer_size)
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    return frame


def color_of(frame: av.VideoFrame) -> list[float]:
    """The inverse of ``solid``, by the frame's own tags, from its middle."""
    assert frame.color_range == 1
    kr, kb = LUMA[frame.colorspace]
    middle = [np.frombuffer(bytes(p), np.uint8)[p.line_size * (p.height // 2) + p.width // 2] for p in frame.planes]
    y, cb, cr = (middle[0] - 16.0) / 219, (middle[1] - 128.0) / 224, (middle[2] - 128.0) / 224
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    return [255 * value for value in (red, (y - kr * red - kb * blue) / (1 - kr - kb), blue)]


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", LUMA)
@pytest.mark.parametrize("color", [(200, 30, 40), (20, 180, 60), (10, 20, 220), (255, 255, 255)])
def test_colors_pass_unchanged(tmp_path: Path, color: tuple[int, int, int], matrix: int, full: bool) -> None:
    def tag(stream: Any) -> None:
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1

    source = make_clip(tmp_path / "in.mp4", count=2, prepare=tag, draw=lambda _: solid(color, matrix, full))

    def record(pixels: Pixels) -> Pixels:
        given.append(pixels)
        return pixels

    given: list[Pixels] = []
    process_video(source, tmp_path / "out.mp4", record)
    np.testing.assert_allclose(given[0][HEIGHT // 2, WIDTH // 2], color, atol=3)
    output = decoded(tmp_path / "out.mp4")[0]
    assert output.colorspace == matrix
    np.testing.assert_allclose(color_of(output), color, atol=4)


@pytest.mark.parametrize(
    ("rotation", "expected"),
    [
        ({"degrees": 90}, lambda pixels: np.rot90(pixels, 1)),  # counter-clockwise
        ({"degrees": 180}, lambda pixels: np.rot90(pixels, 2)),
        ({"degrees": -90}, lambda pixels: np.rot90(pixels, -1)),
        ({"degrees": 0, "hflip": True}, np.fliplr),
    ],
)
def test_rotation_is_applied_to_the_pixels(
    tmp_path: Path, rotation: dict[str, Any], expected: Callable[[Pixels], Pixels]
) -> None:
    source = make_clip(tmp_path / "in.mp4", count=1, prepare=lambda stream: stream.set_display_rotation(**rotation))
    process_video(source, tmp_path / "out.mp4", same)
    output = decoded(tmp_path / "out.mp4")[0]
    assert output.rotation == 0
    assert np.abs(rgb(tmp_path / "out.mp4")[0] - expected(rgb(source)[0])).mean() < 3


def test_pixel_aspect_ratio_is_kept_and_rotated_with_the_image(tmp_path: Path) -> None:
    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    def wide_and_rotated(stream: Any) -> None:
        wide(stream)
        stream.set_display_rotation(90)

    for prepare, aspect in ((wide, Fraction(4, 3)), (wide_and_rotated, Fraction(3, 4))):
        source = make_clip(tmp_path / "in.mp4", count=1, prepare=prepare)
        process_video(source, tmp_path / "out.mp4", same)
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert container.streams.video[0].sample_aspect_ratio == aspect


def test_odd_sizes_are_kept(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", size=(63, 47), pixel_format="yuv444p")
    process_video(source, tmp_path / "out.mp4", same)
    assert np.abs(rgb(tmp_path / "out.mp4") - rgb(source)).mean() < 3


@pytest.mark.parametrize(("name", "codec"), [("in.webm", "libvpx"), ("in.avi", "mpeg4"), ("in.mov", "mjpeg")])
def test_other_codecs_are_read(tmp_path: Path, name: str, codec: str) -> None:
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    prepare = (lambda stream: setattr(stream, "time_base", Fraction(1, 25))) if codec == "mpeg4" else same
    source = make_clip(tmp_path / name, codec=codec, pixel_format=pixel_format, prepare=prepare)
    assert process_video(source, tmp_path / "out.mp4", same).frames == FRAMES
    assert np.abs(rgb(tmp_path / "out.mp4") - rgb(source)).mean() < 3


def test_avi_frames_without_timestamps_come_in_order(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.avi", prepare=lambda stream: setattr(stream.codec_context, "bit_rate", 10**6))
    assert process_video(source, tmp_path / "out.mp4", same).frames == FRAMES
    stamps = times(tmp_path / "out.mp4")
    assert stamps == sorted(set(stamps))


def test_frames_in_memory_do_not_grow_with_the_video(tmp_path: Path) -> None:
    alive: weakref.WeakValueDictionary[int, Pixels] = weakref.WeakValueDictionary()
    arrays: list[int] = []

    def watch(pixels: Pixels) -> Pixels:
        result = pixels.copy()
        alive[2 * len(arrays)], alive[2 * len(arrays) + 1] = pixels, result
        arrays.append(len(alive))
        return result

    source = make_clip(tmp_path / "in.mp4", count=60)
    gc.collect()
    gc.disable()  # so that frames kept alive by a reference cycle are seen
    try:
        process_video(source, tmp_path / "out.mp4", watch)
        frames = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
    finally:
        gc.enable()
    assert len(arrays) == 60
    assert max(arrays) <= 4 + 2 * QUEUED  # one and its output, and those in the two queues
    assert frames <= 4


def test_frame_folder_out_and_in(tmp_path: Path) -> None:
    source, folder = make_clip(tmp_path / "in.mp4", audio="aac"), tmp_path / "frames"
    assert process_video(source, folder, inverted).audio_streams == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{index + 1:06d}.png" for index in range(FRAMES)]
    images = np.stack([np.asarray(Image.open(folder / name), float) for name in names])
    assert np.abs(images - (255 - rgb(source))).mean() < 3

    process_video(folder, tmp_path / "back.mp4", inverted)
    assert np.abs(rgb(tmp_path / "back.mp4") - rgb(source)).mean() < 3
    assert times(tmp_path / "back.mp4") == [Fraction(index, 25) for index in range(FRAMES)]
    process_video(folder, tmp_path / "film.mp4", same, frame_rate=Fraction(24000, 1001))
    assert times(tmp_path / "film.mp4") == [Fraction(index * 1001, 24000) for index in range(FRAMES)]
    assert not leftovers(tmp_path, source, folder, tmp_path / "back.mp4", tmp_path / "film.mp4")


def test_frames_are_ordered_by_number(tmp_path: Path) -> None:
    levels = {"f10": 200, "f9": 150, "f2": 50}
    flat = {name: np.full((HEIGHT, WIDTH, 3), level, np.uint8) for name, level in levels.items()}
    process_video(write_frames(tmp_path / "in", **flat), tmp_path / "out.mkv", same)
    np.testing.assert_allclose(rgb(tmp_path / "out.mkv").mean((1, 2, 3)), [50, 150, 200], atol=2)


def test_video_paths_are_recognised_by_suffix() -> None:
    assert is_video_path(Path("a.MP4"))
    assert not is_video_path(Path("a.png"))
    assert not is_video_path(Path("mp4"))
