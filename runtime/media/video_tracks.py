"""What a video file holds beside its frames: sound, subtitles, attachments, covers, data, tags and chapters.

All that the target's container can carry is copied as it is, and text in another codec where it needs that. What it
cannot carry is named.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from uid.errors import OutputError
from uid.runtime.media.ffmpeg import ffmpeg_errors, is_cover, texts, video_stream
from uid.runtime.media.selection import Part
from uid.runtime.media.video_subtitles import added_text, converted, convertible

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream

# Tags about the file rather than what it shows: its writers set them anew.
_OF_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "vendor_id", "rotate"}
_IN_TRANSPORT_STREAMS = {"dvbsub", "dvb_subtitle", "dvb_teletext", "libzvbi_teletextdec", "klv", "timed_id3"}
_STATISTICS = ("BPS", "NUMBER_OF_FRAMES", "NUMBER_OF_BYTES", "_STATISTICS_", "DURATION")  # that Matroska's tools write


@dataclass
class Tracks:
    """The tracks of a source that go into a target."""

    # By index, since a stream must not outlive its container: the codec that text is converted to; None: copied as is.
    copied: dict[int, str | None] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)  # what is left out and why, and what becomes of text
    audio: int = 0  # how many of those copied are sound


def tracks(container: "InputContainer", source: Path, destination: Path, muxer: str) -> Tracks:
    """Which tracks ``destination`` can carry. Raises ``OutputError`` for sound that it cannot."""
    main, found = video_stream(container, source), Tracks()
    for stream in container.streams:
        if stream.index == main.index or _is_derived(stream, container):
            continue
        why = _unfit(stream, muxer)
        if why is None:
            found.copied[stream.index] = None
            found.audio += stream.type == "audio"
        elif codec := convertible(stream, muxer):
            found.copied[stream.index] = codec
            found.told.append(f"{described(stream)} becomes {codec}, with simple styles alone")
        elif stream.type == "audio" and stream.codec_context is not None:
            name = f"{stream.codec_context.name} audio"
            raise OutputError(
                f"{destination.suffix} cannot carry {name}, which is copied as it is; choose .mkv or .mov"
            )
        else:
            found.told.append(f"{described(stream)} ({why}) is left out")
    return found


def _is_derived(stream: "Stream", container: "InputContainer") -> bool:
    """Whether the target's writer makes the track anew: MP4's text track of chapters, and its timecode."""
    chapters = len(container.chapters())
    return stream.type == "data" and ((bool(chapters) and stream.frames == chapters) or "timecode" in stream.metadata)


def described(stream: "Stream") -> str:
    """What to call a track in a message."""
    tags = texts(stream.metadata)
    codec = _codec(stream)
    kind = "cover" if is_cover(stream) else stream.type
    named = [tags[key] for key in ("language", "title", "filename") if tags.get(key, "und") != "und"]
    return f"{kind} track {stream.index} ({', '.join([codec, *named])})"


def _codec(stream: "Stream") -> str:
    return stream.codec_context.name if stream.codec_context else getattr(stream, "name", None) or "unknown codec"


def _unfit(stream: "Stream", muxer: str) -> str | None:
    """Why a container cannot carry a track; None when it can. A file with that track alone is begun to tell."""
    import av
    from av.error import FFmpegError

    # MPEG-TS takes anything, and then does not say what it is.
    if muxer == "mpegts" and stream.type not in ("audio", "video") and _codec(stream) not in _IN_TRANSPORT_STREAMS:
        return "MPEG-TS cannot carry it"
    try:
        with av.open(io.BytesIO(), "w", format=muxer, container_options={"strict": "experimental"}) as trial:
            added(trial, stream)
            trial.start_encoding()
    except (FFmpegError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    return None


def added(container: "OutputContainer", stream: "Stream", codec: str | None = None) -> "Stream":
    """A track in ``container`` like ``stream``, with its language, its name and what it is for.

    Text in another ``codec`` where there is one.
    """
    if codec is not None:
        copy = added_text(container, stream, codec)
    elif stream.type == "attachment":
        tags = texts(stream.metadata)
        attachment = cast(Any, stream)
        copy = container.add_attachment(
            tags.get("filename", "attachment"), tags.get("mimetype", "application/octet-stream"), attachment.data
        )
    else:
        copy = cast(Any, container).add_stream_from_template(stream, opaque=True)
    copy.metadata.update(track_tags(stream))
    copy.disposition = stream.disposition
    return copy


def track_tags(stream: "Stream") -> dict[str, str]:
    """A track's tags; MP4 and MOV read a track's title as its name."""
    tags = carried(stream.metadata)
    if "name" in tags:
        tags.setdefault("title", tags.pop("name"))
    return tags


def carried(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that still hold for the target."""
    sound = texts(tags)
    return {
        key: value
        for key, value in sound.items()
        if key.lower() not in _OF_THE_FILE and not key.upper().startswith(_STATISTICS)
    }


def timecode(container: "InputContainer") -> dict[str, str]:
    """The time of day of the first frame, which MP4 and MOV keep in a track of its own."""
    for stream in container.streams:
        for key, value in stream.metadata.items():
            if key.lower() == "timecode":
                return {"timecode": value}
    return {}


def copy_tags(source: "InputContainer", target: "OutputContainer", part: Part) -> None:
    """Title, dates and other tags of the whole file, and its chapters."""
    target.metadata.update(carried(source.metadata))
    chapters = []
    for chapter in source.chapters():
        base = chapter["time_base"] or Fraction(1, 1000)
        start, end = chapter["start"] * base, chapter["end"] * base
        if (part.end is not None and start >= part.end) or (part.start is not None and end <= part.start):
            continue
        start, end = max(start, part.start or start), min(end, part.end or end)
        moved = {"start": round((start - part.shift) / base), "end": round((end - part.shift) / base)}
        chapters.append({**chapter, **moved, "time_base": base, "metadata": texts(chapter["metadata"])})
    target.set_chapters(cast(Any, chapters))


def packets(
    container: "InputContainer", copies: "Mapping[int, Stream]", found: Tracks, part: Part
) -> "Iterator[tuple[Fraction, Packet[Stream] | None]]":
    """The packets of the tracks in the order of the file, each with when it is due in seconds.

    Text that the target has another codec for is converted; None stands for a damaged one.
    """
    latest = Fraction(-(10**9))  # a cover is due with the packet before it
    for packet in container.demux([container.streams[index] for index in copies]):
        index = packet.stream.index
        if is_cover(packet.stream) and packet.size:
            packet.pts = packet.dts = 0
        elif (due := _moved(packet, part)) is not None:
            latest = due
        else:
            continue
        for made in converted(packet, copies[index]) if found.copied[index] else [packet]:
            if made is not None:
                made.stream = copies[index]
            yield latest, made


def _moved(packet: "Packet[Stream]", part: Part) -> Fraction | None:
    """Move a packet in time as ``part`` moves, and say when it is due then, in seconds.

    None for one that is not in the part, and for one that only flushes a decoder.
    """
    start = packet.dts if packet.dts is not None else packet.pts
    if start is None or not packet.size:
        return None
    if not part.holds((packet.pts if packet.pts is not None else start) * packet.time_base):
        return None
    ticks = round(part.shift / packet.time_base)
    packet.pts, packet.dts = (None if value is None else value - ticks for value in (packet.pts, packet.dts))
    return (start - ticks) * packet.time_base


def lost(source: "InputContainer", written: Path) -> list[str]:
    """What of the whole file its new container did not keep: tags, chapters, timecode."""
    import av

    unreadable = f"cannot read back {written}"
    with ffmpeg_errors(lambda why: OutputError(f"{unreadable}: {why}")), av.open(f"file:{written}") as new:
        kept = {key.lower() for key in new.metadata}
        missing = sorted(key for key in carried(source.metadata) if key.lower() not in kept)
        missing += ["chapters"] if source.chapters() and not new.chapters() else []
        return missing + (["timecode"] if timecode(source) and not timecode(new) else [])
