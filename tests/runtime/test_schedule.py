"""Schedules against diffusers' diffusers.DDIMScheduler."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uid.bundles.manifest import FULL, SHALLOW, UNGUIDED
from uid.errors import InputError
from uid.families.uid_diff.configs import SCHEDULER
from uid.runtime.schedule import ddim, stages

diffusers = pytest.importorskip("diffusers", reason="the lean install has nothing to compare with")


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 7, 30, 50, 1000])
def test_rows_are_those_of_diffusers(spacing: str, beta_schedule: str, last: bool, steps: int) -> None:
    schedule = SCHEDULER | {
        "timestep_spacing": spacing,
        "beta_schedule": beta_schedule,
        "set_alpha_to_one": last,
    }
    if spacing == "leading" and steps == 1000:  # timestep 1000 is visited first, where diffusers fails too
        with pytest.raises(InputError, match="start beyond timestep 999; use fewer steps"):
            ddim(schedule, steps)
        return
    scheduler = diffusers.DDIMScheduler(**schedule)
    scheduler.set_timesteps(steps)
    rows = ddim(schedule, steps)
    assert [row.timestep for row in rows] == scheduler.timesteps.tolist()
    for row in rows:
        previous = int(row.timestep) - 1000 // steps
        expected = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
        np.testing.assert_allclose(row.alpha_bar, scheduler.alphas_cumprod[int(row.timestep)], rtol=2e-5)
        np.testing.assert_allclose(row.alpha_bar_prev, expected, rtol=2e-5)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match=f"got {steps} steps; expected 1 to"):
        ddim(SCHEDULER, steps)


@given(
    steps=st.integers(1, 60),
    reuse=st.integers(1, 9),
    ends=st.tuples(st.integers(0, 100), st.integers(0, 100)).map(sorted),
)
def test_a_shallow_step_follows_closely_on_a_full_one(steps: int, reuse: int, ends: list[int]) -> None:
    start, end = (value / 100 for value in ends)
    chosen = stages(steps, (start, end), reuse)
    assert len(chosen) == steps
    for i, stage in enumerate(chosen):
        assert (stage == UNGUIDED) == (not start <= i / steps < end)
        if stage == SHALLOW:
            before = chosen[max(0, i - reuse + 1) : i]
            assert FULL in before
            assert UNGUIDED not in before[before.index(FULL) :]
        if stage == FULL and i and reuse > 1 and chosen[i - 1] != UNGUIDED:
            assert chosen[i - reuse + 1 : i] == [SHALLOW] * (reuse - 1)


def test_without_shortcuts_every_step_is_full() -> None:
    assert stages(7) == [FULL] * 7
