"""Frames that a video states and does not give are an error, or named; sizes are checked before memory is taken."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from video_files import FRAMES, HEIGHT, WIDTH, Pixels, av, gradient, make_clip, same, times, write_frames

from uid.errors import InputError
from uid.runtime.media.video import VideoOptions, process_video

SALVAGE = VideoOptions(salvage=True)


def noise(index: int) -> av.VideoFrame:
    pixels = np.random.default_rng(index).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return av.VideoFrame.from_ndarray(pixels, format="rgb24")


def fewer_chunks(path: Path) -> None:
    """The table of chunks is shorter than what the table of samples states."""
    data = bytearray(path.read_bytes())
    at = data.index(b"stco") + 8
    (chunks,) = struct.unpack_from(">I", data, at)
    struct.pack_into(">I", data, at, chunks // 2)
    path.write_bytes(data)


def zeroed(path: Path) -> None:
    """A third of the samples is gone."""
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    for at in range(start + (len(data) - start) // 3, start + (len(data) - start) // 2):
        data[at] = 0
    path.write_bytes(data)


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


LOST: dict[str, tuple[str, Callable[[Path], None]]] = {
    "fewer chunks": ("in.mp4", fewer_chunks),
    "fewer chunks, MOV": ("in.mov", fewer_chunks),
    "zeroed": ("in.mp4", zeroed),
    "cut": ("in.mkv", cut),
}


@pytest.mark.parametrize("case", LOST)
def test_missing_frames_are_an_error_or_salvaged(tmp_path: Path, case: str) -> None:
    name, harm = LOST[case]
    mux: dict[str, str] = {} if "mkv" in name else {"movflags": "faststart"}
    source = make_clip(tmp_path / name, audio="aac", draw=noise, mux=mux)
    harm(source)
    with pytest.raises(InputError, match=r"cut off or damaged .* --salvage"):
        process_video(source, tmp_path / "out.mp4", same)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    result = process_video(source, tmp_path / "out.mp4", same, options=SALVAGE)
    assert 0 < result.frames <= FRAMES
    assert len(times(tmp_path / "out.mp4")) == result.frames
    assert any("cut off or damaged" in line for line in result.warnings)


def test_a_count_in_matroska_is_believed(tmp_path: Path) -> None:
    def counted(stream: object) -> None:
        stream.metadata["NUMBER_OF_FRAMES-eng"] = str(FRAMES + 3)  # type: ignore[attr-defined]

    source = make_clip(tmp_path / "in.mkv", prepare=counted)
    with pytest.raises(InputError, match="3 frames that it states are not there"):
        process_video(source, tmp_path / "out.mp4", same)


@pytest.mark.parametrize("first", [1, 5])
def test_frames_that_an_edit_list_leaves_out_are_not_missing(tmp_path: Path, first: int) -> None:
    """A phone's trimmed film holds frames that are not shown."""
    source = make_clip(tmp_path / "in.mp4", codec="mpeg4")
    data = bytearray(source.read_bytes())
    at = data.index(b"elst") + 8
    duration, begin = struct.unpack_from(">ii", data, at + 4)
    struct.pack_into(">ii", data, at + 4, duration - 40 * first, begin + 512 * first)
    source.write_bytes(data)
    shown = len(times(source))
    assert shown < FRAMES
    assert process_video(source, tmp_path / "out.mp4", same).frames == shown


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv", "in.ts", "in.avi", "frames"])
def test_large_frames_are_refused_before_they_are_decoded(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    if name == "frames":
        write_frames(source, **{"1": gradient(0)})
    else:
        make_clip(source, codec="mpeg4" if name == "in.avi" else "libx264")
    for limit in (WIDTH * HEIGHT - 1, 1):
        with pytest.raises(InputError, match=r"pixels(?: a frame)?; shrink it") as error:
            process_video(source, tmp_path / "out.mp4", same, options=VideoOptions(max_pixels=limit))
        assert error.value.option == "max_pixels"
    whole = VideoOptions(max_pixels=WIDTH * HEIGHT)
    assert process_video(source, tmp_path / "out.mp4", same, options=whole).frames


@pytest.mark.parametrize("pixel_format", ["yuva420p", "yuva444p", "bgra"])
def test_an_opaque_alpha_is_no_obstacle(tmp_path: Path, pixel_format: str) -> None:
    source = make_clip(tmp_path / "in.mkv", codec="ffv1", pixel_format=pixel_format)
    assert process_video(source, tmp_path / "out.mp4", same).frames == FRAMES


def test_opaque_frames_with_alpha_are_taken(tmp_path: Path) -> None:
    opaque: Pixels = np.dstack([gradient(0), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    source = write_frames(tmp_path / "in", **{"1": opaque, "2": gradient(1)})
    assert process_video(source, tmp_path / "out.mp4", same).frames == 2


def test_transparent_frames_are_refused_before_any_is_computed(tmp_path: Path) -> None:
    def never(pixels: Pixels) -> Pixels:
        raise AssertionError("a frame was computed")

    veil: Pixels = np.dstack([gradient(9), np.full((HEIGHT, WIDTH), 254, np.uint8)])
    source = write_frames(tmp_path / "in", **{f"{i}": gradient(i) for i in range(9)}, **{"9": veil})
    with pytest.raises(InputError, match=r"9\.png is transparent"):
        process_video(source, tmp_path / "out.mp4", never)
