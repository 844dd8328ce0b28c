"""The runtime on TensorRT-RTX's own engines, on a stand-in for the driver that checks rules and computes nothing.

Each test runs a function of this file in a process of its own, which finds the stand-in in place of a driver:
``LD_LIBRARY_PATH=... python tests/runtime/test_standin.py picture FOLDER``. Its source: tests/engines/standin_*.c.
"""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__)
ENGINES = HERE.parents[1] / "engines"
COUNTS = ("launches", "captured", "graph_launches", "copies", "captures", "blocks", "faults")

Child = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled stand-in."""
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    folder, sources = tmp_path_factory.mktemp("driver"), sorted(ENGINES.glob("standin_*.c"))
    words = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", folder / "libcuda.so.1", *sources, "-ldl", "-lpthread"]
    subprocess.run([*words, "-Wl,-soname,libcuda.so.1"], check=True)
    return folder


@pytest.fixture
def child(driver: Path, tmp_path: Path) -> Child:
    """Runs a function of this file on the stand-in, with an empty cache of engines; returns what it prints last."""
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")

    def run(*words: str | Path, capability: str = "8.9") -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, HERE, *words],
            env=environment(driver, capability, tmp_path),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    return run


def environment(driver: Path, capability: str, cache: Path) -> dict[str, str]:
    """The variables of a process that finds the stand-in."""
    libraries = os.pathsep.join([str(driver), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    found = {"LD_LIBRARY_PATH": libraries, "STANDIN_CAPABILITY": capability, "XDG_CACHE_HOME": str(cache)}
    return {**os.environ, **found}


def test_the_device_layer_keeps_the_rules(driver: Path, tmp_path: Path) -> None:
    """All of its tests that need a GPU: copies, fills and events are real here."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--noconftest", "-p", "no:cacheprovider"]
    env = environment(driver, "8.9", tmp_path)
    done = subprocess.run([*words, ENGINES / "test_cuda.py"], env=env, capture_output=True, text=True)
    assert (done.returncode, "skipped" in done.stdout) == (0, False), done.stdout
    assert " passed" in done.stdout


def test_what_breaks_a_rule_is_noticed(child: Child) -> None:
    assert child("broken_rules") == {
        "allocate": ["cudaErrorStreamCaptureUnsupported", "memory allocated in a capture"],
        "free": ["cudaErrorStreamCaptureUnsupported", "memory freed in a capture"],
        "wait": ["cudaErrorStreamCaptureUnsupported", "a stream waited for while it captures"],
        "replay": ["cudaErrorInvalidValue", "a copy or fill of freed memory"],
    }


def check_pictures(child: Child, folder: Path, kernels: int) -> None:
    """Two pictures in a process with no engines yet, and two in one with those of the first."""
    told = child("picture", folder)
    first, second = told["first"], told["second"]
    assert (told["captured"], told["faults"], told["fault"]) == (True, 0, "")
    assert (first["captures"], first["graph_launches"]) == (1, 1)
    assert first["launches"] == first["captured"] >= kernels  # the run before it launches what is captured
    # Uploads, one launch, downloads; nothing is allocated, freed, launched by itself or captured again.
    assert second.pop("copies") > 0
    assert {name for name, count in second.items() if count} == {"graph_launches"}
    assert second["graph_launches"] == 1
    assert told["scratch_bytes"] > 0
    again = child("picture", folder)  # its engines and compiled kernels from the disk
    assert (again["captured"], again["faults"], again["report"]) == (True, 0, [])
    assert again["kernels"] == told["kernels"] > 0


def test_a_picture_is_one_graph_and_the_next_one_launch(child: Child, make_toy: Callable[[], Path]) -> None:
    check_pictures(child, make_toy(), kernels=10)


@pytest.mark.slow
def test_a_picture_of_the_method_is_one_graph_too(child: Child, tiny_bundle: Path, tmp_path: Path) -> None:
    """Its kernels are compiled in earnest, which takes a minute."""
    check_pictures(child, shutil.copytree(tiny_bundle, tmp_path / "tiny"), kernels=1000)


def test_memory_of_dynamic_shapes_is_the_librarys_to_arrange(child: Child) -> None:
    """Where the builder must leave all of it to the caller, its size cannot be told, and a run would crash."""
    assert child("dynamic_shapes", "")["scratch_bytes"] > 0
    error = child("dynamic_shapes", "REQUIRE_USER_ALLOCATION")["error"]
    assert "cannot tell the scratch memory of pixels_out.onnx at output [1, 3, 128, 64]: IExecutionContext" in error
    assert "must be Myelin-allocated" in error


def test_what_computes_nothing_is_no_backend(child: Child) -> None:
    told = child("probe")
    assert "backend tensorrt-rtx computed [0.] where" in told["detail"]


@pytest.mark.parametrize("capability", ["9.0", "10.0"])
def test_a_gpu_that_the_library_refuses_is_told_which_release_does_not(child: Child, capability: str) -> None:
    told = child("probe", capability=capability)
    if tuple(map(int, told["version"].split(".")[:2])) < (1, 7):
        pytest.skip("an earlier TensorRT-RTX refuses no GPU")
    words = rf"cannot load the engine of probe\.onnx on stand-in .*compute capability {capability}.*does not support"
    assert re.search(words, told["detail"])
    assert told["detail"].endswith("loads engines: pip install 'tensorrt-rtx==1.6.1.120'")


def counts() -> dict[str, int]:
    """What the stand-in counted so far."""
    library = ctypes.CDLL("libcuda.so.1")
    return {name: library.standin_count(name.encode()) for name in COUNTS}


def since(before: dict[str, int]) -> dict[str, int]:
    """What it counted since."""
    return {name: count - before[name] for name, count in counts().items()}


def fault() -> str:
    """The rule that was broken last."""
    library = ctypes.CDLL("libcuda.so.1")
    library.standin_fault.restype = ctypes.c_char_p
    return str(library.standin_fault().decode())


def broken_rules() -> dict[str, list[str]]:
    """What some things that break a rule are told by CUDA, and by the stand-in."""
    from uid.engines.cuda import Device, DeviceMemory, Stream
    from uid.errors import BackendError

    Device.find().select()
    stream, kept, told = Stream(), [DeviceMemory(64), DeviceMemory(64)], {}

    def replay() -> None:
        with stream.capture() as graph:
            kept[1].clear(stream)
        kept[1].close()
        graph.launch(stream)

    def captured(call: Callable[[], Any]) -> None:
        with stream.capture():
            call()

    calls = {"allocate": lambda: DeviceMemory(64), "free": kept[0].close, "wait": stream.synchronize}
    for name, breaks in {**{name: partial(captured, call) for name, call in calls.items()}, "replay": replay}.items():
        try:
            breaks()
        except BackendError as error:
            told[name] = [str(error).split(": ")[1], fault()]
    return told


def picture(folder: str) -> dict[str, Any]:
    """Two pictures of one size with a bundle's own engines, three steps each."""
    from uid.engines import tensorrt_backend
    from uid.runtime.bundle import read_bundle
    from uid.runtime.pipeline import Options, Pipeline

    backend, bundle = tensorrt_backend.create("tensorrt-rtx"), read_bundle(Path(folder))
    report: list[str] = []
    backend.report = report.append
    pipeline, image, told = Pipeline(bundle, backend), np.zeros((16, 24, 3), np.uint8), {}
    for name in ("first", "second"):
        before = counts()
        captured = pipeline(image, Options(steps=3, views=1)).captured
        told[name] = since(before)
    scratch = max(context.scratch_bytes for context in backend.shared.scratch.users)
    kernels = sum(path.stat().st_size for path in Path(folder).glob("engines/*/*.kernels"))
    found = {"captured": captured, "scratch_bytes": scratch, "kernels": kernels, "report": report}
    return {**told, **found, "faults": counts()["faults"], "fault": fault()}


def dynamic_shapes(flag: str) -> dict[str, Any]:
    """The scratch memory of a graph for any size, or the error; ``flag``: one that the builder is given besides."""
    from uid.engines import tensorrt_backend, tensorrt_build
    from uid.errors import BackendError
    from uid.runtime.pixels import GRAPHS, PIXELS_OUT
    from uid.runtime.plan import resolve

    configure = tensorrt_build.configure

    def with_flag(library: Any, config: Any, *arguments: Any) -> None:
        configure(library, config, *arguments)
        if flag:
            config.set_flag(library.module.BuilderFlag.__members__[flag])

    tensorrt_build.configure = with_flag
    backend = tensorrt_backend.create("tensorrt-rtx")
    sizes = {"height": 128, "width": 64}
    specs = (*PIXELS_OUT.inputs, *PIXELS_OUT.outputs)
    buffers = {spec.name: backend.allocate(resolve(spec.shape, sizes), spec.dtype) for spec in specs}
    try:
        launch = backend.load(GRAPHS / PIXELS_OUT.file).bind(buffers)
    except BackendError as error:
        return {"error": str(error)}
    launch()
    return {"scratch_bytes": launch.context.scratch_bytes, "faults": counts()["faults"]}


def probe() -> dict[str, Any]:
    """What is said of the backend."""
    from uid import engines
    from uid.engines.tensorrt import open_library

    return {"detail": engines.probe("tensorrt-rtx").detail, "version": open_library("tensorrt-rtx").version}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
