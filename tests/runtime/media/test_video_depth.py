"""More than 8 bits, HDR, interlaced video, and other containers and encoders."""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_files import FRAMES, HEIGHT, WIDTH, Pixels, av, decoded, gradient, make_clip, same, times

from uid.errors import InputError, OutputError
from uid.runtime.media.ffmpeg import opened
from uid.runtime.media.frames import Mastering
from uid.runtime.media.video import VideoOptions, process_video
from uid.runtime.media.video_codecs import Wanted
from uid.runtime.media.video_reader import inspected

BT2020, PQ, HLG, BT709 = 9, 16, 18, 1
MASTERING = Mastering(
    tuple(Fraction(value, 50_000) for value in (34000, 16000, 13250, 34500, 7500, 3000, 15635, 16450)),
    (Fraction(1, 10_000), Fraction(1000)),
    (1000, 400),
)
X265 = "log-level=none:lossless=1:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
SVT = "mastering-display=G(0.265,0.69)B(0.15,0.06)R(0.68,0.32)WP(0.3127,0.329)L(1000,0.0001):content-light=1000,400"


def tagged(primaries: int, transfer: int, matrix: int, **options: str) -> Callable[[Any], None]:
    def prepare(stream: Any) -> None:
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = primaries, transfer, matrix
        context.color_range = 1
        stream.options.update({key.replace("_", "-"): value for key, value in options.items()})

    return prepare


def ramp(index: int, pixel_format: str = "yuv420p10le", matrix: int = BT2020) -> av.VideoFrame:
    """Levels that 8 bits cannot tell apart, two columns each."""
    frame = av.VideoFrame(WIDTH, HEIGHT, pixel_format)
    levels = np.broadcast_to(400 + 3 * (np.arange(WIDTH) // 2) + index, (HEIGHT, WIDTH))
    for plane, values in zip(frame.planes, (levels, None, None), strict=True):
        rows = np.full((plane.height, plane.line_size // 2), 512, np.uint16)
        if values is not None:
            rows[:, :WIDTH] = values
        plane.update(rows.tobytes())
    frame.colorspace, frame.color_range = matrix, 1
    return frame


def luma(frame: av.VideoFrame) -> Pixels:
    plane = frame.planes[0]
    return np.frombuffer(bytes(plane), np.uint16).reshape(frame.height, -1)[:, : frame.width].astype(int)


SOURCES: dict[str, dict[str, Any]] = {
    "hevc.mp4": {"codec": "libx265", "prepare": tagged(BT2020, PQ, BT2020, x265_params=f"{X265}:max-cll=1000,400")},
    "av1.mkv": {"codec": "libsvtav1", "prepare": tagged(BT2020, PQ, BT2020, svtav1_params=SVT)},
    "prores.mov": {"codec": "prores_ks", "pixel_format": "yuv422p10le", "prepare": tagged(BT2020, HLG, BT2020)},
    "sdr.mkv": {"codec": "ffv1", "prepare": tagged(BT709, BT709, BT709)},
    "high10.mp4": {"codec": "libx264", "prepare": tagged(BT709, BT709, BT709)},
}


def deep_clip(folder: Path, name: str) -> Path:
    known = {"pixel_format": "yuv420p10le"} | SOURCES[name]
    matrix = BT709 if name in ("sdr.mkv", "high10.mp4") else BT2020
    draw = lambda index: ramp(index, known["pixel_format"], matrix)  # noqa: E731
    return make_clip(folder / name, count=4, draw=draw, **known)


def light_of(path: Path) -> Mastering:
    with opened(path) as container:
        return inspected(container, path).mastering


def about(mastering: Mastering) -> list[float]:
    return [float(value) for value in (*mastering.primaries, *mastering.luminance, *mastering.light)]


@pytest.mark.parametrize("out", ["out.mp4", "out.mkv", "out.mov", "out.webm"])
@pytest.mark.parametrize("name", SOURCES)
def test_depth_and_light_pass_through(tmp_path: Path, name: str, out: str) -> None:
    def record(pixels: Pixels) -> Pixels:
        given.append(pixels)
        return pixels

    given: list[Pixels] = []
    source = deep_clip(tmp_path, name)
    assert process_video(source, tmp_path / out, record).warnings == ()
    assert given[0].dtype == np.uint16
    assert len(np.unique(given[0][10, :, 1])) >= 28  # 8 bits would leave a quarter
    before, after = decoded(source)[0], decoded(tmp_path / out)[0]
    assert after.format.name == ("yuv420p10le" if out.endswith("webm") else before.format.name)
    for tag in ("color_primaries", "color_trc", "colorspace"):
        assert getattr(after, tag) == getattr(before, tag)
    assert after.color_range == 1
    assert np.abs(luma(before) - luma(after)).mean() < 1.5  # of 1023
    np.testing.assert_allclose(about(light_of(tmp_path / out)), about(light_of(source)), atol=1e-4)
    if name in ("hevc.mp4", "av1.mkv"):
        np.testing.assert_allclose(about(light_of(source)), about(MASTERING), atol=1e-4)


def test_deep_frames_go_through_a_folder(tmp_path: Path) -> None:
    source = deep_clip(tmp_path, "sdr.mkv")
    process_video(source, tmp_path / "frames", same)
    process_video(tmp_path / "frames", tmp_path / "out.mkv", same)
    first = decoded(tmp_path / "out.mkv")[0]
    assert first.format.name.endswith("10le") or first.format.name.endswith("12le")
    levels = luma(first) / (4 if first.format.name.endswith("12le") else 1)
    assert np.abs(levels - luma(decoded(source)[0])).mean() < 1.5


def test_light_that_an_encoder_cannot_carry_is_named(tmp_path: Path) -> None:
    source = deep_clip(tmp_path, "hevc.mp4")
    options = VideoOptions(wanted=Wanted(codec="ffv1"))
    (line,) = process_video(source, tmp_path / "out.mkv", same, options=options).warnings
    assert "mastering" in line


# Interlaced


def fields(index: int) -> av.VideoFrame:
    """A bar that moves between the two fields of a frame."""
    pixels = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    for parity in range(2):
        left = (2 * index + parity) * 2
        pixels[parity::2, left : left + 12] = 200
    return av.VideoFrame.from_ndarray(pixels, format="rgb24")


def interlaced(flags: str) -> Callable[[Any], None]:
    return lambda stream: stream.options.update({"flags": flags, "field_order": "tt", "x264-params": "tff=1"})


def combing(path: Path) -> float:
    pixels = [frame.to_ndarray(format="gray").astype(float) for frame in decoded(path)]
    return float(np.mean([np.abs(2 * p[1:-1] - p[:-2] - p[2:]).mean() for p in pixels]))


@pytest.mark.parametrize(
    ("name", "codec"), [("in.mp4", "libx264"), ("in.ts", "libx264"), ("in.mpg", "mpeg2video"), ("in.mov", "prores_ks")]
)
def test_fields_are_not_combed_in_silence(tmp_path: Path, name: str, codec: str) -> None:
    deep = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    field_coding = interlaced("+ildct+ilme")

    def prepare(stream: Any) -> None:
        field_coding(stream)
        if codec == "mpeg2video":
            stream.codec_context.time_base = Fraction(1, 25)

    source = make_clip(tmp_path / name, codec=codec, pixel_format=deep, draw=_interlaced_frames, prepare=prepare)
    assert any(frame.interlaced_frame for frame in decoded(source))
    stamps = times(source)
    (line,) = process_video(source, tmp_path / "out.mp4", same).warnings
    assert "interlaced" in line
    assert times(tmp_path / "out.mp4") == pytest.approx(stamps, abs=0.001)
    assert not any(frame.interlaced_frame for frame in decoded(tmp_path / "out.mp4"))
    assert combing(tmp_path / "out.mp4") < 0.5 * combing(source)


def _interlaced_frames(index: int) -> av.VideoFrame:
    """Frames that say that they are interlaced, by a filter, since PyAV cannot."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=WIDTH, height=HEIGHT, format="rgb24", time_base=Fraction(1, 1000))
    graph.link_nodes(source, graph.add("setfield", "tff"), graph.add("buffersink"))
    graph.configure()
    graph.vpush(fields(index))
    return graph.vpull()


def test_progressive_frames_are_not_touched(tmp_path: Path) -> None:
    assert process_video(make_clip(tmp_path / "in.mp4"), tmp_path / "out.mp4", same).warnings == ()


# Containers and encoders


@pytest.mark.parametrize(
    ("name", "codec", "audio"),
    [
        ("in.webm", "libvpx-vp9", "libopus"),
        ("in.ts", "libx264", "aac"),
        ("in.mts", "libx264", "ac3"),
        ("in.mpg", "mpeg2video", "mp2"),
        ("in.wmv", "wmv2", "libmp3lame"),
        ("in.flv", "flv", "aac"),
        ("in.3gp", "libx264", "aac"),
        ("in.gif", "gif", None),
        ("in.mxf", "mpeg2video", None),
    ],
)
def test_other_containers_are_read(tmp_path: Path, name: str, codec: str, audio: str | None) -> None:
    def prepare(stream: Any) -> None:
        if codec in ("mpeg2video", "gif"):
            stream.codec_context.time_base = Fraction(1, 25)

    format = "rgb8" if codec == "gif" else "yuv420p"
    source = make_clip(tmp_path / name, codec=codec, pixel_format=format, audio=audio, prepare=prepare)
    result = process_video(source, tmp_path / "out.mkv", same)
    assert result.frames == FRAMES
    assert result.audio_streams == (audio is not None)
    steps = np.diff([float(time) for time in times(tmp_path / "out.mkv")])
    np.testing.assert_allclose(steps, 0.04, atol=0.002)


@pytest.mark.parametrize("name", ["out.webm", "out.ts", "out.mts"])
def test_other_containers_are_written(tmp_path: Path, name: str) -> None:
    audio = "libopus" if name == "out.webm" else "aac"
    source = make_clip(tmp_path / "in.mkv", audio=audio)
    process_video(source, tmp_path / name, same)
    with av.open(str(tmp_path / name)) as container:
        assert len(list(container.decode(video=0))) == FRAMES
        assert container.streams.video[0].codec_context.name in ("vp9", "libvpx-vp9", "h264")
    np.testing.assert_allclose(np.diff([float(time) for time in times(tmp_path / name)]), 0.04, atol=0.002)


@pytest.mark.parametrize(
    ("codec", "name", "pixel_format"),
    [
        ("hevc", "hevc", "yuv420p"),
        ("prores", "prores", "yuv422p10le"),
        ("ffv1", "ffv1", "yuv444p"),
        ("av1", "libdav1d", "yuv420p10le"),
    ],
)
def test_encoder_and_pixel_format_are_chosen(tmp_path: Path, codec: str, name: str, pixel_format: str) -> None:
    source = make_clip(tmp_path / "in.mp4")
    options = VideoOptions(wanted=Wanted(codec=codec, pixel_format=pixel_format))
    process_video(source, tmp_path / "out.mov" if codec == "prores" else tmp_path / "out.mkv", same, options=options)
    (out,) = tmp_path.glob("out.*")
    with av.open(str(out)) as container:
        assert container.streams.video[0].codec_context.name == name
        assert container.streams.video[0].pix_fmt == pixel_format


def test_crf_sets_the_size(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4")
    for crf in (10.0, 40.0):
        process_video(source, tmp_path / f"{crf}.mp4", same, options=VideoOptions(wanted=Wanted(crf=crf)))
    assert (tmp_path / "10.0.mp4").stat().st_size > 1.2 * (tmp_path / "40.0.mp4").stat().st_size


@pytest.mark.parametrize(
    ("wanted", "suffix", "error", "message"),
    [
        (Wanted(codec="no-such"), ".mkv", InputError, "no-such is no video encoder"),
        (Wanted(codec="aac"), ".mkv", InputError, "aac is no video encoder"),
        (Wanted(codec="prores", crf=3), ".mov", InputError, "no setting of quality"),
        (Wanted(pixel_format="rgb48le"), ".mp4", InputError, "libx264 does not write rgb48le"),
        (Wanted(codec="prores"), ".webm", OutputError, r"out\.webm with prores_ks"),
        (Wanted(codec="vp9"), ".mov", OutputError, r"out\.mov with libvpx-vp9"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_frame(
    tmp_path: Path, wanted: Wanted, suffix: str, error: type[Exception], message: str
) -> None:
    def never(pixels: Pixels) -> Pixels:
        raise AssertionError("a frame was computed")

    source = make_clip(tmp_path / "in.mp4")
    options = dataclasses.replace(VideoOptions(), wanted=wanted)
    with pytest.raises(error, match=message):
        process_video(source, tmp_path / f"out{suffix}", never, options=options)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_odd_sizes_are_not_halved(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", size=(63, 47), pixel_format="yuv444p", draw=_odd)
    for codec in ("h264", "hevc", "vp9"):
        process_video(source, tmp_path / f"{codec}.mkv", same, options=VideoOptions(wanted=Wanted(codec=codec)))
        assert (decoded(tmp_path / f"{codec}.mkv")[0].width, decoded(tmp_path / f"{codec}.mkv")[0].height) == (63, 47)
    with pytest.raises(InputError, match="needs even sizes"):
        process_video(source, tmp_path / "o.mkv", same, options=VideoOptions(wanted=Wanted(pixel_format="yuv420p")))


def _odd(index: int) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(gradient(index, 63, 47), format="rgb24")
