"""DeblurDiff as a family: the published file, its modules, and the result that every backend is compared with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from uid.bundles.declarations import DOWN, ZEROS, Mode
from uid.bundles.tensors import STATE
from uid.bundles.values import TEXT, Rule, one_of
from uid.families import registry
from uid.families.contract import ExportComponent, Family, Model, Noises
from uid.families.deblurdiff import checkpoint, components
from uid.families.deblurdiff.configs import CONFIGS, GUIDANCE, SCHEDULE, SIZE_MULTIPLE, STEPS, TILE, Tiling
from uid.families.deblurdiff.model import Branch, Coefficients, DeblurDiff
from uid.families.deblurdiff.text import DEFAULT_NEGATIVE, DEFAULT_PROMPT, tokens
from uid.families.index import Rules, run_rules
from uid.runtime.schedule import coefficients

FAMILY = "deblurdiff"


class Features(NamedTuple):
    """What is computed once per image: both branches' latents and texts, the negative one first."""

    branches: list[Branch]
    start: Tensor | None = None  # the first latent, where it is not noise
    tiling: Tiling | None = None


class DeblurDiffModel(Model):
    """A DeblurDiff checkpoint."""

    size_multiple = SIZE_MULTIPLE
    schedule = SCHEDULE
    padding, rounding = ZEROS, DOWN

    def __init__(self, network: DeblurDiff, index: Mapping[str, Any], prompts: Tensor) -> None:
        self.module = self.network = network
        self.min_side, self.tiling = CONFIGS[index["config"]].min_side, CONFIGS[index["config"]].tiling
        self.index, self.prompts = index, prompts

    def components(self, precision: str, *, shortcuts: bool = False) -> list[ExportComponent]:
        """Encoder, the step with guidance and without, decoder, for each mode that the checkpoint names."""
        return components.declare(self.network, precision, self.index["modes"], self.tiling)

    def modes(self, components_: Sequence[ExportComponent]) -> dict[str, Mode]:
        """Those that the checkpoint names."""
        index = self.index
        return components.modes(index["modes"], components_, index["prompt"], index["negative_prompt"])

    def constants(self) -> dict[str, Tensor]:
        """The embeddings of both prompts."""
        return {components.PROMPTS: self.prompts}

    def prepare(self, mode: str, images: Mapping[str, Tensor], noise: Noises) -> Features:
        """A sample of the image's latent for each branch, and the texts."""
        image, start = images["image"], None
        tiling = self.tiling if mode == components.TILED else None
        mean, log_variance = self.network.moments(image, tiling)
        if mode == components.BETTER_START:
            start = self.network.better_start(image, *(noise[name] for name in components.START_NOISE))
        drawn = [noise.get(name) for name in reversed(components.POSTERIOR_NOISE)]
        samples = [self.network.sampled(mean, log_variance, one) for one in drawn]
        texts = [text.expand(len(image), -1, -1) for text in self.prompts.split(1)]
        return Features(list(map(Branch, samples, texts)), start, tiling)

    def denoise(self, features: Features, noise: Noises, steps: int, guidance: float) -> Tensor:
        """Every step of spaced DDPM from the noise to the latent."""
        x = noise[STATE] if features.start is None else features.start
        scale = None if guidance == 1.0 else x_like(x, guidance)
        branches = features.branches[1:] if scale is None else features.branches
        for row, own in zip(coefficients(SCHEDULE, steps), noise["step_noise"], strict=True):
            values = Coefficients(**{name: x_like(x, value) for name, value in row})
            x = self.network.step(x, branches, values, own, scale, features.tiling)
        return x

    def finish(self, features: Features, state: Tensor | None) -> Tensor:
        """The image of a latent, before its colours are fixed."""
        assert state is not None, "the loop ran"
        return self.network.decode(state, features.tiling)

    def to(self, device: torch.device) -> None:
        """Move the networks and the texts to a device."""
        super().to(device)
        self.prompts = self.prompts.to(device)

    def compiled_parts(self) -> Sequence[nn.Module]:
        """The parts that deblurring calls."""
        return [self.network.vae.encoder, self.network.denoiser, self.network.vae.decoder]


def x_like(x: Tensor, value: float) -> Tensor:
    """A number as (1,), with the dtype and device of ``x``."""
    return x.new_tensor([value])


class DeblurDiffFamily(Family):
    """Checkpoints of DeblurDiff: the published file, or a folder with an index and the same weights as safetensors."""

    def file_index(self, file: Path) -> dict[str, Any]:
        """The published model's."""
        return index_of("deblurdiff", trained=True)

    def rules(self, index: Mapping[str, Any]) -> Rules:
        """Of what the published model has: its sampler, its sizes, its prompts and modes."""
        config = index.get("config", "deblurdiff")
        min_side = CONFIGS[config].min_side if isinstance(config, str) and config in CONFIGS else SIZE_MULTIPLE
        own = {"config": one_of(list(CONFIGS)), "prompt": TEXT, "negative_prompt": TEXT, "modes": MODES_RULE}
        return own | run_rules(SCHEDULE, SIZE_MULTIPLE, min_side)

    def load(self, folder: Path, *, allow_pickle: bool = False) -> DeblurDiffModel:
        """Load a checkpoint; a pickled file is always read with ``weights_only=True``."""
        index = index_of("deblurdiff", trained=True) | registry.read_index(folder)
        config = CONFIGS[index["config"]]
        vocabulary = config.text_encoder["vocab_size"]
        ids = [tokens(index[key], folder, vocabulary) for key in ("negative_prompt", "prompt")]
        network = checkpoint.loaded(config, checkpoint.read(folder), str(folder))
        prompts = components.prompts(network, *ids)
        network.run_in_windows()
        return DeblurDiffModel(network, index, prompts)

    def convert(self, file: Path, folder: Path) -> None:
        """Write the published file to ``folder`` as safetensors, once its tensors are checked."""
        weights = checkpoint.read(file)
        checkpoint.loaded(CONFIGS["deblurdiff"], weights, str(file))
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, folder / checkpoint.WEIGHTS)
        write_index(folder, self.file_index(file))

    def write_random(self, folder: Path, config: str, *, seed: int = 0, half: bool = False) -> None:
        """Write a seeded random checkpoint with the published names: weights of variance 1 / fan-in."""
        with torch.device("meta"):
            shapes = {one.key: one.shape for one in checkpoint.sources(DeblurDiff(CONFIGS[config])).values()}
        generator = torch.Generator().manual_seed(seed)
        weights = {key: random_weight(key, shape, generator) for key, shape in shapes.items()}
        save_file({key: one.half() if half else one for key, one in weights.items()}, folder / checkpoint.WEIGHTS)
        write_index(folder, index_of(config, trained=False))


def are_modes(names: Any) -> bool:
    """Whether these are modes that a bundle can have, each once."""
    known = list(components.MODES)
    return isinstance(names, list) and bool(names) and all(name in known and names.count(name) == 1 for name in names)


MODES_RULE = Rule(f"a list of some of {', '.join(components.MODES)}", are_modes)


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Write ``model_index.json``."""
    (folder / registry.INDEX).write_text(json.dumps(index, indent=2) + "\n")


def index_of(config: str, *, trained: bool) -> dict[str, Any]:
    """The index of a checkpoint, with the original's defaults."""
    return {
        "family": FAMILY,
        "name": config,
        "config": config,
        "trained": trained,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "tile": TILE,
        "modes": [components.DEBLUR],
        "prompt": DEFAULT_PROMPT,
        "negative_prompt": DEFAULT_NEGATIVE,
    }


def random_weight(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights with variance 1 / fan-in, gains near one, biases near zero but not at it."""
    values = torch.randn(shape, generator=generator)
    if len(shape) >= 2:
        return values / values[0].numel() ** 0.5
    return 1.0 + 0.1 * values if key.endswith("weight") else 0.05 * values
