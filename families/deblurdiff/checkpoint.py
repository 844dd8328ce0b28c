"""DeblurDiff's published file: its keys and shapes, checked before a weight is loaded.

The file is one flat dict in the names of CompVis' latent diffusion. Which key holds which weight of the modules follows
from the modules' own names, so that every missing, extra or misshapen tensor is known at once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from uid.errors import CheckpointError
from uid.families.deblurdiff.configs import TOKENS, Config
from uid.families.deblurdiff.model import DeblurDiff
from uid.families.weight_files import read_weights
from uid.families.weights import Shape, misfits

WEIGHTS = "model.safetensors"
TOWER = "clip.model."  # in front of the text tower's keys
ANOTHER = "for weights of a network without a denoising loop, such as NAFNet, use `uid-export restorer`"
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
TEXT_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


@dataclass(frozen=True)
class Source:
    """Where in the file a module's weight is."""

    key: str
    shape: tuple[int, ...]  # of the tensor in the file
    third: int | None = None  # of its rows, where query, key and value are one tensor


def renamed(name: str, table: Mapping[str, str]) -> str:
    """``name`` with its first part that stands in the table replaced."""
    for own, theirs in table.items():
        if name.startswith(f"{own}."):
            return f"{theirs}.{name.removeprefix(f'{own}.')}"
    return name


def unet_key(name: str, layers: int, attention_levels: int) -> str:
    """The key of a U-Net's weight; ``layers`` are those of a block, ``attention_levels`` those with attention."""
    fixed = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "middle_output": "middle_block_out.0",
        "mid_block.attentions.0": "middle_block.1",
    }
    if found := re.fullmatch(r"outputs\.(\d+)\.(.+)", name):
        return f"zero_convs.{found[1]}.0.{found[2]}"
    if found := re.fullmatch(r"mid_block\.resnets\.([01])\.(.+)", name):
        return f"middle_block.{2 * int(found[1])}.{renamed(found[2], RESNET)}"
    if found := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", name):
        way, block, kind, layer, rest = found.groups()
        number = int(block) * (layers + 1) + int(layer) + (way == "down")
        blocks = "input_blocks" if way == "down" else "output_blocks"
        return f"{blocks}.{number}.{0 if kind == 'resnets' else 1}.{renamed(rest, RESNET)}"
    if found := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.+)", name):
        return f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0.op.{found[2]}"
    if found := re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.+)", name):
        after = 2 if int(found[1]) >= 4 - attention_levels else 1
        return f"output_blocks.{int(found[1]) * (layers + 1) + layers}.{after}.conv.{found[2]}"
    return renamed(name, fixed)


def vae_key(name: str, levels: int) -> str:
    """The key of the autoencoder's weight."""
    resnet = {"conv_shortcut": "nin_shortcut"}
    name = name.replace("conv_norm_out", "norm_out")
    if found := re.fullmatch(r"(encoder|decoder)\.mid_block\.resnets\.([01])\.(.+)", name):
        return f"{found[1]}.mid.block_{int(found[2]) + 1}.{found[3]}"
    if found := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)", name):
        return f"{found[1]}.mid.attn_1.{renamed(found[2], VAE_ATTENTION)}"
    if found := re.fullmatch(r"encoder\.down_blocks\.(\d)\.resnets\.(\d)\.(.+)", name):
        return f"encoder.down.{found[1]}.block.{found[2]}.{renamed(found[3], resnet)}"
    if found := re.fullmatch(r"encoder\.down_blocks\.(\d)\.downsamplers\.0\.(.+)", name):
        return f"encoder.down.{found[1]}.downsample.{found[2]}"
    if found := re.fullmatch(r"decoder\.up_blocks\.(\d)\.resnets\.(\d)\.(.+)", name):
        return f"decoder.up.{levels - 1 - int(found[1])}.block.{found[2]}.{renamed(found[3], resnet)}"
    if found := re.fullmatch(r"decoder\.up_blocks\.(\d)\.upsamplers\.0\.(.+)", name):
        return f"decoder.up.{levels - 1 - int(found[1])}.upsample.{found[2]}"
    return name


def text_source(name: str, shape: tuple[int, ...]) -> Source:
    """Where a weight of the text tower is."""
    name = name.removeprefix("text_model.")
    if found := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
        layer, which, kind = found.groups()
        key = f"transformer.resblocks.{layer}.attn.in_proj_{kind}"
        return Source(f"{TOWER}{key}", (3 * shape[0], *shape[1:]), "qkv".index(which))
    if found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name):
        return Source(f"{TOWER}transformer.resblocks.{found[1]}.{renamed(found[2], TEXT_LAYER)}", shape)
    fixed = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    return Source(f"{TOWER}{fixed[name]}", shape)


def sources(model: DeblurDiff) -> dict[str, Source]:
    """Where in the published file each weight of a model is, by the weight's name."""
    unet_config = model.denoiser.unet.config
    layers, levels = unet_config.layers_per_block, sum("CrossAttn" in kind for kind in unet_config.down_block_types)
    prefixes = {"unet": "unet", "kernel_network": "kpn.unet", "control_net": "controlnet"}
    found: dict[str, Source] = {}
    for name, weight in model.named_parameters():
        shape = tuple(weight.shape)
        part, _, rest = name.partition(".")
        if part == "denoiser":
            network, _, rest = rest.partition(".")
            found[name] = Source(f"{prefixes[network]}.{unet_key(rest, layers, levels)}", shape)
        elif part == "vae":
            key = vae_key(rest, len(model.vae.config.block_out_channels))
            convolution = "attentions" in rest and weight.ndim == 2  # there it is one of 1 x 1
            found[name] = Source(f"vae.{key}", (*shape, 1, 1) if convolution else shape)
        else:
            found[name] = text_source(rest, shape)
    return found


def loaded(config: Config, weights: Mapping[str, Tensor], name: str) -> DeblurDiff:
    """A model with the weights of the published file, as float32; those that are float32 already are not copied.

    Raises ``CheckpointError`` that names every missing, extra, misshapen or non-finite tensor; ``name`` is the file's.
    """
    with torch.device("meta"):  # no memory, and no random numbers, for weights that are replaced
        model = DeblurDiff(config)
    wanted = sources(model)
    shapes = {source.key: source.shape for source in wanted.values()}
    check_tensors(weights, shapes, unused(config), name)
    own = {}
    for key, parameter in model.named_parameters():
        source = wanted[key]
        tensor = weights[source.key].float()
        if source.third is not None:
            tensor = tensor.chunk(3)[source.third]
        own[key] = tensor.reshape(parameter.shape)
    model.load_state_dict(own, strict=False, assign=True)
    positions = torch.arange(TOKENS)[None]
    for module in model.text_encoder.modules():
        if "position_ids" in module._buffers:  # the only numbers of the model that are no weights
            module.register_buffer("position_ids", positions, persistent=False)
    return model.eval().requires_grad_(False)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: the published file, or a folder with ``model.safetensors``."""
    return read_weights(path / WEIGHTS if path.is_dir() else path)


def unused(config: Config) -> dict[str, Shape]:
    """What the published file has beside the weights that are used: the text tower's last layer, and its head."""
    text = config.text_encoder
    width, hidden = text["hidden_size"], text["intermediate_size"]
    matrices = {
        "attn.in_proj_": (3 * width, width),
        "attn.out_proj.": (width, width),
        "mlp.c_fc.": (hidden, width),
        "mlp.c_proj.": (width, hidden),
    }
    shapes: dict[str, Shape] = {f"{part}weight": shape for part, shape in matrices.items()}
    shapes |= {f"{part}bias": shape[:1] for part, shape in matrices.items()}
    shapes |= {f"{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    layer = f"{TOWER}transformer.resblocks.{text['num_hidden_layers']}."
    head: dict[str, Shape] = {f"{TOWER}text_projection": (width, text.get("projection_dim")), f"{TOWER}logit_scale": ()}
    return {f"{layer}{part}": shape for part, shape in shapes.items()} | head


def check_tensors(
    weights: Mapping[str, Tensor], shapes: Mapping[str, Shape], others: Mapping[str, Shape], name: str
) -> None:
    """Raise ``CheckpointError`` unless the tensors are those of a DeblurDiff checkpoint."""
    faults = misfits(weights, shapes, others)
    if faults:
        mend = "get the file again" if set(shapes) & set(weights) else ANOTHER
        raise CheckpointError(
            f"{name} is not a whole DeblurDiff checkpoint of this size, which has {len(shapes)} tensors that are used: "
            f"it {'; it '.join(faults)}; {mend}"
        )
