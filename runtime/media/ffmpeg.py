"""FFmpeg through PyAV: opening files, its errors and texts, and conversion between RGB and Y'CbCr."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from uid.errors import InputError, UIDError
from uid.runtime.media.formats import MAX_PIXELS
from uid.runtime.media.frames import Color

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

LIMITED, FULL = 1, 2  # AVColorRange
SWSCALE_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # AVColorSpace -> SWS_CS_*
_SCALING = 4 | 0x2000 | 0x4000 | 0x40000  # SWS: bicubic chroma at full resolution, rounded accurately
# Demuxers of single files. Those left out open what a text names: concat, hls, dash, sdp, imf and the like.
_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,gif,ogg,mxf,dv,nut,ivf,yuv4mpegpipe,"
    "h264,hevc,vvc,obu,av1,m4v,mjpeg,rm,gxf,wtv,nsv,vc1,swf,nuv,smjpeg,apng,amv,cine,dnxhd,dirac"
)


@contextlib.contextmanager
def ffmpeg_errors(raised: Callable[[str], UIDError]) -> Iterator[None]:
    """Turn FFmpeg's errors into this project's."""
    from av.error import FFmpegError

    try:
        yield
    except FFmpegError as error:
        raise raised(error.strerror or str(error)) from error


@contextlib.contextmanager
def opened(source: Path, max_pixels: int = MAX_PIXELS, **options: str) -> "Iterator[InputContainer]":
    """A video file for reading, whatever the bytes of its texts.

    Raises ``InputError`` for what is empty, not a file, or not a video; also for a list that names other files.
    """
    import av

    if not source.is_file():
        raise InputError(f"{source} is not a regular file; expected a video")
    if source.stat().st_size == 0:
        raise InputError(f"{source} is an empty file; expected a video")
    limits = {"max_pixels": _guard(max_pixels), "format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    with ffmpeg_errors(lambda why: InputError(f"{source} is not a video, or is cut off or damaged: {why}")):
        # The prefix keeps a colon in a name from reading as a protocol.
        container = av.open(f"file:{source}", options=limits | options, metadata_errors="surrogateescape")
    with container:
        yield container


def _guard(max_pixels: int) -> str:
    """FFmpeg's own limit, which it holds against frames with the edges that a decoder adds; ours is exact."""
    return str(2 * max_pixels + (1 << 20))


def texts(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as valid Unicode: what is not UTF-8 is read as Windows-1252, as old cameras and programs wrote it."""
    return {_text(key): _text(value) for key, value in tags.items()}


def _text(text: str) -> str:
    data = text.encode("utf-8", "surrogateescape")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def video_stream(container: "InputContainer", source: Path, max_pixels: int = MAX_PIXELS) -> "VideoStream":
    """The first stream of moving images. Raises ``InputError`` for none, one of unknown codec, or a larger one."""
    for stream in container.streams.video:
        if is_cover(stream):
            continue
        if stream.codec_context is None:
            raise InputError(f"{source} has video of a codec that FFmpeg cannot read; convert it to H.264 first")
        refuse_size(stream.width, stream.height, source, max_pixels)
        # Frame threads; they also report damage that slice threads hide.
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": _guard(max_pixels)}
        return stream
    raise InputError(f"{source} has no video stream; expected a video")


def is_cover(stream: "Stream") -> bool:
    """Whether a video stream is a still image that stands for the file."""
    from av.stream import Disposition

    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def refuse_size(width: int, height: int, source: Path, max_pixels: int) -> None:
    """Raise ``InputError`` for frames of more pixels than the limit."""
    if width * height > max_pixels:
        limit = f"more than {max_pixels} pixels a frame; shrink it or raise the limit"
        raise InputError(f"{source} is {width} x {height}, {limit}", option="max_pixels")


class Scaler:
    """Conversion between RGB and Y'CbCr by one matrix. One serves all frames, since a new one for each leaks memory."""

    def __init__(self, color: Color) -> None:
        from av.video.reformatter import VideoReformatter

        self._scaler = VideoReformatter()
        self._matrix = SWSCALE_MATRICES[color.matrix]

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
