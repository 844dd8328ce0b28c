"""Segments and the source's other tracks to one video file."""

import heapq
import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from uid.errors import OutputError
from uid.runtime.media.ffmpeg import ffmpeg_errors, opened, video_stream
from uid.runtime.media.formats import MUXERS
from uid.runtime.media.frames import Clip, Stamp
from uid.runtime.media.selection import Part
from uid.runtime.media.video_codecs import Encoding
from uid.runtime.media.video_tracks import (
    Tracks,
    added,
    carried,
    copy_tags,
    lost,
    packets,
    timecode,
    track_tags,
    tracks,
)
from uid.runtime.media.video_writer import FIRST, SEGMENT, add_encoder
from uid.runtime.media.work import make_safe

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

    Due = tuple[Fraction, Packet[Stream] | None]

# The writers of MP4 and MOV keep only tags of their own lists unless told otherwise.
_OWN_TAGS = {
    "title", "artist", "album_artist", "composer", "album", "date", "comment", "genre", "copyright", "grouping",
    "lyrics", "description", "synopsis", "show", "episode_id", "network", "keywords", "creation_time", "track", "disc",
    "compilation", "hd_video", "gapless_playback", "media_type", "location", "timecode",
}  # fmt: skip


def check_target(source: Path | None, destination: Path, clip: Clip, how: Encoding) -> Tracks:
    """The tracks that are copied, found by beginning the target. Raises ``OutputError`` for what it cannot carry."""
    import av

    muxer = MUXERS[destination.suffix.lower()]
    why = f"cannot start {destination} with {how.codec}, {how.pixel_format}, of {clip.size} pixels"
    advice = "choose .mkv or another codec"
    with ffmpeg_errors(lambda cause: OutputError(f"{why} ({cause}); {advice}")), ExitStack() as stack:
        trial = stack.enter_context(av.open(io.BytesIO(), "w", format=muxer))
        try:
            add_encoder(trial, clip, how)
        except ValueError as error:
            raise OutputError(f"{why}: {error}; {advice}") from error
        trial.start_encoding()
        if source is None:
            return Tracks()
        return tracks(stack.enter_context(opened(source)), source, destination, muxer)


def join(
    segments: Sequence[Path],
    stamps: Sequence[Stamp],
    clip: Clip,
    how: Encoding,
    source: Path | None,
    part: Part,
    target: Path,
) -> list[str]:
    """Write the video file ``target``, and wait until it is on the disk; what of the whole file it could not carry."""
    import av

    muxer = MUXERS[target.suffix.lower()]
    with (
        ffmpeg_errors(lambda why: OutputError(f"cannot join the frames and the tracks of {source}: {why}")),
        ExitStack() as stack,
    ):
        original = None if source is None else stack.enter_context(opened(source))
        options = _options(clip, muxer, original)
        container = stack.enter_context(av.open(f"file:{target}", "w", format=muxer, container_options=options))
        container.flags |= av.container.Flags.bitexact.value  # no random numbers: the same work makes the same file
        video = _video_track(container, segments[0], clip, how)
        sources = [_timed(segments, stamps, clip, video)]
        if original is not None and source is not None:
            found = tracks(original, source, target, muxer)
            copies = {index: added(container, original.streams[index], codec) for index, codec in found.copied.items()}
            main = video_stream(original, source)
            video.metadata.update(track_tags(main) | timecode(original))
            video.disposition = main.disposition
            copy_tags(original, container, part)
            if copies:
                sources.append(packets(original, copies, found, part))
        refused = _muxed(container, (packet for _, packet in heapq.merge(*sources, key=lambda due: due[0])))
    make_safe(target)
    if refused:
        _check_frames(target, len(stamps))
    if source is None:
        return []
    with opened(source) as again:
        return lost(again, target) + ([f"{refused} packets of sound or text that are damaged"] if refused else [])


def _muxed(container: "OutputContainer", packets: "Iterator[Packet[Stream] | None]") -> int:
    """Write the packets; how many were damaged or refused, as those of damaged sound are.

    A full disk is an error as always.
    """
    from av.error import ArgumentError, InvalidDataError

    refused = 0
    for packet in packets:
        if packet is None:
            refused += 1
            continue
        try:
            container.mux(packet)
        except (ArgumentError, InvalidDataError):
            refused += 1
    return refused


def _check_frames(target: Path, expected: int) -> None:
    """Raise ``OutputError`` unless all frames are in a file of which some packet was refused."""
    with opened(target) as container:
        held = sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)
    if held != expected:
        raise OutputError(f"{held} of {expected} frames could be written; choose .mkv or another codec")


def _options(clip: Clip, muxer: str, original: "InputContainer | None") -> dict[str, str]:
    options = {"strict": "experimental"}
    if muxer in ("mp4", "mov"):
        # The source's own ticks, so that MP4 and MOV need not round; Matroska has milliseconds.
        options["video_track_timescale"] = str(clip.time_base.denominator)
        tags = carried(original.metadata) if original else {}
        if any(key.split("-")[0] not in _OWN_TAGS for key in tags):
            options["movflags"] = "use_metadata_tags"
    if muxer in ("mp4", "mov", "matroska", "webm"):
        options["avoid_negative_ts"] = "disabled"  # sound that starts early, as AAC's does, must not push the frames
    return options


def _video_track(container: "OutputContainer", segment: Path, clip: Clip, how: Encoding) -> "VideoStream":
    """The encoder's track, with the header of the segments, whose form the packets have."""
    stream = add_encoder(container, clip, how)
    stream.codec_context.open()
    with opened(segment) as first:
        stream.codec_context.extradata = first.streams.video[0].codec_context.extradata
    if how.tag and container.format.name in ("mp4", "mov"):
        stream.codec_context.codec_tag = how.tag
    return stream


def _timed(segments: Sequence[Path], stamps: Sequence[Stamp], clip: Clip, stream: "VideoStream") -> "Iterator[Due]":
    """The segments' packets at their frames' own times, each with when it is due in seconds.

    A packet is due when as many frames are shown as were coded before it, less as many as it takes for none to be
    due after it is shown.
    """
    order = [place for place, _ in _coded(segments)]
    if sorted(order) != list(range(len(stamps))):
        raise OutputError(f"the segments hold {len(order)} frames of {len(stamps)}; remove {segments[0].parent}")
    delay = max((coded - place for coded, place in enumerate(order)), default=0)
    durations = _durations(stamps, clip.end)
    # MP4 and MOV keep the time from each coding to the next, so that the last one has to bring the sum to the clip's.
    rest = stamps[-1].pts + durations[-1] - stamps[0].pts
    rest -= _due(stamps, durations, len(order) - 1 - delay) - _due(stamps, durations, -delay)
    for coded, (place, packet) in enumerate(_coded(segments)):
        packet.pts, packet.duration = stamps[place].pts, durations[place] if coded < len(order) - 1 else rest
        packet.dts = _due(stamps, durations, coded - delay)
        packet.time_base = clip.time_base
        packet.stream = stream
        yield packet.dts * clip.time_base, packet


def _due(stamps: Sequence[Stamp], durations: Sequence[int], place: int) -> int:
    """The time of a place; before the first frame, as far as that frame is long."""
    return stamps[place].pts if place >= 0 else stamps[0].pts + place * durations[0]


def _durations(stamps: Sequence[Stamp], end: int | None) -> list[int]:
    """Each frame lasts until the next; the last as long as its source says, or else as the one before it."""
    last = max(stamps[-1].duration, (end or 0) - stamps[-1].pts)
    lengths = [after.pts - before.pts for before, after in itertools.pairwise(stamps)]
    return [*lengths, last or (lengths[-1] if lengths else 1)]


def _coded(segments: Sequence[Path]) -> "Iterator[tuple[int, Packet[Stream]]]":
    """The packets in coding order, each with its frame's place in the clip."""
    for number, path in enumerate(segments):
        with opened(path) as container:
            for packet in container.demux(container.streams.video[0]):
                if packet.size:
                    yield number * SEGMENT + cast(Any, packet.pts) - FIRST, cast(Any, packet)
