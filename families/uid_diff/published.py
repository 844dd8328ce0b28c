"""Published networks that a checkpoint starts from: where they lie, how they are configured, what is used of them.

Stable Diffusion 1.5 and CLIP are read as diffusers and transformers publish them. BLIP-Diffusion's Q-Former is read as
diffusers publishes it (``qformer/``) and as LAVIS does (``blip_model/``).
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import Blip2QFormerConfig, CLIPTextConfig, CLIPVisionConfig

from uid.bundles.reading import LARGEST_JSON, parsed_json, read_limited
from uid.bundles.values import shown
from uid.errors import CheckpointError
from uid.families.uid_diff.configs import Config
from uid.families.weights import Shape, misfits

DIFFUSERS, TRANSFORMERS = ("diffusion_pytorch_model",), ("model", "pytorch_model")
LAVIS = "blip_model"  # the folder of the Q-Former that LAVIS publishes, without a configuration
POSITIONS = r"(.+\.)?position_ids"  # counts from 0, which old files have beside the weights
# Names in Stable Diffusion 1.5's VAE, which is older than diffusers' present ones.
FIRST_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Network:
    """A network as it is published."""

    what: str
    option: str  # of uid-train init, that says where it is
    folders: tuple[str, ...]  # where it lies below that; the first that is there
    stems: tuple[str, ...]  # names of its files of weights
    values: Callable[[Values, Config], tuple[Values, Values]]  # of its configuration: as found, as expected
    left: Callable[[Config], str]  # a pattern of the names of tensors that are not used


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    return json.loads(json.dumps(value))


def diffusers_values(cls: type[Any], own: Values, found: Values, free: tuple[str, ...]) -> tuple[Values, Values]:
    """All values of a class of diffusers but ``free`` ones, which change no result; absent ones have their defaults."""
    parameters = inspect.signature(cls.__init__).parameters
    defaults = {key: one.default for key, one in parameters.items() if key not in ("self", *free)}
    return defaults | dict(found), {key: own.get(key, value) for key, value in defaults.items()}


def transformers_values(cls: type[Any], own: Values, found: Values) -> tuple[Values, Values]:
    """The values of a class of transformers that decide a result."""
    expected = {key: value for key, value in own.items() if not key.endswith("_token_id")}
    expected |= {key: cls().to_dict()[key] for key in ("hidden_act", "layer_norm_eps")}
    return cls(**found).to_dict(), expected


def unet_values(found: Values, config: Config) -> tuple[Values, Values]:
    """Of the U-Net."""
    return diffusers_values(UNet2DConditionModel, config.unet, found, ("sample_size",))


def vae_values(found: Values, config: Config) -> tuple[Values, Values]:
    """Of the autoencoder."""
    return diffusers_values(AutoencoderKL, config.vae, found, ("sample_size", "force_upcast"))


def text_values(found: Values, config: Config) -> tuple[Values, Values]:
    """Of the text encoder."""
    return transformers_values(CLIPTextConfig, config.text_encoder, found)


def clip_values(found: Values, config: Config) -> tuple[Values, Values]:
    """Of CLIP's vision model, in a configuration of its own or of a whole CLIP; it has a layer more than is used."""
    own = {key: value for key, value in config.image_encoder.items() if key != "normalised_tokens"}
    layers = own["num_hidden_layers"] + 1
    return transformers_values(
        CLIPVisionConfig, own | {"num_hidden_layers": layers}, found.get("vision_config") or found
    )


def q_former_values(found: Values, config: Config) -> tuple[Values, Values]:
    """Of the Q-Former, in a configuration of BLIP-2."""
    values, expected = transformers_values(Blip2QFormerConfig, config.q_former, found["qformer_config"])
    queries = "num_query_tokens"
    return {**values, queries: found[queries]}, {**expected, queries: config.queries}


def clip_left(config: Config) -> str:
    """The other tower, the projections, the last layer, and the final norm, whose place the Q-Former's takes."""
    last = rf"encoder\.layers\.{config.image_encoder['num_hidden_layers']}"
    others = r"text_model\..+|(visual|text)_projection\..+|logit_scale"
    return rf"{others}|(vision_model\.)?({last}|post_layernorm)\..+"


def q_former_left(config: Config) -> str:
    """What stands before and after the Q-Former, and the heads that it was trained with."""
    others = r"visual_encoder\.(?!post_layernorm\.).+|proj_layer\..+"
    return rf"{others}|Qformer\.cls\..+|(vision_proj|text_proj|itm_head)\..+|temp"


def nothing(config: Config) -> str:
    """Of a network of which all is used."""
    return r"(?!)"


STABLE_DIFFUSION = "Stable Diffusion 1.5"
NETWORKS = {
    "unet": Network(f"the U-Net of {STABLE_DIFFUSION}", "stable-diffusion", ("unet",), DIFFUSERS, unet_values, nothing),
    "vae": Network(
        f"the autoencoder of {STABLE_DIFFUSION}", "stable-diffusion", ("vae",), DIFFUSERS, vae_values, nothing
    ),
    "text_encoder": Network(
        f"the text encoder of {STABLE_DIFFUSION}",
        "stable-diffusion",
        ("text_encoder",),
        TRANSFORMERS,
        text_values,
        nothing,
    ),
    "clip": Network("CLIP ViT-L/14", "clip", (".",), TRANSFORMERS, clip_values, clip_left),
    "q_former": Network(
        "BLIP-Diffusion's Q-Former",
        "qformer",
        ("qformer", LAVIS, "."),
        (*TRANSFORMERS, "blip_weight"),
        q_former_values,
        q_former_left,
    ),
}


def keys(network: str, name: str) -> tuple[str, ...]:
    """Names that a weight may have where it is published; ``name`` is its name in the module that takes it."""
    if network == "vae":
        return name, renamed(name, FIRST_NAMES)
    if network in ("text_encoder", "clip"):
        prefix = {"text_encoder": "text_model.", "clip": "vision_model."}[network]
        bare = name.removeprefix(prefix)  # which names of transformers 5 lack
        return f"{prefix}{bare}", bare
    if network == "q_former":
        if "post_layernorm" in name:
            kind = name.rpartition(".")[2]
            return f"visual_encoder.post_layernorm.{kind}", f"ln_vision.{kind}"
        bare = name.removeprefix("encoder.").replace("embeddings.layernorm", "embeddings.LayerNorm")
        lavis = f"Qformer.bert.{bare}".replace("attention.attention.", "attention.self.")
        return bare, bare if bare == "query_tokens" else lavis
    return (name,)


def renamed(name: str, table: Mapping[str, str]) -> str:
    """``name`` with a part of it replaced."""
    for own, theirs in table.items():
        name = name.replace(f".{own}.", f".{theirs}.")
    return name


def place(network: Network, given: Path) -> Path:
    """The folder of a network; raises ``CheckpointError`` where there is none."""
    for name in network.folders:
        folder = given / name
        if (folder / "config.json").is_file() or (name == LAVIS and folder.is_dir()):
            return folder
    expected = " or ".join(str(given / name / "config.json") for name in network.folders if name != LAVIS)
    raise CheckpointError(f"{given} is not {network.what}: there is no {expected}; give the folder that has it")


def read_values(path: Path) -> dict[str, Any]:
    """A configuration; raises ``CheckpointError`` for what is none."""
    try:
        return dict(parsed_json(read_limited(path, LARGEST_JSON)))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"cannot read the configuration {path}: {error}") from error


def check_values(found: Values, expected: Values, path: Path, what: str) -> None:
    """Raise ``CheckpointError`` for the first value of a configuration that is another network's."""
    for key, value in expected.items():
        if plain(found.get(key)) != plain(value):
            raise CheckpointError(
                f"{path} is not that of {what}: {key} is {shown(plain(found.get(key)))}; expected {plain(value)!r}"
            )


def check_config(network: Network, folder: Path, config: Config) -> None:
    """Raise ``CheckpointError`` unless the configuration in ``folder`` is a network's."""
    path = folder / "config.json"
    if folder.name == LAVIS and not path.is_file():
        return
    values = read_values(path)
    try:
        found, expected = network.values(values, config)
    except Exception as error:  # what a configuration makes the libraries raise has no common class
        raise CheckpointError(f"{path} is not that of {network.what}: {type(error).__name__}: {error}") from error
    check_values(found, expected, path, network.what)


def check_weights(network: Network, config: Config, tensors: Mapping[str, Tensor], wanted: Values, where: Path) -> None:
    """Raise ``CheckpointError`` that names what is missing, unknown, misshapen or not finite.

    ``wanted`` are the shapes of the tensors that are used, by name.
    """
    unused = re.compile(f"{network.left(config)}|{POSITIONS}")
    left: dict[str, Shape] = {key: tuple(one.shape) for key, one in tensors.items() if unused.fullmatch(key)}
    if faults := misfits(tensors, wanted, left):
        raise CheckpointError(
            f"{where} is not {network.what}, which has {len(wanted)} tensors that are used: it {'; it '.join(faults)}; "
            "get it again, or the one that is meant"
        )
