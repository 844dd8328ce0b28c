"""What a run shows: losses to CSV and TensorBoard, sample sheets, and a line now and then."""

import csv
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from uid.bundles.files import written_whole
from uid.train.stage import Batch, Stage


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
