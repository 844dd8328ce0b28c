"""``uid-bench transfer`` on the built-in bundle."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from uid.bench.cli import main
from uid.bench.quality.fidelity import psnr, tenengrad
from uid.bench.quality.transfer import STRENGTHS, measure, sheet
from uid.runtime import Options, load
from uid.train.held_out import cases, held_out


@pytest.mark.long
def test_each_photo_is_held_against_itself_under_the_same_kernel() -> None:
    photos = {name: photo[:256, :256] for name, photo in held_out(["rocket", "coffee"]).items()}
    made = list(measure(load(), Options(mode="blur-transfer", transforms=1), photos))
    blurs = 2 + len(STRENGTHS)
    names = blurs * [("rocket", "coffee")] + blurs * [("coffee", "rocket")]
    assert [(m.row.photo, m.row.blur_from) for m in made] == names
    for same in (made[2:blurs], made[blurs + 2 :]):  # ever stronger, of the image that gives it and of the one wanted
        assert sorted(same, key=lambda m: -tenengrad(m.blurred)) == same
        assert sorted(same, key=lambda m: -m.row.sharpness_wanted) == same
    for transfer in (*made[:2], *made[blurs : blurs + 2]):
        row, sharp = transfer.row, photos[transfer.row.photo]
        given = [c for c in cases(row.blur_from, photos[row.blur_from], noise=0.0, jpeg=None) if c.kernel == row.kernel]
        np.testing.assert_array_equal(transfer.blurred, given[0].blurred)
        assert row.psnr_untouched == pytest.approx(psnr(sharp, transfer.wanted))
        assert row.psnr == pytest.approx(psnr(transfer.output, transfer.wanted))
        assert row.sharpness_wanted == pytest.approx(tenengrad(transfer.wanted) / tenengrad(sharp))
        assert row.sharpness_wanted < 0.9
    assert sheet(made).shape == (2 * (20 + 256), 4 * 256, 3)


@pytest.mark.long
def test_command_line_writes_rows_and_sheet(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uid.bench.quality.transfer.STRENGTHS", (3.0,))  # 30 steps each
    rows, picture = tmp_path / "rows.jsonl", tmp_path / "sheet.png"
    words = ["transfer", "--photo", "motorcycle_left", "-o", str(rows), "--sheet", str(picture)]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "nearer to the wanted image" in result.output
    assert "gaussian 3 px: sharpness" in result.output
    assert all(json.loads(line)["trained"] is True for line in rows.read_text().splitlines())
    assert cv2.imread(str(picture)) is not None
