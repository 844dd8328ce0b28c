"""Gates on a bundle whose graphs are a few nodes, against what those give by hand; which wires a bundle has."""

from pathlib import Path

import numpy as np
import pytest
from declared import INVERT, LATENT, PIXELS, Part, ancestral_parts, make_bundle, node, random_image
from onnx import helper

from uid.bench.quality.gates import encoded_latent, features, gates, is_gate
from uid.bench.quality.methods import methods
from uid.bundles.declarations import built_in
from uid.bundles.manifest import read_bundle
from uid.bundles.tensors import Array
from uid.runtime import Options, load
from uid.train.held_out import BlurCase

FEATURES = ("batch", 3, 1, 1)
OTHERS = {"photo": 0.3 * random_image(20, 28)}
CASE = BlurCase("photo", "kernel", random_image(16, 24)[::-1].copy(), np.ones((1, 1), np.float32), random_image(16, 24))


def parts() -> dict[str, Part]:
    """The latent is a tenth of the last one, the image's means and half of the features; the image gets around it."""
    step = [
        node("Mul", "latent tenth", "a"),
        node("Mul", "features half", "b"),
        node("Add", "a z", "c"),
        node("Add", "b c", "latent_next"),
    ]
    decode = [
        helper.make_node("Resize", ["latent", "", "scales"], ["large"], mode="nearest"),
        node("Mul", "large tenth", "a"),
        node("Mul", "skip half", "b"),
        node("Add", "a b", "output"),
    ]
    encode = [
        node("AveragePool", "image", "z", kernel_shape=[4, 4], strides=[4, 4]),
        node("Identity", "image", "skip"),
    ]
    pool = [node("GlobalAveragePool", "image", "features")]
    read = {"latent": LATENT, "z": LATENT, "features": FEATURES}
    numbers = {"tenth": 0.1, "half": 0.5}
    return {
        "look": ("prepare", {"image": PIXELS}, {"features": FEATURES}, pool, {}),
        "encode": ("prepare", {"image": PIXELS}, {"z": LATENT, "skip": PIXELS}, encode, {}),
        "step": ("step", read, {"latent_next": LATENT}, step, numbers),
        "decode": (
            "finish",
            {"latent": LATENT, "skip": PIXELS},
            {"output": PIXELS},
            decode,
            {"scales": [1, 1, 4, 4], **numbers},
        ),
    }


def means(image: Array) -> Array:
    """Of 4 x 4 pixels."""
    return image.reshape(image.shape[0] // 4, 4, image.shape[1] // 4, 4, 3).mean((1, 3))


def drawn(seed: int) -> Array:
    """The seed's first noise, in the shape of the latent."""
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal((1, 3, 4, 6), dtype=np.float32)
    return noise[0].transpose(1, 2, 0)


def decoded(latent: Array) -> Array:
    """By hand, with the blurred image around it."""
    return 0.1 * latent.repeat(4, 0).repeat(4, 1) + 0.5 * CASE.blurred


def loop(seed: int, steps: int, feature: Array) -> Array:
    """The denoising loop by hand."""
    latent = drawn(seed)
    for _ in range(steps):
        latent = 0.1 * latent + means(CASE.blurred) + 0.5 * feature
    return latent


def test_each_gate_is_what_its_wire_gives_by_hand(tmp_path: Path) -> None:
    pipeline, options = load(make_bundle(tmp_path / "toy", parts(), {})), Options(steps=3, seed=5, transforms=1)
    made = {name: gate(CASE) for name, gate in gates(pipeline, options, OTHERS).items()}
    blurred, other = CASE.blurred.mean((0, 1)), OTHERS["photo"].mean((0, 1))
    wanted = {
        "features = 0": decoded(loop(5, 3, 0.0 * blurred)),
        "features of another image": decoded(loop(5, 3, other)),
        "no diffusion": decoded(means(CASE.blurred)),
        "true latent": decoded(means(CASE.sharp)),
        "noise as latent": decoded(drawn(5)),
    }
    assert list(made) == list(wanted)
    assert all(map(is_gate, made))
    whole = methods(pipeline, options)["uid"](CASE)
    np.testing.assert_allclose(whole, decoded(loop(5, 3, blurred)), atol=1e-5)
    for name, image in wanted.items():
        np.testing.assert_allclose(made[name], image, atol=1e-5, err_msg=name)
        assert np.abs(made[name] - whole).max() > 0.01, f"{name} is the same as the whole bundle"


@pytest.mark.parametrize("transforms", [4, 8])
def test_a_gate_of_the_images_own_features_is_the_whole_bundle(tmp_path: Path, transforms: int) -> None:
    pipeline, options = load(make_bundle(tmp_path / "toy", parts(), {})), Options(seed=1, transforms=transforms)
    own = {"photo": CASE.blurred}
    gate = gates(pipeline, options, own)["features of another image"](CASE)
    np.testing.assert_allclose(gate, methods(pipeline, options)["uid"](CASE), atol=1e-5)


def test_a_gate_pads_as_the_bundle_does(tmp_path: Path) -> None:
    pipeline, options = load(make_bundle(tmp_path / "toy", parts(), {})), Options(transforms=1)
    cut = BlurCase("photo", "kernel", CASE.sharp[:13, :22], CASE.psf, CASE.blurred[:13, :22])
    padded = np.pad(cut.sharp, ((0, 3), (0, 2), (0, 0)), mode="reflect")
    wanted = 0.1 * means(padded).repeat(4, 0).repeat(4, 1)[:13, :22] + 0.5 * cut.blurred
    np.testing.assert_allclose(gates(pipeline, options, OTHERS)["true latent"](cut), wanted, atol=1e-5)


def test_wires_follow_from_the_manifest(tmp_path: Path) -> None:
    edge = read_bundle(built_in())
    assert [spec.name for _, spec in features(edge, "deblur")] == ["f_s"]
    assert [spec.name for _, spec in features(edge, "blur-transfer")] == ["f_s"], "f_b is not made of the image"
    component, spec = encoded_latent(edge, "deblur") or pytest.fail("no latent")
    assert (component.name, spec.name) == ("encoder", "z_y")
    restorer = load(make_bundle(tmp_path / "plain", INVERT, {}))
    assert gates(restorer, Options(), OTHERS) == {}


def test_an_encoder_that_samples_is_taken_at_its_mean(tmp_path: Path) -> None:
    noise = [{"name": name, "dtype": "float32", "shape": LATENT, "draw": "once"} for name in ("latent", "start")]
    noise.append({"name": "step_noise", "dtype": "float32", "shape": LATENT, "draw": "per-step"})
    pipeline = load(make_bundle(tmp_path / "toy", ancestral_parts(), {"noise": noise}))
    made = gates(pipeline, Options(transforms=1), OTHERS)
    assert list(made) == ["no diffusion", "true latent", "noise as latent"]
    wanted = 1 / (1 + np.exp(-means(CASE.sharp).repeat(4, 0).repeat(4, 1)))
    np.testing.assert_allclose(made["true latent"](CASE), wanted, atol=1e-5)


def test_features_in_half_precision(half_bundle: Path) -> None:
    case = BlurCase("photo", "kernel", random_image(32, 32), CASE.psf, random_image(32, 32))
    pipeline, options = load(half_bundle, backend="onnxruntime"), Options(steps=1, transforms=1)
    own = gates(pipeline, options, {"photo": case.blurred})["f_s of another image"](case)
    np.testing.assert_allclose(own, methods(pipeline, options)["uid"](case), atol=1e-2)
