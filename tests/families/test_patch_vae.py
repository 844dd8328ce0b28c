"""The linear autoencoder on patches, and a model whose adapter leads the image to the prediction."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from uid.errors import CheckpointError
from uid.families.uid_diff import checkpoint
from uid.families.uid_diff.configs import CONFIGS, TINY, Config
from uid.families.uid_diff.model import Conditions, StepCoefficients, UIDDiff
from uid.families.uid_diff.patch_vae import PatchVAE
from uid.families.uid_diff.vae import from_patches, to_patches

SMALL = replace(
    TINY,
    vae_class="PatchVAE",
    vae={"in_channels": 48, "latent_channels": 12, "block_out_channels": (48,), "norm_num_groups": 4},
    refiner={"hidden": (4,), "blocks": (0,)},
    unet=TINY.unet | {"in_channels": 12, "out_channels": 12},
    output_residual=True,
    scheduler=CONFIGS["edge2"].scheduler,
)


def smooth_images(count: int) -> Tensor:
    """Images (N, 3, 64, 64) whose neighbours are alike, as photos' are."""
    return torch.nn.functional.interpolate(torch.rand(count, 3, 20, 20), 64, mode="bicubic").clamp(0.0, 1.0)


def fitted(channels: int) -> PatchVAE:
    """Fitted to four batches."""
    vae = PatchVAE(latent_channels=channels)
    torch.manual_seed(0)
    vae.fit(to_patches(smooth_images(8), vae) for _ in range(4))
    return vae


@pytest.fixture
def vae() -> PatchVAE:
    return fitted(12)


def test_a_round_trip_is_the_projection_on_the_principal_directions(vae: PatchVAE) -> None:
    torch.manual_seed(0)
    rows = torch.cat([to_patches(smooth_images(8), vae) for _ in range(4)]).permute(0, 2, 3, 1).flatten(0, 2).numpy()
    mean = rows.mean(0)
    directions = np.linalg.svd(rows.astype(np.float64) - mean, full_matrices=False)[2][:12]
    patches = to_patches(smooth_images(2), vae)
    centred = patches.permute(0, 2, 3, 1).numpy() - mean
    expected = torch.from_numpy(centred @ directions.T @ directions + mean).permute(0, 3, 1, 2)
    with torch.inference_mode():
        posterior = vae.encode(patches).latent_dist
        torch.testing.assert_close(vae.decode(posterior.mode()).sample, expected.float(), atol=1e-4, rtol=0)
        torch.testing.assert_close(posterior.sample(), posterior.mode(), atol=1e-5, rtol=0)


def test_latents_have_unit_variance_and_the_first_ones_most(vae: PatchVAE) -> None:
    with torch.inference_mode():
        z = vae.encode(to_patches(smooth_images(32), vae)).latent_dist.mode()
    variances = z.var(dim=(0, 2, 3))
    assert variances.mean() == pytest.approx(1.0, abs=0.1)
    assert variances[:3].min() > variances[-3:].max()


@pytest.mark.parametrize("colour", [(0.5, 0.5, 0.5), (0.1, 0.4, 0.9)])
def test_a_flat_image_stays_flat(colour: tuple[float, ...]) -> None:
    vae = fitted(32)
    image = torch.tensor(colour)[None, :, None, None].expand(1, 3, 16, 16)
    with torch.inference_mode():
        back = from_patches(vae.decode(vae.encode(to_patches(image, vae)).latent_dist.mode()).sample, vae)
    torch.testing.assert_close(back, image, atol=1 / 255, rtol=0)


def written(folder: Path, config: Config) -> Path:
    """An untrained checkpoint of a configuration, its U-Net without an opinion."""
    torch.manual_seed(0)
    modules = checkpoint.build(config)
    torch.nn.init.zeros_(modules["unet"].conv_out.weight)
    torch.nn.init.zeros_(modules["unet"].conv_out.bias)
    for name, module in modules.items():
        module.save_pretrained(folder / name)
    checkpoint.write_tokenizers(folder)
    checkpoint.DDIMScheduler(**config.scheduler).save_pretrained(folder / "scheduler")
    checkpoint.write_index(folder, "small", config, trained=False)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> UIDDiff:
    return checkpoint.load(written(tmp_path / "small", SMALL))


def test_a_network_without_an_opinion_leaves_the_latent_as_it_was(model: UIDDiff) -> None:
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        z_y, _ = model.encoder(image)
        conditions = Conditions(z_y, model.structure(image), model.prompts("sharp and clean image"))
        for steps in (1, 4):
            torch.testing.assert_close(model.denoise(torch.randn_like(z_y), conditions, steps, 1.0), z_y)


def test_the_shallow_step_has_the_adapters_residual_too(model: UIDDiff) -> None:
    x_t, z_y = torch.randn(2, 2, 12, 16, 16)
    f_s, coefficients = torch.randn(2, 16, 32), StepCoefficients(*torch.tensor([[501.0], [0.28], [0.31]]))
    scale = torch.tensor([2.0])
    torch.nn.init.normal_(model.step.unet.conv_out.weight, std=0.05)
    with torch.inference_mode():
        prompts = model.prompts("sharp and clean image")
        whole, cached = model.step(x_t, z_y, f_s, prompts, coefficients, scale)
        torch.testing.assert_close(model.step.shallow(x_t, prompts, coefficients, scale, cached), whole)
        without = model.step.shallow(x_t, prompts, coefficients, scale, cached._replace(output=None))
    assert (whole - without).abs().max() > 0.1


def test_another_kind_of_vae_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "small", SMALL)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "VQModel"}))
    with pytest.raises(CheckpointError, match="_class_name 'VQModel'; expected AutoencoderKL or PatchVAE"):
        checkpoint.load(folder)
