"""Which engine a backend takes for a size, and what it says where it cannot run; real engines, built without a GPU."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds engines without a GPU")
cuda = pytest.importorskip("uid.engines.cuda_device", reason="needs cuda-bindings", exc_type=ImportError)

from cuda.bindings import runtime as cudart  # noqa: E402, after the skips

from uid import engines  # noqa: E402
from uid.bundles.cache import default_folder  # noqa: E402
from uid.bundles.declarations import Bundle, built_in  # noqa: E402
from uid.bundles.manifest import read_bundle  # noqa: E402
from uid.engines.registry import PROBE  # noqa: E402
from uid.engines.trt import backend as tensorrt_backend  # noqa: E402
from uid.engines.trt.backend import TensorrtBackend, engine_path  # noqa: E402
from uid.engines.trt.cache import engine_for  # noqa: E402
from uid.engines.trt.library import Library  # noqa: E402
from uid.engines.trt.profiles import Profile, Range, Target, square  # noqa: E402
from uid.errors import BackendError, OutOfMemoryError  # noqa: E402
from uid.install import how_to_install  # noqa: E402
from uid.runtime.app.cli import doctor, run  # noqa: E402
from uid.runtime.pixels import GRAPHS, PIXELS_IN, PIXELS_OUT  # noqa: E402

AHEAD = Target.ahead(["8.9"])
HAS_DRIVER = cuda.call(cudart.cudaDriverGetVersion) != 0
no_driver = pytest.mark.skipif(HAS_DRIVER, reason="there is an NVIDIA driver")
Log = list[tuple[Any, ...]]


# Which engine is used


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The built-in bundle, with an empty cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return read_bundle(built_in())


@pytest.fixture
def pick(bundle: Bundle, library: Library) -> Callable[..., tuple[Path, list[str]]]:
    """The engine for a component at a size, and what was reported meanwhile."""

    def pick(component: str, height: int, width: int, **blur: int) -> tuple[Path, list[str]]:
        lines: list[str] = []
        sizes = {"height": height, "width": width, **blur}
        path, _, _ = engine_path(bundle, bundle.components[component], library, AHEAD, sizes, lines.append)
        return path, lines

    return pick


def test_a_size_is_built_once_and_then_reused(pick: Any, bundle: Bundle) -> None:
    path, lines = pick("decoder", 64, 128)
    assert path.parent == default_folder(bundle, "tensorrt-rtx")
    assert lines[0].startswith("decoder: building with tensorrt-rtx")
    assert pick("decoder", 64, 128) == (path, [])
    other, lines = pick("decoder", 128, 64)
    assert other != path
    assert "building" in lines[0]
    assert pick("decoder", 64, 128) == (path, [])


@pytest.mark.long
def test_the_engine_with_the_nearest_optimum_is_used(pick: Any, bundle: Bundle, library: Library) -> None:
    def prebuilt(*profiles: Profile) -> Path:
        part = bundle.components["decoder"]
        return engine_for(bundle, part, library, AHEAD, profiles, report=lambda line: None)

    wide = prebuilt(square(256))
    assert pick("decoder", 128, 192) == (wide, [])
    near = prebuilt(Profile("near", Range(64, 128, 256), Range(64, 192, 256)))
    assert pick("decoder", 128, 192) == (near, [])
    assert pick("decoder", 256, 256) == (wide, [])


def test_only_the_sizes_that_a_component_reads_matter(pick: Any) -> None:
    blur = {"blur_height": 40, "blur_width": 50}
    path, _ = pick("blur", 64, 64, **blur)
    assert pick("blur", 192, 64, **blur) == (path, [])
    long, lines = pick("blur", 64, 64, blur_height=40, blur_width=5000)
    assert long != path
    assert "building" in lines[0]
    assert pick("blur", 64, 128, blur_height=40, blur_width=4999) == (long, [])


def test_no_engine_is_built_for_a_batch_alone(tiny_bundle: Path, library: Library, tmp_path: Path) -> None:
    """The batch is the largest that the cached engines cover; where none covers the size, one is built anyway."""
    bundle = read_bundle(Path(shutil.copytree(tiny_bundle, tmp_path / "tiny")))
    backend = TensorrtBackend.__new__(TensorrtBackend)
    backend.library = library
    parts = [bundle.components[name] for name in ("encoder", "decoder")]

    def batch(side: int) -> int:
        return backend.batch(bundle, parts, {"height": side, "width": side}, 4)

    assert batch(16) == 4
    for part, most in zip(parts, (3, 2), strict=True):
        profile = replace(square(16).rounded(bundle.size_multiple), batch=Range(1, 1, most))
        engine_for(bundle, part, library, AHEAD, [profile], report=lambda line: None)
    assert (batch(16), batch(32)) == (2, 4)


def test_a_damaged_engine_is_built_again_and_reported(pick: Any) -> None:
    path, _ = pick("blur", 64, 64, blur_height=16, blur_width=16)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    again, lines = pick("blur", 64, 64, blur_height=16, blur_width=16)
    assert again == path
    assert lines[0] == f"blur: {path.name} is not used, since it has {len(whole) - 1} bytes, expected {len(whole)}"
    path.with_suffix(".json").write_text("{}")
    assert "building" in pick("blur", 64, 64, blur_height=16, blur_width=16)[1][0]


@pytest.mark.long
def test_a_build_that_runs_out_of_memory_has_an_error_of_its_own(pick: Any) -> None:
    """So tile="auto" can halve its tiles."""
    with pytest.raises(OutOfMemoryError, match=r"cannot build step\.onnx .*OutOfMemory \(Requested size was"):
        pick("step", 8192, 8192)
    assert pick("decoder", 64, 64)[0].is_file()


# Errors where nothing can run


@no_driver
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_without_a_driver_a_backend_says_so(name: str) -> None:
    with pytest.raises(BackendError, match="no NVIDIA driver here; CUDA needs an NVIDIA GPU and its driver"):
        tensorrt_backend.create(name)


def test_without_a_gpu_a_backend_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ok, version = cudart.cudaError_t.cudaSuccess, cuda.call(cudart.cudaRuntimeGetVersion)
    monkeypatch.setattr(cudart, "cudaDriverGetVersion", lambda: (ok, version))

    def cudaGetDeviceCount() -> tuple[object, int]:  # noqa: N802, as CUDA has it
        return cudart.cudaError_t.cudaErrorNoDevice, 0

    monkeypatch.setattr(cudart, "cudaGetDeviceCount", cudaGetDeviceCount)
    with pytest.raises(BackendError, match=r"cudaErrorNoDevice: no CUDA-capable device is detected"):
        tensorrt_backend.create("tensorrt-rtx")


@no_driver
def test_the_command_lines_say_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(b"")
    words = [str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--backend"]
    result = CliRunner().invoke(run, [*words, "tensorrt-rtx"])
    assert (result.exit_code, "no NVIDIA driver here" in result.output) == (2, True), result.output
    told = CliRunner().invoke(doctor).output
    assert "missing  backend tensorrt-rtx: no NVIDIA driver here" in told
    if not engines.installed(engines.BACKENDS["tensorrt"]):
        install = how_to_install("tensorrt")
        assert f"missing  backend tensorrt: backend tensorrt is not installed: {install}" in told
        result = CliRunner().invoke(run, [*words, "tensorrt"])
        assert f"{install}; needs an NVIDIA GPU" in result.output


@no_driver
def test_an_engine_that_does_not_load_is_reported_in_the_librarys_words(library: Library, bundle: Bundle) -> None:
    backend = TensorrtBackend.__new__(TensorrtBackend)
    here = Target("NVIDIA L4", "8.9", "13.0")
    backend.library, backend.target, backend.runtime = library, here, trt.Runtime(library.logger)
    message = r"cannot load the engine of %s on NVIDIA L4 .*8\.9.*: .*CUDA driver version is insufficient"
    with pytest.raises(BackendError, match=message % "component 'decoder'"):
        backend.load_component(bundle, bundle.components["decoder"], {"height": 64, "width": 64})
    for path in (GRAPHS / PIXELS_IN.file, GRAPHS / PIXELS_OUT.file, PROBE):
        with pytest.raises(BackendError, match=message % path.name):
            backend.load(path)


# The calls that an engine gets
