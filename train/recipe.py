"""A whole training in a given time: ``uid-train recipe``, made for a quarter of an hour of a GPU.

Everything is made on the spot, images by the host and their blur by the device, and nothing has to be set: it goes on
from weights that are there, measures the held-out photos now and then, writes what is better than anything before, and
ends in time by itself.
"""

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

from uid.families.uid_diff import checkpoint as checkpoints
from uid.families.weights import halved
from uid.train.beginning import write_beginning
from uid.train.checkpoints import Target, make_state_folder, state_folder
from uid.train.held_out import BlurCase, every_case
from uid.train.presets import Recipe
from uid.train.restore import Restoration
from uid.train.stage import Batch, Choices
from uid.train.state import Average
from uid.train.supply import Supply

Report = Callable[[str], None]
BORDER = 16  # pixels that are not compared
AT_A_TIME = 8  # held-out images


@dataclass(frozen=True)
class Score:
    """Held-out photos: mean and smallest gain in dB over their blurred images; mean PSNR of sharp ones that went in."""

    gain: float
    worst: float
    sharp: float

    def __str__(self) -> str:
        return f"held-out photos {self.gain:+.2f} dB, worst {self.worst:+.2f}; sharp ones back at {self.sharp:.1f} dB"


def follow(recipe: Recipe, start: Path | None, output: Path, minutes: float, seed: int, report: Report) -> Score:
    """Train for so many minutes from ``start`` (None: from nothing), and write the best weights to ``output``.

    Returns the score of what was written last.
    """
    clock = Clock(minutes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fast = device.type == "cuda"
    beginning = state_folder(output) / "start"
    Target(start or beginning, None if start == output else output).check()
    if start is None:
        make_state_folder(beginning.parent)
        if not beginning.exists():
            write_beginning(beginning, recipe.config, seed=seed)
        start = beginning
    index = checkpoints.check_family(start)
    model = checkpoints.load(start)
    stage = Restoration(model, Choices(steps=index["steps"], guidance=index["guidance"])).to(device)
    model.scheduler.alphas_cumprod = model.scheduler.alphas_cumprod.to(device)
    places, batch = (recipe.gpu_places, recipe.gpu_batch) if fast else (recipe.places, recipe.batch)
    processes = max(1, (os.cpu_count() or 1) - 1)
    with Supply(recipe.size, device, seed=seed, processes=processes, places=places) as supply:
        supply.take(least=min(places, 4 * batch))
        report(f"{clock.spent:.0f} s: training on {device}, batches of {batch}")
        if fast:
            model.step.compile()
        return Run(recipe, stage, supply, clock, start, output, report).train(batch)


class Clock:
    """Time since the beginning, and how much of the whole that is."""

    def __init__(self, minutes: float) -> None:
        self.began, self.whole = time.monotonic(), 60.0 * minutes

    @property
    def spent(self) -> float:
        """Seconds."""
        return time.monotonic() - self.began

    @property
    def share(self) -> float:
        """0 at the beginning, 1 at the end."""
        return self.spent / self.whole


class Run:
    """One training by a recipe."""

    def __init__(
        self,
        recipe: Recipe,
        stage: Restoration,
        supply: Supply,
        clock: Clock,
        start: Path,
        output: Path,
        report: Report,
    ) -> None:
        self.recipe, self.stage, self.supply, self.clock = recipe, stage, supply, clock
        self.start, self.output, self.report = start, output, report
        self.cases = list(every_case())
        self.average = Average(stage, recipe.average)
        self.best: Score | None = None

    def train(self, count: int) -> Score:
        """Steps over batches of ``count`` until the time is over but for a last measurement."""
        weights = [p for p in self.stage.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=self.recipe.learning_rate, betas=(0.9, 0.99), fused=True)
        took = self.measure(0)
        every = max(60.0, 10.0 * took)  # seconds between measurements
        step, measured = 0, self.clock.spent
        while self.clock.spent + took < self.clock.whole:
            self.supply.take()
            gain = self.step(optimizer, self.supply.batch(count), step)
            step += 1
            if self.clock.spent - measured > every:
                self.report(f"{self.clock.spent:.0f} s, step {step}: {gain.item():+.2f} dB in training")
                took, measured = self.measure(step), self.clock.spent
        self.measure(step)
        assert self.best is not None, "it was measured"
        return self.best

    def step(self, optimizer: torch.optim.Optimizer, batch: Batch, number: int) -> Tensor:
        """One step; returns the gain in dB over the blurred images."""
        rise = (number + 1) / self.recipe.warm_up
        fall = (1.0 - self.clock.share) / self.recipe.fall
        for group in optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * min(1.0, rise, max(0.02, fall))
        device = self.supply.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            losses: Mapping[str, Tensor] = self.stage(batch)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.average.update(number)
        return losses["gain"].detach()

    def measure(self, step: int) -> float:
        """Score the average of the weights, write them where they are the best; returns the seconds that it took."""
        began = time.monotonic()
        with self.average.applied():
            score = scored(self.stage, self.cases, self.supply.device)
            better = self.best is None or score.gain > self.best.gain
            self.report(f"{self.clock.spent:.0f} s, step {step}: {score}{', written' if better and step else ''}")
            if better:
                self.best = score
                if step:
                    self.write()
        return time.monotonic() - began

    def write(self) -> None:
        """Write the checkpoint with what was trained, in float16, in place of what was written before."""
        target = Target(self.output, None) if self.output.exists() else Target(self.start, self.output)
        target.write({name: half_copy(module) for name, module in self.stage.trained.items()}, trained=True)


@torch.inference_mode()
def scored(stage: Restoration, cases: Sequence[BlurCase], device: torch.device) -> Score:
    """The stage on held-out cases, those of one size together."""
    gains: list[float] = []
    sharps: list[float] = []
    sizes = sorted({case.sharp.shape for case in cases})
    for size in sizes:
        same = [case for case in cases if case.sharp.shape == size]
        for first in range(0, len(same), AT_A_TIME):
            some = same[first : first + AT_A_TIME]
            given, wanted = (planar([getattr(one, name) for one in some]) for name in ("blurred", "sharp"))
            output = stage.restored(given.to(device), range(len(some))).float().clamp(0.0, 1.0).cpu()
            before, after = psnr(given, wanted), psnr(output, wanted)
            for one, old, new in zip(some, before, after, strict=True):
                (sharps if one.blurred is one.sharp else gains).append(new if one.blurred is one.sharp else new - old)
    return Score(fmean(gains), min(gains), fmean(sharps))


def planar(images: Sequence[np.ndarray]) -> Tensor:
    """(H, W, 3) each -> (B, 3, H, W)."""
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


def psnr(images: Tensor, sharp: Tensor) -> list[float]:
    """Of each image inside the border, in dB, at most 60."""
    inside = (images - sharp)[:, :, BORDER:-BORDER, BORDER:-BORDER]
    errors: list[float] = (-10.0 * inside.square().mean(dim=(1, 2, 3)).clamp_min(1e-6).log10()).tolist()
    return errors


def half_copy(module: nn.Module) -> nn.Module:
    """A copy of a module in float16 on the CPU."""
    return halved(copy.deepcopy(module).cpu())
