"""The training loop that every stage shares: accelerate, exact resume, losses to CSV and TensorBoard, sample sheets.

Nothing is carried from step to step but weights, their average and optimizer state: examples and noise follow from the
seed and the step's number. So a run that was killed goes on from its last checkpoint exactly as it would have gone.
"""

import csv
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from uid.bundles.files import written_whole

Batch = Mapping[str, Tensor]
STATE = "state.pt"


@dataclass(frozen=True)
class TrainingSettings:
    """How one stage is trained."""

    steps: int
    batch: int = 8
    learning_rate: float = 3e-4
    seed: int = 0
    save_every: int = 250  # steps between checkpoints, and so the most that a kill can lose
    sheet_every: int = 1000  # steps between sample sheets
    warm_up: int = 100  # steps over which the learning rate rises
    workers: int = 1  # processes that make examples
    average: float = 0.999  # decay of the weights' moving average, which is what a stage gives in the end
    mixed_precision: str = "no"  # "no", "bf16" or "fp16", as accelerate names them


class Stage(nn.Module):
    """What one stage trains and how it is judged; parameters that are frozen have ``requires_grad`` False."""

    name: str
    trained: dict[str, nn.Module]  # the checkpoint's components that change, by name

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses by name; "loss" is what is minimised."""

    @abstractmethod
    def sheet(self, batch: Batch) -> Tensor:
        """Images to look at, (rows, columns, 3, H, W) in [0, 1]."""


def train(
    stage: Stage,
    examples: Dataset[Any],
    settings: TrainingSettings,
    folder: Path,
    report: Callable[[str], None] = print,
) -> None:
    """Train ``stage`` to ``settings.steps`` in ``folder``, going on from the checkpoint there if there is one.

    Leaves the average of the weights in ``stage``. Writes ``state.pt`` (weights that train, their average, optimizer,
    step), ``losses.csv``, TensorBoard events in ``events/`` and ``sheet-NNNNNN.png``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    trained = [p for p in stage.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)
    average = Average(stage, settings.average)
    start = resume(stage, average, optimizer, folder)
    model, optimizer = accelerator.prepare(stage, optimizer)
    log = Log(folder, start, settings.steps, report)
    for step, batch in batches(examples, settings, start, accelerator):
        torch.manual_seed(settings.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        with accelerator.autocast():
            losses = model(batch)
        accelerator.backward(losses["loss"])
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(step)
        if accelerator.is_main_process:
            log.add(step, {name: value.item() for name, value in losses.items()})
            last = step + 1 == settings.steps
            if last or (step + 1) % settings.save_every == 0:
                save(stage, average, optimizer, step + 1, folder)
            if last or (step + 1) % settings.sheet_every == 0:
                with average.applied():
                    write_sheet(stage, batch, folder / f"sheet-{step + 1:06d}.png")
    log.close()
    average.exchange()


def batches(
    examples: Dataset[Any], settings: TrainingSettings, start: int, accelerator: Accelerator
) -> Iterator[tuple[int, Batch]]:
    """Every remaining step's number and batch, on the training device."""
    order = range(start * settings.batch, settings.steps * settings.batch)
    loader = DataLoader(
        examples, settings.batch, sampler=order, num_workers=settings.workers, persistent_workers=settings.workers > 0
    )
    yield from enumerate(accelerator.prepare(loader), start)


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """Linear warm-up, constant, and over the last quarter of the steps down to a hundredth.

    It does not depend on the number of steps before that quarter, so that a run may still be made longer there.
    """
    rise = (step + 1) / settings.warm_up if settings.warm_up else 1.0
    fall = 4.0 * (settings.steps - step) / settings.steps
    return settings.learning_rate * min(1.0, rise, max(fall, 0.01))


class Average:
    """The moving average of the weights that train; it forgets faster at first, when they are still far off."""

    def __init__(self, stage: Stage, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p for name, p in stage.named_parameters() if p.requires_grad}
        self.values = {name: p.detach().clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        share = 1.0 - min(self.decay, (1.0 + step) / (10.0 + step))
        for name, value in self.values.items():
            value.lerp_(self.weights[name].to(value.device), share)

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


def save(stage: Stage, average: Average, optimizer: Any, step: int, folder: Path) -> None:
    """Write the checkpoint, weights and optimizer in one file, so that they are always of one step."""
    weights = {name: p.detach() for name, p in stage.named_parameters() if p.requires_grad}
    state = {"step": step, "weights": weights, "average": average.values, "optimizer": optimizer.state_dict()}
    with written_whole(folder / STATE) as path:
        torch.save(state, path)


def resume(stage: Stage, average: Average, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Load the checkpoint in ``folder``, if any; returns the number of steps done."""
    if not (folder / STATE).is_file():
        return 0
    state = torch.load(folder / STATE, weights_only=True, map_location="cpu")
    own = dict(stage.named_parameters())
    with torch.no_grad():
        for name, value in state["weights"].items():
            own[name].copy_(value)
        for name, value in state["average"].items():
            average.values[name].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def write_sheet(stage: Stage, batch: Batch, path: Path) -> None:
    """A PNG of the stage's images side by side, one row per example."""
    stage.eval()
    with torch.inference_mode():
        rows = stage.sheet(batch).float().clamp(0.0, 1.0).cpu().numpy()
    stage.train()
    pixels = np.concatenate([np.concatenate(list(row), axis=2) for row in rows], axis=1).transpose(1, 2, 0)
    with written_whole(path) as temporary:
        cv2.imwrite(str(temporary), np.rint(255.0 * pixels[:, :, ::-1]).astype(np.uint8))


class Log:
    """Losses to ``losses.csv`` and TensorBoard, and a line with the time left now and then."""

    def __init__(self, folder: Path, start: int, steps: int, report: Callable[[str], None]) -> None:
        self.path, self.start, self.steps, self.report = folder / "losses.csv", start, steps, report
        self.events = SummaryWriter(str(folder / "events"), purge_step=start)
        self.began, self.told, self.rows = time.monotonic(), time.monotonic(), self.kept()

    def kept(self) -> list[dict[str, str]]:
        """The rows of steps that a resumed run does not take again."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if int(row["step"]) < self.start]

    def add(self, step: int, losses: Mapping[str, float]) -> None:
        """Note one step's losses; every half minute write them out and say how far it is."""
        self.rows.append({"step": str(step), **{name: f"{value:.6g}" for name, value in losses.items()}})
        for name, value in losses.items():
            self.events.add_scalar(name, value, step)
        if time.monotonic() - self.told > 30.0:
            self.told = time.monotonic()
            rate = (step + 1 - self.start) / (self.told - self.began)
            recent = np.mean([float(row["loss"]) for row in self.rows[-100:]])
            left = (self.steps - step - 1) / rate / 60.0
            self.report(f"step {step + 1}/{self.steps}: loss {recent:.4g}, {rate:.2f} steps/s, {left:.0f} min left")
            self.write()

    def write(self) -> None:
        """The whole table, whole."""
        with written_whole(self.path) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)

    def close(self) -> None:
        """Write out what is left."""
        if self.rows:
            self.write()
        self.events.close()
