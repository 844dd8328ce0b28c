"""A checkpoint assembled from published weights: each tensor is taken from a file, or made so that it adds nothing yet.

The adapter is a copy of the U-Net's encoder whose outputs are zero, as ControlNets start (Zhang et al., 2023). Of its
first convolution the half that reads z_y is zero too. W'_k of eq. 5 are the U-Net's own keys, and W'_v zero. Both
Q-Formers are BLIP-Diffusion's. So the first step of training begins at Stable Diffusion itself.
"""

import csv
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTokenizer

from uid.errors import CheckpointError, OutputError
from uid.families.uid_diff import checkpoint, published
from uid.families.uid_diff.configs import Config
from uid.families.uid_diff.published import NETWORKS
from uid.families.uid_diff.vae import VAERefiner
from uid.families.weight_folders import read_folder

TAKEN, MADE, LEFT = "taken", "made", "left"
ORIGINS = "origins.csv"  # in the checkpoint: a row for each tensor
# Components, and the networks that they are taken from, in groups that are in memory together.
GROUPS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("unet", "adapter", "blur_projections"), ("unet",)),
    (("vae",), ("vae",)),
    (("text_encoder",), ("text_encoder",)),
    (("image_encoder", "structure_extractor", "blur_extractor"), ("clip", "q_former")),
    (("vae_refiner",), ()),
)
WHOLE = {"unet": "unet", "vae": "vae", "text_encoder": "text_encoder", "image_encoder": "clip", "adapter": "unet"}
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")
# Of the tokenizer that BLIP-Diffusion is used with, and published without.
VOCABULARY = Path(__file__).with_name("bert-base-uncased.txt")
SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
SEED = 0  # of the refiners' first convolutions, the only random numbers


@dataclass(frozen=True)
class Given:
    """Folders of published models."""

    stable_diffusion: Path
    clip: Path
    q_former: Path

    def folder(self, network: str) -> Path:
        """Where a network lies; raises ``CheckpointError`` where it does not."""
        return published.place(NETWORKS[network], self.root(network))

    def root(self, network: str) -> Path:
        """The folder that was given for a network."""
        return {"clip": self.clip, "qformer": self.q_former}.get(NETWORKS[network].option, self.stable_diffusion)


class Row(NamedTuple):
    """What became of a tensor."""

    component: str  # of the checkpoint; "" where nothing is made of it
    tensor: str  # its name there, or in the file
    how: str  # taken, made, left
    source: str  # the option, the file and the name in it; or how it was made


class Weights:
    """The tensors of a network, on the disk still where the file allows it."""

    def __init__(self, network: str, given: Given) -> None:
        self.network, self.folder = network, given.folder(network)
        parts = read_folder(self.folder, NETWORKS[network].stems)
        root, option = given.root(network), NETWORKS[network].option
        self.tensors = {key: tensor for part in parts.values() for key, tensor in part.items()}
        self.files = {key: f"{option}: {file.relative_to(root)}" for file, part in parts.items() for key in part}

    def key(self, name: str) -> str:
        """The key of a weight, by its name in the module that takes it."""
        names = published.keys(self.network, name)
        return next((key for key in names if key in self.tensors), names[0])


def assemble(folder: Path, given: Given, name: str, config: Config) -> list[Row]:
    """Write a checkpoint of a configuration, called ``name``, into an empty folder; what became of each tensor.

    Weights have the dtype that they are published in. The networks of one group are in memory at a time, as far as the
    system maps their files. Raises ``CheckpointError`` before anything large is written, and ``OutputError``.
    """
    with torch.device("meta"):  # no memory, and no random numbers, for weights that are replaced
        modules = checkpoint.build(config)
    wanted = {(part, key): origin(part, key, modules) for part, one in modules.items() for key in one.state_dict()}
    for network in NETWORKS:
        published.check_config(NETWORKS[network], given.folder(network), config)
    write_tokenizers(folder, given, config)
    write_scheduler(folder, given, config)
    rows = [row for network in NETWORKS for row in checked(Weights(network, given), modules, wanted, config)]
    for components, networks in GROUPS:
        weights = {network: Weights(network, given) for network in networks}
        for component in components:
            tensors, origins = assembled(component, modules[component], weights, wanted)
            save(modules.pop(component), tensors, folder / component)
            rows += origins
    checkpoint.write_index(folder, name, config, trained=False)
    write_rows(folder / ORIGINS, rows)
    return rows


def origin(component: str, name: str, modules: Mapping[str, Any]) -> tuple[str, str] | None:
    """The network that a tensor of a component is taken from, and its name there; None: it is made."""
    if component in ("structure_extractor", "blur_extractor"):
        return "q_former", name
    if component == "image_encoder" and "post_layernorm" in name:  # BLIP-2 trained its own
        return "q_former", name
    if component == "blur_projections":
        kind, number, rest = name.split(".")
        attentions = [one for one, _ in modules["unet"].named_modules() if one.endswith("attn2")]
        return ("unet", f"{attentions[int(number)]}.to_k.{rest}") if kind == "to_k" else None
    if component == "adapter" and (name.startswith("controlnet_") or name == "conv_in.weight"):
        return None
    return (WHOLE[component], name) if component in WHOLE else None


Wanted = Mapping[tuple[str, str], tuple[str, str] | None]


def checked(weights: Weights, modules: Mapping[str, Any], wanted: Wanted, config: Config) -> list[Row]:
    """The rows of the tensors that are left; raises ``CheckpointError`` unless the others are as they should be."""
    shapes = {
        weights.key(source[1]): tuple(modules[component].state_dict()[name].shape)
        for (component, name), source in wanted.items()
        if source is not None and source[0] == weights.network
    }
    published.check_weights(NETWORKS[weights.network], config, weights.tensors, shapes, weights.folder)
    left = sorted(set(weights.tensors) - set(shapes))
    return [Row("", key, LEFT, f"{weights.files[key]}: {key}") for key in left]


def assembled(
    component: str, module: Any, weights: Mapping[str, Weights], wanted: Wanted
) -> tuple[dict[str, Tensor], list[Row]]:
    """The tensors of a component, and what each is."""
    tensors, rows = {}, []
    new = made(component, module, weights)
    for name in module.state_dict():
        source = wanted[component, name]
        if source is None:
            tensors[name], how = new[name]
            rows.append(Row(component, name, MADE, how))
        else:
            network = weights[source[0]]
            key = network.key(source[1])
            tensors[name] = network.tensors[key]
            rows.append(Row(component, name, TAKEN, f"{network.files[key]}: {key}"))
    return tensors, rows


def made(component: str, module: Any, weights: Mapping[str, Weights]) -> dict[str, tuple[Tensor, str]]:
    """The tensors of a component that no file has, each with how it is made."""
    if component == "vae_refiner":
        torch.manual_seed(SEED)
        refiner = VAERefiner.from_config(module.config)
        return {name: (tensor, "as an identity") for name, tensor in refiner.state_dict().items()}
    if "unet" not in weights:
        return {}
    first = weights["unet"].tensors["conv_in.weight"]
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    zero = {name: (torch.zeros(shape, dtype=first.dtype), "zeros") for name, shape in shapes.items() if is_new(name)}
    if component == "adapter":
        zero["conv_in.weight"] = torch.cat([first, torch.zeros_like(first)], 1), "the U-Net's for x_t, zeros for z_y"
    return zero


def is_new(name: str) -> bool:
    """Whether a tensor of the adapter, or of W'_k and W'_v, stands where the U-Net has none."""
    return name.startswith(("controlnet_", "to_v."))


def save(module: Any, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write a component; the module has its weights no longer than that."""
    module.load_state_dict(dict(tensors), assign=True)
    try:
        module.save_pretrained(folder)
    except SafetensorError as error:
        raise OutputError(f"cannot write {folder.name}: {error}; it takes {needed(tensors)} GB") from error


def needed(tensors: Mapping[str, Tensor]) -> str:
    """GB of tensors."""
    return f"{sum(one.nbytes for one in tensors.values()) / 1e9:.1f}"


def write_tokenizers(folder: Path, given: Given, config: Config) -> None:
    """Copy Stable Diffusion's tokenizer, and BERT's vocabulary; raises ``CheckpointError`` for another tokenizer."""
    bert, own = folder / "qformer_tokenizer", folder / "tokenizer"
    for path in (bert, own):
        path.mkdir()
    shutil.copyfile(VOCABULARY, bert / "vocab.txt")
    source, vocabulary = given.stable_diffusion / "tokenizer", config.text_encoder["vocab_size"]
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, own / name)
    try:
        words = len(checkpoint.load_tokenizer(own, CLIPTokenizer, vocabulary).get_vocab())
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(own), str(source))) from error
    if words < vocabulary:
        raise CheckpointError(
            f"{source} has a tokenizer with {words} words; expected {vocabulary}: get Stable Diffusion 1.5's"
        )


def write_scheduler(folder: Path, given: Given, config: Config) -> None:
    """Write the sampler, on the schedule that Stable Diffusion was trained with."""
    path = given.stable_diffusion / "scheduler" / "scheduler_config.json"
    found = {"prediction_type": "epsilon"} | published.read_values(path)  # which old files do not say
    expected = {key: config.scheduler[key] for key in SCHEDULE}
    published.check_values(found, expected, path, published.STABLE_DIFFUSION)
    DDIMScheduler(**config.scheduler).save_pretrained(folder / "scheduler")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write what became of each tensor as CSV."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([Row._fields, *rows])


def summary(rows: Sequence[Row]) -> list[str]:
    """A line for each component, and one for each file of which something is left."""
    lines = []
    for component in dict.fromkeys(row.component for row in rows if row.component):
        own = [row for row in rows if row.component == component]
        counts = {how: sum(row.how == how for row in own) for how in (TAKEN, MADE)}
        files = dict.fromkeys(row.source.rpartition(": ")[0] for row in own if row.how == TAKEN)
        lines.append(
            f"{component:20}{counts[TAKEN]:5} taken {counts[MADE]:4} made{'  ' if files else ''}{', '.join(files)}"
        )
    for file in dict.fromkeys(row.source.rpartition(": ")[0] for row in rows if row.how == LEFT):
        count = sum(row.how == LEFT and row.source.startswith(f"{file}: ") for row in rows)
        lines.append(f"{'not used':20}{count:5} left{'':13}{file}")
    return lines
