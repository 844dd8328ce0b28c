"""Held-out cases, metrics against slow references, classical methods, and ``uid-bench quality`` on a real bundle."""

import itertools
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from declared import INVERT, make_bundle

from uid.bench.cli import main
from uid.bench.quality import fidelity as quality
from uid.bench.quality.comparison import QualityRow, compare, summarise
from uid.bench.quality.fidelity import BORDER
from uid.bench.quality.methods import options_of_each, richardson_lucy, unsharp_mask
from uid.bench.quality.wide import drawn
from uid.bundles.declarations import built_in
from uid.bundles.manifest import read_bundle
from uid.errors import InputError
from uid.runtime import Options, load
from uid.train import held_out as photos
from uid.train.blur import KERNELS, UNKNOWN_KERNELS, RgbImage, degrade
from uid.train.held_out import BlurCase, cases, held_out


def noise(seed: int, height: int = 2 * BORDER + 48, width: int = 2 * BORDER + 51) -> RgbImage:
    return np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)


# -- cases ------------------------------------------------------------------------------------------------------------


def test_held_out_photos_fit_every_bundle() -> None:
    photos = held_out()
    assert list(photos)[:6] == ["astronaut", "coffee", "chelsea", "rocket", "motorcycle_left", "motorcycle_right"]
    for photo in photos.values():
        height, width, channels = photo.shape
        assert height % 64 == width % 64 == 0
        assert height in (256, 384)
        assert channels == 3
        assert photo.dtype == np.float32
        assert 0.0 <= photo.min() < 0.1
        assert 0.8 < photo.max() <= 1.0


def test_photos_that_are_not_there() -> None:
    with pytest.raises(InputError, match=r"no photo 'lena'; expected one of astronaut, coffee"):
        held_out(["lena"])


def test_cases_are_the_same_whichever_photos_are_chosen() -> None:
    kernels: dict[str, list[str]] = {}
    for photo, sharp in held_out(["rocket", "coffee"]).items():
        made = list(cases(photo, sharp, noise=0.01, jpeg=None))
        again = cases(photo, held_out([photo])[photo], noise=0.01, jpeg=None)
        for one, other in zip(made, again, strict=True):
            np.testing.assert_array_equal(one.blurred, other.blurred)
            assert quality.psnr(one.blurred, sharp) < 35.0
        kernels[photo] = [case.kernel for case in made]
    names = {name for chosen in kernels.values() for name in chosen}
    assert names <= set(UNKNOWN_KERNELS) - set(KERNELS)
    assert all(len(set(chosen)) == 2 for chosen in kernels.values())


# -- methods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", UNKNOWN_KERNELS)
def test_richardson_lucy_undoes_a_known_kernel(family: str) -> None:
    rng = np.random.default_rng(1)
    sharp = held_out(["chelsea"])["chelsea"]
    psf = UNKNOWN_KERNELS[family](rng)
    blurred = degrade(rng, sharp, psf)
    gain = quality.psnr(richardson_lucy(blurred, psf), sharp) - quality.psnr(blurred, sharp)
    assert gain > 3.0


def test_a_shifting_kernel_is_shifted_back() -> None:
    sharp = held_out(["chelsea"])["chelsea"]
    psf = np.zeros((5, 5), np.float32)
    psf[1, 4] = 1.0  # up by one, right by two; a kernel used the wrong way round would double that
    blurred = degrade(np.random.default_rng(0), sharp, psf)
    np.testing.assert_allclose(blurred[10:-10, 10:-10], sharp[11:-9, 8:-12], atol=1e-5)
    assert quality.psnr(richardson_lucy(blurred, psf, iterations=2), sharp) > quality.psnr(blurred, sharp) + 1.0


def test_unsharp_mask_steepens_an_edge_and_leaves_the_rest() -> None:
    edge = np.full((64, 64, 3), 0.3, np.float32)
    edge[:, 32:] = 0.7
    soft = cv2.GaussianBlur(edge, (0, 0), 2.0)
    masked = unsharp_mask(soft)
    assert quality.tenengrad(masked) > 1.2 * quality.tenengrad(soft)
    np.testing.assert_allclose(masked[:, :12], 0.3, atol=1e-5)


# -- metrics ----------------------------------------------------------------------------------------------------------


def slow_ssim(x: RgbImage, y: RgbImage) -> float:
    """Wang et al. (2004), window by window: Gaussian of sigma 1.5 in 11 x 11 pixels."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for row, column, channel in itertools.product(range(len(x) - 10), range(x.shape[1] - 10), range(3)):
        a, b = (p[row : row + 11, column : column + 11, channel].astype(np.float64) for p in (x, y))
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        covariance = (window * (a - mean_a) * (b - mean_b)).sum()
        c1, c2 = 0.01**2, 0.03**2
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        values.append(luminance * (2 * covariance + c2) / (var_a + var_b + c2))
    return float(np.mean(values))


def slow_tenengrad(image: RgbImage) -> float:
    luma = image.astype(np.float64) @ [0.299, 0.587, 0.114]
    squares = []
    for row, column in itertools.product(*(range(BORDER, size - BORDER) for size in luma.shape)):
        (a, b, c), (d, _, f), (g, h, i) = luma[row - 1 : row + 2, column - 1 : column + 2]
        squares.append((c + 2 * f + i - a - 2 * d - g) ** 2 + (g + 2 * h + i - a - 2 * b - c) ** 2)
    return float(np.mean(squares))


def test_metrics_against_slow_references() -> None:
    sharp = noise(0)
    image = (0.7 * sharp + 0.3 * noise(1)).astype(np.float32)
    x, y = (picture[BORDER:-BORDER, BORDER:-BORDER] for picture in (sharp, image))
    error = sum((float(a) - float(b)) ** 2 for a, b in zip(x.flat, y.flat, strict=True)) / x.size
    assert quality.psnr(image, sharp) == pytest.approx(-10 * math.log10(error), abs=1e-4)
    assert quality.ssim(image, sharp) == pytest.approx(slow_ssim(x, y), abs=1e-4)
    assert quality.tenengrad(image) == pytest.approx(slow_tenengrad(image), rel=1e-5)


def test_a_perfect_method_scores_full_marks_whatever_it_does_at_the_border() -> None:
    sharp = noise(2)
    framed = noise(3)
    framed[BORDER:-BORDER, BORDER:-BORDER] = sharp[BORDER:-BORDER, BORDER:-BORDER]
    case = BlurCase("photo", "kernel", sharp, np.ones((1, 1), np.float32), noise(4))
    comparison = compare(case, {"oracle": lambda case: case.sharp, "framed": lambda case: framed})
    for row in comparison.rows:
        assert row.psnr == 100.0
        assert row.ssim == pytest.approx(1.0, abs=1e-6)
    assert comparison.rows[0].sharpness == 1.0
    assert compare(case, {"input": lambda case: case.blurred}).rows[0].psnr < 15.0


def test_summary_counts_case_by_case() -> None:
    looks = {"haarpsi": 0.5, "gmsd": 0.1, "vif": 0.3, "largest": 90.0, "sharpness": 0.25}
    where = {"length": None, "noise_levels": None, "seconds": 0.0, "height": 256, "width": 256}
    base = QualityRow("a", "zigzag", method="blurred", psnr=20.0, ssim=0.5, **where, **looks)
    other = replace(base, photo="b", psnr=30.0)
    rows = [base, other]
    rows += [replace(base, method="unsharp mask", psnr=22.0), replace(other, method="unsharp mask", psnr=31.0)]
    rows += [replace(base, method="uid", psnr=26.0, ssim=0.7), replace(other, method="uid", psnr=29.0, seconds=3.0)]
    rows[-1] = replace(rows[-1], haarpsi=0.7)
    rows += [replace(base, method="uid on sharp", kernel="none", psnr=40.0)]
    blurred, unsharp, uid, on_sharp = summarise(rows)
    assert (blurred.gain, blurred.worst, blurred.beats_unsharp) == (0.0, 0.0, 0.0)
    assert (unsharp.gain, unsharp.worst, unsharp.beats_unsharp) == (1.5, 1.0, 0.0)
    assert (uid.psnr, uid.gain, uid.worst, uid.beats_unsharp) == (27.5, 2.5, -1.0, 0.5)
    assert (uid.haarpsi, uid.looks_better) == (0.6, 0.5)
    assert uid.ssim == pytest.approx(0.6)
    assert uid.seconds == 1.5
    assert (on_sharp.psnr, on_sharp.gain, on_sharp.worst, on_sharp.beats_unsharp) == (40.0, None, None, None)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def corners(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands see a corner of each held-out photo, which takes less time."""
    monkeypatch.setattr(
        photos, "held_out", lambda names=(): {name: one[:96, :96] for name, one in held_out(names).items()}
    )


def test_quality_of_a_bundle(tmp_path: Path) -> None:
    output, sheet = tmp_path / "made" / "rows.jsonl", tmp_path / "sheet.png"
    words = ["quality", "--photo", "chelsea", "--steps", "1", "--transforms", "1", "--seed", "3"]
    result = CliRunner().invoke(main, [*words, "-o", str(output), "--sheet", str(sheet)])
    assert result.exit_code == 0, result.output

    rows = [json.loads(line) for line in output.read_text().splitlines()]
    methods = ["blurred", "unsharp mask", "richardson-lucy", "uid", "f_s = 0", "f_s of another image", "no diffusion"]
    methods += ["true latent", "noise as latent"]
    assert [row["method"] for row in rows] == 2 * methods + (1 + len(drawn())) * ["uid on sharp"]
    pipeline = load()
    weights = "trained" if pipeline.bundle.trained else "random weights"
    assert f"bundle {pipeline.bundle.name} ({weights}), 1 held-out photos" in result.output
    options = Options(steps=1, transforms=1, guidance=pipeline.bundle.guidance, seed=3)
    for row in rows:
        assert (row["bundle"], row["trained"]) == (pipeline.bundle.name, pipeline.bundle.trained)
        assert row["backend"] == pipeline.backend
        assert (row["steps"], row["guidance"], row["seed"]) == (options.steps, options.guidance, options.seed)
        assert row["versions"].keys() == {"uid", "onnxruntime", "openvino", "numpy", "python"}
        assert row["device"]

    sharp = held_out(["chelsea"])["chelsea"]
    first = next(cases("chelsea", sharp, noise=rows[0]["noise"], jpeg=rows[0]["jpeg"]))
    assert rows[3]["psnr"] == pytest.approx(quality.psnr(pipeline(first.blurred, options).image, sharp), abs=1e-3)
    on_sharp = {row["photo"]: row for row in rows if row["method"] == "uid on sharp"}
    assert on_sharp["chelsea"]["psnr"] == pytest.approx(quality.psnr(pipeline(sharp, options).image, sharp), abs=1e-3)
    grey = drawn()["flat 64"]
    assert on_sharp["flat 64"]["largest"] == pytest.approx(255 * np.abs(pipeline(grey, options).image - grey).max())
    for heading in ("| method | PSNR dB |", "| gate | PSNR dB |", "| sharp image | comes back at, dB |"):
        assert heading in result.output

    picture = np.asarray(cv2.imread(str(sheet)))[:, :, ::-1]
    assert picture.shape == (256 + 20, 6 * 256, 3)
    assert picture[:20].any(), "captions are missing"
    for column, image in enumerate((sharp, first.blurred)):
        shown = picture[20:276, column * 256 : (column + 1) * 256]
        np.testing.assert_array_equal(shown, np.rint(image * 255.0).astype(np.uint8))


@pytest.mark.usefixtures("corners")
def test_bundles_are_compared_on_the_same_cases(tmp_path: Path) -> None:
    twin, output = Path(shutil.copytree(built_in(), tmp_path / "twin")), tmp_path / "rows.jsonl"
    words = ["quality", "--photo", "chelsea", "-m", str(built_in()), "-m", str(twin), "--transforms", "1"]
    result = CliRunner().invoke(main, [*words, "-o", str(output)])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    own, others = ([row["psnr"] for row in rows if row["method"] == name] for name in ("uid", "twin"))
    assert own == others
    assert rows[0]["others"]["twin"]["bundle"] == "edge"
    assert "| twin |" in result.output


@pytest.mark.usefixtures("corners")
def test_a_bundle_without_a_loop_is_compared_with_one_that_has_steps(tmp_path: Path) -> None:
    without, output = make_bundle(tmp_path / "plain", INVERT, {}), tmp_path / "rows.jsonl"
    words = ["quality", "--photo", "chelsea", "--steps", "2", "--transforms", "1"]
    for first, second in ((built_in(), without), (without, built_in())):
        result = CliRunner().invoke(main, [*words, "-m", str(first), "-m", str(second), "-o", str(output)])
        assert result.exit_code == 0, result.output
        row = json.loads(output.read_text().splitlines()[0])
        (other,) = row["others"].values()
        assert {row["bundle"]: row["steps"], other["bundle"]: other["steps"]} == {"edge": 2, "toy": None}
        output.unlink()
    alone = CliRunner().invoke(main, [*words, "-m", str(without)])
    assert alone.exit_code == 1
    assert "has no denoising steps; leave steps out" in alone.output


@pytest.mark.parametrize("given", [{"steps": 3}, {"guidance": 2.0}])
def test_an_option_that_no_bundle_has_is_refused(tmp_path: Path, given: dict[str, float]) -> None:
    bundle = read_bundle(make_bundle(tmp_path / "plain", INVERT, {}))
    with pytest.raises(InputError, match=r"has no denoising steps|was exported without guidance"):
        options_of_each(Options(**given), [bundle, bundle])


def test_wrong_use_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    result = CliRunner().invoke(main, ["quality", "--photo", "lena", "-o", str(output)])
    assert result.exit_code == 1
    assert "no photo 'lena'" in result.output
    assert not output.exists()


def test_help_is_quick() -> None:
    code = "import sys, uid.bench.cli; print(*{'skimage', 'cv2', 'onnxruntime', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()


def test_the_built_in_bundle_sharpens_photos_it_never_saw() -> None:
    gains = []
    for photo, sharp in held_out(["astronaut", "coffee"]).items():
        for case in cases(photo, sharp, noise=0.003, jpeg=None):
            gains.append(quality.psnr(load()(case.blurred).image, sharp) - quality.psnr(case.blurred, sharp))
    assert np.mean(gains) > 0.5
    assert min(gains) > 0.0
