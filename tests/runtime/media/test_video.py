"""Videos written by program, processed, and read back."""

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

av = pytest.importorskip("av", reason="needs PyAV: pip install 'uid-runtime[video]'")

from uid.errors import InputError, OutputError, UIDError  # noqa: E402, after the skip
from uid.runtime.media.formats import is_video_path  # noqa: E402
from uid.runtime.media.prefetch import QUEUED  # noqa: E402
from uid.runtime.media.video import process_video  # noqa: E402

WIDTH, HEIGHT, FRAMES = 64, 48, 12
LUMA = {1: (0.2126, 0.0722), 6: (0.299, 0.114)}  # AVColorSpace -> (Kr, Kb), BT.709 and BT.601
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
    picture: Callable[[int], av.VideoFrame] | None = None,
) -> Path:
    with av.open(str(path), "w", container_options=mux or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.codec_context.time_base = Fraction(1, 1000)
        prepare(stream)
        sound = container.add_stream(audio, rate=48000, layout="stereo") if audio else None
        container.start_encoding()
        for index in range(count):
            frame = picture(index) if picture else av.VideoFrame.from_ndarray(gradient(index, *size), format="rgb24")
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


def test_attachments_are_passed_over_and_odd_names_are_taken(tmp_path: Path) -> None:
    source = tmp_path / "12:30 %03d.mkv"
    with av.open(f"file:{source}", "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.add_attachment("note.txt", "text/plain", b"hello")
        for index in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gradient(index), format="rgb24")))
        container.mux(stream.encode(None))
    assert process_video(source, tmp_path / "a:b.mp4", same).frames == FRAMES


def test_sound_that_the_container_cannot_carry_is_refused(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", audio="wavpack")
    with pytest.raises(OutputError, match=r"\.mp4 cannot carry wavpack"):
        process_video(source, tmp_path / "out.mp4", same)
    assert not leftovers(tmp_path, source)


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

    source = make_clip(tmp_path / "in.mp4", count=2, prepare=tag, picture=lambda _: solid(color, matrix, full))

    def keep(pixels: Pixels) -> Pixels:
        given.append(pixels)
        return pixels

    given: list[Pixels] = []
    process_video(source, tmp_path / "out.mp4", keep)
    np.testing.assert_allclose(given[0][HEIGHT // 2, WIDTH // 2], color, atol=3)
    output = decoded(tmp_path / "out.mp4")[0]
    assert output.colorspace == matrix
    np.testing.assert_allclose(color_of(output), color, atol=4)


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"degrees": 90}, lambda pixels: np.rot90(pixels, 1)),  # counter-clockwise
        ({"degrees": 180}, lambda pixels: np.rot90(pixels, 2)),
        ({"degrees": -90}, lambda pixels: np.rot90(pixels, -1)),
        ({"degrees": 0, "hflip": True}, np.fliplr),
    ],
)
def test_rotation_is_applied_to_the_pixels(
    tmp_path: Path, turn: dict[str, Any], expected: Callable[[Pixels], Pixels]
) -> None:
    source = make_clip(tmp_path / "in.mp4", count=1, prepare=lambda stream: stream.set_display_rotation(**turn))
    process_video(source, tmp_path / "out.mp4", same)
    output = decoded(tmp_path / "out.mp4")[0]
    assert output.rotation == 0
    assert np.abs(rgb(tmp_path / "out.mp4")[0] - expected(rgb(source)[0])).mean() < 3


def test_pixel_aspect_ratio_is_kept_and_turned_with_the_image(tmp_path: Path) -> None:
    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    def wide_and_turned(stream: Any) -> None:
        wide(stream)
        stream.set_display_rotation(90)

    for prepare, aspect in ((wide, Fraction(4, 3)), (wide_and_turned, Fraction(3, 4))):
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
    assert max(arrays) <= 4 + 2 * QUEUED  # one and its output, and those read ahead and written behind
    assert frames <= 4


def test_frame_folder_out_and_in(tmp_path: Path) -> None:
    source, folder = make_clip(tmp_path / "in.mp4", audio="aac"), tmp_path / "frames"
    assert process_video(source, folder, inverted).audio_streams == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{index + 1:06d}.png" for index in range(FRAMES)]
    pictures = np.stack([np.asarray(Image.open(folder / name), float) for name in names])
    assert np.abs(pictures - (255 - rgb(source))).mean() < 3

    process_video(folder, tmp_path / "back.mp4", inverted)
    assert np.abs(rgb(tmp_path / "back.mp4") - rgb(source)).mean() < 3
    assert times(tmp_path / "back.mp4") == [Fraction(index, 25) for index in range(FRAMES)]
    process_video(folder, tmp_path / "film.mp4", same, frame_rate=Fraction(24000, 1001))
    assert times(tmp_path / "film.mp4") == [Fraction(index * 1001, 24000) for index in range(FRAMES)]
    assert not leftovers(tmp_path, source, folder, tmp_path / "back.mp4", tmp_path / "film.mp4")


def write_frames(folder: Path, **pictures: Pixels) -> Path:
    folder.mkdir()
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def test_frames_are_ordered_by_number(tmp_path: Path) -> None:
    levels = {"f10": 200, "f9": 150, "f2": 50}
    flat = {name: np.full((HEIGHT, WIDTH, 3), level, np.uint8) for name, level in levels.items()}
    process_video(write_frames(tmp_path / "in", **flat), tmp_path / "out.mkv", same)
    np.testing.assert_allclose(rgb(tmp_path / "out.mkv").mean((1, 2, 3)), [50, 150, 200], atol=2)


def test_unfit_frame_folders_are_refused(tmp_path: Path) -> None:
    picture, other = gradient(0), gradient(0, 32, 32)
    folders = {
        "holds no images": write_frames(tmp_path / "empty"),
        "no number": write_frames(tmp_path / "nameless", cover=picture),
        "000002.png is 32x32, but the first frame is 64x48": write_frames(
            tmp_path / "sizes", **{"000001": picture, "000002": other}
        ),
        "opaque image of 8 bits": write_frames(tmp_path / "alpha", **{"1": np.dstack([picture, picture[..., 0]])}),
        "opaque image of 8 bits a": write_frames(tmp_path / "deep", **{"1": picture[..., 0].astype(np.uint16) * 256}),
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
        picture=noise,
    )
    cut(source, part)
    readable = r"\d+ of 1\d frames read, 0\.\d+ s of 0\.\d+ s" if name != "in.mp4" or mux else "cut off or damaged"
    with pytest.raises(InputError, match=readable):
        process_video(source, tmp_path / "out.mp4", same)
    assert not leftovers(tmp_path, source)
    assert capfd.readouterr().err == ""  # FFmpeg does not talk over a progress bar


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_damaged_video_is_refused(tmp_path: Path, codec: str) -> None:
    source = make_clip(tmp_path / "in.mp4", codec=codec, picture=noise)
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


def transfer_of_hdr(stream: Any) -> None:
    stream.codec_context.color_trc = 16  # PQ


UNFIT: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": ("does not exist", lambda path: None),
    "empty": ("empty file", lambda path: path.write_bytes(b"")),
    "text": ("not a video", lambda path: path.write_text("hello " * 500)),
    "sound only": ("no video stream", sound_only),
    "no frames": (
        "holds no frames",
        lambda path: make_clip(path.with_suffix(".avi"), codec="mpeg4", count=0).rename(path),
    ),
    "10 bits": ("8 bits", lambda path: make_clip(path, codec="ffv1", pixel_format="yuv420p10le")),
    "HDR": ("HDR", lambda path: make_clip(path, prepare=transfer_of_hdr)),
    "alpha": ("alpha", lambda path: make_clip(path, codec="ffv1", pixel_format="yuva420p")),
    "two sizes": (r"changes from \(64, 48\) to \(32, 32\) pixels at frame 3", two_sizes),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_input_is_refused(tmp_path: Path, case: str) -> None:
    message, write = UNFIT[case]
    source = tmp_path / "in.mkv"
    write(source)
    with pytest.raises(InputError, match=message):
        process_video(source, tmp_path / "out.mp4", same)
    assert not leftovers(tmp_path, source)


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
        (OutputError, r"expected \.mp4", source, tmp_path / "out.webm", None),
    ]
    for error, message, start, end, rate in cases:
        with pytest.raises(error, match=message):
            process_video(start, end, same, frame_rate=rate)
    assert not leftovers(tmp_path, source, folder)


def test_missing_pyav_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_clip(tmp_path / "in.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'uid-runtime\[video\]'"):
        process_video(source, tmp_path / "out.mp4", same)


def test_video_paths_are_told_by_suffix() -> None:
    assert is_video_path(Path("a.MP4"))
    assert not is_video_path(Path("a.png"))
    assert not is_video_path(Path("mp4"))
