"""The reference's own parts against the libraries they stand in for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from uid.bundles.declarations import built_in
from uid.bundles.manifest import read_bundle
from uid.errors import CheckpointError
from uid.families import registry
from uid.families.uid_diff import checkpoint
from uid.families.uid_diff.conditioning import resize_matrix
from uid.families.uid_diff.configs import CONFIGS, EDGE, SCHEDULER
from uid.families.uid_diff.ddim import ddim_update
from uid.families.uid_diff.model import StepCoefficients, UIDDiff
from uid.families.uid_diff.unet import predict
from uid.families.uid_diff.vae import RefinedDecoder, RefinedEncoder, from_patches, to_patches
from uid.families.weights import halved, rounded_to_int8
from uid.runtime import Options, load


@pytest.mark.parametrize(("height", "width"), [(32, 32), (17, 300), (1, 1), (500, 33)])
def test_resizing_is_antialiased_bicubic(height: int, width: int) -> None:
    image = torch.rand(1, 3, height, width)
    rows, columns = (resize_matrix(n, 32, image.device) for n in (height, width))
    expected = F.interpolate(image, (32, 32), mode="bicubic", antialias=True)
    torch.testing.assert_close(rows @ image @ columns.T, expected, atol=2e-5, rtol=0)


def test_a_window_is_the_middle_of_the_image() -> None:
    image = torch.rand(1, 3, 300, 40)
    rows, columns = (resize_matrix(n, 32, image.device, window=64) for n in (300, 40))
    seen = rows @ image @ columns.T
    expected = F.interpolate(image[:, :, 118:182], (32, 32), mode="bicubic", antialias=True)
    inside = slice(3, -3)  # at the border of the window, pixels beyond it weigh in
    torch.testing.assert_close(seen[:, :, inside], expected[:, :, inside], atol=2e-5, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_ddim_update_is_that_of_diffusers(prediction_type: str) -> None:
    scheduler = DDIMScheduler(**SCHEDULER | {"prediction_type": prediction_type})
    scheduler.set_timesteps(30)
    x_t, output = torch.randn(2, 1, 4, 8, 8)
    for t in (scheduler.timesteps[0], scheduler.timesteps[17]):
        expected = scheduler.step(output, t, x_t).prev_sample
        bars = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[t - 33]
        torch.testing.assert_close(ddim_update(x_t, output, *bars, prediction_type), expected, atol=1e-5, rtol=1e-4)


def test_without_blur_features_the_unet_is_stable_diffusions(tiny_checkpoint: Path, tiny_model: UIDDiff) -> None:
    plain = UNet2DConditionModel.from_pretrained(tiny_checkpoint / "unet")
    x, text, f_b = torch.randn(1, 4, 8, 8), torch.randn(1, 24, 32), torch.randn(1, 16, 32)
    with torch.inference_mode():
        expected = plain(x, 500, text).sample
        without = tiny_model.step.unet(x, 500, text).sample
        given = tiny_model.step.unet(x, 500, text, cross_attention_kwargs={"f_b": f_b}).sample
    torch.testing.assert_close(without, expected, atol=1e-5, rtol=1e-5)
    assert (given - expected).abs().max() > 1e-2


@pytest.mark.parametrize(("batch", "prompts"), [(1, 1), (1, 2), (2, 3)])
def test_the_shared_forward_pass_is_that_of_diffusers(tiny_model: UIDDiff, batch: int, prompts: int) -> None:
    step, t = tiny_model.step, torch.full((batch,), 501.0)
    x, z_y = torch.randn(2, batch, 4, 8, 8)
    f_s, f_b = torch.randn(2, batch, 16, 32)
    text = torch.randn(prompts, 24, 32).repeat_interleave(batch, 0)
    with torch.inference_mode():
        down, middle, _ = step.adapter(x, z_y, t, f_s)
        expected = step.unet(
            x.repeat(prompts, 1, 1, 1),
            501,
            text,
            down_block_additional_residuals=[residual.repeat(prompts, 1, 1, 1) for residual in down],
            mid_block_additional_residual=middle.repeat(prompts, 1, 1, 1),
            cross_attention_kwargs={"f_b": f_b.repeat(prompts, 1, 1)},
        ).sample
        got, _ = predict(step.unet, x, t, text, down, middle, f_b)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_every_input_matters(tiny_model: UIDDiff) -> None:
    image, other, noise = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), torch.randn(1, 4, 8, 8)
    sharp = tiny_model.deblur(image, noise, steps=2)
    assert sharp.shape == image.shape
    assert (tiny_model.deblur(other, noise, steps=2) - sharp).abs().max() > 0.1
    assert (tiny_model.deblur(image, noise, steps=2, guidance=1.0) - sharp).abs().max() > 1e-3
    transfer = tiny_model.blur_transfer(image, other, noise, steps=2)
    assert (tiny_model.blur_transfer(image, image, noise, steps=2) - transfer).abs().max() > 1e-3


def test_adapter_reads_structure_and_blurry_latent(tiny_model: UIDDiff) -> None:
    adapter, t = tiny_model.step.adapter, torch.tensor([500.0])
    x, z_y, f_s = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.randn(1, 16, 32)
    with torch.inference_mode():
        base = adapter(x, z_y, t, f_s)[1]
        assert (adapter(x, z_y, t, f_s + 1.0)[1] - base).abs().max() > 1e-3
        assert (adapter(x, z_y + 1.0, t, f_s)[1] - base).abs().max() > 1e-3


def test_skips_reach_the_decoder(tiny_model: UIDDiff) -> None:
    with torch.inference_mode():
        z, skips = tiny_model.encoder(torch.rand(1, 3, 16, 16))
        whole = tiny_model.decoder(z, skips)
        for i in range(len(skips)):
            without = [torch.zeros_like(s) if i == j else s for j, s in enumerate(skips)]
            assert (tiny_model.decoder(z, without) - whole).abs().max() > 1e-3, f"skip {i} changes nothing"


def test_random_weights_are_seeded_and_none_is_left_at_its_initial_value(tmp_path: Path, tiny_model: UIDDiff) -> None:
    for name, parameter in tiny_model.named_parameters():
        assert (parameter != 0).any(), f"{name} is all zero"
        assert (parameter != 1).any(), f"{name} is all one"
    checkpoint.write_random(tmp_path / "again", "tiny", seed=0)
    again = checkpoint.load(tmp_path / "again").state_dict()
    assert all(torch.equal(again[key], value) for key, value in tiny_model.state_dict().items())


def test_activations_stay_finite_in_float16(tiny_model: UIDDiff) -> None:
    latents = []
    handle = tiny_model.step.register_forward_hook(lambda _m, _i, out: latents.append(out[0]))
    tiny_model.deblur(torch.rand(1, 3, 16, 16), torch.randn(1, 4, 8, 8))
    handle.remove()
    assert len(latents) == 30
    assert max(float(x.abs().max()) for x in latents) < 1000.0


def test_presets_build_at_their_declared_sizes() -> None:
    edge = checkpoint.build(EDGE)
    assert sum(p.numel() for module in edge.values() for p in module.parameters()) <= 15_000_000
    with torch.device("meta"):
        sd15 = checkpoint.build(CONFIGS["sd15"])
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in sd15.items()}
    assert counts["unet"] == 859_520_964  # Stable Diffusion 1.5's own
    assert counts["vae"] == 83_653_863
    assert counts["text_encoder"] == 123_060_480
    assert counts["image_encoder"] == 303_179_776 - 12_596_224  # CLIP ViT-L/14 without its last layer
    assert counts["structure_extractor"] == 12 * 14_568_960 + 23_848_704  # BLIP-Diffusion's: layers, embeddings


def test_a_whole_clip_checkpoint_drops_in_as_image_encoder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    vision = {**CONFIGS["tiny"].image_encoder, "projection_dim": 16}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=CONFIGS["tiny"].text_encoder, projection_dim=16))
    folder = copy_of(tiny_checkpoint, tmp_path)
    shutil.rmtree(folder / "image_encoder")
    clip.save_pretrained(folder / "image_encoder")
    loaded = checkpoint.load(folder).structure.image_encoder
    pixels = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        expected = clip.eval().vision_model(pixels).last_hidden_state
        torch.testing.assert_close(loaded(pixels).last_hidden_state, expected)


def test_stable_diffusion_vae_weights_under_their_first_names_drop_in(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Stable Diffusion 1.5's VAE file still calls its attention's projections query, key, value and proj_attn."""
    folder = copy_of(tiny_checkpoint, tmp_path)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    first = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, value in weights.items():
        for new, old in first.items():
            key = key.replace(f".{new}.", f".{old}.")
        renamed[key] = value
    assert renamed.keys() != weights.keys()
    path.unlink()
    save_file(renamed, path, metadata={"format": "pt"})
    loaded = checkpoint.load(folder).encoder.vae.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())


def test_a_pickled_checkpoint_is_refused_unless_asked_for(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path)
    vae = checkpoint.load_module(folder / "vae", checkpoint.MODULES["vae"], allow_pickle=False)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(vae.state_dict(), folder / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"vae has only pickled weights.*or allow pickle to read") as refused:
        checkpoint.load(folder)
    assert refused.value.option == "allow_pickle"
    loaded = checkpoint.load(folder, allow_pickle=True)
    assert all(torch.equal(a, b) for a, b in zip(loaded.encoder.vae.parameters(), vae.parameters(), strict=True))


def test_broken_checkpoints_say_what_is_wrong(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoint.load(tmp_path)
    folder = copy_of(tiny_checkpoint, tmp_path)
    weights = folder / "adapter" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="adapter"):
        checkpoint.load(folder)
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"adapter|unet/config.json"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer/vocab.json", None, "lacks tokenizer/vocab.json"),
        ("tokenizer/merges.txt", None, "lacks tokenizer/merges.txt"),
        ("qformer_tokenizer/vocab.txt", None, "lacks qformer_tokenizer/vocab.txt"),
        ("tokenizer/vocab.json", lambda text: text[:-9], r"cannot load .*tokenizer"),
        ("tokenizer/vocab.json", lambda text: text.replace(": 513}", ": 514}"), "ids up to 514; expected 513 at most"),
        ("qformer_tokenizer/vocab.txt", lambda text: text + "x\n" * 9 + "y\n", "ids up to 68; expected 63 at most"),
    ],
)
def test_wrong_files_of_a_tokenizer_are_named(
    tiny_checkpoint: Path, tmp_path: Path, file: str, change: Callable[[str], str] | None, message: str
) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path)
    text = (folder / file).read_text()
    (folder / file).unlink()
    if change is not None:
        (folder / file).write_text(change(text))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder)


def copy_of(folder: Path, into: Path) -> Path:
    return Path(shutil.copytree(folder, into / "copy"))


def test_a_half_checkpoint_holds_the_same_weights_rounded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint.rewrite(tiny_checkpoint, tmp_path / "half", halved)
    checkpoint.mark_trained(tmp_path / "half")
    assert checkpoint.read_index(tmp_path / "half") == checkpoint.read_index(tiny_checkpoint) | {"trained": True}
    assert not any(str(tiny_checkpoint) in path.read_text() for path in (tmp_path / "half").rglob("*.json"))
    whole, half = (checkpoint.load(folder).state_dict() for folder in (tiny_checkpoint, tmp_path / "half"))
    assert whole.keys() == half.keys()
    for name, value in whole.items():
        expected = value.half().float() if value.is_floating_point() else value
        torch.testing.assert_close(half[name], expected, rtol=0, atol=0)


def test_an_int8_checkpoint_holds_whole_multiples_near_the_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint.rewrite(tiny_checkpoint, tmp_path / "int8", rounded_to_int8)
    whole, rounded = (checkpoint.load(folder) for folder in (tiny_checkpoint, tmp_path / "int8"))
    products = (torch.nn.Linear, torch.nn.Conv2d)
    kept = dict(rounded.named_parameters())
    weights = {f"{name}.weight" for name, layer in whole.named_modules() if isinstance(layer, products)}
    assert weights < set(kept)
    for name, value in whole.named_parameters():
        if name not in weights:
            torch.testing.assert_close(kept[name], value, rtol=0, atol=0)
            continue
        scale = value.abs().flatten(1).amax(dim=1, keepdim=True) / 127
        steps = kept[name].flatten(1) / scale
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
        torch.testing.assert_close(steps, value.flatten(1) / scale, rtol=0, atol=0.501)


@torch.inference_mode()
def test_the_edge_vae_starts_from_the_image_that_came_in() -> None:
    """Fresh refiners add nothing: the latent is the base VAE's, and the pixel skip brings the image back."""
    torch.manual_seed(0)
    modules = checkpoint.build(EDGE)
    vae, refiner = modules["vae"], modules["vae_refiner"]
    picture = torch.rand(2, 3, 64, 96)
    torch.testing.assert_close(from_patches(to_patches(picture, vae), vae), picture)
    z, skips = RefinedEncoder(vae, refiner)(picture)
    assert z.shape == (2, 8, 8, 12)
    assert [tuple(skip.shape[1:]) for skip in skips] == [(48, 16, 24), (96, 8, 12), (48, 16, 24)]
    torch.testing.assert_close(RefinedDecoder(vae, refiner)(z, skips), picture)
    checkpoint.randomise(refiner, torch.Generator().manual_seed(0))
    assert not torch.allclose(RefinedDecoder(vae, refiner)(z, skips), picture, atol=0.1)


@torch.inference_mode()
def test_the_unguided_and_the_shallow_step_are_the_whole_one_where_they_can_be(tiny_model: UIDDiff) -> None:
    x_t, z_y, f_s, f_b = (
        torch.randn(1, 4, 8, 8),
        torch.randn(1, 4, 8, 8),
        torch.randn(1, 16, 32),
        torch.randn(1, 16, 32),
    )
    prompts = tiny_model.prompts("sharp and clean image")
    row = StepCoefficients(torch.tensor([501.0]), torch.tensor([0.28]), torch.tensor([0.31]))
    for blur in (None, f_b):
        guided, cached = tiny_model.step(x_t, z_y, f_s, prompts, row, torch.tensor([1.0]), f_b=blur)
        torch.testing.assert_close(tiny_model.step(x_t, z_y, f_s, prompts[1:], row, f_b=blur)[0], guided)
        # A shallow step with what this very step left is this step.
        again = tiny_model.step.shallow(x_t, prompts, row, torch.tensor([1.0]), cached, blur)
        torch.testing.assert_close(again, guided)


def test_built_in_bundle_is_the_trained_checkpoint() -> None:
    bundle = read_bundle(built_in())
    assert (bundle.name, bundle.trained) == ("edge", True)
    model = checkpoint.load(Path(__file__).parents[2] / "checkpoints" / "edge")
    image = np.random.default_rng(0).random((64, 128, 3), dtype=np.float32)
    noise = np.random.Generator(np.random.PCG64(2)).standard_normal((1, 8, 8, 16), dtype=np.float32)
    planar = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = model.deblur(planar, torch.from_numpy(noise), steps=bundle.steps, guidance=bundle.guidance)
    result = load()(image, Options(seed=2, transforms=1))
    assert np.quantile(np.abs(result.image - expected[0].permute(1, 2, 0).numpy()), 0.999) <= 1 / 255


@pytest.mark.parametrize("family", [["uid-diff"], {}, None, "other"])
def test_other_families_are_refused(tmp_path: Path, family: object) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"family": family}))
    with pytest.raises(CheckpointError, match="expected one of uid-diff"):
        registry.load(tmp_path)


def test_the_index_names_the_colour_fix_of_the_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    for value, expected in (("flat", "flat"), ("none", "none")):
        (folder / "model_index.json").write_text(json.dumps(index | {"colour_fix": value}))
        model = registry.load(folder)
        assert {mode.colour_fix for mode in model.modes(model.components("fp32")).values()} == {expected}
    for wrong in ("sepia", 5, ["flat"]):
        (folder / "model_index.json").write_text(json.dumps(index | {"colour_fix": wrong}))
        with pytest.raises(CheckpointError, match="for 'colour_fix'; expected one of none, adain, wavelet, flat"):
            registry.load(folder)


def test_the_built_in_bundle_says_what_its_checkpoint_says() -> None:
    index = registry.read_index(Path(__file__).parents[2] / "checkpoints/edge")
    assert {mode.colour_fix for mode in read_bundle(built_in()).modes.values()} == {index["colour_fix"]}
