"""Frames to encoded segments in the work folder, each of ``SEGMENT`` frames and complete in itself.

A segment is encoded apart from the others, so that its bytes are the same whether a run did it all or went on from
another's. Frames of the segment that is not full yet are also stored as they are: no frame is computed twice.
"""

import contextlib
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from uid.errors import OutputError
from uid.runtime.media.ffmpeg import FULL, LIMITED, Scaler, ffmpeg_errors
from uid.runtime.media.frames import Clip, Frame, Stamp
from uid.runtime.media.video_codecs import Encoding
from uid.runtime.media.work import Spool, Work, make_safe, put_in_place

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

SEGMENT = 32  # frames
FIRST = 100  # a packet's pts in a segment is that plus its frame's number there
_TICK = Fraction(1, 1000)  # Matroska's


def add_encoder(container: "OutputContainer", clip: Clip, how: Encoding) -> "VideoStream":
    """A stream in ``container`` for frames of ``clip``, in limited range."""
    stream = cast("VideoStream", container.add_stream(how.codec, rate=clip.rate, options=dict(how.options)))
    stream.width, stream.height = clip.size
    stream.pix_fmt = how.pixel_format
    context = stream.codec_context
    context.time_base = clip.time_base
    context.sample_aspect_ratio = clip.sample_aspect
    context.color_range, context.colorspace = LIMITED, clip.color.matrix
    context.color_primaries, context.color_trc = clip.color.primaries, clip.color.transfer
    return stream


class Segment:
    """One segment's file while it is written."""

    def __init__(self, path: Path, clip: Clip, how: Encoding, scaler: Scaler) -> None:
        import av

        self._path, self._temporary = path, path.with_name("segment.tmp")
        self._clip, self._scaler = clip, scaler
        self._container = av.open(f"file:{self._temporary}", "w", format="matroska")
        self._stream = add_encoder(self._container, clip, how)
        self._container.start_encoding()
        self._places: dict[int, int] = {}  # from pts to place
        self._first: int | None = None
        self._coded = 0

    def write(self, pixels: NDArray[Any], stamp: Stamp) -> None:
        import av

        layout = "rgb24" if pixels.dtype == np.uint8 else "rgb48le"
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=layout)
        image = self._scaler.convert(rgb, self._stream.pix_fmt or "", FULL, LIMITED)
        self._first = stamp.pts if self._first is None else self._first
        image.pts, image.time_base = stamp.pts - self._first, self._clip.time_base
        image.duration = stamp.duration
        self._places[image.pts] = len(self._places)
        self._mux(self._stream.encode(image))

    @property
    def frames(self) -> int:
        return len(self._places)

    def finish(self) -> None:
        self._mux(self._stream.encode(None))
        if self._coded != len(self._places):
            raise OutputError(f"the encoder made {self._coded} packets of {len(self._places)} frames; choose another")
        self._container.close()
        make_safe(self._temporary)
        put_in_place(self._temporary, self._path)

    def abandon(self) -> None:
        with contextlib.suppress(Exception):  # an error is on its way already
            self._container.close()

    def _mux(self, packets: "list[Packet[Stream]]") -> None:
        """Matroska has milliseconds: the pts becomes the frame's place, and gets its own value at the end."""
        for packet in packets:
            if packet.pts not in self._places:
                raise OutputError(f"the encoder changes timestamps ({packet.pts}); choose another codec")
            packet.pts, packet.dts = FIRST + self._places[packet.pts], self._coded
            packet.time_base, packet.duration = _TICK, 1
            packet.stream = self._stream
            self._coded += 1
            self._container.mux(packet)


class VideoWriter:
    """A clip's segments, those of an earlier run among them."""

    def __init__(self, clip: Clip, how: Encoding, work: Work, destination: Path) -> None:
        self._clip, self._how, self._folder = clip, how, work.folder
        self._destination = destination
        self._scaler = Scaler(clip.color)
        self._segment: Segment | None = None
        self.stamps: list[Stamp] = []
        while self._path(self._full).exists():
            self._full += 1
        self._shape = (clip.size[1], clip.size[0], 3)
        self._dtype = np.dtype(np.uint8 if clip.depth == 8 else np.uint16)
        self._spool = self._opened_spool()
        self._spooled = self._spool.records()
        self.done = SEGMENT * self._full + self._spool.count  # frames that need not be computed

    _full = 0  # segments that are there

    def put(self, item: Frame | Stamp) -> bool:
        """Encode a frame; of one that an earlier run did, say when it is shown. Whether it was new."""
        with ffmpeg_errors(lambda why: OutputError(f"cannot write {self._destination}: {why}")):
            if isinstance(item, Frame):
                self.stamps.append(item.stamp)
                pixels = np.ascontiguousarray(item.pixels)
                self._spool.append(pixels.tobytes())
                self._encode(pixels, item.stamp)
                self.done += 1
                return True
            self.stamps.append(item)
            if len(self.stamps) > SEGMENT * self._full:
                record = np.frombuffer(next(self._spooled), self._dtype).reshape(self._shape)
                self._encode(record, item)
            return False

    def finish(self) -> None:
        """Complete the last segment."""
        if self._segment:
            with ffmpeg_errors(lambda why: OutputError(f"cannot write {self._destination}: {why}")):
                self._close_segment()

    def close(self) -> None:
        """Let go of the files."""
        if self._segment:
            self._segment.abandon()
        self._spool.close()

    @property
    def segments(self) -> list[Path]:
        return [self._path(index) for index in range(self._full)]

    def _encode(self, pixels: NDArray[Any], stamp: Stamp) -> None:
        if self._segment is None:
            self._segment = Segment(self._path(self._full), self._clip, self._how, self._scaler)
        self._segment.write(pixels, stamp)
        if self._segment.frames == SEGMENT:
            self._close_segment()

    def _close_segment(self) -> None:
        assert self._segment is not None
        self._segment.finish()
        self._segment = None
        self._spool.close()
        self._spool_path.unlink()
        self._full += 1
        self._spool = self._opened_spool()

    def _opened_spool(self) -> Spool:
        """The frames of the segment that is not full; an earlier segment's, left in the moment it was done, go."""
        for path in self._folder.glob("*.frames"):
            if path != self._spool_path:
                path.unlink()
        return Spool(self._spool_path, int(np.prod(self._shape)) * self._dtype.itemsize)

    @property
    def _spool_path(self) -> Path:
        return self._folder / f"{self._full:06d}.frames"

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:06d}.mkv"
