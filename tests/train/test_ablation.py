"""The ablation at tiny size: every variant trains, is measured alike, and leaves the checkpoint as it was."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from uid.bench.cli import main
from uid.bench.quality.ablation import AblationRow, score
from uid.bench.quality.photos import held_out
from uid.bundles.hashes import sha256
from uid.families.uid_diff import checkpoint
from uid.train.ablation import VARIANTS, Variant, ablate, without_refiners
from uid.train.data import Domains, ProceduralImages
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
    examples = Domains(ProceduralImages(tmp_path / "images.npy", 4, 0, print), 16, 0)
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


def test_command_line_says_what_it_needs(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["ablation", str(tmp_path), "--steps", "1", "--images", "1"])
    assert result.exit_code == 1
    assert "is not a checkpoint" in result.output
