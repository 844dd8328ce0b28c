"""Interlaced frames to progressive ones, by FFmpeg's filter."""

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.filter.graph import Graph
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# AVFieldOrder of a stream -> the field that is shown first
_PARITY = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}


class Deinterlacer:
    """One progressive frame for each interlaced one, at its time; progressive frames pass as they are.

    bwdif fills each missing line from the lines around it and from the frames before and after. It starts with the
    first frame that needs it, so that other videos are not touched.
    """

    def __init__(self, stream: "VideoStream") -> None:
        self.active = False  # whether a frame was interlaced
        self._stream = stream
        self._graph: Graph | None = None

    def push(self, frame: "VideoFrame") -> "Iterator[VideoFrame]":
        """The frames that are ready, given the next one."""
        parity = _PARITY.get(self._stream.codec_context.field_order)
        if self._graph is None:
            if not (frame.interlaced_frame or parity):
                yield frame
                return
            self.active = True
            # A frame that does not say how it was taken is taken as the file says of the whole stream.
            marked = "parity=auto:deint=interlaced"
            self._graph = _graph(frame, marked if frame.interlaced_frame else f"parity={parity}:deint=all")
        self._graph.vpush(frame)
        yield from self._pulled()

    def flush(self) -> "Iterator[VideoFrame]":
        """The frames that waited for a next one."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from self._pulled()

    def _pulled(self) -> "Iterator[VideoFrame]":
        from av.error import BlockingIOError as NotReady

        assert self._graph is not None
        while True:
            try:
                frame = self._graph.vpull()
            except (NotReady, EOFError):
                return
            _to_ticks(frame, self._stream.time_base or Fraction(1))
            yield frame


def _graph(frame: "VideoFrame", settings: str) -> "Graph":
    from av.filter import Graph

    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    graph.link_nodes(source, graph.add("bwdif", f"mode=send_frame:{settings}"), graph.add("buffersink"))
    graph.configure()
    return graph


def _to_ticks(frame: "VideoFrame", time_base: Fraction) -> None:
    """The stream's ticks again, of which the filter makes halves."""
    scale = (frame.time_base or time_base) / time_base
    if frame.pts is not None:
        frame.pts = round(frame.pts * scale)
    frame.duration = round((frame.duration or 0) * scale)
    frame.time_base = time_base
