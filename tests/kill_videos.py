"""Kills ``uid-run`` at random moments of a video or of a folder of frames, and runs the same command until it is done.

As a program: ``python tests/kill_videos.py --kills 100`` for each kind of target; it prints what it found.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import inverting_cli
from video_files import make_clip

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP]
FRAMES = 70  # two segments and a part
IN_FLIGHT = 5  # frames that may be computed and not written yet


@dataclass
class Outcome:
    """What became of one target."""

    kills: int
    computed: int  # frames by the run that ended it
    files: dict[str, bytes]  # all that was left, hidden files too


def start(source: Path, target: Path) -> "subprocess.Popen[bytes]":
    words = [str(source), "-o", str(target), "--json", "--steps", "8", "--skip-existing"]
    return subprocess.Popen(
        [sys.executable, inverting_cli.__file__, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finished(process: "subprocess.Popen[bytes]") -> int:
    """The number of frames that the run computed itself; none where there was no more to do."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    return round(json.loads(out).get("seconds", {}).get("step", 0) / 0.5)


def killed_and_run(source: Path, folder: Path, name: str, kills: int, longest: float, chance: random.Random) -> Outcome:
    """One target, killed as often as that before it is left to end."""
    folder.mkdir()
    done = 0
    while done < kills:
        process = start(source, folder / name)
        time.sleep(chance.uniform(0.3 * longest, longest))
        process.send_signal(chance.choice(SIGNALS))
        process.communicate(timeout=300)
        done += process.returncode != 0
        if process.returncode == 0:
            break
        assert not (folder / name).exists() or whole(folder / name), "something partial has the final name"
    return Outcome(done, finished(start(source, folder / name)), contents(folder))


def whole(target: Path) -> bool:
    """Whether a target that is there is what a run that ended would have left."""
    return len(list(target.iterdir())) == FRAMES if target.is_dir() else target.stat().st_size > 0


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def undisturbed(source: Path, folder: Path, name: str) -> tuple[dict[str, bytes], float]:
    """What is written without a kill, and in how many seconds."""
    folder.mkdir()
    begin = time.monotonic()
    assert finished(start(source, folder / name)) == FRAMES
    return contents(folder), time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("UID_BACKEND", "onnxruntime")
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        source = make_clip(root / "in.mp4", count=FRAMES, audio="aac")
        for name in ("out.mp4", "frames"):
            expected, longest = undisturbed(source, root / f"whole-{name}", name)
            kills = computed = runs = 0
            while kills < arguments.kills:
                runs += 1
                outcome = killed_and_run(source, root / f"{runs}-{name}", name, chance.randint(1, 5), longest, chance)
                assert outcome.files == expected, sorted(outcome.files)
                kills, computed = kills + outcome.kills, computed + outcome.computed
            print(f"{name}: {kills} kills in {runs} runs; all results equal, nothing left; last runs made {computed}")


if __name__ == "__main__":
    main()
