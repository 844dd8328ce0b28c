"""A video file as decoded frames, upright RGB; damaged files and unsupported kinds are refused."""

import contextlib
import struct
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from uid.errors import InputError
from uid.runtime.media.deinterlace import Deinterlacer
from uid.runtime.media.ffmpeg import (
    FULL,
    LIMITED,
    SWSCALE_MATRICES,
    Scaler,
    ffmpeg_errors,
    opened,
    refuse_size,
    video_stream,
)
from uid.runtime.media.formats import MAX_PIXELS
from uid.runtime.media.frames import BT709, DEFAULT_FRAME_RATE, HDR_TRANSFERS, Clip, Color, Load, Mastering, Stamp, Turn
from uid.runtime.media.missing import Count, undecoded, unread

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_BT601 = 6  # AVColorSpace
_UNTAGGED = {0, 2, 3}  # AVColorSpace: RGB, unspecified, reserved
_IN_FRAMES = {
    "DYNAMIC_HDR_PLUS": "HDR10+ data",
    "DOVI_METADATA": "Dolby Vision data",
    "A53_CC": "closed captions",
    "STEREO3D": "the arrangement of stereo images",
    "SPHERICAL": "the projection of a spherical video",
}
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # the decoders that do not leave it out


def inspected(container: "InputContainer", source: Path, max_pixels: int = MAX_PIXELS, salvage: bool = False) -> Clip:
    """What a video is, by its header and its first frame. Raises ``InputError`` for what cannot be processed."""
    stream = video_stream(container, source, max_pixels)
    first = _first_frame(container, stream, source, max_pixels, salvage)
    if first is None or stream.time_base is None:
        raise InputError(f"{source} holds no frames; expected at least one")
    refuse_size(first.width, first.height, source, max_pixels)
    turn = _turn(first)
    size = (first.height, first.width) if turn.transposed else (first.width, first.height)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    rate = stream.average_rate or stream.guessed_rate or DEFAULT_FRAME_RATE
    duration = _declared_duration(container, stream, rate)
    return Clip(
        size=size,
        time_base=stream.time_base,
        rate=rate,
        total=stream.frames or round(duration * rate) or None,
        color=Color(_matrix(first, source), first.color_primaries, first.color_trc),
        turn=turn,
        sample_aspect=1 / aspect if turn.transposed else aspect,
        duration=duration,
        end=_declared_end(container, stream),
        depth=_depth(first),
        chroma=_chroma(first),
        mastering=_mastering(first),
        dropped=tuple(name for kind, name in _IN_FRAMES.items() if _side_data(first, kind) is not None),
    )


def _declared_duration(container: "InputContainer", stream: "VideoStream", rate: Fraction) -> Fraction:
    """Seconds by the header; 0 where it states none."""
    duration = Fraction(container.duration or 0, 1_000_000)
    if container.format.name == "avi":  # whose duration FFmpeg shortens to what a cut file holds, but not its count
        duration = max(duration, stream.frames / rate)
    return duration


def _declared_end(container: "InputContainer", stream: "VideoStream") -> int | None:
    """The end that MP4 and MOV declare of a track; others guess it."""
    if not container.format.name.startswith("mov") or not stream.duration:
        return None
    return (stream.start_time or 0) + stream.duration


def _first_frame(
    container: "InputContainer", stream: "VideoStream", source: Path, max_pixels: int, salvage: bool
) -> "VideoFrame | None":
    from av.error import FFmpegError

    def damaged(why: str) -> InputError:
        if not stream.width:  # FFmpeg forgets a size beyond the limit, as it does one that it cannot read
            limit = f"has more than {max_pixels} pixels a frame; shrink it or raise the limit"
            return InputError(f"{source} is damaged ({why}), or {limit}", option="max_pixels")
        return InputError(f"{source} is damaged: its first frame cannot be decoded: {why}")

    with ffmpeg_errors(damaged):
        for packet in container.demux(stream):
            with contextlib.suppress(*([FFmpegError] if salvage else [])):
                for frame in stream.decode(packet):
                    return frame
    return None


def refuse_transparent(source: Path, max_pixels: int = MAX_PIXELS) -> None:
    """Raise ``InputError`` where a frame is not wholly opaque. Only videos with an alpha channel are decoded for it."""
    from av import CodecContext

    with opened(source, max_pixels) as container:
        stream = video_stream(container, source, max_pixels)
        decoder = stream.codec_context
        if stream.metadata.get("alpha_mode") == "1" and decoder.codec.name in _WITH_ALPHA:
            decoder = cast(Any, CodecContext.create(_WITH_ALPHA[decoder.codec.name], "r"))
        elif stream.format and not any(part.is_alpha for part in stream.format.components):
            return
        with ffmpeg_errors(lambda why: InputError(f"{source} is damaged: {why}")):
            for packet in container.demux(stream):
                if any(_is_transparent(frame) for frame in decoder.decode(packet)):
                    raise InputError(f"{source} is transparent in places, which a video here cannot carry; flatten it")


def _is_transparent(frame: "VideoFrame") -> bool:
    if not any(part.is_alpha for part in frame.format.components):
        return False
    return bool((frame.to_ndarray(format="rgba")[..., 3] < 255).any())


def _matrix(frame: "VideoFrame", source: Path) -> int:
    """The frame's AVColorSpace; where it is not tagged, the one players assume for its size."""
    if frame.colorspace in _UNTAGGED:
        return BT709 if frame.width >= 1280 or frame.height > 576 else _BT601
    if frame.colorspace not in SWSCALE_MATRICES:
        raise InputError(f"{source} has the unusual colour matrix {frame.colorspace}; convert it to BT.709 first")
    return frame.colorspace


def _depth(frame: "VideoFrame") -> int:
    """Bits of a sample, from 8 to 16; HDR has at least 10."""
    stored = max(part.bits for part in frame.format.components if not part.is_alpha)
    return max(10 if frame.color_trc in HDR_TRANSFERS else 8, min(16, stored))


def _chroma(frame: "VideoFrame") -> str:
    """The J:a:b of the pixel format; RGB has all its colour samples."""
    if frame.format.is_rgb:
        return "444"
    return next((chroma for chroma in ("422", "444") if chroma in frame.format.name), "420")


def _side_data(frame: "VideoFrame", kind: str) -> Any:
    """Only asked of one frame: PyAV's ``side_data`` creates a reference cycle that holds the frame in memory."""
    return cast(Mapping[str, Any], frame.side_data).get(kind)  # PyAV's stub knows another key only


def _turn(frame: "VideoFrame") -> Turn:
    """By the display matrix, (x, y) is shown at (a x + c y, b x + d y); only quarter turns and mirrors are known."""
    data = _side_data(frame, "DISPLAYMATRIX")
    if data is None:
        return Turn()
    a, b, _, c, d, *_ = np.frombuffer(data, np.int32).tolist()
    transposed = abs(b) > abs(a)
    return Turn(transposed, mirror_x=(c if transposed else a) < 0, mirror_y=(b if transposed else d) < 0)


def _mastering(frame: "VideoFrame") -> Mastering:
    """AVMasteringDisplayMetadata (ten fractions and two flags) and AVContentLightMetadata (two numbers)."""
    display, light = _side_data(frame, "MASTERING_DISPLAY_METADATA"), _side_data(frame, "CONTENT_LIGHT_LEVEL")
    primaries: tuple[Fraction, ...] = ()
    luminance: tuple[Fraction, ...] = ()
    if display is not None:
        *numbers, has_primaries, has_luminance = struct.unpack_from("=22i", bytes(display))
        values = [Fraction(numbers[i], numbers[i + 1] or 1) for i in range(0, 20, 2)]
        primaries = tuple(values[:8]) if has_primaries else ()
        luminance = tuple(values[8:]) if has_luminance else ()
    return Mastering(primaries, luminance, () if light is None else struct.unpack_from("=2I", bytes(light)))


class VideoReader:
    """Frames in the order they are shown, each with what gives its pixels.

    Frames that are missing or cannot be decoded raise ``InputError``, or with ``salvage`` are named in ``warnings``.
    """

    def __init__(self, container: "InputContainer", source: Path, clip: Clip, *, salvage: bool = False) -> None:
        self.clip = clip
        lost = f"{', '.join(clip.dropped)} in its frames cannot be written again and will be left out"
        self.warnings: tuple[str, ...] = (f"warning: {source}: {lost}",) if clip.dropped else ()
        self._container = container
        self._stream = video_stream(container, source)
        self._source = source
        self._salvage = salvage
        self._scaler = Scaler(clip.color)
        self._deinterlacer = Deinterlacer(self._stream)
        self._count = Count()
        self._end = Fraction(0)  # seconds, of the packets so far
        self._coded_size: tuple[int, int] | None = None
        self._next_pts: int | None = None

    def __iter__(self) -> "Iterator[tuple[Stamp, Load]]":
        try:
            with ffmpeg_errors(self._cut):
                for frame in self._decoded():
                    yield self._stamp(frame), partial(self._upright, frame)
            self._check_end()
        finally:
            if self._deinterlacer.active:
                self._warn("is interlaced: each frame is deinterlaced from its two fields (bwdif)")

    def _decoded(self) -> "Iterator[VideoFrame]":
        for packet in self._packets():
            if packet.is_corrupt:
                self._lost("incomplete packet")
            start = packet.pts if packet.pts is not None else packet.dts
            if start is not None:
                self._end = max(self._end, (start + (packet.duration or 0)) * packet.time_base)
            if packet.stream.index == self._stream.index:
                self._count.read(packet)
                for frame in self._decoded_packet(cast("Packet[VideoStream]", packet)):
                    yield from self._deinterlacer.push(frame)
        yield from self._deinterlacer.flush()

    def _packets(self) -> "Iterator[Packet[Stream]]":
        from av.error import FFmpegError

        try:
            yield from self._container.demux()
        except FFmpegError as error:
            self._lost(error.strerror or str(error))

    def _decoded_packet(self, packet: "Packet[VideoStream]") -> "list[VideoFrame]":
        from av.error import FFmpegError

        try:
            frames = self._stream.decode(packet)
        except FFmpegError as error:
            self._lost(error.strerror or str(error))
            return []
        for frame in frames:
            if frame.is_corrupt:
                self._lost("undecodable parts of a frame")
            self._check_size(frame)
            self._count.decoded(frame)
        return frames

    def _check_size(self, frame: "VideoFrame") -> None:
        size = (frame.width, frame.height)
        self._coded_size = self._coded_size or size
        if size != self._coded_size:
            change = f"from {self._coded_size} to {size} pixels at frame {self._count.frames + 1}"
            raise InputError(f"{self._source} changes {change}; split it there")

    def _check_end(self) -> None:
        stream, count = self._stream, self._count
        if missing := unread(stream, count, self._source):
            self._lost(f"{missing} frames that it states are not there")
        if missing := undecoded(stream, count):
            self._lost(f"{missing} frames cannot be decoded")
        # Two frames, since the last one's duration is a guess in some files.
        if self._end < self.clip.duration - max(2 / self.clip.rate, Fraction(1, 10)):
            self._lost("it ends early")

    def _lost(self, why: str) -> None:
        if not self._salvage:
            raise self._cut(why)
        self._warn(f"is cut off or damaged ({why}); what can be read is used")

    def _warn(self, what: str) -> None:
        line = f"warning: {self._source} {what}"
        if line not in self.warnings:
            self.warnings = (*self.warnings, line)

    def _cut(self, why: str) -> InputError:
        frames = f"{self._count.frames} of {self.clip.total or 'an unknown number of'} frames"
        seconds = f"{float(self._end):.2f} s of {float(self.clip.duration):.2f} s"
        advice = "get the whole file, or use what can be read with --salvage"
        return InputError(f"{self._source} is cut off or damaged ({why}): {frames} read, {seconds}; {advice}")

    def _stamp(self, frame: "VideoFrame") -> Stamp:
        pts = (self._next_pts or 0) if frame.pts is None else frame.pts
        if self._next_pts is not None:
            pts = max(pts, self._next_pts)  # AVI gives H.264 frames in an order of its own
        self._next_pts = pts + 1
        return Stamp(pts, frame.duration or 0)

    def _upright(self, frame: "VideoFrame") -> NDArray[Any]:
        full = frame.color_range == FULL or frame.format.name.startswith("yuvj") or frame.format.is_rgb
        layout = "rgb24" if self.clip.depth == 8 else "rgb48le"
        pixels = self._scaler.convert(frame, layout, FULL if full else LIMITED, FULL).to_ndarray()
        return np.ascontiguousarray(self.clip.turn.apply(pixels))
