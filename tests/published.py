"""Folders of Stable Diffusion 1.5, CLIP and BLIP-Diffusion as they are published, with seeded random weights."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from click.testing import CliRunner, Result
from diffusers import PNDMScheduler
from diffusers.pipelines.deprecated.blip_diffusion import modeling_blip2
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Blip2Config, Blip2VisionConfig, CLIPConfig, CLIPModel
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerAttention

from uid.families.uid_diff import checkpoint
from uid.families.uid_diff.configs import TINY, Config
from uid.train.init import init

Tensors = dict[str, Tensor]
POSITIONS = "embeddings.position_ids"
BLOCK = 1_000_003  # a prime, so that no two rows of a matrix are equal
# What versions of 2022 and 2023 wrote into every configuration inside another.
OLD_VALUES: dict[str, Any] = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "dropout": 0.0,
    "early_stopping": False,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "max_length": 20,
    "num_beams": 1,
    "output_attentions": False,
    "position_embedding_type": "absolute",
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "return_dict": True,
    "tie_encoder_decoder": False,
    "tokenizer_class": None,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.16.0.dev0",
    "use_bfloat16": False,
}
# The tiny size with what sd15 declares: a layer of CLIP less than there are, a norm, BLIP-Diffusion's words.
TINY_SD15 = replace(
    TINY,
    image_encoder=TINY.image_encoder | {"normalised_tokens": True},
    q_former=TINY.q_former | {"vocab_size": 30523, "cross_attention_frequency": 1},
    published=True,
)


def random_state(module: Any, seed: int) -> Tensors:
    """Seeded random values for a module without memory, scaled as ``randomise`` does: one block of them, over and over.

    Drawing two thousand million of them takes minutes.
    """
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed))
    tensors = {}
    for number, (name, one) in enumerate(module.state_dict().items()):
        if not one.is_floating_point():
            tensors[name] = torch.arange(one.shape[-1])[None]
            continue
        values = block.roll(number).repeat(-(-one.numel() // BLOCK))[: one.numel()].view(one.shape)
        if one.ndim >= 2:
            tensors[name] = values / (one.numel() / one.shape[0]) ** 0.5
        else:
            tensors[name] = 1.0 + 0.1 * values if name.endswith("weight") else 0.05 * values
    return tensors


def models(folder: Path, config: Config, half: bool = False) -> None:
    """Folders sd, clip and blip; ``half``: Stable Diffusion in float16."""
    stable_diffusion(folder / "sd", config, half)
    vision = load_file(clip(folder / "clip", config) / "model.safetensors")
    q_former(folder / "blip", config, vision)


def stable_diffusion(folder: Path, config: Config, half: bool = False) -> Path:
    """The diffusers folder, with the names that the first release has in its VAE and its text encoder."""
    with torch.device("meta"):
        modules = checkpoint.build(config)
    for seed, name in enumerate(("unet", "vae", "text_encoder")):
        tensors = random_state(modules[name], seed)
        if name == "text_encoder":
            tensors = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in tensors.items()}
            length = config.text_encoder["max_position_embeddings"]
            tensors[f"text_model.{POSITIONS}"] = torch.arange(length)[None]
        if name == "vae":
            tensors = {first_name(key): tensor for key, tensor in tensors.items()}
        if half:
            tensors = {key: one.half() if one.is_floating_point() else one for key, one in tensors.items()}
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        write(folder / name, {stem + ".fp16" * half: tensors}, modules.pop(name).config)
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    tokenizer(folder, config)
    return folder


def first_name(key: str) -> str:
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        key = key.replace(f".{new}.", f".{old}.")
    return key


def clip(folder: Path, config: Config) -> Path:
    """A whole CLIP, with a layer more than is used, and the counts that old files have."""
    own = {key: value for key, value in config.image_encoder.items() if key != "normalised_tokens"}
    vision = own | {"num_hidden_layers": own["num_hidden_layers"] + 1}
    whole = CLIPConfig(vision_config=vision, text_config=config.text_encoder, projection_dim=16)
    with torch.device("meta"):
        module = CLIPModel(whole)
    tensors = random_state(module, 3)
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    tensors[f"vision_model.{POSITIONS}"] = torch.arange(patches + 1)[None]
    tensors[f"text_model.{POSITIONS}"] = torch.arange(config.text_encoder["max_position_embeddings"])[None]
    write(folder, {"model": tensors}, whole)
    return folder


def q_former_module(config: Blip2Config) -> Any:
    """BLIP-Diffusion's Q-Former by diffusers, without memory, and without BERT's tokenizer, which it would fetch."""
    with mock.patch.object(modeling_blip2, "BertTokenizer"), torch.device("meta"):
        return modeling_blip2.Blip2QFormerModel(config)


def q_former(folder: Path, config: Config, vision: Mapping[str, Tensor], **changes: Any) -> Path:
    """The folder of BLIP-Diffusion, whose Q-Former has the image encoder that it was trained on beside it."""
    sizes = {key: value for key, value in config.image_encoder.items() if key != "normalised_tokens"}
    whole = Blip2Config(
        vision_config=sizes | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        qformer_config=config.q_former | changes,
        num_query_tokens=config.queries,
    )
    tensors = random_state(q_former_module(whole), 4)
    tensors |= as_blip({key.removeprefix("vision_model."): one for key, one in vision.items()}, whole.vision_config)
    write(folder / "qformer", {"pytorch_model": tensors}, whole, pickled=True)
    return folder


def as_blip(vision: Mapping[str, Tensor], sizes: Blip2VisionConfig) -> Tensors:
    """CLIP's vision model in the names of BLIP-2's, but for the final norm."""
    own = "visual_encoder."
    tensors = {
        f"{own}embeddings.class_embedding": vision["embeddings.class_embedding"][None, None],
        f"{own}embeddings.position_embedding": vision["embeddings.position_embedding.weight"][None],
        f"{own}embeddings.patch_embedding.weight": vision["embeddings.patch_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        tensors[f"{own}pre_layernorm.{kind}"] = vision[f"pre_layrnorm.{kind}"]
        for layer in range(sizes.num_hidden_layers):
            name = f"encoder.layers.{layer}."
            thirds = [vision[f"{name}self_attn.{which}_proj.{kind}"] for which in "qkv"]
            tensors[f"{own}{name}self_attn.qkv.{kind}"] = torch.cat(thirds)
            tensors[f"{own}{name}self_attn.projection.{kind}"] = vision[f"{name}self_attn.out_proj.{kind}"]
            for part in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"):
                tensors[f"{own}{name}{part}.{kind}"] = vision[f"{name}{part}.{kind}"]
    return tensors


def tokenizer(folder: Path, config: Config) -> None:
    """A tokenizer of letters and as many made words as the network knows."""
    checkpoint.write_tokenizers(folder)
    shutil.rmtree(folder / "qformer_tokenizer")
    path = folder / "tokenizer" / "vocab.json"
    *words, start, end = json.loads(path.read_text())
    words += [f"word{number}" for number in range(config.text_encoder["vocab_size"] - len(words) - 2)]
    path.write_text(json.dumps({word: number for number, word in enumerate([*words, start, end])}))


def write(folder: Path, files: Mapping[str, Tensors], config: Any, pickled: bool = False) -> None:
    """Write files of weights by name, and the configuration."""
    folder.mkdir(parents=True)
    for name, tensors in files.items():
        if pickled:
            torch.save(tensors, folder / f"{name}.bin")
        else:
            whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
            save_file(whole, folder / f"{name}.safetensors", metadata={"format": "pt"})
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    values |= {key: OLD_VALUES | value for key, value in values.items() if key.endswith("_config")}
    (folder / "config.json").write_text(json.dumps(values, default=list))


class Tupled(Blip2QFormerAttention):
    """The attention as diffusers' class, which is older than transformers 5, calls it."""

    def forward(self, hidden: Tensor, mask: Any = None, head_mask: Any = None, *rest: Any, **_: Any) -> Any:
        return super().forward(hidden, mask, *rest), None


def features(folder: Path, pixels: Tensor, ids: Tensor) -> Tensor:
    """The features of BLIP-Diffusion's own Q-Former, by diffusers' modules, with its own image encoder."""
    with mock.patch.object(modeling_blip2, "Blip2QFormerAttention", Tupled):
        config = Blip2Config(**json.loads((folder / "config.json").read_text()))
        config.qformer_config._attn_implementation = config.vision_config._attn_implementation = "eager"
        whole = q_former_module(config).eval()
    whole.load_state_dict(torch.load(folder / "pytorch_model.bin", mmap=True), assign=True)
    vision = whole.visual_encoder
    tokens = vision.post_layernorm(vision.encoder(vision.pre_layernorm(vision.embeddings(pixels))).last_hidden_state)
    hidden = whole.embeddings(input_ids=ids, query_embeds=whole.query_tokens)
    queries = whole.query_tokens.shape[1]
    encoded = whole.encoder(hidden, encoder_hidden_states=tokens, query_length=queries).last_hidden_state
    return encoded[:, :queries]


def assemble(models: Path, output: Path) -> Result:
    """``uid-train init`` on the folders sd, clip and blip in ``models``."""
    folders = {"--stable-diffusion": "sd", "--clip": "clip", "--qformer": "blip"}
    words = [word for option, name in folders.items() for word in (option, str(models / name))]
    return CliRunner().invoke(init, [str(output), *words])
