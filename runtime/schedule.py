"""Denoising schedules as plain functions of the manifest's numbers.

A sampler gives each step its coefficients, which its components read as tensors. "ddim" is checked against diffusers'
``DDIMScheduler``, "ddpm" against ``DDPMScheduler``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from uid.bundles.declarations import DDIM, DDPM, FULL, SAMPLERS, SHALLOW, UNGUIDED
from uid.bundles.schedules import LEADING, LINSPACE, RESPACED, SCALED_LINEAR
from uid.errors import InputError

Coefficients = tuple[tuple[str, float], ...]
"""What a step is given: name and value of each of its sampler's coefficients."""


@dataclass(frozen=True)
class Step:
    """One denoising step: its coefficients, and the stage whose components compute it."""

    coefficients: Coefficients
    stage: str = FULL

    @property
    def timestep(self) -> float:
        """The timestep that it starts from."""
        return dict(self.coefficients)["timestep"]


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


def alpha_bars(schedule: Mapping[str, Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Cumulative products of 1 - beta_t, (num_train_timesteps,), computed in ``dtype``."""
    start, end, count = schedule["beta_start"], schedule["beta_end"], schedule["num_train_timesteps"]
    if schedule["beta_schedule"] == SCALED_LINEAR:
        betas = np.linspace(start**0.5, end**0.5, count, dtype=dtype) ** 2
    else:
        betas = np.linspace(start, end, count, dtype=dtype)
    return np.cumprod(1.0 - betas, dtype=dtype)


def timesteps(schedule: Mapping[str, Any], steps: int) -> npt.NDArray[np.int64]:
    """The ``steps`` timesteps visited, descending, by the schedule's ``timestep_spacing``."""
    count, spacing = int(schedule["num_train_timesteps"]), schedule["timestep_spacing"]
    if not 1 <= steps <= count:
        raise InputError(f"got {steps} steps; expected 1 to {count}", option="steps")
    if spacing == LEADING:
        visited = np.arange(steps)[::-1] * (count // steps) + int(schedule["steps_offset"])
    elif spacing == LINSPACE:
        visited = np.linspace(0, count - 1, steps).round()[::-1]
    elif spacing == RESPACED:
        visited = np.array(respaced(count, steps)[::-1])
    else:
        visited = np.round(np.arange(count, 0, -count / steps)) - 1
    if visited.max() >= count:
        raise InputError(
            f"{steps} steps with {spacing} spacing start beyond timestep {count - 1}; use fewer steps", option="steps"
        )
    return visited.astype(np.int64)


def respaced(count: int, steps: int) -> list[int]:
    """Timesteps from 0 to ``count`` - 1 at a stride that is added up in floating point, each rounded half to even.

    So does the code that "Improved Denoising Diffusion Probabilistic Models" (Nichol and Dhariwal, 2021) came with. For
    many numbers of steps this differs from evenly spaced numbers that are rounded.
    """
    if steps == 1:
        raise InputError(
            "got 1 step; expected at least 2, since this bundle's steps are spaced from the first timestep to the last",
            option="steps",
        )
    stride, at, visited = (count - 1) / (steps - 1), 0.0, []
    for _ in range(steps):
        visited.append(round(at))
        at += stride
    return visited


def ddim(schedule: Mapping[str, Any], steps: int) -> list[Coefficients]:
    """A deterministic DDIM run (eta = 0): the timestep, and alpha_bar at it and at the next one that is visited.

    alpha_bar is computed in float32, as the network was trained with. After the last step it is 1, or with
    ``set_alpha_to_one`` false that of timestep 0.
    """
    bars, visited = alpha_bars(schedule, np.float32), timesteps(schedule, steps)
    final = 1.0 if schedule["set_alpha_to_one"] else float(bars[0])
    values = [float(bars[t]) for t in visited]
    rows = zip(visited.tolist(), values, [*values[1:], final], strict=True)
    return [named(DDIM, float(t), here, previous) for t, here, previous in rows]


def ddpm(schedule: Mapping[str, Any], steps: int) -> list[Coefficients]:
    """A DDPM run over some of the timesteps (Ho et al., 2020, equation 7), with the small variance.

    The step computes x0 = ``sqrt_recip_alpha_bar`` x - ``sqrt_recipm1_alpha_bar`` eps, and its result is
    ``posterior_mean_x0`` x0 + ``posterior_mean_latent`` x + ``posterior_std`` noise. The betas between the visited
    timesteps follow from their alpha_bar; all is computed in float64. The last step adds no noise.
    """
    bars, visited = alpha_bars(schedule, np.float64), timesteps(schedule, steps)
    alpha_bar = bars[visited]
    previous = np.append(alpha_bar[1:], 1.0)
    beta = 1.0 - alpha_bar / previous
    columns = (
        visited.astype(np.float64),
        np.sqrt(1.0 / alpha_bar),
        np.sqrt(1.0 / alpha_bar - 1.0),
        beta * np.sqrt(previous) / (1.0 - alpha_bar),
        (1.0 - previous) * np.sqrt(1.0 - beta) / (1.0 - alpha_bar),
        np.sqrt(beta * (1.0 - previous) / (1.0 - alpha_bar)),
    )
    return [named(DDPM, *row) for row in np.stack(columns, axis=1).tolist()]


def named(sampler: str, *values: float) -> Coefficients:
    """A step's coefficients by name."""
    return tuple(zip(SAMPLERS[sampler], values, strict=True))


FUNCTIONS: dict[str, Callable[[Mapping[str, Any], int], list[Coefficients]]] = {DDIM: ddim, DDPM: ddpm}


def coefficients(schedule: Mapping[str, Any], steps: int) -> list[Coefficients]:
    """The coefficients of every step of the schedule's sampler, first step first.

    ``schedule`` is checked, as ``bundles.schedules`` does. Raises ``InputError`` for an impossible number of steps.
    """
    return FUNCTIONS[schedule["sampler"]](schedule, steps)
