"""Frames are blended where they show the same, and left as they are everywhere else."""

from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from uid.runtime.temporal import LARGE, SHARE, Steadied, blended, flow_between, luma_of, moved, same_scene

Pixels = npt.NDArray[np.integer]
RNG = np.random.default_rng(0)
# Soft shapes of all sizes, as photos have them.
SCENE = sum(
    cv2.resize(RNG.uniform(0, 255 / 5, (n, n, 3)), (400, 400), interpolation=cv2.INTER_CUBIC)
    for n in (4, 9, 20, 45, 99)
)
OTHER = SCENE[::-1, ::-1]


def frame(x: float = 0.0, y: float = 0.0, scene: npt.NDArray[np.float64] = SCENE, seed: int | None = None) -> Pixels:
    """(160, 200, 3) of a scene, seen from another place, with noise of 4 levels if there is a seed."""
    image = cv2.getRectSubPix(scene.astype(np.float32), (200, 160), (150 + x, 150 + y))
    noise = 0.0 if seed is None else np.random.default_rng(seed).normal(0, 4, image.shape)
    return np.rint(image + noise).clip(0, 255).astype(np.uint8)


def rms(first: Pixels, second: Pixels) -> float:
    """Inside, where every frame shows what the others do."""
    inside = first[20:-20, 20:-20].astype(np.float64) - second[20:-20, 20:-20]
    return float(np.sqrt((inside**2).mean()))


@pytest.mark.parametrize("x", [0.0, 3.0, -5.4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_noise_of_a_moving_scene_goes_down(x: float, dtype: type) -> None:
    wide = np.iinfo(dtype).max // 255
    frames = [frame(x * t, seed=t).astype(dtype) * wide for t in range(3)]
    outputs = list(map(Steadied(), frames, frames))
    assert outputs[1].dtype == dtype
    assert np.array_equal(outputs[0], frames[0])
    for t in (1, 2):
        clean = frame(x * t).astype(dtype) * wide
        assert rms(outputs[t], clean) < 0.85 * rms(frames[t], clean)  # of equal parts: 0.71, at whole pixels


def test_a_still_scene_flickers_less() -> None:
    frames = [frame(seed=t) for t in range(4)]
    outputs = list(map(Steadied(), frames, frames))[1:]
    assert all(
        rms(a, b) < 0.8 * rms(c, d) for (a, b), (c, d) in zip(pairwise(outputs), pairwise(frames[1:]), strict=True)
    )


def test_another_scene_begins_anew() -> None:
    frames = [frame(seed=0), frame(scene=OTHER, seed=1), frame(scene=OTHER, seed=2)]
    outputs = list(map(Steadied(), frames, frames))
    assert np.array_equal(outputs[1], frame(scene=OTHER, seed=1))
    assert not np.array_equal(outputs[2], frame(scene=OTHER, seed=2))
    assert not same_scene(luma_of(frame()), luma_of(frame(scene=OTHER)))
    assert same_scene(luma_of(np.full((40, 40, 3), 7, np.uint8)), luma_of(np.full((40, 40, 3), 7, np.uint8)))


def test_what_appears_is_not_mixed_with_what_was_there() -> None:
    before, now = frame(), frame()
    now[60:100, 60:100] = (255, 0, 0)
    made = blended(before, before, now, now)
    assert np.array_equal(made[64:96, 64:96], now[64:96, 64:96])
    assert np.abs(made[:40].astype(int) - now[:40]).max() <= 1


def test_a_frame_depends_on_the_one_before_alone() -> None:
    frames = [frame(2.0 * t, seed=t) for t in range(4)]
    made = [255 - one for one in frames]
    whole = list(map(Steadied(), frames, made))
    for start in (1, 2):
        assert np.array_equal(list(map(Steadied(), frames[start:], made[start:]))[-1], whole[-1])


def test_larger_outputs_are_blended_with_the_motion_enlarged() -> None:
    steadied = Steadied()
    frames = [frame(seed=0), frame(3.0, seed=1)]
    larger = [one.repeat(2, axis=0).repeat(2, axis=1) for one in (*frames, frame(3.0))]
    steadied(frames[0], larger[0])
    made, clean = steadied(frames[1], larger[1]), larger[2]
    assert made.shape == (320, 400, 3)
    assert rms(made, clean) < 0.85 * rms(larger[1], clean)


@pytest.mark.parametrize("shape", [(1, 1, 3), (8, 300, 3), (33, 33, 3), (40, 1200, 3)])
def test_frames_of_any_size_are_taken(shape: tuple[int, ...]) -> None:
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    steadied = Steadied()
    assert np.array_equal(steadied(pixels, pixels), pixels)
    assert steadied(pixels, pixels).shape == shape
    narrow = pixels[:, : shape[1] // 2 + 1]
    assert steadied(narrow, narrow).shape[1] == shape[1] // 2 + 1  # another size begins anew


def test_large_frames_have_the_same_motion() -> None:
    side = LARGE + 100
    large = cv2.resize(SCENE.clip(0, 255).astype(np.uint8), (side + 20, side + 20), interpolation=cv2.INTER_CUBIC)
    before, now = large[:side, :side], large[4 : side + 4, 6 : side + 6]
    flow = flow_between(luma_of(before), luma_of(now))
    assert np.median(flow, axis=(0, 1)) == pytest.approx((6, 4), abs=0.3)
    assert rms(moved(before, flow), now) < 4
    assert SHARE <= 0.5, "the frame itself has the larger part"
