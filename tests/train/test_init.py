"""``uid-train init`` on small folders in the layouts, names and configurations of the published models."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import AutoencoderKL, UNet2DConditionModel
from published import TINY_SD15
from safetensors.torch import load_file, save_file
from torch import Tensor

from uid.errors import CheckpointError
from uid.families.uid_diff import checkpoint
from uid.families.uid_diff.assembly import VOCABULARY
from uid.families.uid_diff.conditioning import clip_pixels
from uid.families.uid_diff.configs import CONFIGS
from uid.families.uid_diff.model import UIDDiff
from uid.families.uid_diff.unet import predict
from uid.families.weight_folders import read_folder
from uid.train.cli import init, main

BERT = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"  # sha256 of the published vocab.txt


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders sd, clip and blip."""
    folder = tmp_path_factory.mktemp("published")
    published.stable_diffusion(folder / "sd", TINY_SD15)
    vision = load_file(published.clip(folder / "clip", TINY_SD15) / "model.safetensors")
    published.q_former(folder / "blip", TINY_SD15, vision)
    return folder


@pytest.fixture(autouse=True)
def small_sd15() -> Iterator[None]:
    """The configuration that the command makes, at the tiny size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "sd15", TINY_SD15)
        yield


@pytest.fixture(scope="module")
def assembled(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of them."""
    output = tmp_path_factory.mktemp("assembled") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "sd15", TINY_SD15)
        result = assemble(models, output)
    assert result.exit_code == 0, result.output
    return output


def assemble(models: Path, output: Path) -> Result:
    folders = {"--stable-diffusion": "sd", "--clip": "clip", "--qformer": "blip"}
    words = [word for option, name in folders.items() for word in (option, str(models / name))]
    return CliRunner().invoke(init, [str(output), *words])


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
    result = assemble(copy, tmp_path / "out")
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
    assert assemble(copy, tmp_path / "out").exit_code == 0
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
    result = assemble(copy, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert_same(assembled, tmp_path / "out")


# -- what is refused --------------------------------------------------------------------------------------------------


def configured(path: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps(merged(config, values)))

    return change


def merged(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return config | {
        key: merged(config[key], value) if isinstance(value, dict) else value for key, value in values.items()
    }


def tensors_changed(path: str, change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        file = folder / path
        tensors = torch.load(file) if file.suffix == ".bin" else load_file(file)
        change(tensors)
        torch.save(tensors, file) if file.suffix == ".bin" else save_file(tensors, file)

    return changed


UNET, CLIP = "sd/unet/diffusion_pytorch_model.safetensors", "clip/model.safetensors"
Q_FORMER = "blip/qformer/pytorch_model.bin"
WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "another folder": (lambda folder: shutil.rmtree(folder / "sd" / "unet"), "sd is not the U-Net of Stable Diffusion"),
    "no weights": (
        lambda folder: (folder / UNET).unlink(),
        "has no weights: it holds config.json; expected diffusion_",
    ),
    "Stable Diffusion 2": (
        configured("sd/unet/config.json", cross_attention_dim=1024),
        "cross_attention_dim is 1024; expected 32",
    ),
    "other heads": (configured("sd/unet/config.json", attention_head_dim=[4, 8]), "attention_head_dim is [4, 8]"),
    "another size": (configured("sd/vae/config.json", block_out_channels=[8, 32]), "block_out_channels is [8, 32]"),
    "v-prediction": (
        configured("sd/scheduler/scheduler_config.json", prediction_type="v_prediction"),
        "prediction_type is 'v_prediction'; expected 'epsilon'",
    ),
    "another CLIP": (configured("clip/config.json", vision_config={"hidden_act": "gelu"}), "hidden_act is 'gelu'"),
    "a smaller CLIP": (
        configured("clip/config.json", vision_config={"num_hidden_layers": 2}),
        "num_hidden_layers is 2; expected 3",
    ),
    "BLIP-2": (
        configured("blip/qformer/config.json", qformer_config={"cross_attention_frequency": 2}),
        "is not that of BLIP-Diffusion's Q-Former: cross_attention_frequency is 2; expected 1",
    ),
    "other queries": (
        configured("blip/qformer/config.json", num_query_tokens=32),
        "num_query_tokens is 32; expected 16",
    ),
    "no configuration of it": (
        lambda folder: (folder / "blip/qformer/config.json").write_text("{}"),
        "is not that of BLIP-Diffusion's Q-Former: KeyError",
    ),
    "a missing tensor": (
        tensors_changed(Q_FORMER, lambda tensors: tensors.pop("encoder.layer.1.crossattention.output.dense.bias")),
        "it lacks encoder.layer.1.crossattention.output.dense.bias",
    ),
    "no final norm": (
        tensors_changed(Q_FORMER, lambda tensors: tensors.pop("visual_encoder.post_layernorm.bias")),
        "it lacks visual_encoder.post_layernorm.bias",
    ),
    "an unknown tensor": (
        tensors_changed(
            Q_FORMER, lambda tensors: tensors.update({"encoder.layer.2.output.dense.bias": torch.zeros(32)})
        ),
        "it has unknown encoder.layer.2.output.dense.bias",
    ),
    "a misshapen tensor": (
        tensors_changed(UNET, lambda tensors: tensors.update({"conv_in.weight": torch.zeros(32, 9, 3, 3)})),
        "other shapes: conv_in.weight [32, 9, 3, 3] for [32, 4, 3, 3]",
    ),
    "a number that is none": (
        tensors_changed(CLIP, lambda tensors: tensors["vision_model.pre_layrnorm.weight"].fill_(torch.nan)),
        "it has NaN or infinity in vision_model.pre_layrnorm.weight",
    ),
    "another tokenizer": (
        lambda folder: (folder / "sd/tokenizer/vocab.json").write_text(
            '{"b": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}'
        ),
        "has a tokenizer with 3 words; expected 514",
    ),
    "no tokenizer": (
        lambda folder: (folder / "sd/tokenizer/merges.txt").unlink(),
        "lacks tokenizer/merges.txt: expected at",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_named_and_nothing_is_written(models: Path, tmp_path: Path, kind: str) -> None:
    copy = Path(shutil.copytree(models, tmp_path / "models"))
    change, message = WRONG[kind]
    change(copy)
    result = assemble(copy, tmp_path / "out")
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert ".uid-" not in result.output, "a path that is gone"
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_folder_in_use_is_left_as_it_is(models: Path, assembled: Path) -> None:
    before = (assembled / "model_index.json").stat().st_mtime_ns
    result = assemble(models, assembled)
    assert result.exit_code == 1
    assert "is in use" in result.output
    assert (assembled / "model_index.json").stat().st_mtime_ns == before


def test_a_part_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="no plain name beside their index"):
        read_folder(tmp_path, ("model",))


def test_weights_that_a_configuration_knows_nothing_of_are_an_error(assembled: Path, tmp_path: Path) -> None:
    """BLIP-Diffusion's Q-Former under BLIP-2's configuration would lose every second cross-attention."""
    folder = Path(shutil.copytree(assembled, tmp_path / "copy"))
    configured("structure_extractor/config.json", cross_attention_frequency=2)(folder)
    with pytest.raises(
        CheckpointError, match=r"knows nothing of: encoder.encoder.layer.1.crossattention.*would be lost"
    ):
        checkpoint.load(folder)


def test_a_random_stable_diffusion_must_be_asked_for(tmp_path: Path) -> None:
    words = ["vae", str(tmp_path / "new"), "--in-place", "--config", "sd15", "--steps", "1", "--size", "16"]
    words += ["--images", "4", "--batch", "2", "--workers", "0"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 1
    assert "make it with `uid-train init`" in refused.output
    assert "(--random)" in refused.output
    assert not any(tmp_path.iterdir())
    assert CliRunner().invoke(main, [*words, "--random"]).exit_code == 0
    assert (tmp_path / "new" / "model_index.json").is_file()


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
