"""What a manifest of schema 2 declares is what the runtime does: samplers, no loop, padding, colours, sizes."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from declared import DOUBLED, INVERT, LATENT, finish_parts, make_bundle, node, random_image
from PIL import Image

from uid.bundles.manifest import read_bundle
from uid.bundles.tensors import Array
from uid.errors import InputError, ModelError
from uid.runtime import Options, Pipeline, load
from uid.runtime.app.cli import run
from uid.runtime.layout import layout

# -- without a loop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("size", [(30, 45), (100, 140)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_mode_without_steps_runs(
    tmp_path: Path, recorder: Any, captured: bool, size: tuple[int, int], dtype: type
) -> None:
    folder = make_bundle(tmp_path / "b", INVERT, {}, schedule=None, steps=0)
    image = random_image(*size, dtype)
    result = (Pipeline(read_bundle(folder), recorder) if captured else load(folder))(image, Options(transforms=8))
    white = 255 if dtype is np.uint8 else np.float32(1)
    np.testing.assert_allclose(result.image, white - image, atol=1e-6 if dtype is np.float32 else 0)
    assert (result.options.steps, result.seconds["step"]) == (None, pytest.approx(0, abs=0.1))


def test_steps_and_guidance_are_refused_where_there_is_no_loop(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", INVERT, {}, schedule=None, steps=0)
    for options, message in (
        (Options(steps=4), "mode 'deblur' of bundle 'toy' has no denoising steps; leave steps out"),
        (Options(guidance=2.0), "was exported without guidance"),
        (Options(cache_interval=2), "has no shallow steps"),
    ):
        with pytest.raises(InputError, match=message):
            load(folder)(random_image(32, 32), options)


# -- sizes, padding, rounding, colours --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reflect", "zeros"])
def test_padding_is_what_the_manifest_says(tmp_path: Path, kind: str) -> None:
    nodes = [
        node("ReduceMean", "image", "mean", axes=[2, 3]),
        node("Mul", "image zero", "nothing"),
        node("Add", "nothing mean", "output"),
    ]
    mean = finish_parts(nodes, zero=0.0)
    folder = make_bundle(tmp_path / "b", mean, {}, schedule=None, steps=0, padding=kind, min_side=24, size_multiple=8)
    image = random_image(10, 30)
    padded = np.pad(image, ((0, 14), (0, 2), (0, 0)), mode="reflect" if kind == "reflect" else "constant")
    expected = np.broadcast_to(padded.mean((0, 1)), image.shape)
    np.testing.assert_allclose(load(folder)(image).image, expected, rtol=1e-5)


@pytest.mark.parametrize(("rounding", "expected"), [("nearest", np.rint), ("down", np.floor)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rounding_is_what_the_manifest_says(
    tmp_path: Path, recorder: Any, rounding: str, expected: Any, dtype: type
) -> None:
    half = finish_parts([node("Mul", "image factor", "output")], factor=0.3)
    folder = make_bundle(tmp_path / "b", half, {}, schedule=None, steps=0, rounding=rounding)
    image = random_image(32, 32, dtype)
    values = expected(image.astype(np.float32) / np.iinfo(dtype).max * np.float32(0.3) * np.iinfo(dtype).max)
    for pipeline in (load(folder), Pipeline(read_bundle(folder), recorder)):
        got = pipeline(image).image
        assert got.dtype == dtype
        assert np.mean(got != values) < 0.01  # a float's last digit at a whole number


@pytest.mark.parametrize("shape", [(40, 30, 3), (40, 30)])
def test_adain_gives_mean_and_deviation_of_the_input(tmp_path: Path, shape: tuple[int, ...]) -> None:
    darker = finish_parts([node("Mul", "image factor", "half"), node("Sub", "half low", "output")], factor=0.5, low=0.7)
    folder = make_bundle(tmp_path / "b", darker, {"colour_fix": "adain"}, schedule=None, steps=0, tile=16)
    image = 0.3 + 0.4 * np.random.default_rng(0).random(shape, dtype=np.float32)
    result = load(folder)(image)
    assert result.tiles > 1
    output = image.astype(np.float64) * 0.5 - 0.7
    axes = (0, 1)
    deviation, wanted = (np.sqrt(one.var(axes, ddof=1) + 1e-5) for one in (output, image.astype(np.float64)))
    expected = (output - output.mean(axes)) / deviation * wanted + image.mean(axes)
    np.testing.assert_allclose(result.image, expected.clip(0, 1), atol=1e-5)


def test_wavelet_gives_the_low_frequencies_of_the_input(tmp_path: Path) -> None:
    darker = finish_parts([node("Mul", "image factor", "output")], factor=0.5)
    folder = make_bundle(tmp_path / "b", darker, {"colour_fix": "wavelet"}, schedule=None, steps=0)
    image = random_image(40, 36)

    def low(values: Array) -> Array:
        for radius in (1, 2, 4, 8, 16):
            wide = np.pad(values, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
            rows = 0.25 * wide[: -2 * radius] + 0.5 * wide[radius:-radius] + 0.25 * wide[2 * radius :]
            values = 0.25 * rows[:, : -2 * radius] + 0.5 * rows[:, radius:-radius] + 0.25 * rows[:, 2 * radius :]
        return values

    expected = 0.5 * image - low(0.5 * image) + low(image)
    np.testing.assert_allclose(load(folder)(image).image, expected.clip(0, 1), atol=1e-6)


@pytest.mark.parametrize(
    "options", [Options(), Options(tile=16), Options(transforms=8), Options(transforms=8, tile=16)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_outputs_may_be_larger(tmp_path: Path, recorder: Any, options: Options, dtype: type) -> None:
    folder = make_bundle(tmp_path / "b", DOUBLED, {}, schedule=None, steps=0)
    image = random_image(30, 45, dtype)
    expected = image.repeat(2, 0).repeat(2, 1)
    for pipeline in (load(folder), Pipeline(read_bundle(folder), recorder)):
        result = pipeline(image, options)
        assert (result.height, result.width) == (30, 45)
        np.testing.assert_allclose(result.image, expected, atol=2e-6 if dtype is np.float32 else 0)


def test_a_colour_fix_of_a_larger_output_reads_an_enlarged_input(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", DOUBLED, {"colour_fix": "adain"}, schedule=None, steps=0)
    image = 0.2 + 0.5 * random_image(32, 24)
    got = load(folder)(image).image
    large = cv2.resize(image, (48, 64), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(got.mean((0, 1)), large.mean((0, 1)), atol=1e-4)
    np.testing.assert_allclose(got.std((0, 1)), large.std((0, 1)), atol=1e-4)


def test_no_tile_is_smaller_than_the_bundle_takes(tmp_path: Path) -> None:
    assert layout(72, 72, 64, 4).rows[0] == slice(0, 40)
    tiles = layout(72, 72, 64, 4, min_side=48)
    assert {span.stop - span.start for span in (*tiles.rows, *tiles.columns)} == {48}
    folder = make_bundle(tmp_path / "b", INVERT, {}, schedule=None, steps=0, min_side=48)
    image = random_image(70, 70)
    result = load(folder)(image)
    assert result.tiles == 4
    np.testing.assert_allclose(result.image, 1 - image, atol=1e-6)


def test_a_finish_without_a_loop_has_no_state(tmp_path: Path) -> None:
    parts = finish_parts([node("Identity", "image", "output")])
    stage, inputs, outputs, nodes, weights = parts["finish"]
    parts["finish"] = stage, {**inputs, "latent": LATENT}, outputs, nodes, weights
    folder = make_bundle(tmp_path / "b", parts, {}, schedule=None, steps=0)
    with pytest.raises(ModelError, match="reads 'latent', which nothing before it writes"):
        load(folder)(random_image(32, 32))


def test_values_beyond_white_do_not_wrap(tmp_path: Path) -> None:
    bright = finish_parts([node("Mul", "image factor", "output")], factor=3.0)
    folder = make_bundle(tmp_path / "b", bright, {}, schedule=None, steps=0, rounding="down")
    for dtype in (np.uint8, np.uint16):
        image = np.full((16, 16, 3), np.iinfo(dtype).max // 2, dtype)
        assert (load(folder)(image).image == np.iinfo(dtype).max).all()


def test_a_longer_side_than_the_bundle_takes_is_cut(tmp_path: Path) -> None:
    assert layout(256, 1016, 512, 8).tiles == 1
    tiles = layout(256, 1016, 512, 8, max_side=512)
    assert tiles.tiles == 3
    assert max(span.stop - span.start for span in tiles.columns) <= 512
    folder = make_bundle(tmp_path / "b", INVERT, {}, schedule=None, steps=0, tile=128, max_side=48)
    image = random_image(16, 120)
    result = load(folder)(image)
    assert (result.tiles, result.tile) == (3, 48)
    np.testing.assert_allclose(result.image, 1 - image, atol=1e-6)
    with pytest.raises(InputError, match="tile is 64; bundle 'toy' runs at most 48 pixels a side"):
        load(folder)(image, Options(tile=64))


@pytest.mark.parametrize("compare", [False, True])
def test_uid_run_writes_larger_images(tmp_path: Path, compare: bool) -> None:
    folder = make_bundle(tmp_path / "b", DOUBLED, {}, schedule=None, steps=0)
    image = np.dstack([random_image(12, 20, np.uint8), np.full((12, 20), 200, np.uint8)])
    Image.fromarray(image, "RGBA").save(tmp_path / "in.png")
    words = [str(tmp_path / "in.png"), "-m", str(folder), "-o", str(tmp_path / "out.png")]
    result = CliRunner().invoke(run, words + ["--compare"] * compare)
    assert result.exit_code == 0, result.output
    assert "out.png: 20x12, " in result.output
    written = np.asarray(Image.open(tmp_path / "out.png"))
    assert written.shape == (24, 80 if compare else 40, 4)
    np.testing.assert_array_equal(written[:, -40:, :3], image[..., :3].repeat(2, 0).repeat(2, 1))
    assert (written[..., 3] == 200).all()


@pytest.mark.parametrize("compare", [False, True])
def test_uid_run_writes_larger_videos(tmp_path: Path, compare: bool) -> None:
    av = pytest.importorskip("av")
    folder = make_bundle(tmp_path / "b", DOUBLED, {}, schedule=None, steps=0)
    (tmp_path / "frames").mkdir()
    for number in range(3):
        Image.fromarray(random_image(32, 48, np.uint8)).save(tmp_path / "frames" / f"{number}.png")
    words = [str(tmp_path / "frames"), "-m", str(folder), "-o", str(tmp_path / "out.mp4")]
    result = CliRunner().invoke(run, words + ["--compare"] * compare)
    assert result.exit_code == 0, result.output
    with av.open(str(tmp_path / "out.mp4")) as container:
        sizes = [(frame.height, frame.width) for frame in container.decode(video=0)]
    assert sizes == 3 * [(64, 192 if compare else 96)]
