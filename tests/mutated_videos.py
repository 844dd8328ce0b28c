"""Small videos with some bytes changed, cut out or put in; all must be read, or refused by this project's own errors.

As a program: ``python tests/mutated_videos.py --count 1000``.
"""

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from video_files import make_clip, same

from uid.errors import UIDError
from uid.runtime.media.video import VideoOptions, process_video

KINDS: dict[str, dict[str, Any]] = {
    "mp4": {"codec": "libx264", "audio": "aac"},
    "mov": {"codec": "prores_ks", "pixel_format": "yuv422p10le", "audio": "pcm_s16le"},
    "mkv": {"codec": "libx265", "pixel_format": "yuv420p10le", "audio": "aac"},
    "webm": {"codec": "libvpx-vp9", "audio": "libopus"},
    "avi": {"codec": "mpeg4"},
    "ts": {"codec": "libx264", "audio": "aac"},
    "mpg": {"codec": "mpeg2video"},
    "gif": {"codec": "gif", "pixel_format": "rgb8"},
}


def sources(folder: Path) -> list[Path]:
    def prepare(stream: Any) -> None:
        if stream.codec_context.name in ("mpeg2video", "gif"):
            stream.codec_context.time_base = Fraction(1, 25)
        if stream.codec_context.name == "libx265":
            stream.options["x265-params"] = "log-level=none"

    return [make_clip(folder / f"in.{suffix}", count=6, prepare=prepare, **kind) for suffix, kind in KINDS.items()]


def mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 3, 20])):
        # Half of the changes go to the first bytes or the last ones, where headers are.
        at = chance.choice([chance.randrange(len(changed)), chance.randrange(min(900, len(changed)))])
        at = len(changed) - 1 - at if chance.random() < 0.2 else at
        kind = chance.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at : at + 4] = chance.randbytes(4)
        elif kind == 2:
            changed[at : at + 4] = chance.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
        elif kind == 3:
            del changed[at : at + chance.randrange(1, 200)]
        else:
            changed[at:at] = chance.randbytes(chance.randrange(1, 50))
        if len(changed) < 16:
            return bytes(changed)
    return bytes(changed)


def outcomes(folder: Path, count: int, seed: int) -> Iterator[str]:
    """What became of each; any error but the project's own comes through."""
    chance = random.Random(seed)
    originals = [(path.suffix, path.read_bytes()) for path in sources(folder)]
    for number in range(count):
        suffix, data = chance.choice(originals)
        source = folder / f"{number}{suffix}"
        source.write_bytes(mutated(data, chance))
        options = VideoOptions(salvage=chance.random() < 0.5, max_pixels=1_000_000)
        target = folder / f"{number}-out.mkv"
        try:
            process_video(source, target, same, options=options)
            yield "read"
        except UIDError as error:
            assert not target.exists()
            yield type(error).__name__
        except BaseException:
            print(f"seed {seed}, number {number}, {source}")
            raise
        assert not list(folder.glob(".*")), "work is left"
        source.unlink()
        target.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(dict(Counter(outcomes(Path(folder), arguments.count, arguments.seed))))


if __name__ == "__main__":
    main()
