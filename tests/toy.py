"""A toy bundle, built by hand: the runtime must run any family that keeps to the manifest, and exactly as it says."""

import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from uid import engines
from uid.bundles.hashes import sha256
from uid.bundles.tensors import Array
from uid.engines import Backend, Buffer, Engine
from uid.errors import OutOfMemoryError

MakeToy = Callable[..., Path]

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
IMAGE = ("batch", 3, "height", "width")
LATENT = ("batch", 3, "height/4", "width/4")
Shapes = dict[str, tuple[int | str, ...]]
COMPONENTS: dict[str, tuple[str, Shapes, Shapes]] = {  # stage, inputs, outputs
    "encode": ("prepare", {"image": IMAGE}, {"z": LATENT}),
    "guide": ("step", {"guidance_scale": (1,), "alpha_bar": (1,), "alpha_bar_prev": (1,)}, {"offset": (1,)}),
    "step": ("step", {"latent": LATENT, "z": LATENT, "offset": (1,), "timestep": (1,)}, {"latent_next": LATENT}),
    "decode": ("finish", {"latent": LATENT}, {"output": IMAGE}),
}


def graph(nodes: list[onnx.NodeProto], inputs: Shapes, outputs: Shapes, **weights: Any) -> bytes:
    """An ONNX model of float32 tensors, as bytes."""
    infos = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    initializers = [onnx.numpy_helper.from_array(np.asarray(value, np.float32), key) for key, value in weights.items()]
    proto = helper.make_graph(nodes, "toy", *infos, initializers)
    return bytes(
        helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def encode_graph() -> bytes:
    """The image's 4 x 4 means."""
    pool = helper.make_node("AveragePool", ["image"], ["z"], kernel_shape=[4, 4], strides=[4, 4])
    return graph([pool], *COMPONENTS["encode"][1:])


def guide_graph() -> bytes:
    """The offset of a step: guidance * (alpha_bar_prev - alpha_bar)."""
    nodes = [
        helper.make_node("Sub", ["alpha_bar_prev", "alpha_bar"], ["difference"]),
        helper.make_node("Mul", ["difference", "guidance_scale"], ["offset"]),
    ]
    return graph(nodes, *COMPONENTS["guide"][1:])


def step_graph(nan_below: float) -> bytes:
    """Half way from the latent to z, plus the offset; NaN where the timestep is below ``nan_below``."""
    nodes = [
        helper.make_node("Add", ["latent", "z"], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], ["mean"]),
        helper.make_node("Sub", ["timestep", "nan_below"], ["left"]),
        helper.make_node("Sqrt", ["left"], ["root"]),
        helper.make_node("Mul", ["root", "zero"], ["poison"]),
        helper.make_node("Add", ["mean", "poison"], ["sound"]),
        helper.make_node("Add", ["sound", "offset"], ["latent_next"]),
    ]
    return graph(nodes, *COMPONENTS["step"][1:], half=0.5, zero=0.0, nan_below=nan_below)


def decode_graph(scale: float) -> bytes:
    """The latent, four times as large, from 0 to 1, times ``scale``."""
    nodes = [
        helper.make_node("Resize", ["latent", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Clip", ["large", "low", "high"], ["clipped"]),
        helper.make_node("Mul", ["clipped", "scale"], ["output"]),
    ]
    return graph(nodes, *COMPONENTS["decode"][1:], scales=[1, 1, 4, 4], low=0.0, high=1.0, scale=scale)


def declaration(name: str) -> dict[str, Any]:
    """What the manifest says about a component."""
    stage, *sides = COMPONENTS[name]
    inputs, outputs = (
        [{"name": key, "dtype": "float32", "shape": shape} for key, shape in side.items()] for side in sides
    )
    return {"file": f"{name}.onnx", "stage": stage, "inputs": inputs, "outputs": outputs}


def toy_manifest(folder: Path, components: list[str], constants: dict[str, str], tile: int) -> dict[str, Any]:
    """The manifest of the files in ``folder``."""
    return {
        "schema": 1,
        "family": "toy",
        "name": "toy",
        "trained": True,
        "precision": "fp32",
        "size_multiple": 4,
        "tile": tile,
        "steps": 12,
        "guidance": 1.0,
        "schedule": SCHEDULE,
        "modes": {"deblur": {"prompt": "", "components": components, "constants": constants}},
        "components": {name: declaration(name) for name in components},
        "constants": "constants.safetensors",
        "files": {path.name: sha256(path) for path in folder.iterdir()},
    }


@pytest.fixture
def make_toy(tmp_path: Path) -> MakeToy:
    """Make a toy bundle: z is the image's 4 x 4 means, a step goes half way from the latent to z (+ shift).

    ``nan_below``: steps whose timestep is below this write NaN. ``scale``: what the decoder multiplies its output by.
    ``guided``: a second component of each step shifts by guidance * (alpha_bar_prev - alpha_bar).
    """

    def make(
        nan_below: float = 0.0, shift: float = 0.0, tile: int = 32, scale: float = 1.0, guided: bool = False
    ) -> Path:
        folder = tmp_path / f"toy{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        guide = {"guide": guide_graph()} if guided else {}
        graphs = {"encode": encode_graph(), **guide, "step": step_graph(nan_below), "decode": decode_graph(scale)}
        for name, data in graphs.items():
            (folder / f"{name}.onnx").write_bytes(data)
        save_file({"offset": np.array([shift], np.float32)}, folder / "constants.safetensors")
        constants = {} if guided else {"offset": "offset"}
        (folder / "manifest.json").write_text(json.dumps(toy_manifest(folder, list(graphs), constants, tile)))
        return folder

    return make


@dataclass(frozen=True)
class Launched:
    """One run of a component: its name, and the number of the buffer behind each of its tensors."""

    name: str
    reads: dict[str, int]
    writes: dict[str, int]


@dataclass(frozen=True)
class Copied:
    """A copy between the host and a buffer."""

    way: str  # "write" or "read"
    buffer: int
    dtype: np.dtype[Any]


Entry = Launched | Copied | str  # "capture" and "replay" stand for themselves
Node = tuple[Launched, Callable[[], None]]


class RecordingStream:
    """Behaves as a CUDA stream: what is put on it while it captures does not run, but is stored for the graph."""

    def __init__(self) -> None:
        self.log: list[Entry] = []
        self.capturing: list[Node] | None = None

    def outside_capture(self) -> None:
        assert self.capturing is None, "CUDA refuses this while a stream captures"

    def put(self, node: Node) -> None:
        if self.capturing is not None:
            self.capturing.append(node)
        else:
            self.log.append(node[0])
            node[1]()

    def synchronize(self) -> None:
        self.outside_capture()

    def event(self) -> "RecordingEvent":
        self.outside_capture()
        return RecordingEvent()

    @contextmanager
    def capture(self) -> Iterator["RecordingGraph"]:
        self.outside_capture()
        graph = RecordingGraph()
        self.capturing = graph.nodes
        yield graph
        self.capturing = None
        self.log.append("capture")


class RecordingEvent:
    """Behaves as a CUDA event that a graph sets: its time is how many of the graph's launches came before it."""

    def record_in_graph(self, stream: RecordingStream) -> None:
        assert stream.capturing is not None, "CUDA refuses this where nothing captures"
        self.launches = len(stream.capturing)

    def seconds_since(self, start: "RecordingEvent") -> float:
        return float(self.launches - start.launches)


class RecordingGraph:
    """Behaves as a CUDA graph: launching it runs everything that was captured."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def launch(self, stream: RecordingStream) -> None:
        stream.outside_capture()
        stream.log.append("replay")
        for node in self.nodes:
            stream.put(node)


class RecordingBuffer(Buffer):
    """A numbered buffer of ONNX Runtime's."""

    def __init__(self, number: int, real: Buffer, stream: RecordingStream) -> None:
        self.shape, self.dtype = real.shape, real.dtype
        self.number, self.real, self.stream = number, real, stream

    def write(self, array: Array) -> None:
        self.stream.outside_capture()
        self.stream.log.append(Copied("write", self.number, self.dtype))
        self.real.write(array)

    def read(self) -> Array:
        self.stream.outside_capture()
        self.stream.log.append(Copied("read", self.number, self.dtype))
        return self.real.read()


class RecordingEngine(Engine):
    """An engine of ONNX Runtime's whose launches go through the stream."""

    def __init__(self, name: str, real: Engine, stream: RecordingStream) -> None:
        self.inputs, self.outputs = real.inputs, real.outputs
        self.name, self.real, self.stream = name, real, stream

    def bind(self, buffers: Mapping[str, Buffer]) -> Callable[[], None]:
        launch = self.real.bind({name: buffer.real for name, buffer in buffers.items()})
        sides = [{name: buffers[name].number for name in side} for side in (self.inputs, self.outputs)]
        node = Launched(self.name, *sides), launch
        return lambda: self.stream.put(node)


def recording_backend() -> Backend:
    """A backend with the CUDA backends' own capture over a stream that writes down what it is given, in order.

    ONNX Runtime computes, so that results can be compared. ``room`` is how many bytes all buffers may take together.
    """
    cuda = pytest.importorskip("uid.engines.cuda_device", reason="needs cuda-bindings", exc_type=ImportError)

    class RecordingBackend(cuda.CudaBackend):
        name = "recording"
        memory_limit = None
        room = float("inf")

        def __init__(self) -> None:
            Backend.__init__(self)
            self.stream = RecordingStream()
            self.real = engines.create("onnxruntime", threads=1)
            self.count = 0
            self.live: weakref.WeakSet[RecordingBuffer] = weakref.WeakSet()

        @property
        def log(self) -> list[Entry]:
            return self.stream.log

        def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> RecordingBuffer:
            self.stream.outside_capture()
            buffer = RecordingBuffer(self.count, self.real.allocate(shape, dtype), self.stream)
            if sum(other.nbytes for other in self.live) + buffer.nbytes > self.room:
                raise OutOfMemoryError(f"no room for {buffer.nbytes} bytes")
            self.count += 1
            self.live.add(buffer)
            return buffer

        def load(self, path: Path) -> RecordingEngine:
            return RecordingEngine(path.stem, self.real.load(path), self.stream)

    return RecordingBackend()


@pytest.fixture
def recorder() -> Backend:
    """A backend that writes down what a CUDA stream would be given."""
    return recording_backend()
