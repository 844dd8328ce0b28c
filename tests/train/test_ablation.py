"""The ablation at tiny size: every variant trains, is measured alike, and leaves the checkpoint as it was."""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from uid.bench.cli import main
from uid.bench.quality.ablation import AblationRow, score
from uid.bundles.hashes import sha256
from uid.errors import CheckpointError
from uid.families.uid_diff import checkpoint
from uid.train import ablation
from uid.train.ablation import VARIANTS, Variant, ablate, without_refiners
from uid.train.data import Blurred, BlurredAlike, Examples, ProceduralImages
from uid.train.diffusion import Joint
from uid.train.held_out import held_out
from uid.train.loop import TrainingSettings
from uid.train.vae import base_images, base_latents


@torch.inference_mode()
def test_without_refiners_the_vae_is_the_base_vae(tiny_checkpoint: Path) -> None:
    model = checkpoint.load(tiny_checkpoint)
    picture = torch.rand(1, 3, 32, 32)
    refined = model.encoder(picture)[0]
    without_refiners(model)
    z, skips = model.encoder(picture)
    vae = model.encoder.vae
    torch.testing.assert_close(z, base_latents(vae, picture))
    torch.testing.assert_close(model.decoder(z, skips), base_images(vae, z).clamp(0, 1))
    assert not torch.allclose(z, refined)


@pytest.mark.long
def test_every_variant_is_trained_and_measured(tmp_path: Path, tiny_checkpoint: Path) -> None:
    before = {path: sha256(path) for path in tiny_checkpoint.rglob("*") if path.is_file()}
    made = ProceduralImages(tmp_path / "images.npy", 4, 0, print)
    examples = Examples(Blurred(made), 16, 0, BlurredAlike(made))
    settings = TrainingSettings(steps=2, batch=2, workers=0)
    photos = {name: photo[:64, :64] for name, photo in held_out(["rocket", "coffee"]).items()}

    def measured(variants: Sequence[Variant]) -> list[AblationRow]:
        trained = ablate(tiny_checkpoint, tmp_path / "work", examples, settings, variants, lambda _: None)
        return [score(variant.name, method, photos, settings.steps) for variant, method in trained]

    blurred, rows = score("blurred", lambda image: image, photos, 0), measured(VARIANTS)
    assert blurred == AblationRow("blurred", blurred.psnr, blurred.ssim, 0.0, 0)
    assert [row.variant for row in rows] == [variant.name for variant in VARIANTS]
    assert len({row.psnr for row in rows}) == len(rows)
    assert all(row.gain == pytest.approx(row.psnr - blurred.psnr) for row in rows)
    assert measured(VARIANTS[:1]) == rows[:1]  # trained already, and measured with the same noise
    assert {path: sha256(path) for path in tiny_checkpoint.rglob("*") if path.is_file()} == before


def test_what_is_pretrained_keeps_its_weights(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at sd15: a variant starts from the checkpoint's weights, and the backbone ends as it began."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "sd15"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"name": "sd15", "trained": False}))
    seen: list[Joint] = []
    kept = partial(ablation.train, report=lambda line: None)
    monkeypatch.setattr(ablation, "train", lambda stage, *rest: (seen.append(stage), kept(stage, *rest[:3])))
    made = ProceduralImages(tmp_path / "images.npy", 4, 0, print)
    settings = TrainingSettings(steps=1, batch=2, workers=0, learning_rate=1e-9)
    examples = Examples(Blurred(made), 16, 0, BlurredAlike(made))
    list(ablate(folder, tmp_path / "work", examples, settings, VARIANTS[-1:], lambda _: None))
    before = checkpoint.load(folder).state_dict()
    for name, value in seen[0].model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)
    checkpoint.mark_trained(folder)
    with pytest.raises(CheckpointError, match="is trained already"):
        next(ablate(folder, tmp_path / "work", examples, settings))


def test_command_line_says_what_it_needs(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["ablation", str(tmp_path), "--steps", "1", "--images", "1"])
    assert result.exit_code == 1
    assert "is not a checkpoint" in result.output
