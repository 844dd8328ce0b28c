"""What a manifest of schema 2 declares is what the runtime does: noise, samplers, no loop, padding, colours, sizes."""

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper
from PIL import Image
from safetensors.numpy import save_file
from toy import SCHEDULE, graph

from uid.bundles.hashes import sha256
from uid.bundles.manifest import read_bundle
from uid.bundles.tensors import Array
from uid.errors import BundleError, InputError, ModelError
from uid.runtime import Options, Pipeline, load
from uid.runtime.app.cli import run
from uid.runtime.layout import layout
from uid.runtime.noise import drawn
from uid.runtime.schedule import coefficients

PIXELS = ("batch", 3, "height", "width")
DOUBLE = ("batch", 3, "height*2", "width*2")
LATENT = ("batch", 3, "height/4", "width/4")
DDPM = {**SCHEDULE, "sampler": "ddpm", "timestep_spacing": "respaced"}
NOISE = [
    {"name": "latent", "dtype": "float32", "shape": LATENT, "draw": "once"},
    {"name": "step_noise", "dtype": "float32", "shape": LATENT, "draw": "per-step"},
    {"name": "start", "dtype": "float32", "shape": LATENT, "draw": "once"},
]

Part = tuple[str, dict[str, Any], dict[str, Any], list[onnx.NodeProto], dict[str, Any]]


def make_bundle(folder: Path, parts: dict[str, Part], mode: dict[str, Any], **changes: Any) -> Path:
    """A bundle of schema 2 with these components, by name: stage, inputs, outputs, nodes, weights."""
    folder.mkdir()
    for name, (_, inputs, outputs, nodes, weights) in parts.items():
        (folder / f"{name}.onnx").write_bytes(graph(nodes, inputs, outputs, **weights))
    save_file({"unused": np.zeros(1, np.float32)}, folder / "constants.safetensors")

    def tensors(side: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"name": name, "dtype": "float32", "shape": shape} for name, shape in side.items()]

    manifest = {
        "schema": 2,
        "family": "toy",
        "name": "toy",
        "trained": True,
        "precision": "fp32",
        "size_multiple": 4,
        "tile": 64,
        "steps": 5,
        "guidance": 1.0,
        "schedule": DDPM,
        "modes": {"deblur": {"prompt": "", "components": list(parts), "constants": {}} | mode},
        "components": {
            name: {"file": f"{name}.onnx", "stage": stage, "inputs": tensors(inputs), "outputs": tensors(outputs)}
            for name, (stage, inputs, outputs, _, _) in parts.items()
        },
        "constants": "constants.safetensors",
        "files": {path.name: sha256(path) for path in folder.iterdir()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return folder


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node with its tensors in words."""
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def ancestral_parts() -> dict[str, Part]:
    """Z is the image's 4 x 4 means and the noise ``start``; a DDPM step whose x0 is z; the latent is the output."""
    encode = [
        node("AveragePool", "image", "means", kernel_shape=[4, 4], strides=[4, 4]),
        node("Add", "means start", "z"),
    ]
    step = [
        node("Mul", "posterior_mean_x0 z", "a"),
        node("Mul", "posterior_mean_latent latent", "b"),
        node("Mul", "posterior_std step_noise", "c"),
        node("Add", "a b", "ab"),
        node("Add", "ab c", "latent_next"),
    ]
    numbers = dict.fromkeys(("posterior_mean_x0", "posterior_mean_latent", "posterior_std"), (1,))
    decode = [
        helper.make_node("Resize", ["latent", "", "scales"], ["large"], mode="nearest"),
        node("Sigmoid", "large", "output"),
    ]
    return {
        "encode": ("prepare", {"image": PIXELS, "start": LATENT}, {"z": LATENT}, encode, {}),
        "step": (
            "step",
            {"latent": LATENT, "z": LATENT, "step_noise": LATENT, **numbers},
            {"latent_next": LATENT},
            step,
            {},
        ),
        "decode": ("finish", {"latent": LATENT}, {"output": PIXELS}, decode, {"scales": [1, 1, 4, 4]}),
    }


def ancestral(folder: Path, image: Array, noise: dict[str, Array], steps: int) -> Array:
    """The slow reference of ``ancestral_parts``; the image's sides are multiples of 4."""
    height, width = image.shape[:2]
    z = image.reshape(height // 4, 4, width // 4, 4, 3).mean((1, 3)).transpose(2, 0, 1)[None] + noise["start"]
    x = noise["latent"].astype(np.float64)
    for row, own in zip(coefficients(read_bundle(folder).schedule, steps), noise["step_noise"], strict=True):
        values = dict(row)
        x = values["posterior_mean_x0"] * z + values["posterior_mean_latent"] * x + values["posterior_std"] * own
    return 1 / (1 + np.exp(-x[0].transpose(1, 2, 0).repeat(4, 0).repeat(4, 1)))


def random_image(height: int, width: int, dtype: type = np.float32) -> Array:
    """Uniform noise."""
    values = np.random.default_rng(0).random((height, width, 3), dtype=np.float32)
    return values if dtype is np.float32 else (values * np.iinfo(dtype).max).astype(dtype)


def from_seed(seed: int, steps: int, height: int, width: int) -> dict[str, Array]:
    """What the runtime has to draw: one generator, in the declared order."""
    generator, shape = np.random.Generator(np.random.PCG64(seed)), (1, 3, height // 4, width // 4)
    return {
        "latent": generator.standard_normal(shape, dtype=np.float32),
        "step_noise": generator.standard_normal((steps, *shape), dtype=np.float32),
        "start": generator.standard_normal(shape, dtype=np.float32),
    }


# -- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize("captured", [False, True])
def test_noise_is_drawn_as_declared_and_tiles_take_their_part(
    tmp_path: Path, recorder: Any, tile: int | None, captured: bool
) -> None:
    folder = make_bundle(tmp_path / "b", ancestral_parts(), {"noise": NOISE})
    image = random_image(48, 64)
    pipeline = Pipeline(read_bundle(folder), recorder) if captured else load(folder)
    result = pipeline(image, Options(seed=7, steps=6, tile=tile))
    assert result.captured == captured
    assert (result.tiles > 1) == (tile is not None)
    expected = ancestral(folder, image, from_seed(7, 6, 48, 64), 6)
    np.testing.assert_allclose(result.image, expected, atol=2e-6)
    if captured:
        assert recorder.log.count("capture") >= 1
        again = recorder.log.count("capture")
        other = pipeline(image, Options(seed=8, steps=6, tile=tile)).image
        assert recorder.log.count("capture") == again
        np.testing.assert_allclose(other, ancestral(folder, image, from_seed(8, 6, 48, 64), 6), atol=2e-6)


def test_a_callers_own_noise_is_used(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", ancestral_parts(), {"noise": NOISE})
    image, noise = random_image(32, 32), from_seed(3, 5, 32, 32)
    own = {**noise, "step_noise": np.zeros_like(noise["step_noise"])}
    given = {"step_noise": own["step_noise"]}
    result = load(folder)(image, Options(seed=3), noise=given).image
    np.testing.assert_allclose(result, ancestral(folder, image, own, 5), atol=2e-6)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({"other": np.zeros(3, np.float32)}, "noise 'other' is not one of this mode's: latent, step_noise, start"),
        ({"start": np.zeros((1, 3, 8, 8))}, "noise 'start' is float64[1, 3, 8, 8]; expected float32[1, 3, 8, 8]"),
        ({"step_noise": np.zeros((1, 3, 8, 8), np.float32)}, "expected float32[5, 1, 3, 8, 8]"),
        ({"start": "random"}, "noise 'start' is str; expected float32[1, 3, 8, 8]"),
        ({"start": np.full((1, 3, 8, 8), np.nan, np.float32)}, "noise 'start' has NaN or infinity"),
    ],
)
def test_noise_that_does_not_fit_is_refused(tmp_path: Path, noise: dict[str, Any], message: str) -> None:
    folder = make_bundle(tmp_path / "b", ancestral_parts(), {"noise": NOISE})
    with pytest.raises(InputError, match=re.escape(message)):
        load(folder)(random_image(32, 32), noise=noise)


@pytest.mark.parametrize("noise", [[1], np.zeros(3, np.float32), "latent"])
def test_noise_is_a_mapping(tmp_path: Path, noise: Any) -> None:
    folder = make_bundle(tmp_path / "b", ancestral_parts(), {"noise": NOISE})
    with pytest.raises(InputError, match="expected arrays by name"):
        load(folder)(random_image(32, 32), noise=noise)


def test_noise_goes_with_transforms_that_keep_the_size(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", ancestral_parts(), {"noise": NOISE})
    image, noise = random_image(32, 48), from_seed(0, 5, 32, 48)
    assert load(folder)(image, Options(transforms=4), noise=noise).image.shape == image.shape
    with pytest.raises(InputError, match="got noise and 5 transforms; expected at most 4"):
        load(folder)(image, Options(transforms=5), noise=noise)


def test_the_state_is_noise_without_being_declared(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", ancestral_parts(), {"noise": NOISE[1:]})
    assert [one.spec.name for one in read_bundle(folder).modes["deblur"].noise] == ["latent", "step_noise", "start"]


def test_a_state_that_a_component_writes_is_not_drawn(tmp_path: Path) -> None:
    parts = ancestral_parts()
    stage, inputs, _, nodes, weights = parts["encode"]
    nodes = [*nodes, node("Identity", "means", "latent")]
    parts["encode"] = stage, inputs, {"z": LATENT, "latent": LATENT}, nodes, weights
    folder = make_bundle(tmp_path / "b", parts, {"noise": NOISE[1:]})
    image, steps = random_image(32, 32), 5
    arrays = drawn(read_bundle(folder).modes["deblur"].noise, 32, 32, steps, 0)
    assert list(arrays) == ["step_noise", "start"]
    means = image.reshape(8, 4, 8, 4, 3).mean((1, 3)).transpose(2, 0, 1)[None]
    pipeline = load(folder)
    for _ in range(2):  # the second run starts from the image again
        expected = ancestral(folder, image, {**arrays, "latent": means}, steps)
        np.testing.assert_allclose(pipeline(image).image, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draw": "twice"}, "has draw of noise 'twice'; expected one of once, per-step"),
        ({"name": "other"}, "declares the noise 'other', which no component of its mode reads"),
        ({"name": "z"}, "declares 'z' as noise, and as what a component or constant gives"),
        ({"name": "latent"}, "declares one noise twice, of latent, step_noise, latent"),
        ({"shape": ("batch", 3, "height/8", "width/4")}, "and component 'encode' reads start float32"),
        ({"shape": ("batch", 3, -4, "width/4")}, "has dimension -4; expected a whole number, 1 to 16777216"),
        ({"draw": "per-step"}, "component 'encode' reads 'start', which is drawn for steps alone"),
    ],
)
def test_noise_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    noise = [*NOISE[:2], NOISE[2] | change]
    with pytest.raises(BundleError, match=re.escape(message)):
        load(make_bundle(tmp_path / "b", ancestral_parts(), {"noise": noise}))


def test_a_coefficient_of_another_sampler_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", ancestral_parts(), {"noise": NOISE}, schedule=SCHEDULE)
    with pytest.raises(BundleError, match="reads 'posterior_mean_x0', and sampler 'ddim' has timestep, alpha_bar"):
        load(folder)


# -- without a loop ---------------------------------------------------------------------------------------------------


def finish_parts(nodes: list[onnx.NodeProto], output: tuple[Any, ...] = PIXELS, **weights: Any) -> dict[str, Part]:
    """One component, from the image to the output."""
    return {"finish": ("finish", {"image": PIXELS}, {"output": output}, nodes, weights)}


INVERT = finish_parts([node("Sub", "one image", "output")], one=1.0)
RESIZE = helper.make_node("Resize", ["image", "", "scales"], ["output"], mode="nearest")
DOUBLED = finish_parts([RESIZE], DOUBLE, scales=[1, 1, 2, 2])


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
