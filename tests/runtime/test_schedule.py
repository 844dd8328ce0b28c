"""Schedules against diffusers' schedulers, and against the timesteps that are visited."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uid.bundles.declarations import FULL, SHALLOW, UNGUIDED
from uid.bundles.schedules import check_schedule
from uid.errors import BundleError, InputError
from uid.families.uid_diff.configs import SCHEDULER
from uid.runtime.schedule import coefficients, stages, timesteps

torch = pytest.importorskip("torch", reason="the lean install has nothing to compare with")
diffusers = pytest.importorskip("diffusers", reason="the lean install has nothing to compare with")


def schedule(**changes: object) -> dict[str, Any]:
    """The paper's schedule, changed; checked as a bundle's is."""
    return dict(check_schedule(SCHEDULER | changes))


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 30, 50, 1000])
def test_ddim_visits_the_timesteps_of_diffusers(spacing: str, beta_schedule: str, last: bool, steps: int) -> None:
    own = schedule(timestep_spacing=spacing, beta_schedule=beta_schedule, set_alpha_to_one=last)
    if spacing == "leading" and steps == 1000:  # timestep 1000 is visited first, where diffusers fails too
        with pytest.raises(InputError, match="start beyond timestep 999; use fewer steps"):
            coefficients(own, steps)
        return
    scheduler = diffusers.DDIMScheduler(**{key: own[key] for key in SCHEDULER})
    scheduler.set_timesteps(steps)
    rows = [dict(row) for row in coefficients(own, steps)]
    visited = scheduler.timesteps.tolist()
    assert [row["timestep"] for row in rows] == visited
    bars = scheduler.alphas_cumprod
    # diffusers takes the timestep that lies 1000 // steps below, whether it is visited or not.
    expected = [*(bars[t] for t in visited[1:]), scheduler.final_alpha_cumprod]
    if spacing == "leading" or (spacing == "trailing" and 1000 % steps == 0):
        theirs = [t - 1000 // steps for t in visited]
        expected = [bars[t] if t >= 0 else scheduler.final_alpha_cumprod for t in theirs]
    np.testing.assert_allclose([row["alpha_bar"] for row in rows], bars[visited], rtol=2e-5)
    np.testing.assert_allclose([row["alpha_bar_prev"] for row in rows], expected, rtol=2e-5)


def test_linspace_steps_go_to_the_next_one_that_is_visited() -> None:
    rows = [dict(row) for row in coefficients(schedule(timestep_spacing="linspace"), 4)]
    assert [row["timestep"] for row in rows] == [999, 666, 333, 0]
    bars = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    np.testing.assert_allclose([row["alpha_bar_prev"] for row in rows], bars[[666, 333, 0, 0]], rtol=1e-4)


@pytest.mark.parametrize("steps", [2, 3, 4, 10, 21, 50, 999, 1000])
def test_ddpm_is_that_of_diffusers(steps: int) -> None:
    own = schedule(sampler="ddpm", timestep_spacing="respaced")
    rows = [dict(row) for row in coefficients(own, steps)]
    visited = [int(row["timestep"]) for row in rows]
    assert (visited[0], visited[-1]) == (999, 0)
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        variance_type="fixed_small",
    )
    scheduler.set_timesteps(timesteps=visited)
    generator = np.random.default_rng(0)
    x = torch.tensor(generator.standard_normal((1, 16)))
    for t, row in zip(visited, rows, strict=True):
        eps = torch.tensor(generator.standard_normal((1, 16)))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(t), dtype=x.dtype)
        x0 = row["sqrt_recip_alpha_bar"] * x - row["sqrt_recipm1_alpha_bar"] * eps
        mean = row["posterior_mean_x0"] * x0 + row["posterior_mean_latent"] * x
        expected = scheduler.step(eps, t, x, generator=torch.Generator().manual_seed(t)).prev_sample
        x = mean + row["posterior_std"] * noise
        # diffusers computes its betas in float32
        torch.testing.assert_close(x, expected, rtol=2e-4, atol=2e-4 * float(expected.abs().max()))
    assert rows[-1]["posterior_std"] == 0.0


@pytest.mark.parametrize(
    ("steps", "visited"), [(2, [0, 999]), (4, [0, 333, 666, 999]), (21, None), (50, None), (1000, list(range(1000)))]
)
def test_respaced_timesteps_are_added_up_and_rounded(steps: int, visited: list[int] | None) -> None:
    got = timesteps(schedule(timestep_spacing="respaced"), steps)[::-1].tolist()
    assert visited is None or got == visited
    at, expected = 0.0, []
    for _ in range(steps):
        expected.append(int(np.rint(at)))
        at += 999 / (steps - 1)
    assert got == expected
    assert len(set(got)) == steps


def test_respaced_timesteps_are_not_those_of_linspace_for_278_numbers_of_steps() -> None:
    own = schedule(timestep_spacing="respaced")
    differ = [n for n in range(2, 1001) if timesteps(own, n).tolist()[::-1] != np.linspace(0, 999, n).round().tolist()]
    assert (len(differ), differ[0]) == (278, 21)


def test_one_respaced_step_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="got 1 step; expected at least 2, since this bundle's steps are spaced"):
        coefficients(schedule(sampler="ddpm", timestep_spacing="respaced"), 1)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match=f"got {steps} steps; expected 1 to"):
        coefficients(schedule(), steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "euler"}, "has sampler 'euler'; expected one of ddim, ddpm"),
        ({"beta_schedule": "cosine"}, "has beta_schedule 'cosine'; expected one of scaled_linear, linear"),
        ({"timestep_spacing": 3}, "has timestep_spacing 3; expected one of leading, linspace, trailing, respaced"),
        ({"num_train_timesteps": 0}, "has num_train_timesteps 0; expected a whole number, 1 to"),
        ({"num_train_timesteps": 1e3}, "has num_train_timesteps 1000.0; expected a whole number"),
        ({"beta_end": float("nan")}, "has beta_end nan; expected a finite number"),
        ({"beta_start": 0.5}, "has beta_start 0.5 and beta_end 0.012; expected 0 < beta_start <= beta_end < 1"),
        ({"steps_offset": -1}, "has steps_offset -1; expected a whole number"),
        ({"set_alpha_to_one": "yes"}, "has set_alpha_to_one 'yes'; expected true or false"),
    ],
)
def test_schedules_that_no_sampler_can_use_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=re.escape(message)):
        schedule(**changes)


@pytest.mark.parametrize("missing", ["num_train_timesteps", "beta_start", "beta_schedule", "timestep_spacing"])
def test_an_incomplete_schedule_is_refused(missing: str) -> None:
    with pytest.raises(BundleError, match=f"schedule lacks '{missing}'"):
        check_schedule({key: value for key, value in SCHEDULER.items() if key != missing})


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
