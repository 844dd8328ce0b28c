"""The schedule that a manifest declares: which sampler, over which timesteps, with which noise. ``runtime.schedule``
computes it.
"""

from collections.abc import Mapping
from typing import Any

from uid.bundles.declarations import DDIM, SAMPLERS
from uid.bundles.values import chosen, real, shown, whole
from uid.errors import BundleError

LONGEST_SCHEDULE = 100_000  # training timesteps
LEADING, LINSPACE, TRAILING, RESPACED = SPACINGS = ("leading", "linspace", "trailing", "respaced")
SCALED_LINEAR, LINEAR = BETA_SCHEDULES = ("scaled_linear", "linear")


def check_schedule(schedule: Any) -> Mapping[str, Any]:
    """The schedule, complete; raises ``BundleError`` for what no sampler can use.

    The names are those of diffusers' schedulers, and ``sampler``, which is "ddim" where it is missing.
    """
    if not isinstance(schedule, Mapping):
        raise BundleError(f"the manifest has schedule {shown(schedule)}; expected an object: export the bundle again")
    sampler = chosen(schedule.get("sampler", DDIM), "sampler", tuple(SAMPLERS))
    for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "timestep_spacing"):
        required(schedule, key)
    whole(schedule["num_train_timesteps"], "num_train_timesteps", 1, LONGEST_SCHEDULE)
    chosen(schedule["beta_schedule"], "beta_schedule", BETA_SCHEDULES)
    if chosen(schedule["timestep_spacing"], "timestep_spacing", SPACINGS) == LEADING:
        whole(required(schedule, "steps_offset"), "steps_offset", 0, schedule["num_train_timesteps"])
    start, end = (real(schedule[key], key) for key in ("beta_start", "beta_end"))
    if not 0 < start <= end < 1:
        raise BundleError(
            f"the manifest has beta_start {start} and beta_end {end}; expected 0 < beta_start <= beta_end < 1: "
            "export the bundle again"
        )
    if sampler == DDIM and not isinstance(required(schedule, "set_alpha_to_one"), bool):
        raise BundleError(
            f"the manifest has set_alpha_to_one {shown(schedule['set_alpha_to_one'])}; expected true or false: "
            "export the bundle again"
        )
    return {"sampler": sampler, **schedule}


def required(schedule: Mapping[str, Any], key: str) -> Any:
    """The value of a key; raises ``BundleError`` where it is missing."""
    if key not in schedule:
        raise BundleError(f"the manifest's schedule lacks {key!r}; export the bundle again")
    return schedule[key]
