"""Resolution classes and targets: what engines are built for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uid.bundles.tensors import TensorSpec
from uid.engines.trt.profiles import (
    NAMED,
    Profile,
    Range,
    Target,
    fallbacks,
    nearest,
    parse_profile,
    profile_shapes,
    square,
)
from uid.errors import BackendError, InputError
from uid.runtime.pixels import pad

FLOAT = np.dtype(np.float32)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 4, 8, 64]))
def test_one_size_rounds_to_what_the_runtime_pads_to(height: int, width: int, multiple: int) -> None:
    profile = parse_profile(f"{height}x{width}").rounded(multiple)
    padded = pad(np.zeros((3, height, width), np.float32), multiple).shape[1:]
    assert (profile.height, profile.width) == tuple(Range(side, side, side) for side in padded)


@given(st.tuples(*[st.integers(1, 5000)] * 3).map(sorted), st.integers(1, 128))
def test_a_rounded_range_holds_the_padded_sizes_of_all_its_images(ends: list[int], multiple: int) -> None:
    wide = Range(*ends)
    rounded = wide.rounded(multiple)
    assert rounded.rounded(multiple) == rounded
    for size in ends:
        assert -(-size // multiple) * multiple in rounded
    for before, after in zip(ends, (rounded.minimum, rounded.optimum, rounded.maximum), strict=True):
        assert after % multiple == 0
        assert 0 <= after - before < multiple


def test_profiles_are_parsed_by_name() -> None:
    assert parse_profile("512") == square(512) == Profile("512", Range(256, 512, 512), Range(256, 512, 512))
    high = parse_profile("1080p").rounded(64)
    assert (high.height.maximum, high.width.maximum) == (1088, 1920)
    for text in ("4k", "0", "0x8", "8x", "8x8x8", "-8x8", " 512", ""):
        with pytest.raises(InputError, match=r"unknown profile .* expected 720p, 1080p, the side of a square"):
            parse_profile(text)


MULTIPLE = 8
SIDES = st.lists(st.integers(1, 200), min_size=3, max_size=3).map(
    lambda n: Range(*(MULTIPLE * size for size in sorted(n)))
)
SINGLE = st.builds(square, st.just(MULTIPLE)).map(Profile.single)


@given(st.lists(st.builds(Profile, st.just("p"), SIDES, SIDES) | SINGLE, min_size=1, max_size=3))
def test_fallbacks_are_ranges_that_hold_the_asked_ones_and_then_their_optima(asked: list[Profile]) -> None:
    ranges = [side for profile in asked for side in (profile.height, profile.width) if side.minimum < side.maximum]
    if not ranges:
        assert fallbacks(asked) == []
        return
    *wide, last = fallbacks(asked)
    for factor, lowered, profiles in zip((2, 4, 1, 2, 4), (0, 0, 1, 1, 1), wide, strict=True):
        least = factor * min(side.maximum for side in ranges)
        for before, after in zip(asked, profiles, strict=True):
            after.check_multiple(MULTIPLE)
            for old, new in ((before.height, after.height), (before.width, after.width)):
                end = old.maximum if old.minimum == old.maximum else max(old.maximum, least)
                assert new == Range(old.minimum, old.minimum if lowered else old.optimum, end)
    for before, after in zip(asked, last, strict=True):
        assert (after.height.minimum, after.height.maximum) == (before.height.optimum, before.height.optimum)
        assert (after.width.minimum, after.width.maximum) == (before.width.optimum, before.width.optimum)


def test_of_several_profiles_the_smallest_are_widened_first() -> None:
    asked = [square(256), parse_profile("1080p"), parse_profile("480x640")]
    assert [str(profile) for profile in fallbacks(asked)[1]] == [
        "256 widened to 1024: height 128 to 1024, best at 256; width 128 to 1024, best at 256",
        str(asked[1]),
        str(asked[2]),
    ]
    assert [profile.name for profile in fallbacks(asked)[3]] == [
        "256 widened to 512, best at its minimum",
        "1080p, best at its minimum",
        "480x640",
    ]
    assert fallbacks(asked)[-1] == (square(256).single(), asked[1].single(), asked[2])
    assert asked[1].single().name == "optimum of 1080p"


@pytest.mark.parametrize("ends", [(0, 1, 1), (2, 1, 3), (1, 4, 3)])
def test_a_range_out_of_order_is_refused(ends: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="expected 1 <= minimum <= optimum <= maximum"):
        Range(*ends)


def test_shapes_follow_from_the_symbols() -> None:
    inputs = [
        TensorSpec("latent", FLOAT, (1, 4, "height/8", "width/8")),
        TensorSpec("skip", FLOAT, (1, 16, "height", "width/2")),
        TensorSpec("blur_image", FLOAT, (1, 3, "blur_height", "blur_width")),
        TensorSpec("timestep", FLOAT, (1,)),
    ]
    profile = Profile("p", Range(64, 128, 256), Range(192, 192, 320), extra=Range(10, 20, 30))
    assert profile_shapes(inputs, profile) == {
        "latent": ((1, 4, 8, 24), (1, 4, 16, 24), (1, 4, 32, 40)),
        "skip": ((1, 16, 64, 96), (1, 16, 128, 96), (1, 16, 256, 160)),
        "blur_image": ((1, 3, 10, 10), (1, 3, 20, 20), (1, 3, 30, 30)),
    }


def test_a_profile_is_recorded_under_keys_that_never_change() -> None:
    profile = Profile("p", Range(64, 128, 256), Range(192, 192, 320), extra=Range(10, 20, 30), batch=Range(1, 1, 4))
    record = profile.record()
    assert set(record) == {"name", "height", "width", "blur", "batch"}
    assert record["blur"] == {"minimum": 10, "optimum": 20, "maximum": 30}
    assert Profile.from_record(record) == profile


def test_a_size_that_is_no_multiple_is_refused_with_the_rounded_size() -> None:
    message = "profile '1080p' has height 540 to 1080, best at 1080; expected multiples of 64, such as 576 to 1088"
    with pytest.raises(BackendError, match=message):
        NAMED["1080p"].check_multiple(64)
    NAMED["1080p"].rounded(64).check_multiple(64)


def test_the_nearest_profile_that_covers_a_size_is_chosen() -> None:
    profiles = [square(1024), square(512), parse_profile("512x512"), parse_profile("320x960")]
    ends = ("minimum", "optimum", "maximum")
    limits = [tuple((getattr(p.height, end), getattr(p.width, end)) for end in ends) for p in profiles]

    def chosen(*size: int) -> int | None:
        found = nearest(limits, size)
        return None if found is None else found[0]

    assert chosen(768, 1024) == 0
    assert chosen(512, 512) == 1  # of two alike, the first
    assert chosen(320, 960) == 3
    assert chosen(64, 64) is None


def test_targets_admit_the_gpus_they_were_built_for() -> None:
    ada, blackwell = Target("NVIDIA L4", "8.9", "13.0"), Target("NVIDIA RTX 5090", "12.0", "13.0")
    assert ada.admits(Target("NVIDIA L4", "8.9", "13.0"))
    assert not ada.admits(Target("NVIDIA L4", "8.9", "13.1"))
    assert not ada.admits(Target("NVIDIA L40", "8.9", "13.0"))
    assert not ada.admits(Target.ahead(["8.9"]))
    assert Target.ahead(["8.9"]).admits(ada)
    assert not Target.ahead(["8.9"]).admits(blackwell)
    assert Target.ahead().admits(blackwell)
    assert not Target.ahead().admits(Target("NVIDIA T4", "7.5", "13.0"))
    assert Target.ahead(["12.0", "8.9", "8.9"]) == Target.ahead(["8.9", "12.0"])
    for text in ("", "8", "8.9+", "sm_89"):
        with pytest.raises(InputError, match=r"expected a version such as 8\.9"):
            Target.ahead([text])


def test_the_batch_of_a_profile_is_what_has_room_in_a_full_tile() -> None:
    for profile, most in [(square(1024), 1), (square(512), 4), (square(64), 8), (NAMED["720p"], 1)]:
        assert profile.with_batch(1024).batch == Range(1, 1, most)
    shapes = profile_shapes([TensorSpec("image", FLOAT, ("batch", 3, "height", 8))], square(512).with_batch(1024))
    assert shapes == {"image": ((1, 3, 256, 8), (1, 3, 512, 8), (4, 3, 512, 8))}
