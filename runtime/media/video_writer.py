"""Frames and audio packets to a video file, H.264 at the source's own timestamps."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uid.errors import OutputError
from uid.runtime.media.ffmpeg import FULL, LIMITED, Scaler, ffmpeg_errors
from uid.runtime.media.frames import Clip, Frame

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

    Item = Frame | Packet[Stream]

_ENCODER = {"crf": "16", "preset": "medium"}  # near visual losslessness: a sharpened detail must not be lost again


class VideoWriter:
    """H.264 at the clip's own timestamps, in limited range, beside the reader's audio packets as they are."""

    def __init__(self, container: "OutputContainer", clip: Clip, audio: "list[AudioStream]", destination: Path) -> None:
        self._container = container
        self._clip = clip
        self._scaler = Scaler(clip.color)
        self._stream = self._video_stream()
        self._audio = {stream.index: self._audio_stream(stream, destination) for stream in audio}
        self.audio_streams = len(self._audio)
        codecs = ", ".join(stream.codec_context.name for stream in audio) or "no"
        why = f"cannot start {destination} with H.264 of {clip.size} pixels and {codecs} audio; choose .mkv"
        with ffmpeg_errors(lambda cause: OutputError(f"{why} ({cause})")):
            container.start_encoding()

    def write(self, frame: Frame) -> None:
        import av

        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.pixels), format="rgb24")
        image = self._scaler.convert(rgb, self._stream.pix_fmt or "", FULL, LIMITED)
        image.pts, image.duration, image.time_base = frame.pts, frame.duration, self._clip.time_base
        self._container.mux(self._stream.encode(image))

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
        context.color_range, context.colorspace = LIMITED, clip.color.matrix
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
