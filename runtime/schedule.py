"""DDIM schedules as plain functions of the manifest's numbers; checked against diffusers' ``DDIMScheduler``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from uid.bundles.manifest import FULL, SHALLOW, UNGUIDED
from uid.errors import BundleError, InputError

SPACINGS = ("leading", "linspace", "trailing")


@dataclass(frozen=True)
class Coefficients:
    """What one denoising step is given: its timestep, and alpha_bar at this timestep and at the next one."""

    timestep: float
    alpha_bar: float
    alpha_bar_prev: float


@dataclass(frozen=True)
class Step:
    """One denoising step: its coefficients, and the stage whose components compute it."""

    coefficients: Coefficients
    stage: str = FULL


def stages(steps: int, interval: tuple[float, float] = (0.0, 1.0), cache_interval: int = 1) -> list[str]:
    """The stage that computes each step: in full, by the U-Net's outermost level alone, or without guidance.

    Guidance acts in the steps that begin inside ``interval``, from 0, the first one, to 1, the end (Kynkaanniemi et
    al., 2024). Of those, the first and every ``cache_interval``-th after it are full; the others take the features
    that the last full one left ("DeepCache", Ma et al., 2023).
    """
    chosen: list[str] = []
    since = 0  # steps since the last full one, including it; 0: its features are not there
    for step in range(steps):
        if not interval[0] <= step / steps < interval[1]:
            chosen.append(UNGUIDED)
            since = 0
        else:
            since = since + 1 if 0 < since < cache_interval else 1
            chosen.append(FULL if since == 1 else SHALLOW)
    return chosen


def alpha_bars(schedule: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """Cumulative products of 1 - beta_t, (num_train_timesteps,), in float32 as the network was trained with."""
    start, end, count = schedule["beta_start"], schedule["beta_end"], schedule["num_train_timesteps"]
    if schedule["beta_schedule"] == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, count, dtype=np.float32) ** 2
    elif schedule["beta_schedule"] == "linear":
        betas = np.linspace(start, end, count, dtype=np.float32)
    else:
        raise BundleError(f"beta_schedule is {schedule['beta_schedule']!r}; expected 'scaled_linear' or 'linear'")
    return np.cumprod(1.0 - betas, dtype=np.float32)


def timesteps(schedule: Mapping[str, Any], steps: int) -> npt.NDArray[np.int64]:
    """The ``steps`` timesteps visited, descending, by the schedule's ``timestep_spacing``."""
    count, spacing = int(schedule["num_train_timesteps"]), schedule["timestep_spacing"]
    if not 1 <= steps <= count:
        raise InputError(f"got {steps} steps; expected 1 to {count}", option="steps")
    if spacing == "leading":
        visited = np.arange(steps)[::-1] * (count // steps) + int(schedule["steps_offset"])
    elif spacing == "linspace":
        visited = np.linspace(0, count - 1, steps).round()[::-1]
    elif spacing == "trailing":
        visited = np.round(np.arange(count, 0, -count / steps)) - 1
    else:
        raise BundleError(f"timestep_spacing is {spacing!r}; expected one of {', '.join(SPACINGS)}")
    if visited.max() >= count:
        raise InputError(
            f"{steps} steps with {spacing} spacing start beyond timestep {count - 1}; use fewer steps", option="steps"
        )
    return visited.astype(np.int64)


def ddim(schedule: Mapping[str, Any], steps: int) -> list[Coefficients]:
    """The coefficients of every step of a deterministic DDIM run (eta = 0), first step first.

    ``schedule`` holds diffusers' names: num_train_timesteps, beta_start, beta_end, beta_schedule, timestep_spacing,
    steps_offset, set_alpha_to_one. Raises ``InputError`` for an impossible number of steps.
    """
    bars = alpha_bars(schedule)
    final = 1.0 if schedule["set_alpha_to_one"] else float(bars[0])
    stride = len(bars) // steps if steps else 0
    return [
        Coefficients(float(t), float(bars[t]), float(bars[t - stride]) if t >= stride else final)
        for t in timesteps(schedule, steps).tolist()
    ]
