"""The behaviour of ``uid-run``: files, messages, exit status. The model is not under test, so a pipeline that inverts
pixels stands in for it; everything else is real. Run as a program, this file is ``uid-run`` with that pipeline.
"""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from uid.bundles.manifest import Bundle, Mode
from uid.errors import BackendError, UIDError
from uid.runtime import pipeline
from uid.runtime.app import cli
from uid.runtime.app.jobs import Naming, plan

av = pytest.importorskip("av")


class InvertingPipeline:
    """Returns 255 - image; a thousandth of a second per step."""

    backend = "inverter"

    def __init__(self, trained: bool = False) -> None:
        self.bundle = Bundle(
            folder=Path(),
            digest="",
            name="fake",
            family="fake",
            trained=trained,
            precision="fp32",
            size_multiple=4,
            tile=512,
            presets={},
            preset=None,
            steps=2,
            guidance=1.5,
            schedule={"num_train_timesteps": 1_000_000, "timestep_spacing": "leading", "steps_offset": 0},
            components={},
            modes={"deblur": Mode("", (), {})},
            constants={},
        )

    def __call__(self, image, options, *, on_step=None, **extra) -> pipeline.Result:
        options = options.resolved(self.bundle)
        for step in range(options.steps):
            time.sleep(0.001)
            if on_step:
                on_step(step + 1, options.steps)
        return pipeline.Result(
            image=np.iinfo(image.dtype).max - image,
            backend=self.backend,
            options=options,
            height=image.shape[0],
            width=image.shape[1],
            seconds={"prepare": 0.25, "step": 0.5, "finish": 0.25},
        )


def load(
    bundle: Path | None = None, *, backend: str = "auto", threads: int | None = None, report: Any = None
) -> InvertingPipeline:
    if backend != "auto":
        raise BackendError(f"no backend {backend}; expected auto")
    return InvertingPipeline()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """One entry for each time that the pipeline is loaded."""
    calls: list[dict[str, Any]] = []

    def counted(*args: Any, **kwargs: Any) -> InvertingPipeline:
        calls.append(kwargs)
        return load(*args, **kwargs)

    monkeypatch.setattr(pipeline, "load", counted)
    return calls


@pytest.fixture
def uid_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[Any]) -> Callable[..., Result]:
    """Calls ``uid-run`` in ``tmp_path``; an exception that a user would see as a traceback fails the test."""
    monkeypatch.chdir(tmp_path)

    def invoke(*args: str, code: int = 0) -> Result:
        result = CliRunner().invoke(cli.run, args)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke


def pixels(seed: int = 0, height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def draw(path: Path | str, seed: int = 0) -> np.ndarray:
    """Write an image and return its pixels."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(path)
    return pixels(seed)


def film(path: Path, frames: int = 4) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 200, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def shown(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path))


def tree(folder: Path | str) -> list[str]:
    """Every file under ``folder``, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def records(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# Which files go where


def test_a_file_becomes_a_file(uid_run, tmp_path):
    image = draw("in.png")
    uid_run("in.png", "-o", "new/out.png")
    assert np.array_equal(shown("new/out.png"), 255 - image)


def test_a_folder_is_searched_and_its_subfolders_kept(uid_run, tmp_path):
    for name in ("in/a.png", "in/deep/er/b.tif", "in/.hidden.png", "in/.cache/c.png"):
        draw(tmp_path / name)
    (tmp_path / "in/notes.txt").write_text("not an image")
    uid_run("in", "-o", "out")
    assert tree("out") == ["a.png", "deep/er/b.tif"]
    uid_run("in", "-o", "flat", "--no-recursive")
    assert tree("flat") == ["a.png"]


def test_outputs_inside_the_input_folder_are_not_inputs_of_the_next_run(uid_run):
    for folder, args in (("beneath", ["-o", "beneath/out"]), ("same", ["-o", "same", "--suffix", "_sharp"])):
        draw(f"{folder}/a.png")
        for _ in range(2):
            uid_run(folder, *args, "--overwrite")
    assert tree("beneath") == ["a.png", "out/a.png"]
    assert tree("same") == ["a.png", "a_sharp.png"]


def test_globs_are_expanded_and_names_follow_suffix_and_format(uid_run):
    draw("a.bmp")
    draw("b[1].png")
    Path("c.txt").write_text("not an image")
    uid_run("*", "-o", "out", "--suffix", "_s", "--format", "jpeg")
    assert tree("out") == ["a_s.jpg", "b[1]_s.jpg"]
    assert Image.open("out/a_s.jpg").format == "JPEG"
    uid_run("b[1].png", "-o", "out")  # a file of that very name comes before the glob
    assert "b[1].png" in tree("out")


def test_a_named_file_is_tried_whatever_its_suffix(uid_run):
    image = draw("scan.png")
    Path("scan.png").rename("scan.dat")
    uid_run("scan.dat", "-o", "out")
    assert np.array_equal(shown("out/scan.png"), 255 - image)


@given(
    names=st.lists(
        st.tuples(st.sampled_from(["", "x/", "y/"]), st.sampled_from("abc"), st.sampled_from([".png", ".jpg", ".mp4"])),
        min_size=1,
        max_size=6,
        unique=True,
    ),
    naming=st.builds(Naming, st.sampled_from(["", "_s"]), st.sampled_from([None, "png"]), st.booleans()),
    output=st.sampled_from(["in", "in/x", "out"]),
)
def test_no_plan_loses_an_input_or_an_output(tmp_path_factory, names, naming, output):
    root = tmp_path_factory.mktemp("plan")
    for name in names:
        path = root / "in" / "".join(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    try:
        jobs = plan([str(root / "in")], str(root / output), naming)
    except UIDError:
        return
    sources, destinations = {job.source for job in jobs}, {job.destination for job in jobs}
    assert len(destinations) == len(jobs)
    assert not destinations & sources
    assert all(job.destination.is_relative_to(root / output) for job in jobs)


# Refused before any work


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("a.png", "--output"),
        ("missing.png -o out.png", "missing.png does not exist"),
        ("*.webp -o out", "matches no image"),
        ("empty -o out", "no image and no video in empty"),
        ("a.png -o a.png", "is an input"),
        ("a.png -o link.png --overwrite", "is an input"),
        ("folder -o folder", "is an input"),
        ("a.png folder/a.png -o out", "would both become"),
        ("a.png b.jpg -o out.png", "need a folder"),
        ("folder -o out.png", "need a folder"),
        ("folder -o a.png", "need a folder"),
        ("a.png -o out.mp4", "is an image"),
        ("v.mp4 -o out.png", "is a video"),
        ("v.mp4 -o out.avi", "cannot write out.avi"),
        ("a.png -o out.png --format jpeg", "contradicts"),
        ("a.png -o out.png --suffix _s", "--suffix"),
        ("a.png -o out.png --overwrite --skip-existing", "contradict each other"),
        ("a.png -o b.jpg --mode blur-transfer --blur-from b.jpg --overwrite", "is an input"),
        ("a.png -o out.png --steps 0", "--steps"),
        ("a.png -o out.png --guidance nan", "guidance"),
        ("a.png -o out.png --guidance-interval 0.5", "'0.5' is not an interval; expected START:END"),
        ("a.png -o out.png --guidance-interval 0.8:0.2", "is not an interval"),
        ("a.png -o out.png --guidance-interval 0..1:1", "is not an interval"),
        ("a.png -o out.png --cache-interval 0", "cache-interval"),
        ("a.png -o out.png --frame-rate 30", "--frame-rate"),
        ("folder -o out.mp4 --frame-rate 1/0", "--frame-rate"),
        ("a.png - -o out", "2 inputs"),
        ("- -o out", "output file"),
        ("folder -o -", "one image"),
        ("a.png -o - --json", "--json"),
    ],
)
def test_wrong_usage_is_refused_before_the_model_is_loaded(uid_run, loads, args, says):
    draw("a.png")
    draw("b.jpg")
    draw("folder/a.png")
    Path("link.png").symlink_to("a.png")
    Path("v.mp4").touch()
    Path("empty").mkdir()
    before = {name: Path(name).read_bytes() for name in tree(".")}
    result = uid_run(*args.split(), code=2)
    assert says in result.stderr
    assert not result.stdout
    assert not loads
    assert {name: Path(name).read_bytes() for name in tree(".")} == before


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--backend", "abacus"], "no backend abacus"),
        (["--mode", "blur-transfer", "--blur-from", "in.png"], "no mode 'blur-transfer'; it has deblur (--mode)"),
        (["--mode", "sharpen"], "no mode 'sharpen'; it has deblur (--mode)"),
        (
            ["--blur-from", "in.png"],
            "does not read the image blur_image; leave it out, or choose another mode (--blur-from)",
        ),
        (["--preset", "best"], "no preset 'best'; it has none: give steps and transforms (--preset)"),
    ],
)
def test_what_no_file_can_run_with_is_wrong_usage(uid_run, args, says):
    draw("in.png")
    assert says in uid_run("in.png", "-o", "out.png", "--keep-going", *args, code=2).stderr
    assert not Path("out.png").exists()


# While it runs


def test_an_existing_output_is_an_error_unless_told(uid_run, loads):
    image = draw("in/a.png")
    draw("out/a.png", seed=1)
    result = uid_run("in", "-o", "out", code=1)
    assert "--overwrite" in result.stderr
    assert "--skip-existing" in result.stderr
    assert records(uid_run("in", "-o", "out", "--skip-existing", "--json"))[0]["skipped"]
    assert np.array_equal(shown("out/a.png"), pixels(1))
    assert not loads
    uid_run("in", "-o", "out", "--overwrite")
    assert np.array_equal(shown("out/a.png"), 255 - image)


def test_a_failure_stops_the_run_unless_told_to_keep_going(uid_run, loads):
    draw("in/a.png")
    Path("in/b.png").write_bytes(b"no image at all")
    draw("in/c.png")
    result = uid_run("in", "-o", "out", code=1)
    assert tree("out") == ["a.png"]
    assert "error: in/b.png" in result.stderr
    assert "1 file" in result.stderr
    result = uid_run("in", "-o", "out2", "--keep-going", "--json", code=1)
    assert tree("out2") == ["a.png", "c.png"]
    assert "1 of 3 files failed:\n  in/b.png " in result.stderr
    assert [record["ok"] for record in records(result)] == [True, False, True]
    assert records(result)[1]["error"]
    assert len(loads) == 2  # once for each run


def test_json_tells_what_ran(uid_run):
    draw("in.png")
    words = "--steps", "3", "--transforms", "2", "--seed", "7"
    (record,) = records(uid_run("in.png", "-o", "out.png", "--json", *words))
    expected = {"input": "in.png", "output": "out.png", "ok": True, "width": 48, "height": 32, "backend": "inverter"}
    expected |= {
        "mode": "deblur",
        "preset": None,
        "steps": 3,
        "transforms": 2,
        "guidance": 1.5,
        "seed": 7,
        "tiles": 1,
        "tile": None,
        "captured": False,
        "guidance_interval": [0.0, 1.0],
        "cache_interval": 1,
        "batch": 1,
    }
    expected |= {"quality": None, "views": 2, "reuse": 1}  # what they were called before
    expected |= {"seconds": {"prepare": 0.25, "step": 0.5, "finish": 0.25}}
    assert record == expected


def test_options_work_by_their_old_names_with_a_note(uid_run):
    draw("in.png")
    result = uid_run("in.png", "-o", "out.png", "--json", "--views", "2", "--reuse=1")
    (record,) = records(result)
    assert (record["transforms"], record["cache_interval"]) == (2, 1)
    assert "note: --views is now called --transforms; the old name will go in version 0.3" in result.stderr
    result = uid_run("in.png", "-o", "out", "--suffix", "--views", "--views", "1")
    assert result.stderr.count("note:") == 1
    assert tree("out") == ["in--views.png"]
    draw("--views.png")
    uid_run("-o", "out2.png", "--", "--views.png")


def test_compare_puts_the_input_beside_the_output(uid_run):
    image = np.dstack([pixels(), pixels(1)[..., 0]])
    Image.fromarray(image).save("in.png")
    uid_run("in.png", "-o", "out.png", "--compare")
    sharp = np.dstack([255 - image[..., :3], image[..., 3]])
    assert np.array_equal(shown("out.png"), np.hstack([image, sharp]))


def test_random_weights_are_warned_of_and_quiet_shows_errors_only(uid_run):
    draw("in.png")
    assert uid_run("in.png", "-o", "out.png").stderr.count("random") == 1
    assert uid_run("in.png", "-o", "out2.png", "--quiet").output == ""
    assert "exists" in uid_run("in.png", "-o", "out2.png", "--quiet", code=1).stderr


# Video


def test_video_becomes_video_or_frames_and_back(uid_run, tmp_path, monkeypatch):
    film(tmp_path / "in.mp4")
    monkeypatch.setattr("uid.runtime.app.progress.LINE_INTERVAL_S", 0.0)
    result = uid_run("in.mp4", "-o", "out.mp4", "--json")
    assert len(frames_of(Path("out.mp4"))) == 4
    assert abs(int(frames_of(Path("out.mp4"))[0].mean()) - 55) < 8
    (record,) = records(result)
    assert record["frames"] == 4
    assert record["seconds"]["step"] == pytest.approx(4 * 0.5)
    assert "fps" in result.stderr
    uid_run("in.mp4", "-o", "frames")
    assert len(tree("frames")) == 4
    assert "exists" in uid_run("in.mp4", "-o", "frames", code=1).stderr
    uid_run("frames", "-o", "again.mp4", "--frame-rate", "30000/1001")
    assert len(frames_of(Path("again.mp4"))) == 4


# In a process of its own


def spawn(*args: str, cwd: Path, **streams: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, __file__, *args], cwd=cwd, stderr=subprocess.PIPE, **streams)


def test_an_image_goes_through_standard_input_and_output(tmp_path):
    image = draw(tmp_path / "in.png")
    process = spawn("-", "-o", "-", "--format", "bmp", cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, err = process.communicate((tmp_path / "in.png").read_bytes(), timeout=300)
    assert process.returncode == 0, err
    result = Image.open(io.BytesIO(out))
    assert result.format == "BMP"
    assert np.array_equal(np.asarray(result), 255 - image)
    assert b"random" in err


@pytest.mark.parametrize("name", ["in.png", "in.mp4"])
def test_ctrl_c_leaves_no_partial_file(tmp_path, name):
    draw(tmp_path / "in.png")
    film(tmp_path / "in.mp4", frames=3)
    out = tmp_path / "out"
    out.mkdir()
    process = spawn(name, "-o", f"out/{name}", "--steps", "100000", cwd=tmp_path)
    assert b"random" in process.stderr.readline()  # the pipeline is loaded and has begun
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.decode().splitlines() == ["interrupted: what was written is whole, no partial file is left"]
    assert tree(out) == []


def test_a_terminal_gets_bars_and_standard_output_stays_clean(tmp_path):
    draw(tmp_path / "in/a.png")
    draw(tmp_path / "in/b.png")
    ours, theirs = pty.openpty()
    args = [sys.executable, __file__, "in", "-o", "out", "--json", "--steps", "300"]
    process = subprocess.Popen(
        args, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"}
    )
    os.close(theirs)
    terminal = b""
    while chunk := _read(ours):
        terminal += chunk
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert [json.loads(line)["ok"] for line in out.splitlines()] == [True, True]
    assert b"300 steps" in terminal
    assert b"/2 files" in terminal


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux reports that the other side of a terminal is closed
        return b""


# doctor


def test_doctor_is_a_command_only_by_that_very_name(tmp_path):
    draw(tmp_path / "doctor.png")
    (tmp_path / "doctor.png").rename(tmp_path / "doctor")
    process = spawn("doctor", cwd=tmp_path, stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    for word in (b"onnxruntime", b"video: PyAV", b"built-in bundle: "):
        assert word in out
    process = spawn("./doctor", "-o", "out.png", cwd=tmp_path)
    process.communicate(timeout=300)
    assert (tmp_path / "out.png").exists()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner in the background ignores it
    pipeline.load = load  # type: ignore[assignment]  # the stand-in, as in the fixture
    cli.main()
