"""A GPU that is not there: the TensorRT library keeps to its rules and logs its calls, but computes nothing."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds engines without a GPU")
cuda = pytest.importorskip("uid.engines.cuda_device", reason="needs cuda-bindings", exc_type=ImportError)

from uid.engines.trt.backend import TensorrtBackend  # noqa: E402, after the skips
from uid.engines.trt.engine import Scratch, Shared, TensorrtEngine  # noqa: E402
from uid.engines.trt.library import Library  # noqa: E402

Log = list[tuple[Any, ...]]


class FakeObject:
    """Stands for an object of the library's: logs the calls, and has no name that the real class lacks."""

    def __init__(self, real: type, log: Log, **results: Any) -> None:
        self.__dict__.update(_real=real, _log=log, _results=results)

    def __getattr__(self, name: str) -> Any:
        if not hasattr(self._real, name):
            raise AttributeError(f"{self._real.__name__} has no {name!r}")
        result = self._results.get(name, lambda *arguments: True)
        if not callable(result):
            return result

        def call(*arguments: Any) -> Any:
            self._log.append((name, *arguments))
            return result(*arguments)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        assert hasattr(self._real, name), f"{self._real.__name__} has no {name!r}"
        self._log.append((name, value))


class FakeStream:
    handle = 7

    def __init__(self) -> None:
        self.capturing = False

    def synchronize(self) -> None:
        assert not self.capturing

    @contextmanager
    def capture(self) -> Iterator["FakeStream"]:
        self.capturing = True
        try:
            yield self
        finally:
            self.capturing = False

    def launch(self, stream: object) -> None:
        """As a graph that was captured."""

    def event(self) -> "FakeStream":
        return self

    def record_in_graph(self, stream: object) -> None:
        assert self.capturing


class FakeMemory:
    handle = 4096

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


class FakeShared(Shared):
    def captures(self) -> bool:
        return bool(self.stream.capturing)  # type: ignore[attr-defined]


class FakeBuffer(cuda.CudaBuffer):  # type: ignore[misc,name-defined]
    address = 0

    def __init__(self, shape: tuple[int, ...], address: int) -> None:
        self.shape, self.dtype, self.address = shape, np.dtype(np.float32), address


@dataclass
class Rig:
    """A backend and engines y(1, h) of x(1, h) on a fake GPU; h is 4 to 16, best at 8, or 12 to 32, best at 16."""

    library: Library
    log: Log = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)  # of the fake objects' methods
    scratch: Scratch = field(default_factory=Scratch)

    def __post_init__(self) -> None:
        self.stream = FakeStream()
        self.shared = FakeShared(self.library, self.stream, self.scratch)  # type: ignore[arg-type]
        self.backend = TensorrtBackend.__new__(TensorrtBackend)
        self.backend.__dict__.update(stream=self.stream, shared=self.shared, engines=weakref.WeakSet())

    def context(self, *arguments: Any) -> FakeObject:
        shape: list[Any] = []
        results = {
            "set_input_shape": lambda name, wanted: shape.append(wanted) is None,  # type: ignore[func-returns-value]
            "get_tensor_shape": lambda name: shape[-1],
            "infer_shapes": list,
            "update_device_memory_size_for_shapes": lambda: 100 * shape[-1][1],
        }
        return FakeObject(trt.IExecutionContext, self.log, **{**results, **self.results})

    def engine(self, kernels: Path | None = None) -> TensorrtEngine:
        limits = [[(1, 4), (1, 8), (1, 16)], [(1, 12), (1, 16), (1, 32)]]
        compiled = FakeObject(trt.IRuntimeCache, self.log, **{"serialize": lambda: b"kernels", **self.results})
        results = {"create_runtime_cache": lambda: compiled, **self.results}
        config = FakeObject(trt.IRuntimeConfig, self.log, **results)
        results = {"create_runtime_config": lambda: config, **self.results}
        handle = FakeObject(
            trt.ICudaEngine,
            self.log,
            **results,
            num_io_tensors=2,
            num_optimization_profiles=2,
            get_tensor_name=lambda index: "xy"[index],
            get_tensor_dtype=lambda name: trt.float32,
            get_tensor_mode=lambda name: {"x": trt.TensorIOMode.INPUT, "y": trt.TensorIOMode.OUTPUT}[name],
            get_tensor_shape=lambda name: (1, -1),
            get_tensor_profile_shape=lambda name, index: limits[index],
            create_execution_context=self.context,
        )
        engine = TensorrtEngine("component 'step'", handle, self.shared, kernels=kernels)
        self.backend.engines.add(engine)
        return engine

    def calls(self) -> list[str]:
        """Names of the calls since the last time, without repetitions, leaving out questions about the engine."""
        names = [name for name, *_ in self.log if not name.startswith("get_")]
        self.log.clear()
        return [name for name, _ in groupby(names)]


def pair(size: int, first: int = 1) -> dict[str, Any]:
    """Buffers for x and y."""
    return {"x": FakeBuffer((1, size), first), "y": FakeBuffer((1, size), first + 1)}
