"""Memory and timing over a long video: ``python tests/long_video.py --frames 2000``.

Prints how far memory moves after the first 100 frames, and how far sound and frames have moved against each other.
"""

import argparse
import tempfile
from fractions import Fraction
from pathlib import Path

import psutil
from video_files import Pixels, av, inverted, make_clip

from uid.runtime.media.video import VideoOptions, process_video

WARM_UP = 100  # frames


def memory_of(source: Path, target: Path) -> list[int]:
    """Bytes in memory at each frame."""
    process, measured = psutil.Process(), []

    def watched(pixels: Pixels) -> Pixels:
        measured.append(process.memory_info().rss)
        return inverted(pixels)

    process_video(source, target, watched, options=VideoOptions(key="inverted"))
    return measured


def starts(path: Path) -> tuple[list[Fraction], list[Fraction]]:
    """When each frame and each packet of sound is due, in seconds."""
    with av.open(str(path)) as container:
        frames = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = [packet.pts * packet.time_base for packet in container.demux(audio=0) if packet.pts is not None]
    return frames, sound


def offset(before: Path, after: Path) -> float:
    """The largest change of the time from a frame to a packet of sound, in seconds."""
    (frames, sound), (new_frames, new_sound) = starts(before), starts(after)
    assert len(frames) == len(new_frames)
    assert len(sound) == len(new_sound)
    moved = [float(new - old) for old, new in zip(frames, new_frames, strict=True)]
    heard = [float(new - old) for old, new in zip(sound, new_sound, strict=True)]
    return max(max(heard) - min(moved), max(moved) - min(heard))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = make_clip(Path(folder) / "in.mp4", count=arguments.frames, audio="aac")
        target = Path(folder) / "out.mp4"
        measured = memory_of(source, target)
        flat = measured[WARM_UP:]
        growth = 100 * (max(flat) - flat[0]) / flat[0]
        print(f"{len(measured)} frames: {flat[0] / 1e6:.0f} MB after {WARM_UP}, then at most {growth:+.1f} %")
        print(f"largest offset between sound and frames: {1000 * offset(source, target):.3f} ms")


if __name__ == "__main__":
    main()
