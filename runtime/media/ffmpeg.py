"""FFmpeg through PyAV: opening files, its errors, and conversion between RGB and Y'CbCr."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from uid.errors import InputError, UIDError
from uid.runtime.media.frames import Color, Frame

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame

    Item = Frame | Packet[Stream]

LIMITED, FULL = 1, 2  # AVColorRange
SWSCALE_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # AVColorSpace -> SWS_CS_*
_SCALING = 4 | 0x2000 | 0x4000 | 0x40000  # SWS: bicubic chroma at full resolution, rounded accurately


@contextlib.contextmanager
def ffmpeg_errors(raised: Callable[[str], UIDError]) -> Iterator[None]:
    """Turn FFmpeg's errors into this project's."""
    from av.error import FFmpegError

    try:
        yield
    except FFmpegError as error:
        raise raised(error.strerror or str(error)) from error


@contextlib.contextmanager
def opened(source: Path) -> "Iterator[InputContainer]":
    import av

    if source.stat().st_size == 0:
        raise InputError(f"{source} is an empty file; expected a video")
    with ffmpeg_errors(lambda why: InputError(f"{source} is not a video, or is cut off or damaged: {why}")):
        container = av.open(f"file:{source}")  # the prefix keeps a colon in a name from reading as a protocol
    with container:
        yield container


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
