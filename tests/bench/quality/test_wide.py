"""The wide cases: what their names say, the same in every run; the table that their rows give."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from uid.bench.cli import main
from uid.bench.quality.wide import FAMILIES, GREYS, LENGTHS, NOISES, drawn, sharp_cases, wide_cases
from uid.train import held_out as photos
from uid.train.blur import Kernel, blur, to_linear, to_srgb
from uid.train.held_out import held_out


def extents(psf: Kernel) -> tuple[int, int]:
    """Rows and columns that hold light, of a fiftieth of the brightest pixel at least."""
    rows, columns = np.nonzero(psf > psf.max() / 50)
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


@pytest.mark.parametrize("length", LENGTHS)
def test_kernels_are_as_long_as_they_say(length: int) -> None:
    psf = {family: make(np.random.default_rng(3), length) for family, make in FAMILIES.items()}
    for kernel in psf.values():
        assert kernel.sum() == pytest.approx(1.0, abs=1e-5)
    for family in ("shake", "motion"):
        assert length <= max(extents(psf[family])) <= length + 4  # softened at both ends
    assert extents(psf["defocus"]) == pytest.approx((length, length), abs=1)
    spread = [np.sqrt((psf[name] * (np.arange(31) - 15.0) ** 2).sum()) for name in ("defocus", "gaussian")]
    assert spread == pytest.approx([length / 4, length / 4], rel=0.1)


def test_every_combination_is_there_once_and_the_same_again() -> None:
    rocket = {"rocket": held_out(["rocket"])["rocket"][:96, :96]}
    cases = list(wide_cases(rocket))
    assert len({(case.kernel, case.length, case.noise) for case in cases}) == len(cases)
    assert len(cases) == len(FAMILIES) * len(LENGTHS) * len(NOISES)
    again = list(wide_cases({"coffee": rocket["rocket"], **rocket}))
    for case, other, elsewhere in zip(cases, again[len(cases) :], again, strict=False):
        np.testing.assert_array_equal(case.blurred, other.blurred)
        if case.noise or case.kernel in ("shake", "motion"):
            assert not np.array_equal(case.blurred, elsewhere.blurred), "another photo has other kernels and noise"


def test_blur_is_of_light_and_noise_of_levels() -> None:
    clean, noisy = islice(wide_cases(held_out(["rocket"])), 2)
    wanted = to_srgb(blur(to_linear(clean.sharp), clean.psf))
    assert np.abs(255 * (clean.blurred - wanted)).max() <= 0.51  # rounded
    assert np.all(np.rint(255 * noisy.blurred) == pytest.approx(255 * noisy.blurred, abs=1e-3))
    inner = (wanted > 0.1) & (wanted < 0.9)
    assert (255 * (noisy.blurred - wanted))[inner].std() == pytest.approx(1.5, rel=0.05)


def test_what_is_drawn_is_sharp_and_its_own_case() -> None:
    images = drawn()
    assert [f"flat {grey}" for grey in GREYS] == [name for name in images if name.startswith("flat ")]
    for grey in GREYS:
        assert set(np.rint(255 * images[f"flat {grey}"]).flat) == {float(grey)}
    assert len(np.unique(images["gradient"])) == 256
    lines = images["text"][..., 0].min(axis=1) < 0.2
    assert np.count_nonzero(np.diff(lines.astype(int)) == 1) >= 7, "lines of text"
    for case in sharp_cases({}):
        assert case.blurred is case.sharp
        assert case.kernel == "none"


def test_the_command_tells_gains_by_family_length_and_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = photos.held_out
    monkeypatch.setattr(photos, "held_out", lambda names: {name: one[:96, :96] for name, one in whole(names).items()})
    monkeypatch.setattr("uid.bench.quality.wide.LENGTHS", (5, 16))
    output = tmp_path / "rows.jsonl"
    words = ["quality", "--wide", "--photo", "rocket", "--transforms", "1", "-o", str(output)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 3 * 4 * 2 * 3
    by = {(row["kernel"], row["length"], row["noise_levels"], row["method"]): row["psnr"] for row in rows}
    gains = [by["motion", 16, noise, "uid"] - by["motion", 16, noise, "blurred"] for noise in NOISES]
    line = next(line for line in result.output.splitlines() if line.startswith("| motion |"))
    assert line.split(" | ")[2] == f"{np.mean(gains):+.2f}"
    every = [figure - by[(*case[:3], "blurred")] for case, figure in by.items() if case[3] == "uid"]
    line = next(line for line in result.output.splitlines() if line.startswith("| all |"))
    assert line.split(" | ")[3:5] == [f"{np.mean(every):+.2f}", f"{min(every):+.2f}"]


def test_the_wide_cases_take_no_camera(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["quality", "--wide", "--noise", "0.01"])
    assert result.exit_code == 1
    assert "wide cases have noise of their own" in result.output
