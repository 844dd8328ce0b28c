"""``uid-bench pairs``: the layouts of data sets, figures against those of the files, and what is told."""

import importlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from declared import INVERT, make_bundle, random_image
from PIL import Image

from uid.bench.cli import main
from uid.bench.quality import fid
from uid.bench.quality.pairs import find_pairs
from uid.bundles.tensors import Array
from uid.errors import InputError
from uid.install import how_to_install


def write(path: Path, seed: int = 0, size: tuple[int, int] = (50, 60)) -> Array:
    """A PNG of noise; returns its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.mark.parametrize(
    ("blurry", "sharp", "name"),
    [
        ("GOPR0384/blur/000001.png", "GOPR0384/sharp/000001.png", "GOPR0384/000001"),
        ("scene001/blur/blur_1.png", "scene001/gt/gt_1.png", "scene001/1"),
        ("input/a.jpg", "target/a.png", "a"),
    ],
    ids=["GoPro", "RealBlur", "input and target"],
)
def test_layouts_with_both_kinds_in_one_folder(tmp_path: Path, blurry: str, sharp: str, name: str) -> None:
    write(tmp_path / blurry)
    write(tmp_path / sharp)
    write(tmp_path / "GOPR0384/blur_gamma/000001.png")
    (pair,) = find_pairs(tmp_path, tmp_path)
    assert (pair.name, pair.blurred, pair.sharp) == (name, tmp_path / blurry, tmp_path / sharp)


def test_two_folders_with_equal_names(tmp_path: Path) -> None:
    for name in ("000/1.png", "000/2.png", "001/1.png"):
        write(tmp_path / "train_blur" / name)
        write(tmp_path / "train_sharp" / name)
    pairs = find_pairs(tmp_path / "train_blur", tmp_path / "train_sharp")
    assert [pair.name for pair in pairs] == ["000/1", "000/2", "001/1"]


def test_what_does_not_pair_is_named(tmp_path: Path) -> None:
    blurry, sharp = tmp_path / "b", tmp_path / "s"
    blurry.mkdir()
    sharp.mkdir()
    with pytest.raises(InputError, match=r"no images in .*; expected images of the same names in both"):
        find_pairs(blurry, sharp)
    write(blurry / "1.png")
    with pytest.raises(InputError, match=rf"1 image is without an image of the same name in {sharp}: {blurry}/1.png"):
        find_pairs(blurry, sharp)
    write(sharp / "1.png", size=(60, 50))
    with pytest.raises(InputError, match=r"b/1.png is 50 x 60 pixels and .*s/1.png 60 x 50; expected one size"):
        find_pairs(blurry, sharp)
    write(sharp / "1.png")
    for number in range(2, 7):
        write(sharp / f"{number}.png")
    with pytest.raises(InputError, match=rf"5 images are without .* in {blurry}: {sharp}/2.png, .*/4.png, \.\.\."):
        find_pairs(blurry, sharp)
    write(blurry / "1.jpg")
    with pytest.raises(InputError, match=r"1.jpg and .*1.png are two images of one name"):
        find_pairs(blurry, sharp)


def test_a_folder_without_kinds_pairs_nothing_with_itself(tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    with pytest.raises(InputError, match=r"or one folder with folders blur or blurred"):
        find_pairs(tmp_path, tmp_path)


def test_an_image_that_exif_turns_has_the_size_it_is_seen_in(tmp_path: Path) -> None:
    write(tmp_path / "b" / "1.png", size=(50, 60))
    (tmp_path / "s").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(write(tmp_path / "other.png", size=(60, 50))).save(tmp_path / "s" / "1.jpg", exif=exif)
    assert len(find_pairs(tmp_path / "b", tmp_path / "s")) == 1


def test_figures_are_those_of_the_stored_images(tmp_path: Path) -> None:
    blurred, sharp = (write(tmp_path / "set" / kind / "1.png", seed) for seed, kind in enumerate(("blur", "sharp")))
    inverting, output, images = make_bundle(tmp_path / "invert", INVERT, {}), tmp_path / "rows.jsonl", tmp_path / "out"
    words = ["pairs", str(tmp_path / "set"), "-m", str(inverting), "-o", str(output), "--images", str(images)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    rows = {row["method"]: row for row in map(json.loads, output.read_text().splitlines())}
    assert list(rows) == ["blurred", "invert"]
    for name, wanted in (("blurred", blurred), ("invert", 255 - blurred)):
        stored = cv2.imread(str(images / name / "1.png"))[:, :, ::-1]
        np.testing.assert_array_equal(stored, wanted)
        error = np.mean((wanted / 255.0 - sharp / 255.0) ** 2)
        assert rows[name]["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-4)
        assert f"| {name} | {rows[name]['psnr']:.2f} | {rows[name]['ssim']:.3f} |" in result.output
        assert rows[name]["fid"] is None
    assert rows["blurred"]["bundles"]["invert"]["bundle"] == "toy"


def test_sixteen_bits_are_compared_in_eight(tmp_path: Path) -> None:
    deep = random_image(50, 60, np.uint16)
    for kind in ("blur", "sharp"):
        (tmp_path / kind).mkdir()
        cv2.imwrite(str(tmp_path / kind / "1.png"), deep)
    words = ["pairs", str(tmp_path / "blur"), str(tmp_path / "sharp"), "-o", str(tmp_path / "rows.jsonl")]
    result = CliRunner().invoke(main, [*words, "-m", str(make_bundle(tmp_path / "invert", INVERT, {}))])
    assert result.exit_code == 0, result.output
    row = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert 55.0 < row["psnr"] < 62.0, "the rounding to 8 bits of the blurred image alone"


# -- FID --------------------------------------------------------------------------------------------------------------


def test_fid_without_its_library_or_weights_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("blur", "sharp"):
        write(tmp_path / "set" / kind / "1.png")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    result = CliRunner().invoke(main, ["pairs", str(tmp_path / "set"), "--fid"])
    assert result.exit_code == 1
    if importlib.util.find_spec("torch_fidelity") is None:
        assert f"FID needs torch-fidelity, which is missing: {how_to_install('metrics')}" in result.output
    else:
        assert f"needs weights that are not in {tmp_path}/hub/checkpoints; download there: https://" in result.output


def test_fid_is_the_distance_of_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity", reason="needs pip install 'uid-runtime[metrics]'")
    torch = importlib.import_module("torch")
    extractor_of = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = tmp_path / "hub" / "checkpoints" / Path(fid.WEIGHTS[0]).name
    weights.parent.mkdir(parents=True)
    monkeypatch.setattr(torch, "load", lambda *_, **__: {})
    with monkeypatch.context() as context:
        context.setattr(extractor_of, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        extractor = extractor_of("inception-v3-compat", ["2048"], feature_extractor_weights_path="random")
    monkeypatch.setattr(torch, "load", lambda *_, **__: extractor.state_dict())  # random weights do here
    weights.touch()
    sets = [[tmp_path / kind / f"{number}.png" for number in range(3)] for kind in ("a", "b")]
    for seed, path in enumerate(path for paths in sets for path in paths):
        write(path, seed, size=(50, 60 + seed))
    features = [
        np.concatenate([extractor(torch.from_numpy(pixels)[None])[0].double().numpy() for pixels in images])
        for images in ([np.moveaxis(np.asarray(Image.open(path)), 2, 0).copy() for path in paths] for paths in sets)
    ]
    # Of covariances A'A and B'B the trace of the root of their product is the sum of the singular values of AB'.
    a, b = ((one - one.mean(axis=0)) / np.sqrt(len(one) - 1) for one in features)
    mixed = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    between = ((features[0].mean(axis=0) - features[1].mean(axis=0)) ** 2).sum()
    wanted = between + (a**2).sum() + (b**2).sum() - 2 * mixed
    assert fid.fid(*sets) == pytest.approx(wanted, rel=1e-3)
