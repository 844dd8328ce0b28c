"""Tables of pages: those of the project are what its rows give; what is told where they cannot be."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from uid.bench.cli import main
from uid.bench.quality.pages import MARKED, update
from uid.bench.quality.tables import KINDS
from uid.errors import InputError

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "bench" / "results"
PAGES = ("README.md", "docs/quality.md")
ROW = {"photo": "a", "blur_from": "b", "psnr": 20.0, "psnr_untouched": 19.0, "ssim": 0.5, "seconds": 1.0}
ROW |= {"sharpness_wanted": 0.2, "height": 8, "width": 8}
STRENGTHS = ("0.5", "1", "2", "3")


@pytest.mark.parametrize("page", PAGES)
def test_the_projects_tables_are_those_of_its_rows(page: str) -> None:
    assert update(ROOT / page, RESULTS, check=True), f"run uid-bench tables {' '.join(PAGES)}"


def test_every_kind_of_table_but_that_of_pairs_is_shown() -> None:
    shown = {found[2] for page in PAGES for found in MARKED.finditer((ROOT / page).read_text(encoding="utf-8"))}
    assert shown == KINDS.keys() - {"pairs"}


def test_a_table_follows_its_rows(tmp_path: Path) -> None:
    page, rows = tmp_path / "page.md", tmp_path / "measured.jsonl"
    page.write_text("Before.\n\n<!-- table: transfer measured -->\nold\n<!-- /table -->\n\nAfter.\n")
    measured = [ROW | {"kernel": f"gaussian {one}", "sharpness": float(one) / 10, "bundle": "x"} for one in STRENGTHS]
    rows.write_text("".join(json.dumps(row) + "\n" for row in measured))
    words = ["tables", str(page), "--rows", str(tmp_path)]
    stale = CliRunner().invoke(main, [*words, "--check"])
    assert stale.exit_code == 1
    assert f"uid-bench tables {page}" in stale.output
    assert "old" in page.read_text()
    assert CliRunner().invoke(main, words).exit_code == 0
    assert CliRunner().invoke(main, [*words, "--check"]).exit_code == 0
    text = page.read_text()
    assert "| 3 | 0.30 | 0.20 |" in text
    assert text.startswith("Before.\n\n<!-- table: transfer measured -->\n\n| Gaussian, pixels |")
    assert text.endswith("<!-- /table -->\n\nAfter.\n")


def test_what_cannot_be_shown_is_told(tmp_path: Path) -> None:
    page, rows = tmp_path / "page.md", tmp_path / "rows.jsonl"
    page.write_text("No table.\n")
    with pytest.raises(InputError, match=r"page.md has no table; expected `<!-- table: KIND NAME -->`"):
        update(page, tmp_path)
    page.write_text("<!-- table: nonsense rows -->\n<!-- /table -->\n")
    with pytest.raises(InputError, match=r"no table 'nonsense'; expected one of methods, gates"):
        update(page, tmp_path)
    page.write_text("<!-- table: transfer rows -->\n<!-- /table -->\n")
    with pytest.raises(InputError, match=r"cannot read .*rows.jsonl: No such file"):
        update(page, tmp_path)
    rows.write_text('{"photo": "a"}\n')
    with pytest.raises(InputError, match=r"rows.jsonl has no rows with photo, blur_from, .*; measure again"):
        update(page, tmp_path)
