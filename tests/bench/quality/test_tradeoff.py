"""The trade of quality for speed: rows on a real bundle, the front of known rows, and figures in a manifest."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from uid.bench.cli import main
from uid.bench.quality.tradeoff import Setting, TradeoffRow, record, settings, summarise
from uid.bundles.manifest import read_bundle
from uid.runtime.options import Options
from uid.train import held_out as photos

CLOSENESS = {"psnr_to_first": 100.0, "ssim_to_first": 1.0}
ROW = TradeoffRow(
    "rocket",
    "zigzag",
    "edge",
    4,
    8,
    1,
    (0.0, 1.0),
    gain=1.0,
    haarpsi=0.8,
    **CLOSENESS,
    seconds=8.0,
    step_seconds=7.5,
    height=8,
    width=8,
)


def test_speeds_are_of_equal_sizes_and_the_front_is_what_nothing_beats() -> None:
    rows = []
    for setting, gain, seconds in [((4, 8), 1.0, 8.0), ((4, 2), 0.9, 2.0), ((4, 4), 0.8, 4.0), ((1, 1), 0.5, 1.0)]:
        times = {"seconds": seconds, "step_seconds": seconds - 0.5}
        row = replace(ROW, steps=setting[0], transforms=setting[1], gain=gain, **times)
        longer = {name: 10.0 * value for name, value in times.items()}
        rows += [row, replace(row, photo="china", gain=gain - 0.5, **longer, width=80)]
    rows.append(
        replace(ROW, steps=1, transforms=1, gain=0.5, seconds=900.0, step_seconds=0.5)
    )  # an outlier, which a median leaves out
    rows.append(replace(ROW, steps=1, transforms=1, gain=0.5, seconds=1.0, step_seconds=0.5))
    lines = summarise(rows)
    assert [(line.setting.steps, line.setting.transforms, line.speed, line.front) for line in lines] == [
        (4, 8, 1.0, True),
        (4, 2, 4.0, True),
        (4, 4, 2.0, False),
        (1, 1, 8.0, True),
    ]
    assert [line.step_speed for line in lines] == pytest.approx([1.0, 5.0, 7.5 / 3.5, 15.0])
    assert [line.worst for line in lines] == [0.5, 0.4, 0.30000000000000004, 0.0]


@pytest.fixture
def small_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sees a corner of each held-out photo, one tile of the tiny bundle."""
    whole = photos.held_out
    monkeypatch.setattr(
        photos, "held_out", lambda names: {name: photo[:64, :64] for name, photo in whole(names).items()}
    )


@pytest.mark.usefixtures("small_photos")
def test_command_on_a_bundle_and_its_record(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, output = tmp_path / "tiny", tmp_path / "rows.jsonl"
    shutil.copytree(tiny_bundle, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    qualities = {"full": {"steps": 2, "views": 2}, "fast": {"steps": 1, "views": 1}, "other": {"steps": 9, "views": 1}}
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"qualities": qualities, "quality": "full"}))
    words = ["tradeoff", "-m", str(bundle), "--backend", "onnxruntime", "--photo", "rocket", "--steps", "1"]
    words += ["--steps", "2", "--transforms", "1", "--transforms", "2", "-o", str(output), "--record"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["steps"], row["transforms"]) for row in rows] == 2 * [(2, 2), (2, 1), (1, 2), (1, 1)]
    assert [row["psnr_to_first"] for row in rows][::4] == [100.0, 100.0]
    assert max(row["psnr_to_first"] for row in rows if row["steps"] == 1) < 60.0
    declared = read_bundle(bundle).presets
    assert declared["full"].figures["speed"] == 1.0
    assert declared["fast"].figures["psnr_to_first_db"] < 60.0
    assert declared["other"].figures == {}
    assert record(bundle, []) == []


def test_the_fullest_setting_comes_first() -> None:
    made = settings(["a", "b"], [1, 4], [1, 2], [3], [(0.2, 0.8), (0.5, 1.0)])
    assert len(made) == len(set(made)) == 2 * 2 * 2 * 2 * 3
    rest = [(1, (0.0, 1.0)), (1, (0.2, 0.8)), (1, (0.5, 1.0)), (3, (0.0, 1.0))]
    assert made[:4] == [Setting("a", 4, 2, *shortcuts) for shortcuts in rest]
    assert made[24] == Setting("b", 4, 2)
    assert Setting("a", 1, 1, 3, (0.5, 1.0)).options == Options(
        steps=1, transforms=1, cache_interval=3, guidance_interval=(0.5, 1.0)
    )


@pytest.mark.usefixtures("small_photos")
def test_command_measures_shortcuts(shortcut_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    words = ["tradeoff", "-m", str(shortcut_bundle), "--backend", "onnxruntime", "--photo", "rocket", "--steps", "4"]
    words += ["--transforms", "1", "--cache-interval", "2", "--guidance-interval", "0.5:1", "-o", str(output)]
    other = shutil.copytree(shortcut_bundle, tmp_path / "other", ignore=shutil.ignore_patterns("engines"))
    words += ["--other", str(other)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    got = [(row["cache_interval"], row["guidance_interval"]) for row in rows]
    assert got == 2 * 2 * [(1, [0.0, 1.0]), (1, [0.5, 1.0]), (2, [0.0, 1.0]), (2, [0.5, 1.0])]
    assert [row["bundle"] for row in rows] == 2 * (4 * [shortcut_bundle.name] + 4 * ["other"])
    assert rows[4]["psnr_to_first"] == 100.0
    assert rows[0]["psnr_to_first"] == 100.0 > max(row["psnr_to_first"] for row in rows[1:4])
    assert "| other | 4 | 1 | 2 | 0.5:1 |" in result.output
