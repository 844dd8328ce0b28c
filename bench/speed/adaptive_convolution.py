"""Ways to write element-wise adaptive convolution (DeblurDiff), each timed alone on backends.

    python -m uid.bench.speed.adaptive_convolution onnxruntime openvino

prints nodes, the error of float16 and milliseconds for a latent of 64 x 64 and of 96 x 160: 512 x 512 and 1280 x 768
pixels. Runs alternate, so that other work on the machine falls on all alike.
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uid.engines import Backend, create
from uid.families.deblurdiff.configs import KERNEL, LATENT_CHANNELS
from uid.families.deblurdiff.networks import adaptive_convolution

RUNS = 60
SIZES = ((64, 64), (96, 160))
Form = Callable[[Tensor, Tensor], Tensor]


def stacked(x: Tensor, kernels: Tensor) -> Tensor:
    """25 shifted slices, stacked, times their weights, in one sum."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (KERNEL // 2,) * 4)
    shifts = [(row, column) for row in range(KERNEL) for column in range(KERNEL)]
    neighbours = torch.stack([padded[:, :, r : r + height, s : s + width] for r, s in shifts], 2)
    return (neighbours * kernels.reshape(neighbours.shape)).sum(2, dtype=x.dtype)


def one_hot(x: Tensor, kernels: Tensor) -> Tensor:
    """A convolution with one-hot kernels, times the weights, in one sum."""
    weights = torch.eye(KERNEL**2, dtype=x.dtype, device=x.device).reshape(-1, 1, KERNEL, KERNEL)
    neighbours = F.conv2d(x, weights.repeat(x.shape[1], 1, 1, 1), padding=KERNEL // 2, groups=x.shape[1])
    return torch.unflatten(neighbours * kernels, 1, (x.shape[1], -1)).sum(2, dtype=x.dtype)


def unfolded(x: Tensor, kernels: Tensor) -> Tensor:
    """``unfold``, then a sum."""
    neighbours = F.unfold(x, KERNEL, padding=KERNEL // 2).reshape(kernels.shape)
    return torch.unflatten(neighbours * kernels, 1, (x.shape[1], -1)).sum(2, dtype=x.dtype)


FORMS: dict[str, Form] = {
    "shifted slices, added": adaptive_convolution,
    "shifted slices, stacked": stacked,
    "one-hot convolution, sum": one_hot,
    "unfold, sum": unfolded,
}


class Module(nn.Module):
    """A form as a module."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor, kernels: Tensor) -> Tensor:
        """(B, 4, H, W) and (B, 100, H, W) -> (B, 4, H, W)."""
        return self.form(x, kernels)


def export(form: Form, path: Path, dtype: torch.dtype) -> int:
    """Write the form's graph for every size; returns its nodes."""
    sides = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    given = tuple(torch.rand(1, channels, 16, 24, dtype=dtype) for channels in (LATENT_CHANNELS, 4 * KERNEL**2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Module(form).eval(),
            given,
            dynamo=True,
            opset_version=20,
            input_names=["x", "kernels"],
            output_names=["y"],
            dynamic_shapes=(sides, sides),
            verbose=False,
        )
    assert program is not None
    onnx.save(program.model_proto, path)
    return len(program.model_proto.graph.node)


def runner(backend: Backend, path: Path, given: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    """What runs a graph once, on these inputs."""
    buffers = {name: backend.allocate(array.shape, array.dtype) for name, array in given.items()}
    buffers["y"] = backend.allocate(given["x"].shape, given["x"].dtype)
    for name, array in given.items():
        buffers[name].write(array)
    launch = backend.load(path).bind(buffers)

    def run() -> np.ndarray:
        launch()
        return buffers["y"].read()

    return run


def measure(backends: Sequence[str], size: tuple[int, int], folder: Path) -> Iterator[str]:
    """One line a form."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(1, LATENT_CHANNELS, *size))
    kernels = 0.2 * generator.normal(size=(1, LATENT_CHANNELS * KERNEL**2, *size))
    exact = stacked(torch.from_numpy(x), torch.from_numpy(kernels)).numpy()
    runs: dict[tuple[str, str], Callable[[], np.ndarray]] = {}
    nodes, errors = {}, {}
    for name, form in FORMS.items():
        for dtype, numpy_dtype in ((torch.float32, np.float32), (torch.float16, np.float16)):
            nodes[name] = export(form, folder / f"{dtype}.onnx", dtype)
            given = {"x": x.astype(numpy_dtype), "kernels": kernels.astype(numpy_dtype)}
            if dtype == torch.float16:
                half = runner(create(backends[0]), folder / f"{dtype}.onnx", given)()
                errors[name] = np.abs(half.astype(np.float64) - exact).max() / np.abs(exact).max()
            else:
                runs |= {(name, one): runner(create(one), folder / f"{dtype}.onnx", given) for one in backends}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(RUNS):
        for key, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - begin)
    for name in FORMS:
        times = "  ".join(f"{one} {1e3 * min(seconds[name, one]):.2f} ms" for one in backends)
        yield f"{size[0]} x {size[1]}  {name:26}{nodes[name]:4} nodes  float16 {errors[name]:.1e}  {times} (fastest)"


if __name__ == "__main__":
    for size_ in SIZES:
        with TemporaryDirectory() as folder_:
            for line in measure(sys.argv[1:] or ["onnxruntime"], size_, Path(folder_)):
                print(line, flush=True)
