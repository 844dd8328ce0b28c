"""The schedule that a manifest declares: which sampler, over which timesteps, with which noise. ``runtime.schedule``
computes it.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from uid.bundles.declarations import DDIM, SAMPLERS
from uid.bundles.values import AGAIN, chosen, entries, field, real, shown, truth, whole
from uid.errors import BundleError

LONGEST_SCHEDULE = 100_000  # training timesteps
SMALLEST_BETA = 1e-6  # so that 1 - beta is not 1 in float32
SMALLEST_ALPHA_BAR = 1e-30  # so that float32 still holds it, and its reciprocal
LEADING, LINSPACE, TRAILING, RESPACED = SPACINGS = ("leading", "linspace", "trailing", "respaced")
SCALED_LINEAR, LINEAR = BETA_SCHEDULES = ("scaled_linear", "linear")


def check_schedule(value: Any) -> Mapping[str, Any]:
    """The schedule, complete; raises ``BundleError`` for what no sampler can use.

    The names are those of diffusers' schedulers, and ``sampler``, which is "ddim" where it is missing.
    """
    schedule = entries(value, "schedule")
    sampler = chosen(schedule.get("sampler", DDIM), "sampler", tuple(SAMPLERS))

    def required(key: str) -> Any:
        return field(schedule, key, "the manifest's schedule")

    count = whole(required("num_train_timesteps"), "num_train_timesteps", 1, LONGEST_SCHEDULE)
    start, end = (real(required(key), key) for key in ("beta_start", "beta_end"))
    kind = chosen(required("beta_schedule"), "beta_schedule", BETA_SCHEDULES)
    if chosen(required("timestep_spacing"), "timestep_spacing", SPACINGS) == LEADING:
        whole(required("steps_offset"), "steps_offset", 0, count)
    if not 0 < start <= end < 1:
        raise BundleError(
            f"the manifest has beta_start {start} and beta_end {end}; expected 0 < beta_start <= beta_end < 1: {AGAIN}"
        )
    if sampler == DDIM:
        truth(required("set_alpha_to_one"), "set_alpha_to_one")
    check_alpha_bars(start, end, count, kind)
    return {"sampler": sampler, **schedule}


def check_alpha_bars(start: float, end: float, count: int, kind: str) -> None:
    """Raise ``BundleError`` where alpha_bar begins at 1 or ends at 0 in float32: samplers divide by both distances."""
    first, last = (start**0.5, end**0.5) if kind == SCALED_LINEAR else (start, end)
    betas = np.linspace(first, last, count) ** (2 if kind == SCALED_LINEAR else 1)
    if start < SMALLEST_BETA or np.log1p(-betas).sum() < math.log(SMALLEST_ALPHA_BAR):
        raise BundleError(
            f"the manifest has beta_start {shown(start)} and beta_end {shown(end)} over {count} timesteps; expected "
            f"{SMALLEST_BETA:g} or more at the start, and an alpha_bar of {SMALLEST_ALPHA_BAR:g} or more at the end: "
            f"{AGAIN}"
        )
