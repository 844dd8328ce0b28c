"""What ``uid-train init`` refuses, and what a checkpoint refuses of which a part is another network's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from uid.errors import CheckpointError
from uid.families.uid_diff import checkpoint
from uid.families.weight_folders import read_folder
from uid.train.cli import main

pytestmark = pytest.mark.usefixtures("small_sd15")


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
    result = published.assemble(copy, tmp_path / "out")
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert ".uid-" not in result.output, "a path that is gone"
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_folder_in_use_is_left_as_it_is(models: Path, assembled: Path) -> None:
    before = (assembled / "model_index.json").stat().st_mtime_ns
    result = published.assemble(models, assembled)
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
