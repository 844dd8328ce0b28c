"""What a run needs to go on: the weights that train, their moving average, the optimizer; and how it is stored.

A state is a folder of accelerate's, ``state-NNNNNNNN`` by the number of steps done. It appears whole or not at all.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from uid.errors import OutputError
from uid.train.stage import Stage

if TYPE_CHECKING:
    from accelerate import Accelerator

WEIGHTS, EARLIER = "trained.safetensors", "state.pt"  # EARLIER: what version 0.2 wrote


class Average:
    """The weights that train and their moving average, on their device.

    It forgets faster at first, when they are still far off.
    """

    def __init__(self, stage: Stage, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p for name, p in stage.named_parameters() if p.requires_grad}
        self.values = {name: p.detach().clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        share = 1.0 - min(self.decay, (1.0 + step) / (10.0 + step))
        torch._foreach_lerp_(list(self.values.values()), list(self.weights.values()), share)

    @torch.no_grad()
    def exchange(self) -> None:
        """Weights and average change places."""
        for name, value in self.values.items():
            held = self.weights[name].detach().clone()
            self.weights[name].copy_(value)
            value.copy_(held)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The stage with the average for its weights."""
        self.exchange()
        yield
        self.exchange()


class Store:
    """The states in ``folder``, of which there is one between two calls. Every process calls its methods."""

    def __init__(self, folder: Path, accelerator: "Accelerator", average: Average) -> None:
        if (folder / EARLIER).is_file():
            raise OutputError(
                f"{folder / EARLIER} is the state of an earlier version's training, which this one cannot go on from; "
                "finish with that version, or remove the file to start again"
            )
        self.folder, self.accelerator, self.average = folder, accelerator, average
        accelerator.register_save_state_pre_hook(self._write_weights)
        accelerator.register_load_state_pre_hook(self._read_weights)

    def save(self, step: int) -> None:
        """Store the state after ``step`` steps, in place of the one before."""
        main, wait = self.accelerator.is_main_process, self.accelerator.wait_for_everyone
        new, old = self.folder / ".state.new", self._states()
        if main:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
        wait()
        self.accelerator.save_state(str(new))
        wait()
        if main:
            new.rename(self.folder / f"state-{step:08d}")
            for state in old:
                shutil.rmtree(state)
        wait()

    def load(self) -> int:
        """Go back to the last state, if there is one; returns the number of steps done."""
        states = self._states()
        if not states:
            return 0
        self.accelerator.load_state(str(states[-1]))
        self.accelerator.step = 0  # batches since the last step, of which a state has none
        return int(states[-1].name.partition("-")[2])

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("state-*"))

    def _write_weights(self, models: list[Any], weights: list[dict[str, Tensor]], folder: str) -> None:
        """Store what trains, instead of all of the model."""
        weights.clear()
        if self.accelerator.is_main_process:
            tensors = {f"weights.{name}": p.detach() for name, p in self.average.weights.items()}
            tensors |= {f"average.{name}": value for name, value in self.average.values.items()}
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(folder) / WEIGHTS)

    @torch.no_grad()
    def _read_weights(self, models: list[Any], folder: str) -> None:
        models.clear()
        with safe_open(Path(folder) / WEIGHTS, "pt") as tensors:
            for name, p in self.average.weights.items():
                p.copy_(tensors.get_tensor(f"weights.{name}"))
                self.average.values[name].copy_(tensors.get_tensor(f"average.{name}"))
