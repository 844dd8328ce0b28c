"""A video file as a target: checked first, then written in segments, and joined at the end."""

from collections.abc import Callable
from pathlib import Path

from uid.bundles.files import dress
from uid.runtime.media.frames import Clip, Frame, Mastering, Stamp
from uid.runtime.media.selection import Part
from uid.runtime.media.video_codecs import Wanted, can_carry, encoding
from uid.runtime.media.video_join import check_target, join
from uid.runtime.media.video_writer import VideoWriter
from uid.runtime.media.work import Work


class FileWriter:
    """Frames of ``clip`` to ``destination``, with the other tracks of ``source`` where there is one.

    Raises ``OutputError`` where the target cannot carry the frames or the sound, before any frame is made.
    """

    def __init__(
        self,
        source: Path | None,
        destination: Path,
        clip: Clip,
        wanted: Wanted,
        work: Work,
        placing: Callable[[Path], None],
        mode: int = 0o666,
    ) -> None:
        """``mode`` is that of the file, before the umask."""
        self._placing, self._mode = placing, mode
        self._source, self._destination, self._clip, self._work = source, destination, clip, work
        self._encoding = encoding(clip, destination, wanted)
        tracks = check_target(source, destination, clip, self._encoding)
        self.audio_streams = tracks.audio
        self.warnings = tuple(f"warning: {source}: {line}" for line in tracks.told)
        if not can_carry(self._encoding.codec, clip.mastering) and clip.mastering != Mastering():
            self.warnings += (f"warning: {source}: {self._encoding.codec} cannot carry its HDR mastering data",)
        self._segments = VideoWriter(clip, self._encoding, work, destination)

    @property
    def done(self) -> int:
        """Frames that need not be computed any more."""
        return self._segments.done

    def put(self, item: Frame | Stamp) -> bool:
        """Encode the next frame; whether it was new."""
        return self._segments.put(item)

    def finish(self, part: Part) -> None:
        """Join the segments and the other tracks of that part of the source under the target's name."""
        writer = self._segments
        writer.finish()
        joined = self._work.folder / f"joined{self._destination.suffix}"
        lost = join(writer.segments, writer.stamps, self._clip, self._encoding, self._source, part, joined)
        if lost:
            self.warnings += (f"warning: {self._destination} cannot carry: {', '.join(lost)}",)
        self._work.joined()
        dress(joined, self._destination, self._mode)
        self._placing(joined)
        joined.replace(self._destination)

    def close(self) -> None:
        """Let go of the files."""
        self._segments.close()
