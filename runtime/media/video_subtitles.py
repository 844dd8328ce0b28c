"""Subtitles that are text, from one codec to another where the target's container needs it."""

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.stream import Stream

# What carries text, by muxer. MPEG-TS has nothing.
_CODECS = {"mp4": "mov_text", "mov": "mov_text", "webm": "webvtt", "matroska": "srt"}
_TICK = Fraction(1, 1000)


def convertible(stream: "Stream", muxer: str) -> str | None:
    """The codec that a track of text becomes in a container; None for images, and where the container has none."""
    from av.codec.codec import Properties

    context: Any = stream.codec_context
    is_text = context is not None and context.codec.properties & Properties.TEXT_SUB.value
    return _CODECS.get(muxer) if stream.type == "subtitle" and is_text else None


def added_text(container: "OutputContainer", stream: "Stream", codec: str) -> "Stream":
    """A track in ``container`` for the text of ``stream`` in another codec, with its styles."""
    decoder: Any = stream.codec_context
    decoder.open(strict=False)
    track: Any = container.add_stream(cast(Any, codec))
    track.codec_context.time_base = _TICK
    track.codec_context.subtitle_header = decoder.subtitle_header
    return cast("Stream", track)


def converted(packet: "Packet[Stream]", track: "Stream") -> "Iterator[Packet[Stream] | None]":
    """A packet in the codec of ``track``, at the same time; nothing of one without text, and None for a damaged one."""
    from av.error import FFmpegError

    decoder: Any = packet.stream.codec_context
    encoder: Any = track.codec_context
    try:
        text = decoder.decode2(packet)
        made = None if text is None else encoder.encode_subtitle(text)
    except FFmpegError:
        yield None
        return
    if made is not None:
        made.pts, made.dts, made.duration, made.time_base = packet.pts, packet.dts, packet.duration, packet.time_base
        yield made
