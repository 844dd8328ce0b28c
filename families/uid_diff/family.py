"""UID-Diff as a family: its checkpoints, its modes and the result that every backend is compared with."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from uid.bundles.declarations import COLOUR_FIXES, DDIM, Mode
from uid.bundles.tensors import STATE
from uid.bundles.values import one_of
from uid.families.contract import ExportComponent, Family, Model, Noises
from uid.families.index import REQUIRED, Rules
from uid.families.uid_diff import checkpoint, components
from uid.families.uid_diff.components import PROMPTS
from uid.families.uid_diff.model import Conditions, UIDDiff

SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
)


class Features(NamedTuple):
    """What is computed once per image."""

    conditions: Conditions
    skips: list[Tensor]  # of the refined VAE


class UIDDiffModel(Model):
    """A UID-Diff checkpoint."""

    def __init__(self, network: UIDDiff, index: Mapping[str, Any]) -> None:
        self.module = self.network = network
        self.index = index
        self.size_multiple = network.size_multiple
        self.schedule = {"sampler": DDIM, **{key: network.scheduler.config[key] for key in SCHEDULE_KEYS}}
        self.guided = float(index["guidance"]) != 1.0  # at scale 1 the unconditional branch changes nothing
        with torch.inference_mode():
            self.prompts = {mode: network.prompts(prompt) for mode, prompt in PROMPTS.items()}

    def components(self, precision: str, *, shortcuts: bool = False) -> list[ExportComponent]:
        """Every component; without guidance the step computes the conditional branch alone."""
        return components.declare(self.network, precision, guided=self.guided, shortcuts=shortcuts)

    def modes(self, components_: Sequence[ExportComponent]) -> dict[str, Mode]:
        """Deblurring, and blur transfer, which reads ``blur_image`` too."""
        return components.modes(components_, self.index["colour_fix"])

    def constants(self) -> dict[str, Tensor]:
        """The prompts' embeddings: the empty prompt's and the mode's, or the mode's alone."""
        return {
            f"prompt.{mode}": embeddings if self.guided else embeddings[1:] for mode, embeddings in self.prompts.items()
        }

    def prepare(self, mode: str, images: Mapping[str, Tensor], noise: Noises) -> Features:
        """Latent, skips and features of ``image``, and of ``blur_image`` where the mode has it."""
        network, dtype = self.network, self.network.encoder.vae.dtype
        z_y, skips = network.encoder(images["image"].to(dtype))
        f_b = network.blur(images["blur_image"]) if "blur_image" in images else None
        f_s = network.structure(images["image"])
        return Features(Conditions(z_y, f_s, self.prompts[mode].to(z_y), f_b), skips)

    def denoise(self, features: Features, noise: Noises, steps: int, guidance: float) -> Tensor:
        """Every DDIM step from the noise to the latent."""
        return self.network.denoise(noise[STATE], features.conditions, steps, guidance)

    def finish(self, features: Features, state: Tensor | None) -> Tensor:
        """The image of a latent."""
        assert state is not None, "the loop ran"
        return self.network.decoder(state.to(features.conditions.z_y.dtype), features.skips)

    def to(self, device: torch.device) -> None:
        """Move the network, the prompts and the schedule to a device."""
        super().to(device)
        self.prompts = {mode: embeddings.to(device) for mode, embeddings in self.prompts.items()}
        scheduler = self.network.scheduler
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.to(device)

    def compiled_parts(self) -> Sequence[nn.Module]:
        """The parts that deblurring calls."""
        network = self.network
        return [network.structure, network.encoder, network.step, network.decoder]


class UIDDiffFamily(Family):
    """Checkpoints of UID-Diff, folders in the diffusers layout."""

    required = (*REQUIRED, "steps", "guidance")

    def rules(self, index: Mapping[str, Any]) -> Rules:
        """Of the colour fix."""
        return {"colour_fix": one_of(COLOUR_FIXES)}

    def load(self, folder: Path, *, allow_pickle: bool = False) -> UIDDiffModel:
        """Load a checkpoint."""
        return UIDDiffModel(checkpoint.load(folder, allow_pickle=allow_pickle), checkpoint.check_family(folder))

    def write_random(self, folder: Path, config: str, *, seed: int = 0, half: bool = False) -> None:
        """Write a seeded random checkpoint."""
        checkpoint.write_random(folder, config, seed=seed, half=half)

    def rewrite(self, source: Path, folder: Path, change: Callable[[nn.Module], nn.Module]) -> None:
        """Write a checkpoint again with each module changed."""
        checkpoint.rewrite(source, folder, change)
