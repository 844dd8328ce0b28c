"""A DeblurDiff bundle in ONNX Runtime gives the numbers of the original code. The export takes minutes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.numpy import save_file  # noqa: E402  (torch is there)
from safetensors.torch import load_file  # noqa: E402

from uid.bundles.hashes import sha256  # noqa: E402
from uid.bundles.manifest import read_bundle, read_manifest, save_manifest  # noqa: E402
from uid.export.bundle import write  # noqa: E402
from uid.families.deblurdiff import checkpoint  # noqa: E402
from uid.families.deblurdiff.configs import CONFIGS, text_encoder  # noqa: E402
from uid.families.deblurdiff.family import DeblurDiffModel, index_of  # noqa: E402
from uid.runtime import Options, Pipeline, load  # noqa: E402

FIXTURE = Path(__file__).with_name("deblurdiff_fixture")
TOLERANCE = 1e-3  # of the largest value

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture's model as a bundle, with prompts that the tests replace."""
    config = CONFIGS["deblurdiff-tiny"]
    CONFIGS["fixture"] = type(config)(**{**vars(config), "text_encoder": text_encoder(512, 32, 4, 3), "min_side": 64})
    weights = {key: tensor.float() for key, tensor in load_file(FIXTURE / "weights.safetensors").items()}
    network = checkpoint.loaded(CONFIGS["fixture"], weights, "the fixture")
    network.run_in_windows()
    network.text_encoder.config.hidden_size = 64  # of the context, which the cases hold
    model = DeblurDiffModel(network, index_of("fixture", trained=False), torch.zeros(2, 77, 64))
    folder = tmp_path_factory.mktemp("deblurdiff") / "bundle"
    folder.mkdir()
    write(model, folder, "fp32", False, print)
    return folder


def with_prompts(folder: Path, negative: np.ndarray, positive: np.ndarray) -> Pipeline:
    """The bundle with these contexts."""
    save_file({"prompt.deblur": np.concatenate([negative, positive])}, folder / "constants.safetensors")
    manifest = read_manifest(folder)
    manifest["files"]["constants.safetensors"] = sha256(folder / "constants.safetensors")
    save_manifest(folder, manifest)
    return load(folder, backend="onnxruntime")


def noise_of(known: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """What the case drew; where it did not start from noise, what it started from."""
    yield "posterior_noise", known["posterior_noise"]
    yield "posterior_noise_negative", known.get("posterior_noise_neg", known["posterior_noise"])
    yield "latent", known.get("x_T", known["x_t"][:1])
    yield "step_noise", known["step_noise"]


@pytest.mark.parametrize(("name", "guidance"), [("small", 1.0), ("window", 1.0), ("cfg", 2.5)])
def test_images_are_those_of_the_original(bundle: Path, name: str, guidance: float) -> None:
    known = dict(np.load(FIXTURE / f"case_{name}.npz"))
    pipeline = with_prompts(bundle, known.get("context_neg", known["context"]), known["context"])
    steps = len(known["timesteps"])
    result = pipeline(known["lq_u8"], Options(steps=steps, guidance=guidance), noise=dict(noise_of(known)))
    (plan,) = pipeline._plans.cached.values()
    latent = plan.result.read()
    assert np.abs(latent - known["latent_final"]).max() <= TOLERANCE * np.abs(known["latent_final"]).max()
    assert np.abs(plan.buffers["c_img"].read() - known["c_img"]).max() <= TOLERANCE * np.abs(known["c_img"]).max()
    assert np.mean(result.image != known["image_u8"]) < 2e-3
    assert result.tiles == 1


def test_the_manifest_says_what_is_special(bundle: Path) -> None:
    found = read_bundle(bundle)
    mode = found.modes["deblur"]
    assert (found.padding, found.rounding, mode.colour_fix) == ("zeros", "down", "adain")
    assert [(one.spec.name, one.draw) for one in mode.noise] == [
        ("posterior_noise", "once"),
        ("posterior_noise_negative", "once"),
        ("latent", "once"),
        ("step_noise", "per-step"),
    ]
    assert mode.negative_prompt is not None
