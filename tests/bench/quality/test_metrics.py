"""Learned metrics: the libraries' own on the same images as our PSNR; what is said where something is missing."""

import hashlib
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from uid.bench.cli import main
from uid.bench.quality import metrics
from uid.bench.quality.comparison import compare
from uid.bench.quality.metrics import METRICS, Metric, load
from uid.errors import InputError
from uid.install import how_to_install
from uid.train.blur import RgbImage
from uid.train.held_out import BlurCase


def noise(seed: int) -> RgbImage:
    return np.random.default_rng(seed).random((96, 112, 3), dtype=np.float32)


@pytest.fixture
def libraries() -> None:
    for name in ("torchmetrics", "piq"):
        pytest.importorskip(name, reason="needs pip install 'uid-runtime[metrics]'")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of torch's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def psnr(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric without weights, of the same library."""
    options = {"data_range": (0.0, 1.0)}
    plain = Metric("torchmetrics.image", "PeakSignalNoiseRatio", reference=True, higher_is_better=True, options=options)
    monkeypatch.setitem(METRICS, "psnr", plain)


@pytest.mark.usefixtures("libraries", "psnr")
def test_each_image_is_scored_by_itself_inside_the_border() -> None:
    sharp, weak, strong = noise(0), noise(1), noise(2)
    case = BlurCase("photo", "kernel", sharp, np.ones((1, 1), np.float32), weak)
    near = (0.9 * sharp + 0.1 * strong).astype(np.float32)
    near[:8] = 0.0  # within the border
    rows = compare(case, {"blurred": lambda case: case.blurred, "near": lambda case: near}, load(["psnr"])).rows
    assert rows[1].psnr > rows[0].psnr + 10.0
    for row in rows:
        assert row.metrics["psnr"] == pytest.approx(row.psnr, abs=1e-3)


@pytest.mark.usefixtures("libraries", "psnr")
def test_the_command_writes_and_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    option = next(option for option in main.commands["quality"].params if option.name == "learned")
    monkeypatch.setattr(option.type, "choices", ("psnr",))
    output = tmp_path / "rows.jsonl"
    result = CliRunner().invoke(main, ["quality", "--photo", "rocket", "--metric", "psnr", "-o", str(output)])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    for row in rows:
        assert row["metrics"] == ({"psnr": pytest.approx(row["psnr"], abs=1e-3)} if row["photo"] == "rocket" else {})
        assert row["versions"].keys() >= {"torchmetrics", "piq", "torchvision", "torch"}
    assert "psnr ↑" in result.output
    blurred = np.mean([row["psnr"] for row in rows if row["method"] == "blurred"])
    line = next(line for line in result.output.splitlines() if line.startswith("| blurred input |"))
    assert f"{blurred:.2f}" in line
    assert f"{blurred:.3f}" in line


@pytest.mark.usefixtures("libraries")
def test_lpips_is_nought_for_equal_images_and_rises(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch, models = (importlib.import_module(name) for name in ("torch", "torchvision.models"))
    torch.manual_seed(0)
    torch.save(models.alexnet().state_dict(), hub / Path(METRICS["lpips"].weights[0]).name)
    with pytest.raises(InputError, match=r"alexnet-owt-7be5be79.pth is damaged: its SHA-256 begins with \w+, expected"):
        load(["lpips"])
    monkeypatch.setitem(METRICS, "lpips", replace(METRICS["lpips"], weights=()))  # random ones will do here
    lpips = load(["lpips"])["lpips"]
    sharp, other = noise(0), noise(1)
    scores = [lpips(((1 - share) * sharp + share * other).astype(np.float32), sharp) for share in (0.0, 0.3, 0.9)]
    assert scores[0] == 0.0
    assert 0.0 < 2 * scores[1] < scores[2]


@pytest.mark.usefixtures("libraries")
def test_weights_are_the_libraries_own() -> None:
    models = importlib.import_module("torchvision.models")
    arniqa = importlib.import_module("torchmetrics.functional.image.arniqa")._base_url
    clip = importlib.import_module("piq.feature_extractors.clip").PIQ_CLIP_MODEL_PATH
    tokens = importlib.import_module("piq.clip_iqa").TOKENS_URL
    assert METRICS["lpips"].weights == (models.AlexNet_Weights.DEFAULT.url,)
    assert METRICS["dists"].weights == (models.VGG16_Weights.DEFAULT.url,)
    assert METRICS["arniqa"].weights == (f"{arniqa}/ARNIQA.pth", f"{arniqa}/regressor_koniq10k.pth")
    assert METRICS["clip-iqa"].weights == (clip, tokens)


@pytest.mark.usefixtures("libraries")
def test_nothing_is_downloaded(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, metric in METRICS.items():
        with pytest.raises(
            InputError, match=f"metric {name} needs weights that are not in .*; download there:"
        ) as told:
            load([name])
        assert all(metrics.in_words(url) in str(told.value) for url in metric.weights)
        assert str(metric.folder()) in str(told.value)
        assert str(metric.folder()).startswith(str(tmp_path))
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_file_that_is_as_its_name_says_is_accepted(hub: Path) -> None:
    content = b"weights"
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (hub / name).write_bytes(content)
    metric = replace(METRICS["lpips"], weights=(f"https://example.org/{name}",))
    metrics.check_weights("net", hub, metric.weights)
    (hub / name).write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{name} is damaged"):
        metrics.check_weights("net", hub, metric.weights)


@pytest.mark.parametrize("library", ["torchvision", "torchmetrics"])
def test_a_library_that_is_missing_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library != "torchvision":
        pytest.importorskip("torchvision", reason="it is looked for first")
    monkeypatch.setitem(sys.modules, library, None)
    result = CliRunner().invoke(main, ["quality", "--metric", "lpips"])
    assert result.exit_code == 1
    said = f"metric lpips needs {library}, which is missing: {how_to_install('metrics')}"
    assert said in result.output


def test_an_unknown_metric_is_answered_with_the_known_ones() -> None:
    result = CliRunner().invoke(main, ["quality", "--metric", "musiq"])
    assert result.exit_code == 2
    assert all(repr(name) in result.output for name in ("musiq", *METRICS))
