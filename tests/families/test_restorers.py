"""Networks without a denoising loop: files of weights to bundles that run like any other."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from uid.bundles.manifest import read_bundle  # noqa: E402  (torch is there)
from uid.errors import CheckpointError  # noqa: E402
from uid.export.cli import main  # noqa: E402
from uid.families import registry  # noqa: E402
from uid.families.restorers.nafnet import NAFNet, NAFNetConfig, config_of, published  # noqa: E402
from uid.runtime import Options, load  # noqa: E402

CONFIG = NAFNetConfig(width=8, encoders=(1, 2), middle=1, decoders=(2, 1))


@pytest.fixture(scope="module")
def network() -> NAFNet:
    """A seeded random NAFNet whose corrections show."""
    made = NAFNet(CONFIG).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for weight in made.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) / max(1, weight[0].numel()) ** 0.5 * 0.5)
    return made


@pytest.fixture(scope="module")
def weights(network: NAFNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights as they are published."""
    file = tmp_path_factory.mktemp("restorer") / "NAFNet (small).pth"
    torch.save({"params": network.state_dict()}, file)
    return file


@pytest.fixture(scope="module")
def bundle(weights: Path) -> Path:
    """Its bundle, by the command."""
    folder = weights.with_name("bundle")
    result = CliRunner().invoke(main, ["restorer", str(weights), "-o", str(folder)])
    assert result.exit_code == 0, result.output
    assert "restore.onnx: differs from PyTorch by" in result.output
    assert "deblur image: differs from PyTorch by" in result.output
    return folder


def test_the_bundle_has_one_component_and_no_loop(bundle: Path) -> None:
    found = read_bundle(bundle)
    assert (found.name, found.family, found.size_multiple) == ("NAFNet-small", "restorer", 4)
    assert (list(found.components), found.steps, found.modes["deblur"].noise) == (["restore"], 0, ())


@pytest.mark.parametrize("size", [(33, 46), (16, 20)])
def test_images_are_those_of_pytorch(bundle: Path, network: NAFNet, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    height, width = size
    padded = np.pad(image, ((0, -height % 4), (0, -width % 4), (0, 0)), mode="reflect")
    with torch.inference_mode():
        expected = network(torch.from_numpy(padded).permute(2, 0, 1)[None])[0].permute(1, 2, 0).clamp(0, 1)
    result = load(bundle, backend="onnxruntime")(image)
    np.testing.assert_allclose(result.image, expected[:height, :width], atol=2e-5)
    assert result.options.steps is None


def test_transforms_and_tiles_run(bundle: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    result = load(bundle, backend="onnxruntime")(image, Options(transforms=8, tile=24))
    assert result.image.shape == image.shape
    assert result.tiles > 1


def test_the_size_follows_from_the_weights() -> None:
    with torch.device("meta"):
        weights = NAFNet(published()).state_dict()
    assert config_of(weights) == published()
    assert config_of({"intro.weight": weights["intro.weight"]}) is None


def test_files_of_old_versions_of_pytorch_are_read(tmp_path: Path, network: NAFNet) -> None:
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert registry.load(tmp_path / "old.pth", family="restorer").size_multiple == 4


def test_files_that_are_no_restorer_are_refused(tmp_path: Path, network: NAFNet) -> None:
    def refused(contents: object, message: str) -> None:
        torch.save(contents, tmp_path / "file.pth")
        with pytest.raises(CheckpointError, match=message):
            registry.load(tmp_path / "file.pth", family="restorer")

    whole = network.state_dict()
    refused({"params": {key: value for key, value in whole.items() if key != "ending.bias"}}, "ending.bias do not fit")
    refused(whole | {"intro.bias": torch.zeros(3)}, "intro.bias do not fit")
    upward = {key: value for key, value in whole.items() if not key.startswith("decoders.1.")}
    refused(upward, "2 levels on the way down and 1 on the way up")
    refused(whole | {"intro.weight": torch.zeros(3)}, "other architectures need the spandrel library|spandrel")
    refused(whole | {"intro.bias": torch.full((8,), torch.nan)}, "NaN or infinity in intro.bias")
    refused(whole | {7: torch.zeros(3)}, "no flat dict of tensors")
    refused([1, 2], "no flat dict of tensors")
    refused({"params": Path}, "holds more than tensors, which may be code")
    (tmp_path / "file.pth").write_bytes((tmp_path / "file.pth").read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"cut off or no checkpoint|holds more than tensors"):
        registry.load(tmp_path / "file.pth", family="restorer")
    with pytest.raises(CheckpointError, match=r"cannot read .*missing\.pth: No such file"):
        registry.create("restorer").load(tmp_path / "missing.pth")
