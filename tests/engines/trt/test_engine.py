"""Contexts, scratch memory, launches and captures of an engine."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_tensorrt import Rig, cuda, pair, trt

from uid.engines import OneByOne, Work
from uid.engines.trt.library import Library
from uid.errors import BackendError


def test_a_context_is_set_up_once_and_given_addresses_at_each_launch(rig: Rig) -> None:
    engine = rig.engine()
    rig.log.clear()
    even, odd = engine.bind(pair(8, 10)), engine.bind(pair(8, 20))
    assert ("set_optimization_profile_async", 0, 7) in rig.log
    assert rig.calls() == [
        "create_execution_context",
        "set_optimization_profile_async",
        "set_input_shape",
        "infer_shapes",
        "update_device_memory_size_for_shapes",
    ]
    even()
    assert [entry for entry in rig.log if entry[0] == "set_device_memory"] == [("set_device_memory", 4096, 800)]
    assert rig.calls() == ["set_tensor_address", "set_device_memory", "is_stream_capturable", "execute_async_v3"]
    odd()
    addresses = [("set_tensor_address", "x", 20), ("set_tensor_address", "y", 21)]
    assert rig.log == [*addresses, ("execute_async_v3", 7)]


def test_the_profile_of_the_nearest_optimum_is_selected(rig: Rig) -> None:
    engine = rig.engine()
    for size, profile in [(4, 0), (8, 0), (12, 1), (16, 1), (32, 1)]:
        engine.bind(pair(size))
        assert ("set_optimization_profile_async", profile, 7) in rig.log, size
        rig.log.clear()
    with pytest.raises(BackendError, match=r"engine of component 'step' does not cover x \[1, 33\]; use smaller tiles"):
        engine.bind(pair(33))


def test_contexts_share_the_largest_scratch_memory_and_free_it_together(rig: Rig) -> None:
    small, large = rig.engine().bind(pair(8)), rig.engine().bind(pair(32))
    small(), large()
    given = [entry[1:] for entry in rig.log if entry[0] == "set_device_memory"]
    assert given == [(4096, 3200), (4096, 3200)]
    assert small.context.memory is large.context.memory  # type: ignore[attr-defined]
    del large
    gc.collect()
    assert rig.scratch.newest() is small.context.memory  # type: ignore[attr-defined]
    del small
    gc.collect()
    assert rig.scratch.newest() is None
    third = rig.engine().bind(pair(4))
    third()
    assert ("set_device_memory", 4096, 400) in rig.log


def test_a_bound_context_never_loses_its_memory(rig: Rig) -> None:
    """A captured graph has its address."""
    first = rig.engine().bind(pair(8))
    first()
    before = first.context.memory  # type: ignore[attr-defined]
    larger = rig.engine().bind(pair(32))
    larger(), first()
    assert first.context.memory is before  # type: ignore[attr-defined]
    assert larger.context.memory.nbytes == 3200  # type: ignore[attr-defined]


def test_an_engine_that_needs_no_scratch_memory_runs(rig: Rig) -> None:
    rig.results["update_device_memory_size_for_shapes"] = lambda: 0
    rig.engine().bind(pair(8))()
    assert ("set_device_memory", 4096, 1) in rig.log


def test_work_that_cannot_be_captured_runs_one_by_one_and_is_reported(rig: Rig) -> None:
    lines: list[str] = []
    rig.backend.report = lines.append
    rig.results["is_stream_capturable"] = lambda stream: False
    replay = rig.backend.capture(Work([], [rig.engine().bind(pair(8))] * 3, []))
    assert isinstance(replay, OneByOne)
    assert "cannot capture component 'step' at x [1, 8] in a CUDA graph: it runs launch by launch" in lines[0]
    assert not rig.stream.capturing
    rig.log.clear()
    replay(lambda done: rig.log.append((f"progress {done}",)))
    ran = [name for name, *_ in rig.log if name != "set_tensor_address"]
    assert ran == [name for done in (1, 2, 3) for name in ("execute_async_v3", f"progress {done}")]


def test_work_is_captured_and_its_kernels_are_stored(rig: Rig, tmp_path: Path) -> None:
    kernels = tmp_path / "step.kernels"
    launch = rig.engine(kernels).bind(pair(8))
    assert not isinstance(rig.backend.capture(Work([], [launch], [])), OneByOne)
    assert kernels.read_bytes() == b"kernels"
    kernels.unlink()
    rig.backend.capture(Work([], [launch], []))
    assert not kernels.exists()  # there are no new ones
    lines: list[str] = []
    rig.backend.report = lines.append
    (tmp_path / "file").touch()
    rig.backend.capture(Work([], [rig.engine(tmp_path / "file" / "step.kernels").bind(pair(8))], []))
    assert lines[0].startswith("kernels will be compiled again in the next process: cannot write")


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_in_a_capture(rig: Rig, enabled: bool) -> None:
    collections: list[bool] = []  # whether the stream was capturing

    def note(phase: str, info: object) -> None:
        collections.append(rig.stream.capturing)

    def launch() -> None:
        for _ in range(100_000):  # many times what starts a collection
            cycle: list[Any] = []
            cycle.append(cycle)

    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    gc.callbacks.append(note)
    try:
        cuda.GraphReplay(Work([], [launch], []), rig.stream)
        assert collections
        assert not any(collections)
        assert gc.isenabled() == enabled
        collections.clear()
        with pytest.raises(ZeroDivisionError):
            cuda.GraphReplay(Work([], [lambda: 1 / int(not rig.stream.capturing)], []), rig.stream)  # type: ignore[list-item,func-returns-value]
        assert gc.isenabled() == enabled
    finally:
        gc.callbacks.remove(note)
        (gc.enable if before else gc.disable)()


def test_rtx_compiles_at_once_and_leaves_memory_and_graphs_to_the_caller(rig: Rig, tmp_path: Path) -> None:
    kernels = tmp_path / "step.kernels"
    kernels.write_bytes(b"old")
    engine = rig.engine(kernels)
    assert [entry for entry in rig.log if not entry[0].startswith("get_")] == [
        ("create_runtime_config",),
        ("set_execution_context_allocation_strategy", trt.ExecutionContextAllocationStrategy.USER_MANAGED),
        ("dynamic_shapes_kernel_specialization_strategy", trt.DynamicShapesKernelSpecializationStrategy.EAGER),
        ("cuda_graph_strategy", trt.CudaGraphStrategy.DISABLED),
        ("create_runtime_cache",),
        ("deserialize", b"old"),
        ("set_runtime_cache", engine.compiled),
    ]
    engine.bind(pair(8))
    assert ("create_execution_context", engine.config) in rig.log


def test_tensorrt_has_no_runtime_config(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(replace(library, name="tensorrt"))
    rig.engine().bind(pair(8))
    names = [entry for entry in rig.log if entry[0].startswith("create_")]
    assert names == [("create_execution_context", trt.ExecutionContextAllocationStrategy.USER_MANAGED)]
