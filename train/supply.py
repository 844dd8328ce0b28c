"""Examples without end for a device that takes more than a data loader gives.

Processes on the host make procedural images and draw exposures ahead. The device holds what is there so far, cuts
crops from it and blurs them. What is new takes the place of the oldest.
"""

from collections import deque
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from uid.train.data import MADE_SIDE, made_image
from uid.train.device_blur import Exposures, degraded, drawn

IMAGES, EXPOSURES = 16, 64  # that a process makes at a time
CROPS = 8  # from an image, before another one is made: the host may have better to do
PLAIN = 1 / 24  # of the examples: one colour, or an even change from one to another
Made = tuple[Any, Exposures]  # (IMAGES, S, S, 3) uint8; EXPOSURES


def make(key: tuple[int, int]) -> Made:
    """The share of a seed and a number."""
    seed, number = key
    images = np.stack([made_image((seed, number * IMAGES + i)) for i in range(IMAGES)])
    return images, drawn(np.random.default_rng([seed, number, 1]), EXPOSURES)


def start_process() -> None:
    """One thread each, or they would wait for one another."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


class Supply:
    """Batches of crops of ``size`` pixels on ``device``; ``processes`` make what they are cut from.

    A context manager, which ends the processes. The device holds ``places`` images, 0.2 MB each.
    """

    def __init__(self, size: int, device: torch.device, *, seed: int, processes: int, places: int) -> None:
        self.size, self.device, self.seed = size, device, seed
        self.shares, self.taken = places // IMAGES, 0  # that fit; that have been taken in
        shape = (self.shares * IMAGES, 3, MADE_SIDE, MADE_SIDE)
        self.images = torch.empty(shape, dtype=torch.uint8, device=device)
        self.exposures = Exposures.empty(self.shares * EXPOSURES, device)
        self.chance = torch.Generator().manual_seed(seed)
        self.pool = get_context("spawn").Pool(processes, initializer=start_process)
        self.asked = self.cut = 0  # shares; crops
        self.in_hand = 2 * processes  # shares that are asked for ahead
        self.pending: deque[AsyncResult[Made]] = deque()

    def __enter__(self) -> "Supply":
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.terminate()
        self.pool.join()

    def ask(self, least: int) -> None:
        """Have more shares made: for ``least`` images, and for the crops that were cut."""
        wanted = max(least, self.cut // CROPS) // IMAGES + self.in_hand
        while self.asked < wanted and len(self.pending) < self.in_hand:
            self.pending.append(self.pool.apply_async(make, ((self.seed, self.asked),)))
            self.asked += 1

    def take(self, least: int = 0) -> None:
        """Take in what has been made, and wait while there are fewer than ``least`` images."""
        self.ask(least)
        while self.pending and (self.pending[0].ready() or self.taken * IMAGES < least):
            images, exposures = self.pending.popleft().get()
            place = self.taken % self.shares
            self.images[place * IMAGES : (place + 1) * IMAGES] = torch.from_numpy(images).permute(0, 3, 1, 2)
            self.exposures.put(place * EXPOSURES, exposures)
            self.taken += 1
            self.ask(least)

    def batch(self, count: int) -> dict[str, Any]:
        """``sharp`` and ``blurred``, (count, 3, size, size) float32 in [0, 1], and ``key``."""
        here = min(self.taken, self.shares)
        self.cut += count
        chosen = self.below(here * IMAGES, count).to(self.device)
        top, left = (int(x) for x in self.below(MADE_SIDE - self.size + 1, 2))
        crop = self.images[chosen, :, top : top + self.size, left : left + self.size]
        turn, mirror = (int(x) for x in self.below(4, 2))
        sharp = torch.rot90(crop, turn, (2, 3)).float() / 255.0
        sharp = sharp.flip(3) if mirror < 2 else sharp
        plain = round(PLAIN * count)
        sharp = torch.cat([self.plain(plain), sharp[plain:]])
        rows = self.exposures.rows(self.below(here * EXPOSURES, count).to(self.device))
        return {"sharp": sharp, "blurred": degraded(sharp, rows), "key": self.below(1 << 62, count).tolist()}

    def plain(self, count: int) -> Tensor:
        """Images of one colour, or of an even change from one to another, (count, 3, size, size)."""
        ramp = torch.linspace(0.0, 1.0, self.size).expand(self.size, -1)
        colours = torch.rand(count, 2, 3, 1, 1, generator=self.chance)
        colours[::2, 1] = colours[::2, 0]
        return (colours[:, 0] + (colours[:, 1] - colours[:, 0]) * ramp).to(self.device)

    def below(self, high: int, count: int) -> Tensor:
        """(count,) whole numbers from 0 to ``high`` - 1."""
        return torch.randint(high, (count,), generator=self.chance)
