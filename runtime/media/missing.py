"""Whether all frames that a video states are there, and all that are there can be decoded."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uid.runtime.media.ffmpeg import opened, texts

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Codecs of which every packet makes one frame. VP8 has packets that show nothing, and MPEG-4 such that repeat a frame.
_ONE_EACH = {"h264", "hevc", "vp9", "av1", "libdav1d", "mpeg1video", "mpeg2video", "prores", "mjpeg", "ffv1", "dnxhd"}


@dataclass
class Count:
    """What has been read of a video stream."""

    packets: int = 0  # all
    shown: int = 0  # those that should make a frame
    frames: int = 0
    fields: bool = False  # two packets may make one frame

    def read(self, packet: "Packet[Stream]") -> None:
        if packet.size:
            self.packets += 1
            self.shown += not packet.is_discard

    def decoded(self, frame: "VideoFrame") -> None:
        self.frames += 1
        self.fields = self.fields or frame.interlaced_frame


def unread(stream: "VideoStream", count: Count, source: Path) -> int:
    """How many frames the container states beyond those that it holds; those that its edit list leaves out are held."""
    stated = stream.frames or _tagged(stream)
    missing = stated - count.packets
    if missing <= 0:
        return 0
    if stream.container.format.name.startswith("mov"):
        missing = stated - _held(source, stream.index)
    elif stream.container.format.name == "avi":  # which counts what is shown again too, as packets without contents
        missing = sum(1 for entry in stream.index_entries if entry.size) - count.packets
    return max(missing, 0)


def _tagged(stream: "VideoStream") -> int:
    """The number of frames by the statistics that Matroska's tools write."""
    for name, value in texts(stream.metadata).items():
        if name.upper().startswith("NUMBER_OF_FRAMES") and value.isdecimal():
            return int(value)
    return 0


def _held(source: Path, index: int) -> int:
    with opened(source, ignore_editlist="1") as container:
        return sum(1 for packet in container.demux(container.streams[index]) if packet.size)


def undecoded(stream: "VideoStream", count: Count) -> int:
    """How many packets should have made a frame and did not."""
    if stream.codec_context.codec.name not in _ONE_EACH or count.fields:
        return 0
    return max(count.shown - count.frames, 0)
