"""What ``uid-run`` does with images beyond their pixels: parts, names, formats, and what cannot be kept."""

import io
from pathlib import Path

import numpy as np
import pytest
from inverting_cli import draw, pixels, shown, tree
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def noted(path: str, **texts: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.fromarray(pixels()).save(path, pnginfo=info, dpi=(300, 300))


def test_what_is_lost_is_said_once_per_run(uid_run):
    for number in range(3):
        noted(f"in/{number}.png", Author="me")
    result = uid_run("in", "-o", "out", "--format", "webp")
    assert result.stderr.count("webp has no place for the text 'Author'") == 1
    assert result.stderr.count("webp has no place for the resolution") == 1
    assert "has no place" not in uid_run("in", "-o", "again").stderr
    assert Image.open("again/0.png").info["Author"] == "me"


def test_preview_runs_a_part(uid_run):
    image = draw("a.png")
    uid_run("a.png", "-o", "b.png", "--preview", "8,4,20,10")
    np.testing.assert_array_equal(shown("b.png"), 255 - image[4:14, 8:28])
    for part, word in (("40,0,20,10", "not within the image of 48 x 32"), ("0,0,0,5", "not within")):
        assert word in uid_run("a.png", "-o", "c.png", "--preview", part, code=1).stderr
    assert "expected left,top,width,height" in uid_run("a.png", "-o", "c.png", "--preview", "1,2,3", code=2).stderr


@pytest.mark.parametrize("name", ["x.gif", "x.heic", "x.jxl", "x.psd", "x.nef"])
def test_name_of_an_image_that_cannot_be_written_is_no_folder(uid_run, loads, name):
    draw("a.png")
    draw("b.png")
    for inputs in (["a.png"], ["a.png", "b.png"]):
        assert name in uid_run(*inputs, "-o", name, code=2).stderr
    assert not loads
    assert tree(".") == ["a.png", "b.png"]


def test_avif_is_written(uid_run):
    image = draw("a.png")
    uid_run("a.png", "-o", "x.avif")
    assert Image.open("x.avif").format == "AVIF"
    assert np.abs(shown("x.avif").astype(int) - (255 - image)).mean() < 12


@pytest.mark.parametrize("stem", ["日" * 83, "x" * 251, "é" * 125 + "x"])
def test_names_of_255_bytes(uid_run, stem):
    image = draw(f"in/{stem}.png")
    uid_run("in", "-o", "out")
    np.testing.assert_array_equal(shown(f"out/{stem}.png"), 255 - image)
    assert tree("out") == [f"{stem}.png"]


@pytest.mark.parametrize("name", ["o.jpg", "o.bmp"])
def test_opaque_alpha_is_no_reason_to_refuse_and_a_used_one_is_before_any_work(uid_run, loads, name):
    Image.fromarray(pixels()).convert("RGBA").save("a.png")
    uid_run("a.png", "-o", name)
    clear = Image.fromarray(pixels()).convert("RGBA")
    clear.putpixel((3, 3), (0, 0, 0, 254))
    clear.save("b.png")
    assert "has no transparency" in uid_run("b.png", "-o", name, "--overwrite", code=1).stderr


def test_jpeg_quality_and_salvage(uid_run):
    image = Image.fromarray(np.kron(pixels(), np.ones((8, 8, 1), np.uint8)))
    image.save("a.jpg", quality=40, subsampling="4:2:0")
    uid_run("a.jpg", "-o", "own.jpg")
    assert Image.open("own.jpg").quantization == Image.open("a.jpg").quantization
    uid_run("a.jpg", "-o", "told.jpg", "--jpeg-quality", "90", "--jpeg-subsampling", "4:4:4")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    assert Image.open("told.jpg").quantization == Image.open(buffer).quantization
    Path("cut.jpg").write_bytes(Path("a.jpg").read_bytes()[:2000])
    assert "(--salvage)" in uid_run("cut.jpg", "-o", "cut_out.jpg", code=1).stderr
    assert "warning: cut.jpg: damaged" in uid_run("cut.jpg", "-o", "cut_out.jpg", "--salvage").stderr
