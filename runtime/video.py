"""Video frame by frame: decoded, transformed as RGB, encoded again with the same timestamps and the same sound.

Frames may also come from, or go to, a folder of numbered pictures. A frame is transformed while the next ones are
decoded and the last ones encoded; a few are held at a time, so that memory does not grow with the length of the video.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from uid.errors import InputError, OutputError, UIDError
from uid.runtime.files import folder_written_whole, written_whole
from uid.runtime.frames import BT709, DEFAULT_FRAME_RATE, Clip, Color, FolderReader, FolderWriter, Frame, Turn
from uid.runtime.overlap import Lane, ahead, behind

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    Item = Frame | Packet[Stream]

Transform = Callable[[NDArray[Any]], NDArray[Any]]  # (H, W, 3) RGB -> the same shape and dtype

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"}
MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}

_ENCODER = {"crf": "16", "preset": "medium"}  # near visual losslessness: a sharpened detail must not be lost again
_LIMITED, _FULL = 1, 2  # AVColorRange
_BT601 = 6  # AVColorSpace
_HDR_TRANSFERS = {16, 18}  # AVColorTransferCharacteristic: PQ and HLG
_SWSCALE_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # AVColorSpace -> SWS_CS_*
_UNTAGGED = {0, 2, 3}  # AVColorSpace: RGB, unspecified, reserved
_SCALING = 4 | 0x2000 | 0x4000 | 0x40000  # SWS: bicubic chroma at full resolution, rounded accurately


@dataclass(frozen=True)
class VideoResult:
    """What was written."""

    frames: int
    audio_streams: int  # copied; 0 when the output is a folder of frames


def is_video_path(path: Path) -> bool:
    """Whether the name's suffix is one of ``VIDEO_SUFFIXES``, in any case."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def process_video(
    source: Path,
    destination: Path,
    transform: Transform,
    *,
    on_frame: Callable[[int, int | None], None] = lambda done, total: None,
    frame_rate: Fraction | None = None,
    columns: int = 1,
) -> VideoResult:
    """Write ``source`` to ``destination`` with ``transform`` applied to each frame, (H, W, 3) RGB uint8, upright.

    ``source`` is a video file, or a folder of numbered frames shown at ``frame_rate`` (25 per second by default).
    ``destination`` is a video file (.mp4, .m4v, .mov, .mkv), encoded as H.264, or a folder, which gets 000001.png and
    so on. A video keeps its timestamps (Matroska rounds them to milliseconds), pixel aspect ratio, colours and audio;
    its rotation is applied to the pixels; its subtitles are left out. ``on_frame`` is told the frames done and the
    total, where it is known. ``columns`` is how many frames' width the transform returns: 2 for a comparison side by
    side. The destination appears whole or not at all.

    Raises ``InputError`` when the source is missing, damaged, cut off, not an 8-bit opaque video, or changes size, and
    when the transform changes a frame's shape or dtype; ``OutputError`` when the destination cannot be written.
    """
    _require_av()
    _check_paths(source, destination, frame_rate)
    done = 0
    with (
        _reader(source, frame_rate) as reader,
        _writer(destination, reader, columns) as writer,
        Lane() as decoding,
        Lane() as encoding,
    ):
        items = (_transformed(transform, item, columns) for item in ahead(reader, decoding))
        for is_frame in behind(partial(_put, writer), items, encoding):
            if is_frame:
                done += 1
                on_frame(done, reader.clip.total)
    return VideoResult(done, writer.audio_streams)


def _transformed(transform: Transform, item: "Item", columns: int) -> "Item":
    """A frame transformed; a packet of sound as it is."""
    if not isinstance(item, Frame):
        return item
    pixels = item.pixels
    shape, dtype = (pixels.shape[0], columns * pixels.shape[1], 3), pixels.dtype
    result = transform(pixels)
    if result.shape != shape or result.dtype != dtype:
        made, of = f"{result.shape} {result.dtype}", f"{pixels.shape} {dtype}"
        raise InputError(f"the transform made {made} of a frame {of}; expected {shape} and the same dtype")
    return Frame(result, item.pts, item.duration)


def _put(writer: "FolderWriter | _VideoWriter", item: "Item") -> bool:
    """Write a frame or copy a packet; whether it was a frame."""
    if isinstance(item, Frame):
        writer.write(item)
        return True
    writer.copy(item)
    return False


def _require_av() -> None:
    try:
        import av  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise InputError("video needs PyAV, which is not installed: pip install 'uid-runtime[video]'") from error


def _check_paths(source: Path, destination: Path, frame_rate: Fraction | None) -> None:
    to_folder = destination.is_dir() or not destination.suffix
    if not source.exists():
        raise InputError(f"{source} does not exist; expected a video or a folder of frames")
    if source.is_dir() and to_folder:
        raise InputError(f"{source} and {destination} are both folders; process the pictures as pictures")
    if destination.exists() and source.samefile(destination):
        raise InputError(f"{destination} is the input itself; choose another output")
    if source.is_file() and not is_video_path(source):
        raise InputError(f"{source} is not a video; expected a folder or one of {', '.join(sorted(VIDEO_SUFFIXES))}")
    if source.is_file() and frame_rate is not None:
        raise InputError(f"a frame rate is for frame folders; {source} keeps its own timestamps")
    if frame_rate is not None and frame_rate <= 0:
        raise InputError(f"the frame rate is {frame_rate}; expected more than 0")
    if not to_folder and destination.suffix.lower() not in MUXERS:
        raise OutputError(f"cannot write {destination}: expected {', '.join(MUXERS)}, or a folder without a suffix")


@contextlib.contextmanager
def _reader(source: Path, frame_rate: Fraction | None) -> "Iterator[FolderReader | _VideoReader]":
    if source.is_dir():
        yield FolderReader(source, frame_rate or DEFAULT_FRAME_RATE)
        return
    with _opened(source) as container:  # opened again below: the first frame tells what the header does not
        clip = _inspected(container, source)
    with _opened(source) as container:
        yield _VideoReader(container, source, clip)


@contextlib.contextmanager
def _writer(
    destination: Path, reader: "FolderReader | _VideoReader", columns: int
) -> "Iterator[FolderWriter | _VideoWriter]":
    if destination.is_dir() or not destination.suffix:
        with folder_written_whole(destination) as folder:
            yield FolderWriter(folder)
        return
    import av

    options = {
        # The source's own ticks, so that MP4 and MOV need not round; Matroska has milliseconds and ignores this.
        "video_track_timescale": str(reader.clip.time_base.denominator),
        "avoid_negative_ts": "disabled",  # sound that starts early, as AAC's does, must not push the frames back
    }
    muxer = MUXERS[destination.suffix.lower()]
    with (
        written_whole(destination) as temporary,
        _explained(lambda why: OutputError(f"cannot write {destination}: {why}")),
        av.open(f"file:{temporary}", "w", format=muxer, container_options=options) as container,
    ):
        width, height = reader.clip.size
        clip = dataclasses.replace(reader.clip, size=(columns * width, height))
        writer = _VideoWriter(container, clip, reader.audio, destination)
        yield writer
        writer.finish()


@contextlib.contextmanager
def _explained(raised: Callable[[str], UIDError]) -> Iterator[None]:
    """Turn FFmpeg's errors into this project's."""
    from av.error import FFmpegError

    try:
        yield
    except FFmpegError as error:
        raise raised(error.strerror or str(error)) from error


@contextlib.contextmanager
def _opened(source: Path) -> "Iterator[InputContainer]":
    import av

    if source.stat().st_size == 0:
        raise InputError(f"{source} is an empty file; expected a video")
    with _explained(lambda why: InputError(f"{source} is not a video, or is cut off or damaged: {why}")):
        container = av.open(f"file:{source}")  # the prefix keeps a colon in a name from reading as a protocol
    with container:
        yield container


def _video_stream(container: "InputContainer", source: Path) -> "VideoStream":
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover of a song is no video
            stream.thread_type = "AUTO"  # frame threads; they also report damage that slice threads hide
            return stream
    raise InputError(f"{source} has no video stream; expected a video")


def _inspected(container: "InputContainer", source: Path) -> Clip:
    stream = _video_stream(container, source)
    with _explained(lambda why: InputError(f"{source} is damaged: its first frame cannot be decoded: {why}")):
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
    if frame.colorspace not in _SWSCALE_MATRICES:
        raise InputError(f"{source} has the unusual colour matrix {frame.colorspace}; convert it to BT.709 first")
    return frame.colorspace


def _turn(frame: "VideoFrame") -> Turn:
    """The display matrix, by which (x, y) is shown at (a x + c y, b x + d y); only quarter turns and mirrors are known.

    Only asked of one frame: PyAV's ``side_data`` makes a reference cycle that keeps the frame in memory.
    """
    data = cast(Mapping[str, Any], frame.side_data).get("DISPLAYMATRIX")  # PyAV's stub knows another key only
    if data is None:
        return Turn()
    a, b, _, c, d, *_ = np.frombuffer(data, np.int32).tolist()
    transposed = abs(b) > abs(a)
    return Turn(transposed, mirror_x=(c if transposed else a) < 0, mirror_y=(b if transposed else d) < 0)


class _Scaler:
    """Conversion between RGB and Y'CbCr by one matrix. Kept for all frames, since a new one for each leaks memory."""

    def __init__(self, color: Color) -> None:
        from av.video.reformatter import VideoReformatter

        self._scaler = VideoReformatter()
        self._matrix = _SWSCALE_MATRICES[color.matrix]

    def convert(self, frame: "VideoFrame", pixel_format: str, source_range: int, range_: int) -> "VideoFrame":
        return self._scaler.reformat(
            frame,
            format=pixel_format,
            src_colorspace=self._matrix,
            dst_colorspace=self._matrix,
            interpolation=_SCALING,
            src_color_range=source_range,
            dst_color_range=range_,
        )


class _VideoReader:
    """Decoded frames and audio packets in the order of the file."""

    def __init__(self, container: "InputContainer", source: Path, clip: Clip) -> None:
        self.clip = clip
        self.audio = list(container.streams.audio)
        self._container = container
        self._stream = _video_stream(container, source)
        self._source = source
        self._scaler = _Scaler(clip.color)
        self._done = 0
        self._end = Fraction(0)  # seconds, of the packets so far
        self._coded_size: tuple[int, int] | None = None
        self._next_pts: int | None = None

    def __iter__(self) -> "Iterator[Frame | Packet[Stream]]":
        with _explained(self._cut):
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
        full = frame.color_range == _FULL or frame.format.name.startswith("yuvj") or frame.format.is_rgb
        pixels = self._scaler.convert(frame, "rgb24", _FULL if full else _LIMITED, _FULL).to_ndarray()
        return np.ascontiguousarray(self.clip.turn.apply(pixels), np.uint8)


class _VideoWriter:
    """H.264 at the clip's own timestamps, in limited range, beside the reader's audio packets as they are."""

    def __init__(self, container: "OutputContainer", clip: Clip, audio: "list[AudioStream]", destination: Path) -> None:
        self._container = container
        self._clip = clip
        self._scaler = _Scaler(clip.color)
        self._stream = self._video_stream()
        self._audio = {stream.index: self._audio_stream(stream, destination) for stream in audio}
        self.audio_streams = len(self._audio)
        codecs = ", ".join(stream.codec_context.name for stream in audio) or "no"
        why = f"cannot start {destination} with H.264 of {clip.size} pixels and {codecs} audio; choose .mkv"
        with _explained(lambda cause: OutputError(f"{why} ({cause})")):
            container.start_encoding()

    def write(self, frame: Frame) -> None:
        import av

        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.pixels), format="rgb24")
        picture = self._scaler.convert(rgb, self._stream.pix_fmt or "", _FULL, _LIMITED)
        picture.pts, picture.duration, picture.time_base = frame.pts, frame.duration, self._clip.time_base
        self._container.mux(self._stream.encode(picture))

    def copy(self, packet: "Packet[Stream]") -> None:
        packet.stream = self._audio[packet.stream.index]
        self._container.mux(packet)

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))

    def _video_stream(self) -> "VideoStream":
        clip = self._clip
        stream = self._container.add_stream("libx264", rate=clip.rate, options=dict(_ENCODER))
        stream.width, stream.height = clip.size
        # Halved chroma needs even sizes.
        stream.pix_fmt = "yuv444p" if clip.size[0] % 2 or clip.size[1] % 2 else "yuv420p"
        context = stream.codec_context
        context.time_base = clip.time_base
        context.sample_aspect_ratio = clip.sample_aspect
        context.color_range, context.colorspace = _LIMITED, clip.color.matrix
        context.color_primaries, context.color_trc = clip.color.primaries, clip.color.transfer
        return stream

    def _audio_stream(self, template: "AudioStream", destination: Path) -> "AudioStream":
        try:
            stream = self._container.add_stream_from_template(template)
        except ValueError as error:
            codec = template.codec_context.name
            message = f"{destination.suffix} cannot carry {codec} audio, which is copied as it is; choose .mkv or .mov"
            raise OutputError(message) from error
        stream.metadata.update(template.metadata)
        return stream
