"""Work that was interrupted goes on, and ends as if it had not been."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from kill_videos import FRAMES, IN_FLIGHT, contents, killed_and_run, undisturbed
from video_files import Pixels, gradient, inverted, make_clip, write_frames

from uid.errors import OutputError
from uid.runtime.media.video import VideoOptions, process_video
from uid.runtime.media.video_writer import SEGMENT
from uid.runtime.media.work import sweep

NAMES = ["out.mp4", "out.mkv", "out.ts", "frames"]
KEYED = VideoOptions(key="inverted")


class Failing:
    """Inverts frames, and fails at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.calls = at, 0

    def __call__(self, pixels: Pixels) -> Pixels:
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("the power is gone")
        return inverted(pixels)


def interrupted(source: Path, target: Path, at: int, options: VideoOptions = KEYED) -> None:
    with pytest.raises(RuntimeError, match="power"):
        process_video(source, target, Failing(at), options=options)
    assert not target.exists()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "in.mp4", count=FRAMES, audio="aac")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_where_the_one_before_it_was(tmp_path: Path, clip: Path, name: str) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    process_video(clip, tmp_path / "whole" / name, inverted)
    for at in (1, 20, SEGMENT - 3, 4):  # in the first segment, again there, and in the second
        interrupted(clip, tmp_path / "parts" / name, at)
    last = Failing()
    assert process_video(clip, tmp_path / "parts" / name, last, options=KEYED).frames == FRAMES
    # Each interrupted run had computed one frame less than it was at.
    assert FRAMES - 19 - (SEGMENT - 4) - 3 <= last.calls <= FRAMES - 19 - (SEGMENT - 4) - 3 + 3 * IN_FLIGHT
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["out.mp4", "frames"])
def test_a_transform_that_looks_back_is_shown_the_frame_before_again(tmp_path: Path, clip: Path, name: str) -> None:
    class LooksBack(Failing):
        """Half of the frame and half of the one before."""

        before: Pixels | None = None

        def __call__(self, pixels: Pixels) -> Pixels:
            before, self.before = self.before, pixels
            return super().__call__(pixels if before is None else pixels // 2 + before // 2)

    def run(folder: str, at: int | None = None) -> None:
        options = replace(KEYED, looks_back=1)
        process_video(clip, tmp_path / folder / name, LooksBack(at), options=options)

    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    run("whole")
    for at in (2, 20, SEGMENT):
        with pytest.raises(RuntimeError, match="power"):
            run("parts", at)
    run("parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_frames_in_a_folder_go_on_too(tmp_path: Path) -> None:
    source = write_frames(tmp_path / "in", **{f"{i:03d}": gradient(i) for i in range(10)})
    interrupted(source, tmp_path / "out.mp4", 8)
    last = Failing()
    process_video(source, tmp_path / "out.mp4", last, options=KEYED)
    assert last.calls < 10
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out.mp4"}


@pytest.mark.parametrize("change", ["transform", "source", "encoder", "part"])
def test_other_work_is_not_mixed_in(tmp_path: Path, clip: Path, change: str) -> None:
    source = tmp_path / "in.mp4"
    source.write_bytes(clip.read_bytes())
    interrupted(source, tmp_path / "out.mp4", 40)
    options = KEYED
    if change == "source":
        make_clip(source, count=FRAMES, pixel_format="yuv444p")
    elif change == "transform":
        options = replace(KEYED, key="another")
    elif change == "encoder":
        options = replace(KEYED, wanted=replace(KEYED.wanted, crf=30))
    else:
        options = replace(KEYED, selection=replace(KEYED.selection, frames=FRAMES - 1))
    last = Failing()
    frames = process_video(source, tmp_path / "out.mp4", last, options=options).frames
    assert last.calls == frames
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "out.mp4"}


@pytest.mark.parametrize("damage", ["cut", "scrambled", "unfinished segment"])
def test_what_the_power_took_is_done_again(tmp_path: Path, clip: Path, damage: str) -> None:
    process_video(clip, tmp_path / "whole.mp4", inverted)
    interrupted(clip, tmp_path / "out.mp4", SEGMENT + 12)
    (work,) = tmp_path.glob(".out.mp4.*")
    (spool,) = work.glob("*.frames")
    data = bytearray(spool.read_bytes())
    if damage == "cut":
        spool.write_bytes(data[:-700])
    elif damage == "scrambled":
        data[-700:-600] = bytes(100)
        data[-500] ^= 255
        spool.write_bytes(data)
    else:
        (work / "segment.tmp").write_bytes(b"half")
    process_video(clip, tmp_path / "out.mp4", inverted, options=KEYED)
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_a_second_run_is_told_and_a_dead_ones_lock_is_free(tmp_path: Path, clip: Path) -> None:
    def second(pixels: Pixels) -> Pixels:
        if not told:
            with pytest.raises(OutputError, match="another run is writing") as error:
                process_video(clip, tmp_path / "out.mp4", inverted, options=KEYED)
            told.append(str(error.value))
        return inverted(pixels)

    told: list[str] = []
    process_video(clip, tmp_path / "out.mp4", second, options=KEYED)
    assert len(told) == 1


def test_a_run_that_died_as_it_ended_leaves_nothing_to_a_next_one(tmp_path: Path, clip: Path) -> None:
    interrupted(clip, tmp_path / "out.mp4", 5)
    (work,) = tmp_path.glob(".out.mp4.*")
    sweep(tmp_path / "out.mp4")
    assert work.exists()  # it is not ended
    (work / "joined").touch()
    sweep(tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize("name", ["out.mp4", "frames"])
def test_a_dozen_kills(tmp_path: Path, clip: Path, name: str) -> None:
    chance = random.Random(name)
    expected, seconds = undisturbed(clip, tmp_path / "whole", name)
    kills = 0
    for run in range(3):
        outcome = killed_and_run(clip, tmp_path / str(run), name, 2, seconds, chance)
        kills += outcome.kills
        assert outcome.files == expected
    assert kills
