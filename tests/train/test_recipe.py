"""A training that is told nothing but its time, on a model and photos that are small."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from uid.families.uid_diff import checkpoint, configs
from uid.train import held_out, recipe
from uid.train.beginning import write_beginning
from uid.train.cli import main
from uid.train.presets import RECIPES

SMALL = replace(
    configs.TINY,
    vae_class="PatchVAE",
    vae={"in_channels": 48, "latent_channels": 32, "block_out_channels": (48,), "norm_num_groups": 8},
    refiner={"hidden": (8,), "blocks": (0,)},
    unet=configs.TINY.unet | {"in_channels": 32, "out_channels": 32},
    output_residual=True,
    steps=1,
    guidance=1.0,
    scheduler=configs.EDGE2.scheduler,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A small model in place of edge2, two small photos, and a folder without checkpoints to go on from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(configs.CONFIGS, "edge2", SMALL)
    whole = held_out.held_out
    monkeypatch.setattr(
        held_out, "held_out", lambda names=(): {name: one[:64, :64] for name, one in list(whole().items())[:2]}
    )
    monkeypatch.setitem(RECIPES, "edge", replace(RECIPES["edge"], size=32, batch=4, places=32))


def test_a_beginning_leaves_photos_as_they_are(tmp_path: Path) -> None:
    write_beginning(tmp_path / "new", "edge2")
    model = checkpoint.load(tmp_path / "new")
    sharp = next(iter(held_out.held_out().values()))
    image = torch.from_numpy(sharp.transpose(2, 0, 1).copy())[None]
    with torch.inference_mode():
        back = model.deblur(image, torch.randn(1, 32, 16, 16), steps=1, guidance=1.0)
    assert (back - image).square().mean() < 1e-4  # 40 dB


@pytest.mark.parametrize("minutes", ["nan", "inf", "0", "-1"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, minutes: str) -> None:
    told = CliRunner().invoke(main, ["recipe", "edge", str(tmp_path / "out"), "--minutes", minutes])
    assert told.exit_code in (1, 2)
    assert "minutes" in told.output
    assert not any(tmp_path.iterdir())


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    told = CliRunner().invoke(main, ["recipe", "edge", str(tmp_path / "out")])
    assert told.exit_code == 1
    assert "give a new folder" in told.output
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mine.txt"]


@pytest.mark.long
def test_a_recipe_ends_in_time_writes_what_is_better_and_goes_on_from_it(tmp_path: Path) -> None:
    output = tmp_path / "out"
    told = CliRunner().invoke(main, ["recipe", "edge", str(output), "--minutes", "1"], catch_exceptions=False)
    assert "written" in told.output
    index = checkpoint.check_family(output)
    assert (index["name"], index["trained"]) == ("edge2", True)
    before = recipe.scored(stage_of(output), list(held_out.every_case()), torch.device("cpu"))
    assert before.gain > 0.0
    again = ["recipe", "edge", str(output), "--minutes", "0.3", "--seed", "1"]
    told = CliRunner().invoke(main, again, catch_exceptions=False)
    assert f"step 0: {before}" in told.output
    after = recipe.scored(stage_of(output), list(held_out.every_case()), torch.device("cpu"))
    assert after.gain >= before.gain


def stage_of(folder: Path) -> recipe.Restoration:
    return recipe.Restoration(checkpoint.load(folder), recipe.Choices(steps=1, guidance=1.0))
