"""The pipeline on a toy family whose result is known, and on the tiny UID-Diff bundle against PyTorch."""

import importlib.util
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from uid.bundles.tensors import Array
from uid.errors import BundleError, InputError, ModelError
from uid.runtime.options import Options
from uid.runtime.pipeline import Pipeline, load
from uid.runtime.run import Limits

if TYPE_CHECKING:
    from uid.families.uid_diff.model import UIDDiff

MakeToy = Callable[..., Path]
OPENVINO = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")


def toy_reference(image: Array, steps: int, seed: int = 0) -> Array:
    """What the toy computes, in plain numpy: 4 x 4 means, approached by half from the seed's noise each step."""
    padded = np.pad(image, [(0, -side % 4) for side in image.shape[:2]] + [(0, 0)], mode="reflect")
    height, width = padded.shape[:2]
    z = padded.reshape(height // 4, 4, width // 4, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1)[None]
    latent = np.random.Generator(np.random.PCG64(seed)).standard_normal(z.shape, dtype=np.float32)
    for _ in range(steps):
        latent = (latent + z) / 2
    large = latent[0].transpose(1, 2, 0).repeat(4, axis=0).repeat(4, axis=1)
    return large.clip(0, 1)[: image.shape[0], : image.shape[1]]


@pytest.mark.parametrize("size", [(16, 16), (13, 30), (1, 1), (2, 70), (75, 90)])
@pytest.mark.parametrize("steps", [1, 4, 5])
def test_result_is_what_the_graphs_say(make_toy: MakeToy, size: tuple[int, int], steps: int) -> None:
    image = np.random.default_rng(1).random((*size, 3), dtype=np.float32)
    result = load(make_toy())(image, Options(steps=steps, seed=3))
    np.testing.assert_allclose(result.image, toy_reference(image, steps, seed=3), atol=1e-5)
    assert result.tiles == (12 if size == (75, 90) else 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(20, 24, 3), (20, 24)])
def test_same_kind_out(make_toy: MakeToy, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1.0
    image = np.full(shape, 0.75 * top, dtype)
    result = load(make_toy())(image, Options(steps=40))
    assert (result.image.dtype, result.image.shape) == (image.dtype, image.shape)
    np.testing.assert_allclose(result.image.astype(np.float64) / top, 0.75, atol=3e-3)


def test_same_seed_same_bytes(tiny_bundle: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (33, 21, 3), dtype=np.uint8)
    first, second = load(tiny_bundle), load(tiny_bundle)
    a = first(image, Options(seed=5, steps=4)).image
    assert a.tobytes() == first(image, Options(seed=5, steps=4)).image.tobytes()
    assert a.tobytes() == second(image, Options(seed=5, steps=4)).image.tobytes()
    assert a.tobytes() != first(image, Options(seed=6, steps=4)).image.tobytes()


def test_two_sizes_in_turn_do_not_mix(tiny_bundle: Path) -> None:
    generator, shared = np.random.default_rng(0), load(tiny_bundle)
    images = [generator.random((16 + 4 * i, 16, 3), dtype=np.float32) for i in range(4)]
    alone = [load(tiny_bundle)(image, Options(steps=2)).image for image in images]
    for _ in range(2):
        for image, expected in zip(images, alone, strict=True):
            np.testing.assert_array_equal(shared(image, Options(steps=2)).image, expected)


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=OPENVINO)])
def test_threads_that_share_a_pipeline_get_their_own_images(tiny_bundle: Path, name: str) -> None:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (16 + 8 * (i % 2), 24, 3), dtype=np.uint8) for i in range(8)]
    shared = load(tiny_bundle, backend=name, threads=1)
    another = Pipeline(shared.bundle, shared._backend)  # pipelines may share a backend
    alone = [load(tiny_bundle, backend=name, threads=1)(image, Options(steps=2)).image for image in images]
    started = threading.Barrier(len(images))

    def run(number: int) -> list[bytes]:
        started.wait()
        return [(shared, another)[turn % 2](images[number], Options(steps=2)).image.tobytes() for turn in range(4)]

    with ThreadPoolExecutor(len(images)) as pool:
        for number, made in enumerate(pool.map(run, range(len(images)))):
            assert made == 4 * [alone[number].tobytes()]


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=OPENVINO)])
@pytest.mark.parametrize(
    ("size", "options", "batch"),
    [
        ((20, 28), Options(transforms=8), 4),  # four views of one size, four of the other
        ((20, 28), Options(transforms=5, mode="blur-transfer"), 4),
        ((20, 250), Options(transforms=2, tile=64), 3),  # of ten tiles
        ((64, 64), Options(transforms=2), 1),  # each as large as a full tile
    ],
)
def test_images_that_run_together_are_those_that_run_alone(
    tiny_bundle: Path, name: str, size: tuple[int, int], options: Options, batch: int
) -> None:
    generator = np.random.default_rng(0)
    image, blur = (generator.random((*shape, 3), dtype=np.float32) for shape in (size, (45, 31)))
    results, counts = [], list[list[tuple[int, int]]]()
    for largest in (1, 8):
        pipeline = load(tiny_bundle, backend=name, threads=1)
        pipeline._auto = Limits(pipeline.bundle.tile, largest)
        told: list[tuple[int, int]] = []
        given = blur if options.mode == "blur-transfer" else None
        on_step = lambda *done, told=told: told.append(done)  # noqa: E731  (each its own list)
        results.append(pipeline(image, replace(options, steps=3), blur_image=given, on_step=on_step))
        counts.append(told)
    alone, together = results
    assert (alone.batch, together.batch) == (1, batch)
    assert alone.image.tobytes() == together.image.tobytes()
    assert counts[0][-1] == counts[1][-1] == (3 * alone.tiles * alone.options.transforms,) * 2
    assert counts[1] == sorted(counts[1])


def test_a_pipeline_called_by_its_own_progress_says_so(make_toy: MakeToy) -> None:
    pipeline, image = load(make_toy()), np.full((8, 8, 3), 100, np.uint8)
    with pytest.raises(RuntimeError, match="called from inside its own on_step"):
        pipeline(image, on_step=lambda done, total: pipeline(image) and None)
    assert pipeline(image, Options(steps=40)).image.mean() == pytest.approx(100, abs=1)


@pytest.mark.parametrize("mode", ["deblur", "blur-transfer"])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_thirty_steps_agree_with_pytorch(tiny_bundle: Path, tiny_model: "UIDDiff", mode: str, guidance: float) -> None:
    import torch

    generator = np.random.default_rng(0)
    image, blur = (generator.random(shape, dtype=np.float32) for shape in ((20, 36, 3), (45, 31, 3)))
    noise = torch.from_numpy(np.random.Generator(np.random.PCG64(7)).standard_normal((1, 4, 10, 18), np.float32))
    planar = [torch.from_numpy(x).permute(2, 0, 1)[None] for x in (image, blur)]
    options = Options(mode=mode, steps=30, guidance=guidance, seed=7)
    if mode == "deblur":
        expected = tiny_model.deblur(planar[0], noise, guidance=guidance)
        result = load(tiny_bundle)(image, options)
    else:
        expected = tiny_model.blur_transfer(*planar, noise, guidance=guidance)
        result = load(tiny_bundle)(image, options, blur_image=blur)
    difference = np.abs(result.image - expected[0].permute(1, 2, 0).numpy())
    assert np.quantile(difference, 0.999) <= 1 / 255
    assert expected.std() > 0.05


@pytest.mark.parametrize(
    ("guidance", "interval", "reuse"),
    [(7.5, (0.25, 0.75), 1), (7.5, (0.0, 1.0), 3), (4.0, (0.3, 1.0), 2), (1.0, (0.0, 1.0), 4)],
)
@pytest.mark.parametrize("mode", ["deblur", "blur-transfer"])
def test_shortcuts_agree_with_pytorchs(
    shortcut_bundle: Path, tiny_model: "UIDDiff", mode: str, guidance: float, interval: tuple[float, float], reuse: int
) -> None:
    import torch

    from uid.families.uid_diff.model import BLURRY_PROMPT, SHARP_PROMPT

    generator = np.random.default_rng(0)
    image, blur = (generator.random(shape, dtype=np.float32) for shape in ((20, 36, 3), (45, 31, 3)))
    noise = torch.from_numpy(np.random.Generator(np.random.PCG64(7)).standard_normal((1, 4, 10, 18), np.float32))
    planar = [torch.from_numpy(x).permute(2, 0, 1)[None] for x in (image, blur)]
    transfers = mode == "blur-transfer"
    prompt, given = (BLURRY_PROMPT, planar[1]) if transfers else (SHARP_PROMPT, None)
    how = {"interval": interval, "cache_interval": reuse}
    expected = tiny_model.sample(planar[0], noise, prompt, 10, guidance, given, **how)
    options = Options(mode=mode, steps=10, guidance=guidance, guidance_interval=interval, cache_interval=reuse, seed=7)
    pipeline, blur_image = load(shortcut_bundle), blur if transfers else None
    result = pipeline(image, options, blur_image=blur_image)
    difference = np.abs(result.image - expected[0].permute(1, 2, 0).numpy())
    assert np.quantile(difference, 0.999) <= 1 / 255
    assert (result.options.guidance_interval, result.options.cache_interval) == (interval, reuse)
    whole = pipeline(image, Options(mode=mode, steps=10, guidance=guidance, seed=7), blur_image=blur_image)
    assert np.abs(result.image - whole.image).max() > 2 / 255


def test_tiles_join_without_a_seam(tiny_bundle: Path) -> None:
    ramp = np.linspace(0.2, 0.8, 160, dtype=np.float32)
    image = np.stack([np.add.outer(ramp, ramp) / 2] * 3, axis=2)
    result = load(tiny_bundle)(image, Options(steps=3, tile=64))
    assert result.tiles > 4
    horizontal = np.abs(np.diff(result.image, axis=1)).mean(axis=(0, 2))
    assert horizontal.max() < 3 * np.median(horizontal)


def test_progress_and_times(make_toy: MakeToy) -> None:
    seen: list[tuple[int, int]] = []
    image = np.zeros((64, 64, 3), np.uint8)
    result = load(make_toy())(image, Options(steps=3), on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 3 * result.tiles) for i in range(3 * result.tiles)]
    assert result.seconds.keys() == {"prepare", "step", "finish"}
    assert result.backend == "onnxruntime"


def transposed(image: Array) -> Array:
    return image.swapaxes(0, 1)


# Each view of an image, and the way back.
WAYS: list[tuple[Callable[[Array], Array], Callable[[Array], Array]]] = [
    (lambda x: x, lambda y: y),
    (lambda x: np.rot90(x, 2), lambda y: np.rot90(y, 2)),
    (np.flipud, np.flipud),
    (np.fliplr, np.fliplr),
    (transposed, transposed),
    (lambda x: np.rot90(transposed(x), 2), lambda y: transposed(np.rot90(y, 2))),
    (lambda x: np.rot90(x, 1), lambda y: np.rot90(y, -1)),
    (lambda x: np.rot90(x, -1), lambda y: np.rot90(y, 1)),
]


@pytest.mark.parametrize("views", [1, 2, 5, 8])
def test_views_are_turned_run_and_turned_back(make_toy: MakeToy, views: int) -> None:
    image = np.random.default_rng(1).random((13, 30, 3), dtype=np.float32)  # padded, so that every view differs
    done: list[tuple[int, int]] = []
    result = load(make_toy())(image, Options(steps=40, transforms=views), on_step=lambda *counts: done.append(counts))
    expected = [back(toy_reference(there(image), 40)) for there, back in WAYS[:views]]
    np.testing.assert_allclose(result.image, np.mean(expected, axis=0), atol=1e-5)
    assert (result.options.transforms, done[-1]) == (views, (40 * views, 40 * views))
    grey = load(make_toy())(np.rint(255 * image[:, :, 0]).astype(np.uint8), Options(steps=40, transforms=views)).image
    assert (grey.shape, grey.dtype) == ((13, 30), np.uint8)


def test_the_image_that_gives_the_blur_is_turned_too(tiny_bundle: Path) -> None:
    generator, pipeline = np.random.default_rng(0), load(tiny_bundle)
    image, blur = (generator.random(shape, dtype=np.float32) for shape in ((20, 36, 3), (45, 31, 3)))
    options = Options(mode="blur-transfer", steps=2)
    expected = [
        back(pipeline(there(image), options, blur_image=there(blur)).image) for there, back in (WAYS[0], WAYS[1])
    ]
    result = pipeline(image, replace(options, transforms=2), blur_image=blur)
    np.testing.assert_allclose(result.image, np.mean(expected, axis=0), atol=1e-6)


def test_a_quality_gives_steps_and_views(make_toy: MakeToy) -> None:
    folder, image = make_toy(), np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="no preset 'fast'; it has none: give steps and transforms"):
        load(folder)(image, Options(preset="fast"))
    declared = {"full": {"steps": 6, "views": 8, "figures": {"psnr": 50.0}}, "fast": {"steps": 2, "views": 1}}
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"qualities": declared, "quality": "full"}))
    pipeline = load(folder)
    for options, expected in [
        (Options(), ("full", 6, 8)),
        (Options(preset="fast"), ("fast", 2, 1)),
        (Options(preset="fast", transforms=2), ("fast", 2, 2)),
        (Options(steps=3), ("full", 3, 8)),
    ]:
        result = pipeline(image, options)
        assert (result.options.preset, result.options.steps, result.options.transforms) == expected
    (folder / "manifest.json").write_text(json.dumps(manifest | {"quality": "best"}))
    with pytest.raises(BundleError, match="default preset 'best' is not declared"):
        load(folder)


def test_nan_is_named_with_its_step(make_toy: MakeToy) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ModelError, match=r"NaN or infinity in step 7 of 10 \(timestep 301\)"):
        load(make_toy(nan_below=400.0))(image, Options(steps=10))


def test_bad_arrays_and_options_are_refused(make_toy: MakeToy, tiny_bundle: Path) -> None:
    pipeline, image = load(make_toy()), np.zeros((8, 8, 3), np.uint8)
    nan = np.full((8, 8, 3), np.nan, np.float32)
    for bad, message in [
        (image.astype(np.int32), "dtype int32; expected uint8, uint16 or float"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\); expected \(H, W, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), "expected"),
        (image.astype(np.float32) + 2.0, r"values from 2.0 to 2.0; expected floats in \[0, 1\]"),
        (nan, "nan"),
        ([[0]], "list; expected a numpy array"),
    ]:
        with pytest.raises(InputError, match=message):
            pipeline(bad)
    for values, message in [
        ({"mode": "sharpen"}, "no mode 'sharpen'; it has"),
        ({"mode": "blur-transfer"}, "no mode 'blur-transfer'"),
        ({"steps": 0}, "steps is 0; expected 1 or more"),
        ({"steps": 2000}, "got 2000 steps; expected 1 to 1000"),
        ({"transforms": 0}, "transforms is 0; expected 1 to 8"),
        ({"guidance": float("nan")}, "expected a finite number"),
        ({"seed": -1}, "seed is -1; expected 0 to"),
        ({"guidance_interval": (0.5, 0.5)}, r"interval is \(0.5, 0.5\); expected a part of \(0, 1\)"),
        ({"guidance_interval": (0.0, 0.5)}, "has no unguided steps, which a guidance interval needs"),
        ({"cache_interval": 0}, "cache interval is 0; expected 1 or more"),
        ({"cache_interval": 2}, "has no shallow steps, which a feature cache needs: export it with shortcuts"),
        ({"tile": 4}, "needs at least 8"),
        ({"tile": 64.0}, "tile is 64.0; expected a whole number of 1 or more, or 'auto'"),
        ({"steps": "4"}, "steps is '4'; expected a whole number of 1 or more"),
        ({"guidance": "4"}, "guidance is '4'; expected a finite number"),
        ({"guidance_interval": None}, "interval is None; expected a part"),
        ({"mode": ["deblur"]}, r"mode is \['deblur'\]; expected a name"),
        ({"cache_interval": None}, "cache interval is None; expected a whole number"),
        ({"seed": None}, "seed is None; expected a whole number"),
        ({"seed": 10**5000}, "seed is a int; expected 0 to"),
        ({"steps": True}, "steps is True; expected a whole number"),
        ({"tile": np.zeros(2)}, r"tile is array\(\[0., 0.\]\); expected a whole number"),
        ({"guidance": 1e300}, r"guidance is 1e\+300; expected a finite number from -1000 to 1000"),
        ({"guidance": True}, "guidance is True; expected a finite number"),
        ({"mode": 7}, "mode is 7; expected a name"),
        ({"preset": ["fast"]}, r"preset is \['fast'\]; expected a name"),
        ({"tile": "all"}, "tile is 'all'; expected a whole number of 1 or more, or 'auto'"),
    ]:
        with pytest.raises(InputError, match=message):
            pipeline(image, Options(**values))
    tiled = pipeline(np.zeros((64, 64, 3), np.uint8), Options(tile=np.int64(16)))  # as numpy counts
    assert tiled.tile == 16
    with pytest.raises(InputError, match="mode 'deblur' does not read the image blur_image; leave it out"):
        pipeline(image, blur_image=image)
    with pytest.raises(InputError, match="mode 'blur-transfer' needs the image blur_image"):
        load(tiny_bundle)(image, Options(mode="blur-transfer"))
