"""Images as callers have them: names of files, Pillow's images, arrays; results saved with what their source had."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inverting_cli import pixels
from PIL import Image, ImageCms

import uid.runtime
from uid.errors import UIDError
from uid.runtime import InputError, Options, OutputError, Pipeline, Result, load
from uid.runtime.options import Options as SameOptions
from uid.runtime.sources import opened

EXIF = Image.Exif()
EXIF[270], EXIF[315] = "a description", "an author"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load(backend="onnxruntime", threads=1)


def result_of(image: Any, made: np.ndarray, source: Any) -> Result:
    return Result(made, "none", Options(), *made.shape[:2], source=source)


@pytest.mark.parametrize("kind", ["name", "Path", "Pillow"])
def test_a_file_becomes_a_file_with_all_it_had(tmp_path: Path, pipeline: Pipeline, kind: str) -> None:
    path = tmp_path / "in.png"
    alpha = np.arange(32 * 48, dtype=np.uint8).reshape(32, 48)
    Image.fromarray(np.dstack([pixels(), alpha])).save(path, exif=EXIF, icc_profile=PROFILE)
    given = {"name": str(path), "Path": path, "Pillow": Image.open(path)}[kind]
    result = pipeline(given, Options(preset="fast"))
    assert np.array_equal(result.image, pipeline(pixels(), Options(preset="fast")).image)
    result.save(tmp_path / "out.png")
    out = Image.open(tmp_path / "out.png")
    assert np.array_equal(np.asarray(out), np.dstack([result.image, alpha]))
    assert out.info["icc_profile"] == PROFILE
    assert {tag: out.getexif()[tag] for tag in (270, 315)} == dict(EXIF)
    with pytest.raises(OutputError, match="exists"):
        result.save(str(tmp_path / "out.png"))
    result.save(str(tmp_path / "out.png"), overwrite=True)
    with pytest.raises(InputError, match="has no image suffix"):
        result.save(tmp_path / "out.xyz")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pillow_images_are_taken_as_they_are_seen(mode: str) -> None:
    grey16 = np.linspace(0, 65535, 32 * 48).reshape(32, 48).astype(np.uint16)
    image = Image.fromarray(grey16) if mode == "I;16" else Image.fromarray(pixels()).convert(mode)
    got, source = opened(image, "image")
    assert source is not None
    if mode == "I;16":
        assert np.array_equal(got, np.repeat(grey16[..., None], 3, axis=2))
    else:
        assert np.array_equal(got, np.asarray(image.convert("RGB")))
    rotated = Image.Exif()
    rotated[274] = 6
    turned = Image.fromarray(pixels())
    turned.getexif().update(rotated)
    assert np.array_equal(opened(turned, "image")[0], np.rot90(pixels(), -1))


def test_what_is_no_image_is_refused() -> None:
    for value, says in (
        (Image.new("CMYK", (8, 8)), "mode CMYK"),
        (Image.new("F", (8, 8)), "mode F"),
        ("missing.png", "missing.png does not exist"),
        ([1, 2, 3], "image"),
        (None, "image"),
    ):
        with pytest.raises(InputError, match=says):
            opened(value, "image")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("grey", [False, True])
def test_arrays_are_saved_too(tmp_path: Path, dtype: Any, grey: bool) -> None:
    whole = pixels()[..., 0] if grey else pixels()
    made = (
        whole.astype(np.float32) / 255
        if dtype == np.float32
        else whole.astype(dtype) * (257 if dtype == np.uint16 else 1)
    )
    result_of(None, made, None).save(tmp_path / "out.png")
    read, source = opened(tmp_path / "out.png", "image")
    assert source is not None
    assert source.grey == grey
    expected = made if dtype == np.uint16 else whole
    assert np.array_equal(read[..., 0] if grey else read, expected)


def test_a_result_is_told_in_a_line_and_errors_are_at_hand(pipeline: Pipeline) -> None:
    result = pipeline(pixels())
    assert repr(result).startswith("Result(32x48x3 uint8, mode deblur, onnxruntime, ")
    assert len(repr(result)) < 80
    assert SameOptions is Options
    names = ("InputError", "OutputError", "BundleError", "BackendError", "OutOfMemoryError", "ModelError")
    assert all(issubclass(getattr(uid.runtime, name), UIDError) for name in names)


def test_a_bundle_is_named_by_text_too(tmp_path: Path) -> None:
    with pytest.raises(uid.runtime.BundleError, match="nothing-here"):
        load(f"{tmp_path}{os.sep}nothing-here")
