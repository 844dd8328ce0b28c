"""Which files ``uid-run`` reads and writes, and which command lines it refuses before any work."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inverting_cli import draw, shown, tree
from PIL import Image

from uid.errors import UIDError
from uid.runtime.app.jobs import Naming, plan

pytest.importorskip("av")


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
    assert tree("beneath") == ["a.png", "out.uid-run.jsonl", "out/a.png"]
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
        jobs = plan([str(root / "in")], str(root / output), naming).jobs
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
