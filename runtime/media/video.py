"""Video frame by frame: decoded, transformed as RGB, encoded again with the same timestamps and all other tracks.

Frames may also come from, or go to, a folder of numbered images. A frame is transformed while the next ones are
decoded and the last ones encoded; a few are held at a time, so that memory does not grow with the length of the video.
Work that was interrupted goes on where it was.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from uid.bundles.files import mode_like
from uid.errors import InputError
from uid.install import how_to_install
from uid.runtime.media.ffmpeg import opened
from uid.runtime.media.formats import MAX_PIXELS, MUXERS, VIDEO_SUFFIXES, is_video_path
from uid.runtime.media.frame_folder import FolderReader, FolderWriter
from uid.runtime.media.frames import DEFAULT_FRAME_RATE, Frame, Stamp
from uid.runtime.media.prefetch import SingleThread, Threads, map_behind, prefetch
from uid.runtime.media.raw_pipe import RawPipe, RawReader, RawWriter
from uid.runtime.media.selection import EVERYTHING, Selected, Selection
from uid.runtime.media.video_codecs import FITTING, Wanted, refuse_destination
from uid.runtime.media.video_file import FileWriter
from uid.runtime.media.video_reader import VideoReader, inspected, refuse_transparent
from uid.runtime.media.work import Work, identity, work_beside

if TYPE_CHECKING:
    Reader = FolderReader | VideoReader | RawReader
    Writer = FolderWriter | FileWriter | RawWriter

Transform = Callable[..., NDArray[Any]]  # (H, W, 3) RGB -> the same dtype; shape: ``process_video``
First = Callable[[NDArray[Any]], Any]
Numbered = tuple[int, Frame | Stamp]


@dataclass(frozen=True)
class VideoOptions:
    """What may be said about reading, encoding and going on."""

    selection: Selection = EVERYTHING  # the part that is taken
    wanted: Wanted = FITTING  # the encoder and its settings
    max_pixels: int = MAX_PIXELS  # of a frame
    salvage: bool = False  # use what can be read of a damaged file
    looks_back: int = 0  # frames before one that its transform has seen: after an interruption, it is shown them again
    at_once: int = 1  # frames for which ``first`` runs at the same time, each on a thread of its own
    key: str | None = None  # names the transform; work of an earlier run with the same one goes on; None: it never does
    report: Callable[[str], None] = field(default=lambda line: None)  # told what a user should know
    placing: Callable[[Path], None] = field(default=lambda file: None)  # told of a video that is about to get its name


USUAL = VideoOptions()


@dataclass(frozen=True)
class VideoResult:
    """What was written."""

    frames: int
    audio_streams: int  # copied; 0 when the output is a folder of frames
    warnings: tuple[str, ...] = ()  # what is missing, left out or changed, one line each


def process_video(
    source: Path | RawPipe,
    destination: Path | RawPipe,
    transform: Transform,
    *,
    first: First | None = None,
    on_frame: Callable[[int, int | None], None] = lambda done, total: None,
    frame_rate: Fraction | None = None,
    columns: int = 1,
    scale: int = 1,
    options: VideoOptions = USUAL,
) -> VideoResult:
    """Write ``source`` to ``destination`` with ``transform`` applied to each frame, (H, W, 3) RGB, upright.

    Frames are uint8, or uint16 over its whole range where the source has more than 8 bits or is HDR; they keep the
    source's matrix, primaries and transfer. ``source`` is a video file, or a folder of numbered frames shown at
    ``frame_rate`` (25 per second by default). ``destination`` is a video file with a suffix in ``MUXERS``, encoded as
    H.264 or, of more than 8 bits, HEVC (WebM: VP9 or AV1) unless ``options`` say otherwise; or a folder, which gets
    000001.png and so on. Either may be a pipe of raw frames.

    ``first`` is what may be done to frames in any order: ``transform`` is given its result too, as a second argument.

    A video keeps its timestamps (Matroska rounds them to milliseconds), pixel aspect ratio, colours, other tracks, tags
    and chapters; its rotation is applied to the pixels and interlaced frames are deinterlaced. ``on_frame`` is told the
    frames done and the total, where it is known. ``columns`` is how many frames' width the transform returns: 2 for a
    comparison side by side; ``scale`` is how many times as high and wide its frames are. A file or folder appears whole
    or not at all.

    Raises ``InputError`` when the source is missing, damaged, cut off, transparent, too large, or changes size, and
    when the transform changes a frame's shape or dtype; ``OutputError`` when the destination cannot be written.
    """
    _require_av()
    _check_paths(source, destination, frame_rate)
    with (
        _reader(source, frame_rate, options) as reader,
        _work(destination, _key(source, frame_rate, columns, scale, options), options) as work,
        contextlib.closing(_writer(source, destination, reader, (columns, scale), options, work)) as writer,
    ):
        work.kept = lambda: writer.done
        if writer.done:
            options.report(f"{destination}: goes on after {writer.done} frames of an earlier run")
        chosen, done = Selected(reader, reader.clip, options.selection), writer.done
        total = options.selection.total(reader.clip)
        frames = chosen.frames(max(done - options.looks_back, 0))
        resumed = _Resumed(partial(_made, transform, columns, scale), done)
        made = partial(_begun, first, options.at_once), resumed
        count = _transformed(enumerate(frames), made, writer, lambda count: on_frame(count, total))
        if not count:
            raise InputError(f"no frame of {source} lies in the part that was asked for")
        writer.finish(chosen.part)
        warnings = (*reader.warnings, *writer.warnings)
    for line in warnings:
        options.report(line)
    return VideoResult(count, writer.audio_streams, warnings)


def _transformed(
    frames: Iterator[Numbered],
    transforms: tuple[Callable[[Iterator[Numbered]], Iterator[Numbered]], Callable[[Numbered], Frame | Stamp]],
    writer: "Writer",
    on_frame: Callable[[int], None],
) -> int:
    """Read, transform and write, each in a thread; the number of frames."""
    count = 0
    begun, transform = transforms
    with SingleThread() as decoding, SingleThread() as encoding:
        made = map(transform, begun(prefetch(frames, decoding)))
        for is_new in map_behind(writer.put, made, encoding):
            count += 1
            if is_new:
                on_frame(count)
    return count


def _begun(first: First | None, at_once: int, frames: Iterator[Numbered]) -> Iterator[Numbered]:
    """The frames, with what is made of them first."""
    if first is None:
        yield from frames
        return

    def begin(numbered: Numbered) -> Numbered:
        number, item = numbered
        return numbered if isinstance(item, Stamp) else (number, dataclasses.replace(item, made=first(item.pixels)))

    if at_once == 1:
        yield from map(begin, frames)
        return
    with Threads(at_once) as threads:
        yield from map_behind(begin, frames, threads, at_once)


class _Resumed:
    """Transforms the frames that an earlier run has not done, and before the first of them those it looks back on."""

    def __init__(self, transform: Callable[[Frame], Frame], done: int) -> None:
        self._transform, self._done = transform, done
        self._seen: list[Frame] = []

    def __call__(self, numbered: Numbered) -> Frame | Stamp:
        number, item = numbered
        if isinstance(item, Stamp):
            return item
        if number < self._done:
            self._seen.append(item)
            return item.stamp
        for earlier in self._seen:
            self._transform(earlier)
        self._seen.clear()
        return self._transform(item)


def _made(transform: Transform, columns: int, scale: int, item: Frame) -> Frame:
    """A frame transformed."""
    pixels = item.pixels
    shape, dtype = (scale * pixels.shape[0], columns * scale * pixels.shape[1], 3), pixels.dtype
    result = transform(pixels) if item.made is None else transform(pixels, item.made)
    if result.shape != shape or result.dtype != dtype:
        made, of = f"{result.shape} {result.dtype}", f"{pixels.shape} {dtype}"
        raise InputError(f"the transform made {made} of a frame {of}; expected {shape} and the same dtype")
    return Frame(result, item.stamp)


def _key(
    source: Path | RawPipe, frame_rate: Fraction | None, columns: int, scale: int, options: VideoOptions
) -> str | None:
    """What the work depends on; None where the transform has no name."""
    import av

    if options.key is None or isinstance(source, RawPipe):
        return None
    parts = (options.key, identity(source), frame_rate, columns, scale, options.selection, options.wanted)
    return hashlib.sha256(repr((*parts, options.salvage, av.__version__, av.library_versions)).encode()).hexdigest()


def _require_av() -> None:
    try:
        import av  # noqa: F401  (only whether it is there)
    except ImportError as error:
        raise InputError(f"video needs PyAV, which is not installed: {how_to_install('video')}") from error


def _check_paths(source: Path | RawPipe, destination: Path | RawPipe, frame_rate: Fraction | None) -> None:
    """Raise ``InputError`` or ``OutputError`` unless the paths and the frame rate fit together."""
    to_folder = isinstance(destination, Path) and (destination.is_dir() or not destination.suffix)
    if isinstance(destination, Path) and not to_folder:
        refuse_destination(destination, MUXERS)
    if isinstance(source, RawPipe):
        return
    if not source.exists():
        raise InputError(f"{source} does not exist; expected a video or a folder of frames")
    if isinstance(destination, Path) and destination.exists() and source.samefile(destination):
        raise InputError(f"{destination} is the input itself; choose another output")
    if source.is_dir():
        _check_frames(source, destination, to_folder, frame_rate)
    elif not is_video_path(source):
        raise InputError(f"{source} is not a video; expected a folder or one of {', '.join(sorted(VIDEO_SUFFIXES))}")
    elif frame_rate is not None:
        raise InputError(f"a frame rate is for frame folders; {source} keeps its own timestamps")


def _check_frames(source: Path, destination: Path | RawPipe, to_folder: bool, frame_rate: Fraction | None) -> None:
    """The same for a folder of frames."""
    if to_folder:
        raise InputError(f"{source} and {destination} are both folders; process the images as images")
    if frame_rate is not None and frame_rate <= 0:
        raise InputError(f"the frame rate is {frame_rate}; expected more than 0")


@contextlib.contextmanager
def _work(destination: Path | RawPipe, key: str | None, options: VideoOptions) -> Iterator[Work]:
    """The work beside a target; a pipe has none."""
    if isinstance(destination, RawPipe):
        yield Work(Path())
        return
    with work_beside(destination, key, options.report) as work:
        yield work


@contextlib.contextmanager
def _reader(source: Path | RawPipe, frame_rate: Fraction | None, options: VideoOptions) -> "Iterator[Reader]":
    limit = options.max_pixels
    if isinstance(source, RawPipe):
        yield RawReader(source, frame_rate, limit)
        return
    if source.is_dir():
        yield FolderReader(source, frame_rate or DEFAULT_FRAME_RATE, limit)
        return
    with opened(source, limit) as container:  # opened again below: the first frame tells what the header does not
        clip = inspected(container, source, limit, options.salvage)
    refuse_transparent(source, limit)
    with opened(source, limit) as container:
        yield VideoReader(container, source, clip, salvage=options.salvage)


def _writer(
    source: Path | RawPipe,
    destination: Path | RawPipe,
    reader: "Reader",
    factors: tuple[int, int],
    options: VideoOptions,
    work: Work,
) -> "Writer":
    if isinstance(destination, RawPipe):
        return RawWriter(destination)
    mode = 0o666 if isinstance(source, RawPipe) else mode_like(source, *(source.iterdir() if source.is_dir() else ()))
    if destination.is_dir() or not destination.suffix:
        return FolderWriter(destination, work, reader.clip, mode)
    (columns, scale), (width, height) = factors, reader.clip.size
    end = reader.clip.end if options.selection == EVERYTHING else None
    clip = dataclasses.replace(reader.clip, size=(columns * scale * width, scale * height), end=end)
    file = source if isinstance(source, Path) and source.is_file() else None
    return FileWriter(file, destination, clip, options.wanted, work, options.placing, mode)
