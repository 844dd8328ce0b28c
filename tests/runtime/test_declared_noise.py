"""The noise that a manifest of schema 2 declares is drawn as it says; what cannot be is refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from declared import (
    LATENT,
    NOISE,
    ancestral,
    ancestral_parts,
    from_seed,
    make_bundle,
    node,
    random_image,
)
from toy import SCHEDULE

from uid.bundles.manifest import read_bundle
from uid.errors import BundleError, InputError
from uid.runtime import Options, Pipeline, load
from uid.runtime.noise import drawn


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
