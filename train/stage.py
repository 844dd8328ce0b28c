"""What a stage of training is: which components it trains, its loss on a batch, and images to look at."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = Mapping[str, Any]  # images by name, (B, 3, H, W) float32 in [0, 1], and "key": a whole number for each example


@dataclass(frozen=True)
class Choices:
    """What the diffusion's stages are told: how the checkpoint is run, and in what its training differs from the paper.

    The defaults are the paper's.
    """

    steps: int = 30  # denoising steps of the checkpoint
    guidance: float = 7.5  # its guidance scale
    backbone: bool = False  # T_1 and the joint stage train U-Net and image encoder too
    visited: float = 0.0  # share of examples at one of the timesteps that the sampler visits; the rest at any
    structured_transfer: bool = False  # T_2 sees the structure of its own target too
    without: frozenset[str] = frozenset()  # of "Q_s", "T_2" and "T_3": what an ablation leaves out


class Stage(nn.Module):
    """All of ``model`` is frozen but ``trained``, the components that change, by name.

    A stage holds the parts of the model that it runs, and so only those go to the device.
    """

    def __init__(self, model: nn.Module, trained: dict[str, nn.Module]) -> None:
        super().__init__()
        model.requires_grad_(False)
        self.trained = trained
        for module in trained.values():
            module.requires_grad_(True)

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses by name, each a mean over the examples; "loss" is what is minimised."""

    @abstractmethod
    def sheet(self, batch: Batch) -> Tensor:
        """Images to look at, (rows, columns, 3, H, W) in [0, 1]."""

    def finish(self, examples: Iterable[Batch]) -> None:
        """What is left to do after the last step."""


class Draws:
    """Random numbers for a batch. Each example's follow from its own key.

    So they do not depend on how examples are put together into batches and shared out to processes. With ``times``,
    every example draws that often: the first draws of all examples come first, then the second ones.
    """

    def __init__(self, keys: Sequence[int], device: torch.device, times: int = 1) -> None:
        self.generators = [torch.Generator().manual_seed(key) for key in keys]
        self.device, self.times = device, times

    def normal(self, shape: Sequence[int]) -> Tensor:
        """(times * B, *shape) of standard deviation 1, float32."""
        drawn = [torch.randn((self.times, *shape), generator=generator) for generator in self.generators]
        return self._gathered(drawn)

    def uniform(self) -> Tensor:
        """(times * B,) in [0, 1)."""
        return self._gathered([torch.rand(self.times, generator=generator) for generator in self.generators])

    def below(self, high: int) -> Tensor:
        """(times * B,) whole numbers from 0 to ``high`` - 1."""
        return self._gathered([torch.randint(high, (self.times,), generator=g) for g in self.generators])

    def _gathered(self, drawn: list[Tensor]) -> Tensor:
        return torch.stack(drawn, dim=1).flatten(0, 1).to(self.device)
