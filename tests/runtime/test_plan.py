"""What a CUDA stream would be given, written down without a GPU: the plan's order, buffers, copies and captures."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uid.bundles.declarations import Bundle, Component
from uid.bundles.manifest import read_bundle
from uid.bundles.tensors import Array
from uid.engines import Engine, OneByOne, create
from uid.engines.registry import PROBE
from uid.errors import InputError, ModelError, OutOfMemoryError
from uid.runtime.options import Options
from uid.runtime.pipeline import Pipeline, load
from uid.runtime.schedule import coefficients

MakeToy = Callable[..., Path]
NUMBERS = ("timestep", "alpha_bar", "alpha_bar_prev")


def picture(height: int = 16, width: int = 24, seed: int = 0, dtype: type = np.float32) -> Array:
    generator = np.random.default_rng(seed)
    if dtype is np.float32:
        return generator.random((height, width, 3), dtype=np.float32)
    return generator.integers(0, 256, (height, width, 3), dtype)


def launched(log: list[Any]) -> list[Any]:
    return [entry for entry in log if hasattr(entry, "reads")]


def copied(log: list[Any], way: str) -> list[int]:
    return [entry.buffer for entry in log if getattr(entry, "way", None) == way]


def run(pipeline: Pipeline, log: list[Any], image: Array, options: Options) -> tuple[Array, list[Any]]:
    """The output, and what was logged for it alone."""
    before = len(log)
    output = pipeline(image, options).image
    return output, log[before:]


@pytest.mark.parametrize("steps", [1, 2, 5, 30])
def test_every_launch_reads_what_the_last_one_wrote(make_toy: MakeToy, recorder: Any, steps: int) -> None:
    bundle, options = make_toy(guided=True), Options(steps=steps, guidance=3.0)
    pipeline = Pipeline(read_bundle(bundle), recorder)
    run(pipeline, recorder.log, picture(seed=1), options)
    output, log = run(pipeline, recorder.log, picture(), options)
    encode, *loop, decode = launched(log)
    guides, all_steps = loop[::2], loop[1::2]
    assert [entry.name for entry in launched(log)] == ["encode", *["guide", "step"] * steps, "decode"]
    states = [(step.reads["latent"], step.writes["latent_next"]) for step in all_steps]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(states))
    assert set(states) <= {states[0], states[0][::-1]}
    assert states[0][0] != states[0][1]
    assert decode.reads["latent"] == states[-1][1]
    for guide, step in zip(guides, all_steps, strict=True):
        assert step.reads["z"] == encode.writes["z"]
        assert step.reads["offset"] == guide.writes["offset"]
    assert copied(log, "write")[-1] == states[0][0]  # the noise
    assert copied(log, "read") == [decode.reads["latent"], decode.writes["output"]]
    np.testing.assert_array_equal(output, load(bundle)(picture(), options).image, strict=True)


def test_each_step_reads_its_own_row(make_toy: MakeToy, recorder: Any) -> None:
    bundle = read_bundle(make_toy(guided=True))
    pipeline = Pipeline(bundle, recorder)
    pipeline(picture(), Options(steps=30))
    buffers = {buffer.number: buffer for buffer in recorder.live}
    rows = [dict(row) for row in coefficients(bundle.schedule, 30)]
    first_time = launched(recorder.log)[: 1 + 2 * 30]
    seen = {name: [e.reads[name] for e in first_time if name in e.reads] for name in NUMBERS}
    for name, numbers in seen.items():
        assert len(set(numbers)) == 30
        values = [float(buffers[number].real.read()[0]) for number in numbers]
        assert values == [float(np.float32(row[name])) for row in rows]


def test_only_steps_are_told_their_numbers(make_toy: MakeToy, recorder: Any) -> None:
    bundle = read_bundle(make_toy(guided=True))
    early = {**bundle.components, "guide": replace(bundle.components["guide"], stage="prepare")}
    with pytest.raises(ModelError, match="component 'guide' reads 'alpha_bar', which only a step is given"):
        Pipeline(replace(bundle, components=early), recorder)(picture())


def test_a_captured_plan_only_replays(make_toy: MakeToy, recorder: Any) -> None:
    bundle = make_toy(guided=True)
    pipeline, host = Pipeline(read_bundle(bundle), recorder), load(bundle)
    _, first = run(pipeline, recorder.log, picture(), Options(steps=4))
    steps = ["guide", "step"] * 4
    whole = ["encode", *steps, "decode"]  # runs once before it is captured
    assert [getattr(entry, "name", entry) for entry in first if not hasattr(entry, "way")] == [
        *whole,
        "capture",
        "replay",
        *whole,
    ]
    buffers = recorder.count
    outputs = []
    for seed, guidance in [(1, 1.0), (1, 5.0), (2, 5.0)]:
        options = Options(steps=4, guidance=guidance)
        output, log = run(pipeline, recorder.log, picture(seed=seed), options)
        assert [entry for entry in log if isinstance(entry, str)] == ["replay"]
        assert len(copied(log, "write")) == 3  # image, guidance, noise
        np.testing.assert_array_equal(output, host(picture(seed=seed), options).image)
        outputs.append(output)
    assert recorder.count == buffers
    assert not np.array_equal(outputs[0], outputs[1])


def test_another_size_or_number_of_steps_captures_again(make_toy: MakeToy, recorder: Any) -> None:
    pipeline = Pipeline(read_bundle(make_toy()), recorder)
    for image, steps, captures in [
        (picture(), 4, 1),
        (picture(), 5, 1),
        (picture(), 4, 0),
        (picture(20), 4, 1),
        (picture(), 4, 0),
        (picture(), 5, 1),  # two plans are kept, and this is the third
    ]:
        _, log = run(pipeline, recorder.log, image, Options(steps=steps))
        assert log.count("capture") == captures, (image.shape, steps)


def test_a_loop_in_one_piece_reports_once(make_toy: MakeToy, recorder: Any) -> None:
    pipeline, seen = Pipeline(read_bundle(make_toy()), recorder), []
    for size in (16, 64):
        pipeline(picture(size, size), Options(steps=3), on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 3), *((3 * i, 27) for i in range(1, 10))]


def test_one_graph_tells_what_each_stage_took(make_toy: MakeToy, recorder: Any) -> None:
    result = Pipeline(read_bundle(make_toy(guided=True)), recorder)(picture(), Options(steps=4))
    assert result.seconds == {"prepare": 1.0, "step": 8.0, "finish": 1.0}  # of the recorder's events


@pytest.mark.parametrize("views", [1, 2, 8])
@pytest.mark.parametrize("size", [(16, 24), (13, 30), (1, 1), (75, 90)])
@pytest.mark.parametrize("grey", [False, True])
def test_uint8_goes_in_whatever_is_run(
    make_toy: MakeToy, recorder: Any, size: tuple[int, int], views: int, grey: bool
) -> None:
    bundle, options = make_toy(), Options(steps=3, transforms=views)
    image = picture(*size, dtype=np.uint8)
    image = image[..., 0] if grey else image
    output, log = run(Pipeline(read_bundle(bundle), recorder), recorder.log, image, options)
    host = load(bundle, backend="onnxruntime")
    host._backend.new_sizes_cost = True  # or its tiles would have other sizes
    np.testing.assert_array_equal(output, host(image, options).image, strict=True)
    ways = [(entry.way, entry.dtype.name) for entry in log if hasattr(entry, "way") and entry.dtype != np.float32]
    whole = views == 1 and size != (75, 90) and not grey  # then nothing is added up, and it comes out in uint8 too
    assert set(ways) == {("write", "uint8"), ("read", "uint8")} if whole else {("write", "uint8")}
    pictures = {entry.writes["image"] for entry in launched(log) if entry.name == "pixels_in"}
    assert not pictures & {entry.buffer for entry in log if hasattr(entry, "way")}


@pytest.mark.parametrize("image", [picture(), picture(dtype=np.uint8).astype(np.uint16), picture().astype(np.float64)])
def test_what_is_not_uint8_is_converted_on_the_host(make_toy: MakeToy, recorder: Any, image: Array) -> None:
    bundle, options = make_toy(), Options(steps=3)
    output, log = run(Pipeline(read_bundle(bundle), recorder), recorder.log, image, options)
    assert "pixels_in" not in {entry.name for entry in launched(log)}
    np.testing.assert_array_equal(output, load(bundle)(image, options).image, strict=True)


def test_images_with_and_without_views_share_a_plan(make_toy: MakeToy, recorder: Any) -> None:
    recorder.largest_batch = 1
    pipeline, image = Pipeline(read_bundle(make_toy()), recorder), picture(dtype=np.uint8)
    for views in (1, 2, 1):
        pipeline(image, Options(steps=3, transforms=views))
    assert recorder.log.count("capture") == 1


@pytest.mark.parametrize("mode", ["deblur", "blur-transfer"])
def test_the_tiny_model_captured_gives_the_same_bytes(tiny_bundle: Path, recorder: Any, mode: str) -> None:
    image, blur = picture(33, 21, dtype=np.uint8), picture(40, 35, seed=1) if mode == "blur-transfer" else None
    options = Options(mode=mode, steps=30)
    captured = Pipeline(read_bundle(tiny_bundle), recorder)
    captured(picture(33, 21, seed=2, dtype=np.uint8), options, blur_image=blur)
    expected = Pipeline(read_bundle(tiny_bundle), create("onnxruntime", threads=1))(image, options, blur_image=blur)
    np.testing.assert_array_equal(captured(image, options, blur_image=blur).image, expected.image, strict=True)


def test_what_is_not_finite_is_named_from_a_graph_too(make_toy: MakeToy, recorder: Any) -> None:
    image = picture(8, 8, dtype=np.uint8)
    with pytest.raises(ModelError, match=r"NaN or infinity in step 7 of 10 \(timestep 301\)"):
        Pipeline(read_bundle(make_toy(nan_below=400.0)), recorder)(image, Options(steps=10))
    for scale in (np.nan, np.inf):
        with pytest.raises(ModelError, match="in its finish stage"):
            Pipeline(read_bundle(make_toy(scale=scale)), recorder)(image, Options(steps=2))


def test_auto_tiles_are_halved_until_they_fit(make_toy: MakeToy, recorder: Any) -> None:
    bundle, image = make_toy(tile=64), picture(64, 64)
    pipeline = Pipeline(read_bundle(bundle), recorder)
    recorder.room = 2 * 3 * 4 * 32 * 32 * 1.5  # the images of a tile of 32, and some more
    for attempt in range(2):
        before = recorder.count
        result = pipeline(image, Options(steps=3, tile="auto"))
        assert (result.tile, result.tiles) == (32, 9)
        assert recorder.count == before if attempt else recorder.count > before  # what fits is remembered
    reference = load(bundle, backend="onnxruntime")
    reference._backend.new_sizes_cost = True  # or its tiles would have other sizes
    np.testing.assert_array_equal(result.image, reference(image, Options(steps=3, tile=32)).image)


def test_images_run_one_at_a_time_where_memory_holds_no_batch(make_toy: MakeToy, recorder: Any) -> None:
    bundle, image, options = make_toy(tile=64), picture(32, 32), Options(steps=3, transforms=4)
    expected = load(bundle)(image, options).image
    pipeline = Pipeline(read_bundle(bundle), recorder)
    result = pipeline(image, options)
    assert (result.batch, result.tiles) == (4, 1)
    np.testing.assert_array_equal(result.image, expected, strict=True)
    together = sum(buffer.nbytes for buffer in recorder.live)
    pipeline = Pipeline(read_bundle(bundle), recorder)
    recorder.room = together / 2
    for _ in range(2):
        before = recorder.log.count("capture")
        result = pipeline(image, options)
        assert (result.batch, result.tiles, result.tile) == (1, 1, None)
        np.testing.assert_array_equal(result.image, expected, strict=True)
    assert recorder.log.count("capture") == before  # what fits is remembered


def test_tiles_have_few_sizes_where_each_costs(make_toy: MakeToy, recorder: Any, monkeypatch: Any) -> None:
    pipeline, sizes = Pipeline(read_bundle(make_toy(tile=64)), recorder), list[Mapping[str, int]]()
    get = pipeline._plans.get
    monkeypatch.setattr(pipeline._plans, "get", lambda mode, *how: (sizes.append(how[0]), get(mode, *how))[1])
    for length in range(68, 400, 12):  # 4 is the toy's size multiple
        pipeline(picture(length, 64), Options(steps=1))
        assert all(size["width"] == 64 for size in sizes)
    heights = {size["height"] for size in sizes}
    assert heights <= set(range(40, 65, 8))  # eighths of the largest, over half of it
    assert len(heights) > 2
    sizes.clear()
    pipeline(picture(72, 60), Options(steps=1))
    assert sizes == [{"batch": 1, "height": 40, "width": 60}] * 2  # not 64, of which they would share most


def test_without_room_the_error_says_what_to_do(make_toy: MakeToy, recorder: Any) -> None:
    pipeline, image = Pipeline(read_bundle(make_toy(tile=64)), recorder), picture(64, 64)
    recorder.room = 100
    with pytest.raises(
        OutOfMemoryError, match=r"no room for .* 64 x 64 pixels .*: use tiles of fewer pixels, or 'auto'"
    ):
        pipeline(image)
    with pytest.raises(OutOfMemoryError, match=r"Tiles of 32 x 32 pixels .* recording: use tiles of fewer pixels"):
        pipeline(image, Options(tile=32))
    with pytest.raises(OutOfMemoryError, match=r"Tiles of 8 x 8 pixels .*: the smallest there are"):
        pipeline(image, Options(tile="auto"))
    with pytest.raises(InputError, match="tile is 'small'; expected a whole number of 1 or more, or 'auto'"):
        pipeline(image, Options(tile="small"))  # type: ignore[arg-type]


def test_a_plan_in_the_way_is_dropped(make_toy: MakeToy, recorder: Any) -> None:
    pipeline = Pipeline(read_bundle(make_toy(tile=64)), recorder)
    pipeline(picture(64, 60))
    alone = sum(buffer.nbytes for buffer in recorder.live)
    recorder.room = 1.5 * alone
    assert pipeline(picture(60, 64)).tile is None
    assert sum(buffer.nbytes for buffer in recorder.live) == alone


def test_the_backends_limit_bounds_the_plans_kept(make_toy: MakeToy, recorder: Any) -> None:
    pipeline = Pipeline(read_bundle(make_toy(tile=64)), recorder)
    pipeline(picture(64, 60))
    alone = sum(buffer.nbytes for buffer in recorder.live)
    for limit, plans in [(3 * alone, 2), (1.5 * alone, 1), (0.5 * alone, 1)]:
        recorder.memory_limit = limit
        pipeline(picture(60, 64)), pipeline(picture(64, 60))
        assert sum(buffer.nbytes for buffer in recorder.live) == plans * alone


@pytest.fixture
def sized(recorder: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Makes the recorder's engines fit one size each; the component and height of each that is loaded."""
    loaded: list[tuple[str, int]] = []

    def load(bundle: Bundle, component: Component, sizes: Mapping[str, int]) -> Engine:
        engine = recorder.load(bundle.folder / component.file)
        engine.covers = lambda other: other == sizes
        loaded.append((component.name, sizes["height"]))
        return engine  # type: ignore[no-any-return]

    monkeypatch.setattr(recorder, "load_component", load)
    return loaded


def test_engines_are_loaded_for_sizes_and_dropped_with_their_plans(
    make_toy: MakeToy, recorder: Any, sized: list[tuple[str, int]]
) -> None:
    bundle = make_toy(tile=64)
    pipeline, host = Pipeline(read_bundle(bundle), recorder), load(bundle)
    parts = ["encode", "step", "decode"]
    for height, names in [(16, parts), (20, parts), (16, []), (24, parts), (16, [])]:
        sized.clear()
        result = pipeline(picture(height), Options(steps=3)).image
        np.testing.assert_array_equal(result, host(picture(height), Options(steps=3)).image)
        assert sized == [(name, height) for name in names]
    sized.clear()
    pipeline(picture(20), Options(steps=3))  # its plan had to go, and its engines with it
    assert sized == [(name, 20) for name in parts]
    assert all(len(engines) == 2 for engines in pipeline._plans.engines.values())


def test_the_result_says_whether_the_loop_was_captured(make_toy: MakeToy, recorder: Any) -> None:
    bundle = read_bundle(make_toy())
    assert Pipeline(bundle, recorder)(picture(), Options(steps=3)).captured
    recorder.capture = OneByOne
    assert not Pipeline(bundle, recorder)(picture(), Options(steps=3)).captured


def test_all_is_bound_before_anything_is_captured(make_toy: MakeToy, recorder: Any) -> None:
    """Engines that share scratch memory can then be given one piece, the size of the largest need."""
    bound, counts = list[str](), list[int]()
    original, capture = type(recorder.load(PROBE)).bind, recorder.capture

    def bind(self: Any, buffers: Any) -> Any:
        bound.append(self.name)
        return original(self, buffers)

    def counted(work: Any) -> Any:
        counts.append(len(bound))
        return capture(work)

    recorder.capture = counted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(recorder.load(PROBE)), "bind", bind)
        Pipeline(read_bundle(make_toy()), recorder)(picture(), Options(steps=3))
    assert counts == [5]
