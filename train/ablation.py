"""The paper's ablation at the size of one checkpoint: train each variant's diffusion anew, and measure it alike.

Every variant has the checkpoint's VAE and text encoder, starts from the same weights, trains for the same number of
steps on the same examples, and is judged in PyTorch on the held-out photos of ``uid.train.held_out``. Where
nothing pretrained is behind a configuration (``edge``), those are fresh weights of all that joint training changes.
Otherwise (``sd15``) they are the checkpoint's own, which joint training must not have changed yet: Stable Diffusion,
the adapter and the Q-Formers as they were put together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from uid.errors import CheckpointError
from uid.families.registry import read_index
from uid.families.uid_diff import checkpoint
from uid.families.uid_diff.model import UIDDiff
from uid.families.uid_diff.vae import RefinedDecoder, RefinedEncoder, VAERefiner
from uid.train.blur import RgbImage
from uid.train.diffusion import Joint
from uid.train.loop import TrainingSettings, train
from uid.train.presets import preset_of
from uid.train.stage import Choices


@dataclass(frozen=True)
class Variant:
    """What one row of the table leaves out."""

    name: str
    without: frozenset[str] = frozenset()  # of "Q_s", "T_2" and "T_3"
    refined: bool = True  # with the refined VAE, or the base VAE as it is


VARIANTS = (
    Variant("w/o Q_s", frozenset({"Q_s"})),
    Variant("w/o T_2, T_3", frozenset({"T_2", "T_3"})),
    Variant("w/o T_3", frozenset({"T_3"})),
    Variant("w/o r-VAE", refined=False),
    Variant("ours"),
)


def ablate(
    source: Path,
    folder: Path,
    examples: Dataset[Any],
    settings: TrainingSettings,
    variants: Sequence[Variant] = VARIANTS,
    report: Callable[[str], None] = print,
) -> Iterator[tuple[Variant, Callable[[RgbImage], RgbImage]]]:
    """Train each variant of the checkpoint ``source``; yields it with what deblurs by it, (H, W, 3) in [0, 1].

    Training resumes from ``folder``.
    """
    index = read_index(source)
    preset = preset_of(index["name"])
    if index["trained"] and not preset.backbone:
        raise CheckpointError(
            f"{source} is trained already, so every variant would start from what the whole method made; expected a "
            "checkpoint as it was before joint training"
        )
    choices = Choices(index["steps"], 1.0, preset.backbone, preset.visited)
    for variant in variants:
        report(f"training {variant.name}")
        model = checkpoint.load(source)
        if not variant.refined:
            without_refiners(model)
        stage = Joint(model, replace(choices, without=variant.without))
        if choices.backbone:
            for module in stage.trained.values():
                torch.manual_seed(settings.seed)
                renew(module)
        train(stage, examples, settings, folder / variant.name.replace("/", "").replace(" ", "-"), report)
        model.eval()
        yield variant, partial(deblurred, stage)


def renew(module: Any) -> None:
    """Give a component the weights that its library starts it with."""
    anew = getattr(type(module), "from_config", type(module))
    module.load_state_dict(anew(module.config).state_dict())


def without_refiners(model: UIDDiff) -> None:
    """Give a model the plain VAE: fresh refiners add nothing, and no pixels are handed over."""
    vae, config = model.encoder.vae, model.refiner.config
    levels = config.block_out_channels
    plain = VAERefiner(levels, config.hidden, (0,) * len(levels), norm_num_groups=config.norm_num_groups)
    plain.requires_grad_(False)
    model.refiner, model.encoder, model.decoder = plain, RefinedEncoder(vae, plain), RefinedDecoder(vae, plain)


@torch.inference_mode()
def deblurred(stage: Joint, blurred: RgbImage) -> RgbImage:
    """(H, W, 3) in [0, 1] -> the same, unguided, from the same noise for every variant."""
    image = torch.from_numpy(np.ascontiguousarray(blurred.transpose(2, 0, 1)))[None]
    sampled = stage.sampled(image.to(stage.model.text_encoder.device), [0])
    output: RgbImage = sampled[0].permute(1, 2, 0).cpu().numpy()
    return output
