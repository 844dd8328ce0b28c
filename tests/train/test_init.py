"""``uid-train init`` on small folders in the layouts, names and configurations of the published models."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import published
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, UNet2DConditionModel
from published import TINY_SD15
from safetensors.torch import load_file, save_file
from torch import Tensor

from uid.families.uid_diff import checkpoint
from uid.families.uid_diff.assembly import VOCABULARY
from uid.families.uid_diff.conditioning import clip_pixels
from uid.families.uid_diff.model import UIDDiff
from uid.families.uid_diff.unet import predict
from uid.train.cli import main

pytestmark = pytest.mark.usefixtures("small_sd15")
BERT = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"  # sha256 of the published vocab.txt


@pytest.fixture
def model(assembled: Path) -> UIDDiff:
    return checkpoint.load(assembled)


@torch.inference_mode()
def test_the_features_are_those_of_blip_diffusion(models: Path, model: UIDDiff) -> None:
    image = torch.rand(1, 3, 40, 56)
    size = TINY_SD15.image_encoder["image_size"]
    for extractor in (model.structure, model.blur):
        expected = published.features(models / "blip" / "qformer", clip_pixels(image, size), extractor.text_ids)
        torch.testing.assert_close(extractor(image), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_training_begins_at_stable_diffusion_itself(models: Path, model: UIDDiff, tmp_path: Path) -> None:
    plain = UNet2DConditionModel.from_pretrained(models / "sd" / "unet")
    x, z_y, f_s, f_b = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.randn(1, 16, 32), torch.randn(1, 16, 32)
    text, t = torch.randn(1, 24, 32), torch.tensor([501.0])
    step = model.step
    residuals = step.adapter(x, z_y, t, f_s)
    got, _ = predict(step.unet, x, t, text, residuals.down, residuals.middle, f_b)
    torch.testing.assert_close(got, plain(x, 501, text).sample, atol=1e-5, rtol=1e-5)
    seen: list[Tensor] = []
    step.adapter.mid_block.register_forward_hook(lambda _m, _i, out: seen.append(out))
    plain.mid_block.register_forward_hook(lambda _m, _i, out: seen.append(out))
    step.adapter(x, z_y, t, f_s)
    plain(x, 501, f_s)
    torch.testing.assert_close(*seen, atol=1e-5, rtol=1e-5)  # the adapter's inside is the U-Net's, which sees x_t alone
    vae, image = AutoencoderKL.from_pretrained(models / "sd" / "vae"), torch.rand(1, 3, 16, 16)
    mean = vae.encode(2 * image - 1).latent_dist.mean
    z, skips = model.encoder(image)
    torch.testing.assert_close(z, mean * vae.config.scaling_factor, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model.decoder.unclamped(z, skips), vae.decode(mean).sample / 2 + 0.5, atol=1e-5, rtol=1e-5
    )


def test_the_texts_are_berts(model: UIDDiff) -> None:
    """[CLS] structure [SEP] and [CLS] blur [SEP] in the vocabulary of bert-base-uncased."""
    assert hashlib.sha256(VOCABULARY.read_bytes()).hexdigest() == BERT
    assert model.structure.text_ids.tolist() == [[101, 3252, 102]]
    assert model.blur.text_ids.tolist() == [[101, 14819, 102]]


def test_every_tensor_is_listed_with_what_became_of_it(models: Path, assembled: Path) -> None:
    with (assembled / "origins.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    own = {
        (folder.name, key): tensor
        for folder in assembled.iterdir()
        for file in folder.glob("*.safetensors")
        for key, tensor in load_file(file).items()
    }
    listed = [(row["component"], row["tensor"]) for row in rows if row["how"] != "left"]
    assert sorted(listed) == sorted(own)
    theirs = {}
    roots = {"stable-diffusion": models / "sd", "clip": models / "clip", "qformer": models / "blip"}
    for option, root in roots.items():
        for file in (*root.rglob("*.safetensors"), *root.rglob("*.bin")):
            tensors = torch.load(file) if file.suffix == ".bin" else load_file(file)
            theirs |= {f"{option}: {file.relative_to(root)}: {key}": tensor for key, tensor in tensors.items()}
    assert {row["source"] for row in rows if row["how"] != "made"} == set(theirs)
    for row in rows:
        if row["how"] == "taken":
            assert torch.equal(own[row["component"], row["tensor"]], theirs[row["source"]]), row
    left = {row["source"] for row in rows if row["how"] == "left"}
    assert not left & {row["source"] for row in rows if row["how"] == "taken"}
    assert not any(str(models) in row["source"] for row in rows)


# -- layouts ----------------------------------------------------------------------------------------------------------


def pickled(folder: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        torch.save(load_file(file), file.with_name(file.name.replace("model.safetensors", "model.bin")))
        file.unlink()
    text = folder / "text_encoder" / "model.bin"
    if text.exists():
        text.rename(text.with_name("pytorch_model.bin"))


def in_parts(folder: Path) -> None:
    for file in list(folder.rglob("*.safetensors")):
        tensors = load_file(file)
        keys = sorted(tensors)
        places = {}
        for number, part in enumerate((keys[::2], keys[1::2]), 1):
            name = f"{file.stem}-{number:05}-of-00002.safetensors"
            save_file({key: tensors[key] for key in part}, file.with_name(name))
            places |= dict.fromkeys(part, name)
        index = {"metadata": {}, "weight_map": places}
        file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
        file.unlink()


def with_other_copies(folder: Path) -> None:
    """A float16 variant and weights without averaging lie beside the weights, as in Stable Diffusion's folder."""
    for file in folder.rglob("*.safetensors"):
        tensors = load_file(file)
        halves = {key: (tensor + 1).half() for key, tensor in tensors.items()}
        save_file(halves, file.with_name(f"{file.stem}.fp16.safetensors"))
        save_file({"wrong": torch.zeros(1)}, file.with_name(f"{file.stem}.non_ema.safetensors"))
        torch.save({"wrong": torch.zeros(1)}, file.with_suffix(".bin"))


@pytest.mark.parametrize("change", [pickled, in_parts, with_other_copies])
def test_every_layout_gives_the_same_tensors(
    models: Path, assembled: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    copy = Path(shutil.copytree(models, tmp_path / "models"))
    for name in ("sd", "clip"):
        change(copy / name)
    result = published.assemble(copy, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert_same(assembled, tmp_path / "out")


def assert_same(one: Path, other: Path) -> None:
    for file in one.rglob("*.safetensors"):
        assert file.read_bytes() == (other / file.relative_to(one)).read_bytes(), file


def test_float16_files_give_a_checkpoint_in_float16(models: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(models, tmp_path / "models"))
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (copy / "sd" / part).glob("*.safetensors")
        halves = {key: one.half() if one.is_floating_point() else one for key, one in load_file(file).items()}
        save_file(halves, file.with_name(f"{file.stem}.fp16.safetensors"))
        file.unlink()
    assert published.assemble(copy, tmp_path / "out").exit_code == 0
    for part, dtype in {"unet": torch.float16, "adapter": torch.float16, "image_encoder": torch.float32}.items():
        (file,) = (tmp_path / "out" / part).glob("*.safetensors")
        assert {tensor.dtype for tensor in load_file(file).values()} == {dtype}, part
    assert checkpoint.load(tmp_path / "out").step.unet.dtype == torch.float32


def test_the_q_former_as_lavis_publishes_it(models: Path, assembled: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(models, tmp_path / "models"))
    tensors = torch.load(copy / "blip" / "qformer" / "pytorch_model.bin")
    own = {key: tensor for key, tensor in tensors.items() if not key.startswith(("visual_encoder", "proj_layer"))}
    own = {
        key
        if key == "query_tokens"
        else f"Qformer.bert.{key}".replace("attention.attention.", "attention.self."): tensor
        for key, tensor in own.items()
    }
    for kind in ("weight", "bias"):
        own[f"ln_vision.{kind}"] = tensors[f"visual_encoder.post_layernorm.{kind}"]
    heads = (
        "Qformer.cls.predictions.bias",
        "visual_encoder.ln_pre.bias",
        "vision_proj.weight",
        "itm_head.bias",
        "temp",
    )
    shutil.rmtree(copy / "blip" / "qformer")
    (copy / "blip" / "blip_model").mkdir()
    torch.save(own | {key: torch.zeros(1) for key in heads}, copy / "blip" / "blip_model" / "blip_weight.pt")
    result = published.assemble(copy, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert_same(assembled, tmp_path / "out")


# -- what comes after -------------------------------------------------------------------------------------------------


def test_what_was_assembled_is_trained(assembled: Path, tmp_path: Path) -> None:
    words = ["joint", str(assembled), "-o", str(tmp_path / "trained"), "--steps", "3", "--size", "16", "--images", "4"]
    result = CliRunner().invoke(main, [*words, "--batch", "2", "--workers", "0", "--learning-rate", "1e-3"])
    assert result.exit_code == 0, result.output
    trained = checkpoint.load(tmp_path / "trained")
    assert trained.structure.image_encoder.config.normalised_tokens
    before, after = checkpoint.load(assembled).state_dict(), trained.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {"step.adapter.controlnet_mid_block.weight", "blur_projections.to_v.0.weight"} <= changed
    assert not any(key.startswith(("step.unet", "structure.image_encoder", "text_encoder")) for key in changed)


@pytest.mark.long
def test_what_was_assembled_is_exported(assembled: Path, tmp_path: Path) -> None:
    from uid.export.bundle import export_bundle

    export_bundle(assembled, tmp_path / "bundle", image_steps=1, report=lambda _: None)
    assert (tmp_path / "bundle" / "manifest.json").is_file()
