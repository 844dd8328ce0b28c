"""Video frame by frame: decoded, transformed as RGB, encoded again with the same timestamps and the same sound.

Frames may also come from, or go to, a folder of numbered images. A frame is transformed while the next ones are
decoded and the last ones encoded; a few are held at a time, so that memory does not grow with the length of the video.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from uid.bundles.files import folder_written_whole, written_whole
from uid.errors import InputError, OutputError
from uid.install import how_to_install
from uid.runtime.media.ffmpeg import ffmpeg_errors, opened
from uid.runtime.media.formats import MUXERS, VIDEO_SUFFIXES, is_video_path
from uid.runtime.media.frames import DEFAULT_FRAME_RATE, FolderReader, FolderWriter, Frame
from uid.runtime.media.prefetch import SingleThread, map_behind, prefetch
from uid.runtime.media.video_reader import VideoReader, inspected
from uid.runtime.media.video_writer import VideoWriter

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream

    Item = Frame | Packet[Stream]

Transform = Callable[[NDArray[Any]], NDArray[Any]]  # (H, W, 3) RGB -> the same dtype; shape: ``process_video``


@dataclass(frozen=True)
class VideoResult:
    """What was written."""

    frames: int
    audio_streams: int  # copied; 0 when the output is a folder of frames


def process_video(
    source: Path,
    destination: Path,
    transform: Transform,
    *,
    on_frame: Callable[[int, int | None], None] = lambda done, total: None,
    frame_rate: Fraction | None = None,
    columns: int = 1,
    scale: int = 1,
) -> VideoResult:
    """Write ``source`` to ``destination`` with ``transform`` applied to each frame, (H, W, 3) RGB uint8, upright.

    ``source`` is a video file, or a folder of numbered frames shown at ``frame_rate`` (25 per second by default).
    ``destination`` is a video file (.mp4, .m4v, .mov, .mkv), encoded as H.264, or a folder, which gets 000001.png and
    so on. A video keeps its timestamps (Matroska rounds them to milliseconds), pixel aspect ratio, colours and audio;
    its rotation is applied to the pixels; its subtitles are left out. ``on_frame`` is told the frames done and the
    total, where it is known. ``columns`` is how many frames' width the transform returns: 2 for a comparison side by
    side; ``scale`` is how many times as high and wide its frames are. The destination appears whole or not at all.

    Raises ``InputError`` when the source is missing, damaged, cut off, not an 8-bit opaque video, or changes size, and
    when the transform changes a frame's shape or dtype; ``OutputError`` when the destination cannot be written.
    """
    _require_av()
    _check_paths(source, destination, frame_rate)
    done = 0
    with (
        _reader(source, frame_rate) as reader,
        _writer(destination, reader, columns, scale) as writer,
        SingleThread() as decoding,
        SingleThread() as encoding,
    ):
        items = (_transformed(transform, item, columns, scale) for item in prefetch(reader, decoding))
        for is_frame in map_behind(partial(_put, writer), items, encoding):
            if is_frame:
                done += 1
                on_frame(done, reader.clip.total)
    return VideoResult(done, writer.audio_streams)


def _transformed(transform: Transform, item: "Item", columns: int, scale: int) -> "Item":
    """A frame transformed; a packet of sound as it is."""
    if not isinstance(item, Frame):
        return item
    pixels = item.pixels
    shape, dtype = (scale * pixels.shape[0], columns * scale * pixels.shape[1], 3), pixels.dtype
    result = transform(pixels)
    if result.shape != shape or result.dtype != dtype:
        made, of = f"{result.shape} {result.dtype}", f"{pixels.shape} {dtype}"
        raise InputError(f"the transform made {made} of a frame {of}; expected {shape} and the same dtype")
    return Frame(result, item.pts, item.duration)


def _put(writer: "FolderWriter | VideoWriter", item: "Item") -> bool:
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
        raise InputError(f"video needs PyAV, which is not installed: {how_to_install('video')}") from error


def _check_paths(source: Path, destination: Path, frame_rate: Fraction | None) -> None:
    """Raise ``InputError`` or ``OutputError`` unless the paths and the frame rate fit together."""
    to_folder = destination.is_dir() or not destination.suffix
    if not source.exists():
        raise InputError(f"{source} does not exist; expected a video or a folder of frames")
    if destination.exists() and source.samefile(destination):
        raise InputError(f"{destination} is the input itself; choose another output")
    if source.is_dir():
        _check_frames(source, destination, to_folder, frame_rate)
    elif not is_video_path(source):
        raise InputError(f"{source} is not a video; expected a folder or one of {', '.join(sorted(VIDEO_SUFFIXES))}")
    elif frame_rate is not None:
        raise InputError(f"a frame rate is for frame folders; {source} keeps its own timestamps")
    if not to_folder and destination.suffix.lower() not in MUXERS:
        raise OutputError(f"cannot write {destination}: expected {', '.join(MUXERS)}, or a folder without a suffix")


def _check_frames(source: Path, destination: Path, to_folder: bool, frame_rate: Fraction | None) -> None:
    """The same for a folder of frames."""
    if to_folder:
        raise InputError(f"{source} and {destination} are both folders; process the images as images")
    if frame_rate is not None and frame_rate <= 0:
        raise InputError(f"the frame rate is {frame_rate}; expected more than 0")


@contextlib.contextmanager
def _reader(source: Path, frame_rate: Fraction | None) -> "Iterator[FolderReader | VideoReader]":
    if source.is_dir():
        yield FolderReader(source, frame_rate or DEFAULT_FRAME_RATE)
        return
    with opened(source) as container:  # opened again below: the first frame tells what the header does not
        clip = inspected(container, source)
    with opened(source) as container:
        yield VideoReader(container, source, clip)


@contextlib.contextmanager
def _writer(
    destination: Path, reader: "FolderReader | VideoReader", columns: int, scale: int
) -> "Iterator[FolderWriter | VideoWriter]":
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
        ffmpeg_errors(lambda why: OutputError(f"cannot write {destination}: {why}")),
        av.open(f"file:{temporary}", "w", format=muxer, container_options=options) as container,
    ):
        width, height = reader.clip.size
        clip = dataclasses.replace(reader.clip, size=(columns * scale * width, scale * height))
        writer = VideoWriter(container, clip, reader.audio, destination)
        yield writer
        writer.finish()
