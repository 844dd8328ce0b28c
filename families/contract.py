"""What a model family offers: checkpoints that load, components to export, and the PyTorch result to compare with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uid.bundles.declarations import NEAREST, REFLECT, Component, Mode
from uid.errors import CheckpointError
from uid.families.index import REQUIRED, Rules, check_index, common_rules

Noises = Mapping[str, Tensor]
"""A mode's noise by name, as ``uid.runtime.noise`` has it: that of each step has an axis of the steps in front."""


@dataclass(frozen=True)
class ExportComponent:
    """A component's declaration beside the PyTorch module it is exported from."""

    declaration: Component
    module: nn.Module  # flat tensors in, flat tensors out, in the declared order
    translations: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)  # of its own operators, to ONNX


class Model(ABC):
    """A loaded checkpoint, in float32 on the CPU."""

    index: Mapping[str, Any]  # the checkpoint's ``model_index.json``
    module: nn.Module  # all that has weights
    size_multiple: int  # image height and width are multiples of this
    schedule: Mapping[str, Any] = {}  # as a bundle's manifest holds it; empty without a denoising loop
    # As a bundle's manifest holds them.
    padding: str = REFLECT
    rounding: str = NEAREST
    min_side: int = 1
    max_side: int | None = None

    @abstractmethod
    def components(self, precision: str, *, shortcuts: bool = False) -> list[ExportComponent]:
        """Every component; features between them have ``precision`` ("fp32" or "fp16").

        ``shortcuts`` adds the steps of a feature cache and without guidance, where the family has them.
        """

    @abstractmethod
    def modes(self, components: Sequence[ExportComponent]) -> dict[str, Mode]:
        """The modes, the first being the default, with the components that each runs."""

    @abstractmethod
    def constants(self) -> dict[str, Tensor]:
        """The constant inputs by key, in float32."""

    @abstractmethod
    def prepare(self, mode: str, images: Mapping[str, Tensor], noise: Noises) -> Any:
        """The features of a mode's images, (B, 3, H, W) in [0, 1] by name; passed on to ``denoise`` and ``finish``."""

    def denoise(self, features: Any, noise: Noises, steps: int, guidance: float) -> Tensor | None:
        """The whole loop, to the last state; None where the family has no loop."""
        return None

    @abstractmethod
    def finish(self, features: Any, state: Tensor | None) -> Tensor:
        """The output image, (B, 3, H, W), from the last state."""

    @torch.inference_mode()
    def sample(self, mode: str, images: Mapping[str, Tensor], noise: Noises, steps: int, guidance: float) -> Tensor:
        """The output image of a mode, before any colour fix: the oracle for parity."""
        features = self.prepare(mode, images, noise)
        return self.finish(features, self.denoise(features, noise, steps, guidance))

    def half(self) -> None:
        """Make the weights float16."""
        self.module.half()

    def to(self, device: torch.device) -> None:
        """Move everything that computes to a device."""
        self.module.to(device)

    def compiled_parts(self) -> Sequence[nn.Module]:
        """The modules that are worth compiling, each called once per image or step."""
        return [self.module]


class Family(ABC):
    """One kind of model, as its checkpoints are stored."""

    required: tuple[str, ...] = REQUIRED  # keys of the index that must be there

    @abstractmethod
    def load(self, folder: Path, *, allow_pickle: bool = False) -> Model:
        """Load a checkpoint; raises ``CheckpointError`` where it is incomplete or of another family.

        Pickled weights are read with ``weights_only=True`` alone, which runs no code of theirs. A family whose
        checkpoints are published as safetensors refuses them unless ``allow_pickle``; one whose published file is
        itself a pickle reads it either way.
        """

    def rules(self, index: Mapping[str, Any]) -> Rules:
        """What values of the index must be, beside ``common_rules`` or in their place."""
        return {}

    def check_index(self, index: Mapping[str, Any], where: object) -> None:
        """Raise ``CheckpointError`` for an index that no bundle can be made of; ``where``: what has it."""
        check_index(index, common_rules(index) | dict(self.rules(index)), self.required, where)

    def file_index(self, file: Path) -> dict[str, Any]:
        """The index of a checkpoint that is one file."""
        raise CheckpointError(f"{file} is a file; expected a folder, as this family's checkpoints are")

    def convert(self, file: Path, folder: Path) -> None:
        """Write a checkpoint that is one file to ``folder`` as safetensors, with an index that may be edited."""
        raise CheckpointError(f"this family has no checkpoints that are one file: {file}")

    def write_random(self, folder: Path, config: str, *, seed: int = 0, half: bool = False) -> None:
        """Write a seeded random checkpoint of a configuration; ``half`` stores float16 weights."""
        raise CheckpointError(f"this family writes no random checkpoints, so none of {config!r}")

    def rewrite(self, source: Path, folder: Path, change: Callable[[nn.Module], nn.Module]) -> None:
        """Write the checkpoint in ``source`` to ``folder`` with each module changed."""
        raise CheckpointError(
            f"checkpoints of this family are not rewritten, to float16 or to 8 bits: {source}; for a float16 bundle "
            "export it as it is, by `uid-export bundle` or `uid-export restorer` with --precision fp16"
        )
