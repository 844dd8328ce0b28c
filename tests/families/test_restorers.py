"""Networks without a denoising loop: files of weights to bundles that run like any other."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402  (torch is there)

from uid.bundles.manifest import read_bundle  # noqa: E402
from uid.engines import create  # noqa: E402
from uid.errors import CheckpointError, ParityError  # noqa: E402
from uid.export import validate  # noqa: E402
from uid.export.bundle import export_bundle  # noqa: E402
from uid.export.cli import main  # noqa: E402
from uid.export.validate import Parity  # noqa: E402
from uid.families import registry  # noqa: E402
from uid.families.restorers.fftformer import FFTformer, FFTformerConfig  # noqa: E402
from uid.families.restorers.nafnet import NAFNet, NAFNetConfig  # noqa: E402
from uid.families.restorers.restormer import Restormer, RestormerConfig  # noqa: E402
from uid.runtime import Options, load  # noqa: E402

# By architecture: a small network, the key that published files have their weights under, what comes before each name.
SMALL = {
    "NAFNet": (NAFNet(NAFNetConfig(width=8, encoders=(1, 2), middle=1, decoders=(2, 1))), "params", ""),
    "Restormer": (Restormer(RestormerConfig(4, (1, 1, 1, 1), 1, (1, 2, 2, 4), (6, 12, 20, 40))), "params_ema", ""),
    "FFTformer": (FFTformer(FFTformerConfig(4, (1, 1, 1), 1, (6, 12, 20), (10, 20))), "state_dict", "module."),
}


FIRST, *OTHERS = SMALL


@pytest.fixture(scope="module", params=[FIRST, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)])
def name(request: pytest.FixtureRequest) -> str:
    """An architecture."""
    return str(request.param)


@pytest.fixture(scope="module")
def network(name: str) -> Any:
    """A seeded random network whose corrections show."""
    made: Any = SMALL[name][0].eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for weight in made.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) / max(1, weight[0].numel()) ** 0.5 * 0.5)
    return made


@pytest.fixture(scope="module")
def weights(name: str, network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights as they are published."""
    file = tmp_path_factory.mktemp("restorer") / f"{name} (small).pth"
    _, key, prefix = SMALL[name]
    torch.save({key: {prefix + own: weight for own, weight in network.state_dict().items()}, "iter": 7}, file)
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


def test_the_bundle_has_one_component_and_no_loop(bundle: Path, name: str, network: Any) -> None:
    found = read_bundle(bundle)
    assert (found.name, found.family, found.size_multiple) == (f"{name}-small", "restorer", network.size_multiple)
    assert (list(found.components), found.steps, found.modes["deblur"].noise) == (["restore"], 0, ())


@pytest.mark.parametrize("size", [(33, 46), (64, 20)])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_images_are_those_of_pytorch(bundle: Path, network: Any, size: tuple[int, int], backend: str) -> None:
    pytest.importorskip(backend)
    image = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    height, width = size
    multiple = network.size_multiple
    padded = np.pad(image, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="reflect")
    with torch.inference_mode():
        expected = network(torch.from_numpy(padded).permute(2, 0, 1)[None])[0].permute(1, 2, 0).clamp(0, 1)
    result = load(bundle, backend=backend)(image)
    np.testing.assert_allclose(result.image, expected[:height, :width], atol=2e-5)
    assert result.options.steps is None


def test_transforms_and_tiles_run(bundle: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    result = load(bundle, backend="onnxruntime")(image, Options(transforms=8, tile=64))
    assert result.image.shape == image.shape
    assert result.tiles > 1


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[object, str], None]:
    """Check that a file with these contents is refused, and why."""

    def check(contents: object, message: str) -> None:
        torch.save(contents, tmp_path / "file.pth")
        with pytest.raises(CheckpointError, match=message):
            registry.load(tmp_path / "file.pth", family="restorer")

    return check


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_precision_are_read_to_float32(tmp_path: Path, network: Any, dtype: Any) -> None:
    stored = {key: weight.to(dtype) for key, weight in network.state_dict().items()}
    torch.save(stored, tmp_path / "file.pth")
    save_file(stored, tmp_path / "file.safetensors")
    for file in ("file.pth", "file.safetensors"):
        read = registry.load(tmp_path / file, family="restorer").module.state_dict()
        assert all(weight.dtype == torch.float32 for weight in read.values())
        assert all(torch.equal(read[key], weight.float()) for key, weight in stored.items())


def small_nafnet() -> Any:
    """A seeded random NAFNet, with normalisations near one."""
    network = NAFNet(NAFNetConfig(4, (1,), 1, (1,)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / max(1, weight[0].numel()) ** 0.5 * 0.5)
    return network


LONG = pytest.mark.long


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=LONG), "fp16"])
@pytest.mark.parametrize("bias", [1e5, pytest.param(-1e5, marks=LONG)])
def test_an_overflow_is_seen_although_outputs_are_clipped(tmp_path: Path, bias: float, precision: str) -> None:
    weights = small_nafnet().state_dict()
    weights["ending.bias"] += bias  # in float16 it is infinite; clipped, that is the white or black of float32
    torch.save(weights, tmp_path / "file.pth")

    def export() -> list[Parity]:
        return export_bundle(
            tmp_path / "file.pth", tmp_path / "out", family="restorer", precision=precision, report=lambda line: None
        )

    if precision == "fp32":
        assert export()[-1].error == 0
    else:
        with pytest.raises(ParityError, match="'output' differs from PyTorch by inf"):
            export()
        assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_every_network_is_exported_in_float16(weights: Path, tmp_path: Path) -> None:
    found = export_bundle(weights, tmp_path / "half", family="restorer", precision="fp16", report=lambda line: None)
    assert found[-1].name == "deblur image"
    assert read_bundle(tmp_path / "half").precision == "fp16"


@pytest.mark.long
def test_a_float16_image_is_judged(tmp_path: Path) -> None:
    torch.save(small_nafnet().state_dict(), tmp_path / "file.pth")
    found = export_bundle(
        tmp_path / "file.pth", tmp_path / "out", family="restorer", precision="fp16", report=lambda line: None
    )
    assert (found[-1].name, found[-1].tolerance) == ("deblur image", 5e-2)
    model = registry.load(tmp_path / "file.pth", family="restorer")
    case = validate.image_case(model, model.components("fp32"), 0, 1.0)
    wrong = replace(case, results={"deblur": case.results["deblur"] + 0.1})
    with pytest.raises(ParityError, match=r"the deblur image differs .* of its values; tolerance 13/255"):
        validate.check_image(read_bundle(tmp_path / "out"), create("onnxruntime"), wrong)


def test_files_of_old_versions_of_pytorch_are_read(tmp_path: Path, network: Any) -> None:
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert registry.load(tmp_path / "old.pth", family="restorer").size_multiple == network.size_multiple


def test_networks_that_are_not_whole_are_refused(
    network: Any, name: str, refused: Callable[[object, str], None]
) -> None:
    whole = network.state_dict()
    first, last = min(whole), max(whole)
    start = f"is not a whole {name}: it "
    refused({"params": {key: value for key, value in whole.items() if key != last}}, f"{start}lacks {re.escape(last)}")
    refused(whole | {"extra.weight": torch.zeros(3)}, f"{start}has unknown extra.weight; get the file again")
    shape = re.escape(f"{first} [1, 2] for {list(whole[first].shape)}")
    refused(whole | {first: torch.zeros(1, 2)}, f"{start}has other shapes: {shape}")
    refused(whole | {last: whole[last].to(torch.int8)}, f"no floating-point numbers in {re.escape(last)}")
    refused(whole | {last: torch.full_like(whole[last], torch.nan)}, f"NaN or infinity in {re.escape(last)}")
    refused(whole | {first: torch.full_like(whole[first], torch.inf)}, f"NaN or infinity in {re.escape(first)}")


@pytest.mark.parametrize(("prefix", "message"), [("latent.", "lacks latent.0"), ("refinement.", "lacks refinement.0")])
def test_a_part_that_is_missing_whole_is_named(
    prefix: str, message: str, refused: Callable[[object, str], None]
) -> None:
    whole = SMALL["Restormer"][0].state_dict()
    refused({key: value for key, value in whole.items() if not key.startswith(prefix)}, message)


def test_networks_for_other_images_are_refused(refused: Callable[[object, str], None]) -> None:
    refused(NAFNet(NAFNetConfig(4, (1,), 1, (1,), channels=1)).state_dict(), "NAFNet for images of 1 channels")
    six = RestormerConfig(4, (1, 1, 1, 1), 1, (1, 1, 1, 1), (6, 12, 20, 40), channels=6)
    refused(Restormer(six).state_dict(), "Restormer for images of 6 channels; expected 3, for RGB")
    whole = SMALL["Restormer"][0].state_dict()
    refused(whole | {"latent.0.attn.temperature": torch.ones(5, 1, 1)}, "32 channels cannot be split between 5 heads")


def test_files_that_are_no_restorer_are_refused(tmp_path: Path, refused: Callable[[object, str], None]) -> None:
    others = "is no NAFNet, Restormer, FFTformer, and other architectures need the spandrel library|spandrel"
    refused({"conv_first.weight": torch.zeros(3), "body.0.weight": torch.zeros(3)}, others)
    refused({7: torch.zeros(3)}, "no flat dict of tensors")
    refused([1, 2], "no flat dict of tensors")
    refused({"params": Path}, "holds more than tensors, which may be code")
    with pytest.raises(CheckpointError, match=r"cannot read .*missing\.pth: No such file"):
        registry.create("restorer").load(tmp_path / "missing.pth")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["pth", "old.pth", "safetensors"])
def test_files_that_are_cut_off_are_refused(tmp_path: Path, kind: str, share: float) -> None:
    whole, file = SMALL["NAFNet"][0].state_dict(), tmp_path / f"file.{kind}"
    if kind == "safetensors":
        save_file(whole, file)
    else:
        torch.save(whole, file, _use_new_zipfile_serialization=kind == "pth")
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"cut off or no checkpoint|holds more than tensors"):
        registry.load(file, family="restorer")
