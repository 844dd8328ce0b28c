"""A video file as decoded frames, upright RGB, and audio packets; damaged files and unsupported kinds are refused."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from uid.errors import InputError
from uid.runtime.media.ffmpeg import FULL, LIMITED, SWSCALE_MATRICES, Scaler, ffmpeg_errors
from uid.runtime.media.frames import BT709, DEFAULT_FRAME_RATE, Clip, Color, Frame, Turn

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    Item = Frame | Packet[Stream]

_BT601 = 6  # AVColorSpace
_HDR_TRANSFERS = {16, 18}  # AVColorTransferCharacteristic: PQ and HLG
_UNTAGGED = {0, 2, 3}  # AVColorSpace: RGB, unspecified, reserved


def inspected(container: "InputContainer", source: Path) -> Clip:
    stream = _video_stream(container, source)
    with ffmpeg_errors(lambda why: InputError(f"{source} is damaged: its first frame cannot be decoded: {why}")):
        first = next(container.decode(stream), None)
    if first is None or stream.time_base is None:
        raise InputError(f"{source} holds no frames; expected at least one")
    _refuse_deep_or_transparent(first, stream, source)
    turn = _turn(first)
    size = (first.height, first.width) if turn.transposed else (first.width, first.height)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    rate = stream.average_rate or stream.guessed_rate or DEFAULT_FRAME_RATE
    duration = Fraction(container.duration or 0, 1_000_000)
    if container.format.name == "avi":  # whose duration FFmpeg shortens to what a cut file holds, but not its count
        duration = max(duration, stream.frames / rate)
    return Clip(
        size=size,
        time_base=stream.time_base,
        rate=rate,
        total=stream.frames or round(duration * rate) or None,
        color=Color(_matrix(first, source), first.color_primaries, first.color_trc),
        turn=turn,
        sample_aspect=1 / aspect if turn.transposed else aspect,
        duration=duration,
    )


def _video_stream(container: "InputContainer", source: Path) -> "VideoStream":
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover of a song is no video
            stream.thread_type = "AUTO"  # frame threads; they also report damage that slice threads hide
            return stream
    raise InputError(f"{source} has no video stream; expected a video")


def _refuse_deep_or_transparent(frame: "VideoFrame", stream: "VideoStream", source: Path) -> None:
    parts = frame.format.components
    if max(part.bits for part in parts) > 8 or frame.color_trc in _HDR_TRANSFERS:
        raise InputError(f"{source} is HDR or deeper than 8 bits ({frame.format.name}); convert it to 8-bit SDR first")
    if any(part.is_alpha for part in parts) or stream.metadata.get("alpha_mode") == "1":  # the latter: VP8 and VP9
        raise InputError(f"{source} has an alpha channel, which H.264 cannot carry; flatten it first")


def _matrix(frame: "VideoFrame", source: Path) -> int:
    """The frame's AVColorSpace; where it is not tagged, the one players assume for its size."""
    if frame.colorspace in _UNTAGGED:
        return BT709 if frame.width >= 1280 or frame.height > 576 else _BT601
    if frame.colorspace not in SWSCALE_MATRICES:
        raise InputError(f"{source} has the unusual colour matrix {frame.colorspace}; convert it to BT.709 first")
    return frame.colorspace


def _turn(frame: "VideoFrame") -> Turn:
    """The display matrix, by which (x, y) is shown at (a x + c y, b x + d y); only quarter turns and mirrors are known.

    Only asked of one frame: PyAV's ``side_data`` creates a reference cycle that holds the frame in memory.
    """
    data = cast(Mapping[str, Any], frame.side_data).get("DISPLAYMATRIX")  # PyAV's stub knows another key only
    if data is None:
        return Turn()
    a, b, _, c, d, *_ = np.frombuffer(data, np.int32).tolist()
    transposed = abs(b) > abs(a)
    return Turn(transposed, mirror_x=(c if transposed else a) < 0, mirror_y=(b if transposed else d) < 0)


class VideoReader:
    """Decoded frames and audio packets in the order of the file."""

    def __init__(self, container: "InputContainer", source: Path, clip: Clip) -> None:
        self.clip = clip
        self.audio = list(container.streams.audio)
        self._container = container
        self._stream = _video_stream(container, source)
        self._source = source
        self._scaler = Scaler(clip.color)
        self._done = 0
        self._end = Fraction(0)  # seconds, of the packets so far
        self._coded_size: tuple[int, int] | None = None
        self._next_pts: int | None = None

    def __iter__(self) -> "Iterator[Frame | Packet[Stream]]":
        with ffmpeg_errors(self._cut):
            for packet in self._container.demux():
                if packet.is_corrupt:
                    raise self._cut("incomplete packet")
                start = packet.pts if packet.pts is not None else packet.dts
                if start is not None:
                    self._end = max(self._end, (start + (packet.duration or 0)) * packet.time_base)
                if packet.stream.index == self._stream.index:
                    yield from map(self._frame, self._stream.decode(cast("Packet[VideoStream]", packet)))
                elif packet.stream.type == "audio" and start is not None:  # the others only flush a decoder
                    yield packet
        # Two frames, since the last one's duration is a guess in some files.
        if self._end < self.clip.duration - max(2 / self.clip.rate, Fraction(1, 10)):
            raise self._cut("it ends early")

    def _cut(self, why: str) -> InputError:
        frames = f"{self._done} of {self.clip.total or 'an unknown number of'} frames"
        seconds = f"{float(self._end):.2f} s of {float(self.clip.duration):.2f} s"
        return InputError(f"{self._source} is cut off or damaged ({why}): {frames} read, {seconds}; get the whole file")

    def _frame(self, frame: "VideoFrame") -> Frame:
        size = (frame.width, frame.height)
        self._coded_size = self._coded_size or size
        if size != self._coded_size:
            change = f"from {self._coded_size} to {size} pixels at frame {self._done + 1}"
            raise InputError(f"{self._source} changes {change}; split it there")
        if frame.is_corrupt:
            raise self._cut("undecodable parts of a frame")
        self._done += 1
        pts = (self._next_pts or 0) if frame.pts is None else frame.pts
        if self._next_pts is not None:
            pts = max(pts, self._next_pts)  # AVI gives H.264 frames in an order of its own
        self._next_pts = pts + 1
        return Frame(self._upright(frame), pts, frame.duration)

    def _upright(self, frame: "VideoFrame") -> NDArray[np.uint8]:
        full = frame.color_range == FULL or frame.format.name.startswith("yuvj") or frame.format.is_rgb
        pixels = self._scaler.convert(frame, "rgb24", FULL if full else LIMITED, FULL).to_ndarray()
        return np.ascontiguousarray(self.clip.turn.apply(pixels), np.uint8)
