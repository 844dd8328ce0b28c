"""What a container holds beside the frames is carried, or named."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from video_files import FRAMES, av, gradient, make_clip, same, sine, sound, times

from uid.runtime.media.selection import Selection
from uid.runtime.media.video import VideoOptions, process_video

TAGS = {"title": "My film", "artist": "me", "comment": "hello", "creation_time": "2020-01-02T03:04:05.000000Z"}
CHAPTERS = [(0, 200, "One"), (200, 480, "Zwei ä")]


def rich(path: Path, subtitles: str, frame: Callable[[str], bytes], tags: dict[str, str] = TAGS) -> Path:
    """A film with two languages, subtitles, chapters, tags and a timecode; in Matroska also a font."""
    tick = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.metadata.update({"timecode": "01:02:03:04", "title": "main"})
        sounds = [container.add_stream("aac", rate=48000, layout="stereo") for _ in range(2)]
        for stream, language, default in zip(sounds, ("eng", "fra"), (0, 1), strict=True):
            stream.metadata["language"], stream.disposition = language, default
        text = container.add_stream(subtitles)
        text.metadata["language"], text.disposition = "deu", int(av.stream.Disposition.forced)
        text.codec_context.time_base = tick
        text.codec_context.subtitle_header = _ASS_HEADER
        if path.suffix == ".mkv":
            container.add_attachment("font.ttf", "font/ttf", b"a font" * 50)
        container.metadata.update(tags)
        entries: Any = [
            {"id": i, "start": start, "end": end, "time_base": tick, "metadata": {"title": title}}
            for i, (start, end, title) in enumerate(CHAPTERS)
        ]
        container.set_chapters(entries)
        container.start_encoding()
        for index in range(FRAMES):
            image = av.VideoFrame.from_ndarray(gradient(index), format="rgb24")
            image.pts, image.time_base = index, Fraction(1, 25)
            container.mux(video.encode(image))
            for stream in sounds:
                for block in sine(index):
                    container.mux(stream.encode(block))
            if index in (2, 6):
                packet = av.Packet(frame(f"line {index}"))
                packet.stream, packet.pts, packet.dts = text, index * 40, index * 40
                packet.duration, packet.time_base = 120, tick
                container.mux(packet)
        for stream in (video, *sounds):
            container.mux(stream.encode(None))
    return path


_ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, Alignment
Style: Default,Arial,16,&Hffffff,2

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def mov_text(line: str) -> bytes:
    return len(line).to_bytes(2, "big") + line.encode()


FILMS = {".mkv": ("srt", str.encode), ".mp4": ("mov_text", mov_text), ".mov": ("mov_text", mov_text)}


def film(folder: Path, suffix: str) -> Path:
    return rich(folder / f"in{suffix}", *FILMS[suffix])


def held(path: Path) -> dict[str, Any]:
    """What a file says, in words that do not depend on its container."""
    with av.open(str(path)) as container:
        texts = container.streams.subtitles
        lines = [bytes(packet).strip(b"\0\x06") for packet in container.demux(texts[0])] if texts else []
        return {
            "tags": {key.lower(): value for key, value in container.metadata.items() if key.lower() in TAGS},
            "chapters": [
                (int(c["start"] * c["time_base"] * 1000), int(c["end"] * c["time_base"] * 1000), c["metadata"]["title"])
                for c in container.chapters()
            ],
            "sound": [(s.language, int(s.disposition)) for s in container.streams.audio],
            "text": [(s.language, int(s.disposition) & 64) for s in container.streams.subtitles],
            "lines": [line for line in lines if line],
            "fonts": [(s.metadata["filename"], s.data) for s in container.streams if s.type == "attachment"],
            "timecode": next(
                (v for k, v in container.streams.video[0].metadata.items() if k.lower() == "timecode"), ""
            ),
            "title": container.streams.video[0].metadata.get("title", container.streams.video[0].metadata.get("name")),
        }


@pytest.mark.parametrize("suffix", FILMS)
def test_all_of_a_container_is_carried_to_its_own_kind(tmp_path: Path, suffix: str) -> None:
    source = film(tmp_path, suffix)
    result = process_video(source, tmp_path / f"out{suffix}", same)
    assert result.warnings == ()
    expected = held(source)
    assert expected["tags"] == TAGS
    assert expected["chapters"] == CHAPTERS
    assert expected["lines"] == [b"line 2", b"line 6"]
    assert held(tmp_path / f"out{suffix}") == expected


def test_what_another_container_cannot_carry_is_named(tmp_path: Path) -> None:
    source = film(tmp_path, ".mkv")
    result = process_video(source, tmp_path / "out.mp4", same)
    assert [line.split(": ")[2].split(" (")[0] for line in result.warnings] == [
        "subtitle track 3",
        "attachment track 4",
    ]
    assert "becomes mov_text" in result.warnings[0]
    assert "is left out" in result.warnings[1]
    after, before = held(tmp_path / "out.mp4"), held(source)
    for what in ("tags", "chapters", "sound", "timecode", "title"):
        assert after[what] == before[what]
    lines = process_video(source, tmp_path / "out.ts", same).warnings
    assert "creation_time, title, chapters, timecode" in lines[-1].replace("ARTIST", "").replace("COMMENT", "")


STYLED = {
    "srt": lambda line: f"<i>{line}</i> ä\nzwei".encode(),
    "ass": lambda line: f"0,0,Default,,0,0,0,,{{\\i1}}{line}{{\\i0}} ä\\Nzwei".encode(),
    "webvtt": lambda line: f"<i>{line}</i> ä\nzwei".encode(),
}


@pytest.mark.parametrize("codec", STYLED)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm"])
def test_text_becomes_what_its_container_carries_and_back(tmp_path: Path, codec: str, suffix: str) -> None:
    source = rich(tmp_path / "in.mkv", codec, STYLED[codec])
    plain = tmp_path / "plain.mkv"
    _with(source, plain, ("video", "subtitle"))
    options = VideoOptions(selection=Selection(start=Fraction(1, 25)))
    warnings = process_video(plain, tmp_path / f"out{suffix}", same, options=options).warnings
    if (codec, suffix) != ("webvtt", ".webm"):  # which is copied
        assert [line for line in warnings if ", deu) becomes" in line]
    assert "left out" not in "".join(warnings)
    if suffix == ".mp4":  # MOV knows other languages, and neither it nor WebM what is forced
        assert held(tmp_path / f"out{suffix}")["text"] == [("deu", 64)]
    process_video(tmp_path / f"out{suffix}", tmp_path / "again.mkv", same)
    assert _shown(tmp_path / "again.mkv") == [
        (Fraction(4 * i - 4, 100), Fraction(12, 100), f"<i>line {i}</i> ä\nzwei") for i in (2, 6)
    ]


def _with(source: Path, target: Path, kinds: tuple[str, ...]) -> None:
    """The tracks of some kinds alone."""
    with av.open(str(source)) as container, av.open(str(target), "w") as copy:
        tracks = {s.index: copy.add_stream_from_template(s) for s in container.streams if s.type in kinds}
        for index, track in tracks.items():
            track.metadata.update(container.streams[index].metadata)
            track.disposition = container.streams[index].disposition
        for packet in container.demux([container.streams[index] for index in tracks]):
            if packet.size:
                packet.stream = tracks[packet.stream.index]
                copy.mux(packet)


def _shown(path: Path) -> list[tuple[Fraction, Fraction, str]]:
    """When each subtitle is shown, how long, and its text."""
    with av.open(str(path)) as container:
        (track,) = container.streams.subtitles
        return [
            (packet.pts * packet.time_base, packet.duration * packet.time_base, bytes(packet).decode())
            for packet in container.demux(track)
            if packet.size
        ]


def test_damaged_text_is_counted_and_the_rest_is_kept(tmp_path: Path) -> None:
    source = rich(tmp_path / "in.mp4", "mov_text", lambda line: b"x" if "2" in line else mov_text(line))
    warnings = process_video(source, tmp_path / "out.mkv", same).warnings
    assert "1 packets of sound or text that are damaged" in warnings[-1]
    assert [text for _, _, text in _shown(tmp_path / "out.mkv")] == ["line 6"]


def test_tags_that_mp4_has_no_name_for_are_kept(tmp_path: Path) -> None:
    tags = TAGS | {"com.apple.quicktime.make": "Phone", "location-eng": "+48.1+011.5/"}
    source = rich(tmp_path / "in.mkv", *FILMS[".mkv"], tags)
    process_video(source, tmp_path / "out.mov", same)
    with av.open(str(tmp_path / "out.mov")) as container:
        assert {key.lower() for key in tags} <= {key.lower() for key in container.metadata}


@pytest.mark.parametrize("text", [b"Fran\xe7ois", b"\x80uro \x93quoted\x94", b"\xff\xfe\xfd"])
@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mp4"])
def test_texts_of_any_bytes_are_read(tmp_path: Path, text: bytes, suffix: str) -> None:
    plain = make_clip(tmp_path / f"plain{suffix}")
    with av.open(str(plain)) as container, av.open(str(tmp_path / f"in{suffix}"), "w") as copy:
        stream = copy.add_stream_from_template(container.streams.video[0])
        copy.metadata["title"] = "x" * len(text)
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    source = tmp_path / f"in{suffix}"
    data = source.read_bytes()
    assert data.count(b"x" * len(text)) == 1
    source.write_bytes(data.replace(b"x" * len(text), text))
    process_video(source, tmp_path / "out.mkv", same)
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert container.metadata["title"] == text.decode("cp1252")


@pytest.mark.parametrize(("codec", "old"), [("pcm_s16le", b"sowt"), ("ac3", b"ac-3"), ("alac", b"alac")])
def test_a_track_of_unknown_codec_is_named(tmp_path: Path, codec: str, old: bytes) -> None:
    source = make_clip(tmp_path / "in.mov", audio=codec)
    data = source.read_bytes()
    assert old in data
    source.write_bytes(data.replace(old, b"zzzz"))
    result = process_video(source, tmp_path / "out.mov", same)
    assert result.frames == FRAMES
    assert any("audio track 1 (unknown codec" in line and "left out" in line for line in result.warnings)


@pytest.mark.parametrize("last", [40, 200, 1000])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_the_last_frame_lasts_as_long_as_before(tmp_path: Path, suffix: str, last: int) -> None:
    source = _with_last(tmp_path / f"in{suffix}", last)
    assert _length(source) == pytest.approx((40 * 11 + last) / 1000, abs=0.002)
    process_video(source, tmp_path / f"out{suffix}", same)
    assert _length(tmp_path / f"out{suffix}") == _length(source)


def _with_last(path: Path, last: int) -> Path:
    with av.open(str(make_clip(path.with_suffix(".mkv"), codec="mpeg4"))) as container, av.open(str(path), "w") as copy:
        stream = copy.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        newest = max(packet.pts for packet in packets)
        for packet in packets:
            packet.duration = last if packet.pts == newest else 40
            packet.stream = stream
            copy.mux(packet)
    return path


def _length(path: Path) -> float:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return float(stream.duration * stream.time_base)


@pytest.mark.parametrize(
    ("selection", "taken"),
    [
        (Selection(start=Fraction(1, 5)), range(5, 12)),
        (Selection(end=Fraction(1, 5)), range(5)),
        (Selection(start=Fraction(1, 8), frames=3), range(4, 7)),
        (Selection(start=Fraction(1, 25), end=Fraction(4, 25), frames=9), range(1, 4)),
    ],
)
def test_a_part_is_taken_with_its_sound_and_chapters(tmp_path: Path, selection: Selection, taken: range) -> None:
    source = film(tmp_path, ".mp4")
    options = VideoOptions(selection=selection)
    assert process_video(source, tmp_path / "out.mp4", same, options=options).frames == len(taken)
    assert times(tmp_path / "out.mp4") == [Fraction(i, 25) for i in range(len(taken))]
    begin, end = taken[0] / 25, (taken[-1] + 1) / 25
    before = [data for at, data in sound(source) if (begin <= at or not taken[0]) and at < end]
    assert [data for _, data in sound(tmp_path / "out.mp4")] == before
    chapters = [
        (max(s - 1000 * begin, 0), min(e, 1000 * end) - 1000 * begin, t)
        for s, e, t in CHAPTERS
        if s < 1000 * end and e > 1000 * begin
    ]
    assert held(tmp_path / "out.mp4")["chapters"] == [
        (round(start), round(stop), title) for start, stop, title in chapters
    ]
