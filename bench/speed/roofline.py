"""Peak rates of the machine, measured with the library under test: a large matrix product and a large copy."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

SIDES = (1024, 16384)  # of the matrices: doubled until one product takes long enough to be timed
VALUES = (1 << 24, 1 << 28)  # of the vector, float32; likewise
LONG_ENOUGH = 0.02  # seconds, beside which starting a device and reading one value back are nothing
ROUNDS = 5  # the best counts: a peak is what is possible

Shapes = dict[str, tuple[int, ...]]
Case = tuple[Callable[[], object], float]  # what to time, and the work that it does


@dataclass(frozen=True)
class Roofline:
    """Peak rates."""

    flops: float  # FLOP/s
    copy: float  # bytes a second, read and written


class EngineRoofline:
    """A backend's own matrix product and copy."""

    def __init__(self, backend: str, threads: int, precision: str) -> None:
        from uid.engines import create

        self.backend = create(backend, threads=threads)
        # fp16 graphs run in float16 on a GPU and in float32 on a CPU: the faster of the two is the peak.
        self.dtypes = (np.float32, np.float16) if precision == "fp16" else (np.float32,)

    def measure(self) -> Roofline:
        """Both rates."""
        with tempfile.TemporaryDirectory() as folder:
            products = [best_rate(partial(self.product, Path(folder), dtype), *SIDES) for dtype in self.dtypes]
            return Roofline(max(products), best_rate(partial(self.copy, Path(folder)), *VALUES))

    def product(self, folder: Path, dtype: DTypeLike, side: int) -> Case:
        """A product of two matrices."""
        write_product(folder / "product.onnx", side, dtype)
        run = self.bound(folder / "product.onnx", {"a": (side, side), "b": (side, side)}, {"mark": (1, 1)}, dtype)
        return run, 2.0 * side**3

    def copy(self, folder: Path, values: int) -> Case:
        """A copy of a vector."""
        write_copy(folder / "copy.onnx", values)
        run = self.bound(
            folder / "copy.onnx", {"x": (values,), "one": (1,)}, {"y": (values,), "mark": (1,)}, np.float32
        )
        return run, 2.0 * values * 4

    def bound(self, path: Path, inputs: Shapes, outputs: Shapes, dtype: DTypeLike) -> Callable[[], object]:
        """A graph with its buffers; reading its one value ``mark`` waits for a device to be done."""
        buffers = {name: self.backend.allocate(s, np.dtype(dtype)) for name, s in {**inputs, **outputs}.items()}
        for name, shape in inputs.items():
            buffers[name].write(np.full(shape, 0.5, np.dtype(dtype)))
        launch = self.backend.load(path).bind(buffers)

        def run() -> None:
            launch()
            buffers["mark"].read()

        return run


class TorchRoofline:
    """PyTorch's matrix product, in float32 or float16, and its copy."""

    def __init__(self, threads: int, half: bool = False) -> None:
        import torch

        torch.set_num_threads(threads)
        self.dtype = torch.float16 if half else torch.float32
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def measure(self) -> Roofline:
        """Both rates."""
        return Roofline(best_rate(self.product, *SIDES), best_rate(self.copy, *VALUES))

    def product(self, side: int) -> Case:
        """A product of two matrices."""
        import torch

        a, b, product = (torch.full((side, side), 0.5, device=self.device, dtype=self.dtype) for _ in range(3))
        return lambda: torch.mm(a, b, out=product)[0, 0].item(), 2.0 * side**3

    def copy(self, values: int) -> Case:
        """A copy of a vector."""
        import torch

        x, y = (torch.full((values,), 0.5, device=self.device) for _ in range(2))
        return lambda: y.copy_(x)[0].item(), 2.0 * values * 4


def best_rate(make: Callable[[int], Case], size: int, largest: int) -> float:
    """Work per second at the first size, doubled each time, that takes long enough."""
    while True:
        run, work = make(size)
        seconds = fastest(run)
        if seconds >= LONG_ENOUGH or 2 * size > largest:
            return work / seconds
        size *= 2


def fastest(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def write_product(path: Path, side: int, dtype: DTypeLike) -> None:
    """``mark`` = the largest value of a @ b: a product of which only one value need be read."""
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("MatMul", ["a", "b"], ["c"]),
        helper.make_node("ReduceMax", ["c"], ["mark"], keepdims=1),
    ]
    inputs = [helper.make_tensor_value_info(name, kind, [side, side]) for name in "ab"]
    write_graph(path, nodes, inputs, [helper.make_tensor_value_info("mark", kind, [1, 1])])


def write_copy(path: Path, values: int) -> None:
    """``y`` = x + one, which no engine takes for a renaming; ``mark`` is its first value."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Add", ["x", "one"], ["y"]),
        helper.make_node("Slice", ["y", "start", "end"], ["mark"]),
    ]
    sizes = {"x": values, "one": 1, "y": values, "mark": 1}
    info = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [size]) for name, size in sizes.items()}
    bounds = [numpy_helper.from_array(np.array([i], np.int64), name) for i, name in enumerate(("start", "end"))]
    write_graph(path, nodes, [info["x"], info["one"]], [info["y"], info["mark"]], bounds)


def write_graph(
    path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], constants: Sequence[Any] = ()
) -> None:
    """Write a graph in the operator set that bundles use."""
    import onnx
    from onnx import helper

    graph = helper.make_graph(nodes, "roofline", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))
