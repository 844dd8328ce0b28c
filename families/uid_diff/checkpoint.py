"""Checkpoints: a folder in the diffusers layout, one subfolder per component with config.json and safetensors.

    image_encoder/        CLIP's vision model             text_encoder/, tokenizer/   Stable Diffusion's
    structure_extractor/  Q_s                             unet/, vae/, scheduler/     Stable Diffusion's
    blur_extractor/       Q_b                             blur_projections/           W'_k, W'_v of eq. 5
    qformer_tokenizer/    BERT's                          vae_refiner/                refiners of appendix A
    adapter/              A                               model_index.json            family and run-time defaults

Stable Diffusion 1.5's and CLIP's own folders drop in unchanged.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from uid.bundles.declarations import NO_COLOUR_FIX
from uid.bundles.files import written_whole
from uid.bundles.reading import LARGEST_JSON, parsed_json, read_limited
from uid.bundles.values import shown
from uid.errors import CheckpointError
from uid.families.registry import INDEX, read_index
from uid.families.uid_diff.adapter import Adapter
from uid.families.uid_diff.blur_attention import BlurProjections
from uid.families.uid_diff.conditioning import QFormer
from uid.families.uid_diff.configs import CONFIGS, Config
from uid.families.uid_diff.model import UIDDiff
from uid.families.uid_diff.patch_vae import PatchVAE
from uid.families.uid_diff.vae import VAERefiner
from uid.families.weight_folders import LARGEST_INDEX, check_parts
from uid.families.weights import listed

FAMILY = "uid-diff"
# In a configuration: sizes and counts, which are 1 or more, unlike other whole numbers.
SIZES = re.compile(r"^num_|_size$|^layers_per_block$|^queries$")
LARGEST_SIZE = 1 << 22

# Of a whole CLIP, what its vision model does without.
OTHER_TOWER = re.compile(r"text_model\.|(visual|text)_projection\.|logit_scale$")

WHOLE_TOKENIZER = "tokenizer.json"  # in place of the others
TOKENIZER_FILES: dict[type[Any], tuple[str, ...]] = {
    CLIPTokenizer: ("vocab.json", "merges.txt"),
    BertTokenizer: ("vocab.txt",),
}

MODULES: dict[str, type[Any]] = {
    "image_encoder": CLIPVisionModel,
    "structure_extractor": QFormer,
    "blur_extractor": QFormer,
    "text_encoder": CLIPTextModel,
    "adapter": Adapter,
    "unet": UNet2DConditionModel,
    "blur_projections": BlurProjections,
    "vae": AutoencoderKL,
    "vae_refiner": VAERefiner,
}
VAES: dict[str, type[Any]] = {"AutoencoderKL": AutoencoderKL, "PatchVAE": PatchVAE}


def load(folder: Path, *, allow_pickle: bool = False) -> UIDDiff:
    """Load the checkpoint in ``folder``, in float32 on the CPU.

    Weights are safetensors; a component that has only pickled ``.bin`` weights is refused unless ``allow_pickle``,
    and is then read with ``weights_only=True``. Raises ``CheckpointError`` when a component is missing, pickled,
    incomplete, or of another family.
    """
    check_family(folder)
    modules = {name: load_module(folder / name, class_of(folder, name), allow_pickle) for name in MODULES}
    vocabularies = [modules[name].config.vocab_size for name in ("text_encoder", "structure_extractor")]
    tokenizer = load_tokenizer(folder / "tokenizer", CLIPTokenizer, vocabularies[0])
    bert = load_tokenizer(folder / "qformer_tokenizer", BertTokenizer, vocabularies[1])
    return UIDDiff(
        **modules,
        tokenizer=tokenizer,
        structure_ids=bert("structure", return_tensors="pt").input_ids,
        blur_ids=bert("blur", return_tensors="pt").input_ids,
        scheduler=load_scheduler(component_folder(folder / "scheduler", "scheduler_config.json")),
    )


def check_family(folder: Path) -> dict[str, Any]:
    """The checkpoint's index; raises ``CheckpointError`` for another family."""
    index = read_index(folder)
    if index["family"] != FAMILY:
        raise CheckpointError(f"{folder / INDEX} says family {index['family']!r}; expected {FAMILY!r}")
    index.setdefault("colour_fix", NO_COLOUR_FIX)
    return index


def class_of(folder: Path, name: str) -> type[Any]:
    """The class of a component of the checkpoint in ``folder``: of the VAE, the one that its configuration names."""
    if name != "vae":
        return MODULES[name]
    component_folder(folder / name)
    config = read_config(folder / name)
    named = config.get("_class_name", AutoencoderKL.__name__) if isinstance(config, dict) else None
    if not isinstance(named, str) or named not in VAES:
        raise CheckpointError(
            f"{folder / name / 'config.json'} has _class_name {shown(named)}; expected {' or '.join(VAES)}"
        )
    return VAES[named]


def component_folder(folder: Path, needed: str = "config.json") -> Path:
    """``folder`` if it holds ``needed``, else a ``CheckpointError`` that says what is missing."""
    if not (folder / needed).is_file():
        raise CheckpointError(f"the checkpoint lacks {folder.name}/{needed}: expected at {folder / needed}")
    return folder


def check_config(folder: Path) -> None:
    """Raise ``CheckpointError`` for numbers that no model has, and for shards of weights that lie elsewhere."""
    config = read_config(folder)
    try:
        shards = [
            part
            for path in folder.glob("*.index.json")
            for part in parsed_json(read_limited(path, LARGEST_INDEX))["weight_map"].values()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot read the configuration in {folder}: {error}") from error
    if isinstance(config, dict):
        check_numbers(folder / "config.json", config)
    check_parts(folder, shards)


def read_config(folder: Path) -> Any:
    """The configuration of a component; raises ``CheckpointError`` for what is no JSON."""
    try:
        return parsed_json(read_limited(folder / "config.json", LARGEST_JSON))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the configuration in {folder}: {error}") from error


def check_numbers(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError`` for whole numbers in the configuration at ``path`` that no model has."""
    for key, value in config.items():
        least = 1 if SIZES.search(key) else 0
        for number in value if isinstance(value, list) else [value]:
            if type(number) is int and not key.endswith("_id") and not least <= number <= LARGEST_SIZE:
                raise CheckpointError(f"{path} has {key} {shown(value)}; expected {least} to {LARGEST_SIZE}")


def load_module(folder: Path, cls: type[Any], allow_pickle: bool) -> Any:
    """One component from its subfolder, every one of its parameters from the file."""
    component_folder(folder)
    check_config(folder)
    pickled = not list(folder.glob("*.safetensors"))
    if pickled and not list(folder.glob("*.bin")):
        raise CheckpointError(f"{folder} has no weights: expected a .safetensors file")
    if pickled and not allow_pickle:
        raise CheckpointError(
            f"{folder} has only pickled weights (.bin), which can run code when loaded: convert them to safetensors, "
            "or allow pickle to read them with weights_only=True",
            option="allow_pickle",
        )
    extra = {} if cls.__module__.startswith("transformers") else {"low_cpu_mem_usage": False}
    try:
        module, info = cls.from_pretrained(
            folder, use_safetensors=not pickled, torch_dtype=torch.float32, output_loading_info=True, **extra
        )
    except Exception as error:  # what a configuration makes the libraries raise has no common class
        raise CheckpointError(f"cannot load {folder}: {type(error).__name__}: {error}") from error
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} of its parameters, among them {', '.join(missing[:3])}")
    unknown = sorted(key for key in info["unexpected_keys"] if not (cls is CLIPVisionModel and OTHER_TOWER.match(key)))
    if unknown:
        raise CheckpointError(
            f"{folder} has weights that its config.json knows nothing of: {listed(unknown)}; they would be lost: get "
            "the configuration that belongs to them"
        )
    return module


def load_scheduler(folder: Path) -> DDIMScheduler:
    """The scheduler from its subfolder."""
    try:
        return DDIMScheduler.from_pretrained(folder)
    except Exception as error:  # as of a module
        raise CheckpointError(f"cannot load {folder}: {type(error).__name__}: {error}") from error


def load_tokenizer(folder: Path, cls: type[Any], vocabulary: int) -> Any:
    """A tokenizer from its subfolder, with ids below the size of the vocabulary of the network that reads them."""
    if not folder.is_dir():
        raise CheckpointError(f"the checkpoint lacks its {folder.name}/ folder: expected at {folder}")
    if not (folder / WHOLE_TOKENIZER).is_file():
        for needed in TOKENIZER_FILES[cls]:
            component_folder(folder, needed)
    try:
        tokenizer = cls.from_pretrained(folder)
        words = set(tokenizer(" structure blur").input_ids) - set(tokenizer.all_special_ids)
        largest = max(tokenizer.get_vocab().values(), default=0)
    except Exception as error:  # what a vocabulary makes the libraries raise has no common class
        raise CheckpointError(f"cannot load {folder}: {type(error).__name__}: {error}") from error
    if not words:
        raise CheckpointError(f"{folder} has a tokenizer that knows no word of 'structure blur'; get its files again")
    if largest >= vocabulary:
        raise CheckpointError(
            f"{folder} has a tokenizer with ids up to {largest}; expected {vocabulary - 1} at most, as the network has "
            "that reads them: get the tokenizer that belongs to it"
        )
    return tokenizer


# -- new checkpoints --------------------------------------------------------------------------------------------------


def write_random(folder: Path, config_name: str, *, seed: int = 0, half: bool = False) -> None:
    """Write a random checkpoint of a configuration to test with; the same seed gives the same weights.

    No parameter is left at zero or at one, and activations keep unit scale, finite in float16 over 30 steps. ``half``
    stores float16 weights.
    """
    modules = build(CONFIGS[config_name])
    generator = torch.Generator().manual_seed(seed)
    for module in modules.values():
        randomise(module, generator)
        if half:
            module.half()
    write(folder, config_name, modules)


def write_untrained(folder: Path, config_name: str, *, seed: int = 0, random: bool = False) -> None:
    """Write a checkpoint of a configuration to start training from, as its libraries initialise it.

    Raises ``CheckpointError`` for one that starts from published weights, unless it is to be ``random``.
    """
    if CONFIGS[config_name].published and not random:
        raise CheckpointError(
            f"{config_name} starts from published weights, and {folder} does not exist: make it with `uid-train init`; "
            "with random ones it would have no Stable Diffusion to start from",
            option="random",
        )
    torch.manual_seed(seed)
    write(folder, config_name, build(CONFIGS[config_name]))


def write(folder: Path, config_name: str, modules: Mapping[str, Any]) -> None:
    """Write the components, tokenizers, scheduler and index of an untrained checkpoint."""
    for name, module in modules.items():
        module.save_pretrained(folder / name)
    config = CONFIGS[config_name]
    write_tokenizers(folder)
    DDIMScheduler(**config.scheduler).save_pretrained(folder / "scheduler")
    write_index(folder, config_name, config, trained=False)


def rewrite(source: Path, folder: Path, change: Callable[[nn.Module], nn.Module]) -> None:
    """Write the checkpoint in ``source`` again with each module changed."""
    check_family(source)
    for name in MODULES:
        module: Any = change(load_module(source / name, class_of(source, name), allow_pickle=False))
        module.save_pretrained(folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        config.pop("_name_or_path", None)  # where it was loaded from is nobody's business
        (folder / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer", "qformer_tokenizer", "scheduler"):
        shutil.copytree(source / name, folder / name)
    shutil.copyfile(source / INDEX, folder / INDEX)


def mark_trained(folder: Path) -> None:
    """Say in the index that the weights are no longer random."""
    index = check_family(folder) | {"trained": True}
    with written_whole(folder / INDEX) as path:
        path.write_text(json.dumps(index, indent=2) + "\n")


def write_index(folder: Path, name: str, config: Config, *, trained: bool) -> None:
    """Write ``model_index.json``."""
    index = {
        "family": FAMILY,
        "name": name,
        "trained": trained,
        "steps": config.steps,
        "guidance": config.guidance,
        "qualities": config.qualities,
        "quality": config.quality,
        "tile": config.tile,
        "colour_fix": config.colour_fix,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def build(config: Config) -> dict[str, Any]:
    """Every component of a configuration, with its library's own initialisation."""
    unet = UNet2DConditionModel(**config.unet)
    width = config.q_former["hidden_size"]
    adapter_keys = (
        "block_out_channels",
        "down_block_types",
        "layers_per_block",
        "attention_head_dim",
        "norm_num_groups",
    )
    vae = VAES[config.vae_class](**config.vae)
    return {
        "image_encoder": CLIPVisionModel(CLIPVisionConfig(**config.image_encoder)),
        "structure_extractor": QFormer(queries=config.queries, text="structure", **config.q_former),
        "blur_extractor": QFormer(queries=config.queries, text="blur", window=config.blur_window, **config.q_former),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**config.text_encoder)),
        "adapter": Adapter(
            in_channels=2 * unet.config.in_channels,
            output_residual=config.output_residual,
            cross_attention_dim=width,
            **{key: unet.config[key] for key in adapter_keys},
        ),
        "unet": unet,
        "blur_projections": BlurProjections.for_unet(unet, blur_dim=width),
        "vae": vae,
        "vae_refiner": VAERefiner(
            block_out_channels=vae.config.block_out_channels,
            norm_num_groups=vae.config.norm_num_groups,
            **config.refiner,
        ),
    }


@torch.no_grad()
def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Fill every parameter: weights with variance 1 / fan-in, gains near one, biases near zero but not at it."""

    def normal(p: Tensor) -> Tensor:
        return torch.randn(p.shape, generator=generator)

    for name, p in module.named_parameters():
        if p.ndim >= 2:
            p.copy_(normal(p) / p[0].numel() ** 0.5)
        elif name.endswith("weight"):
            p.copy_(1.0 + 0.1 * normal(p))
        else:
            p.copy_(0.05 * normal(p))


def write_tokenizers(folder: Path) -> None:
    """A byte-level CLIP tokenizer without merges, and a BERT tokenizer of letters: any text, no trained vocabulary."""
    for name in ("tokenizer", "qformer_tokenizer"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    characters = sorted(ByteLevel.alphabet())
    words = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *letters, *("##" + c for c in letters), "structure", "blur"]
    (folder / "qformer_tokenizer" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
