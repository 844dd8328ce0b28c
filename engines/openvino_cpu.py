"""OpenVINO on the CPU: ``openvino`` computes in float32, ``openvino-bf16`` in bfloat16 where the CPU has such
instructions.

A component is compiled once, for all image sizes, and stored in the user's cache, since compiling takes longer than an
image.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13

from uid.bundles.cache import path_for, remove, remove_earlier, reuse_or_make
from uid.bundles.declarations import Bundle, Component
from uid.bundles.files import written_whole
from uid.bundles.sources import check_graph, private_copy
from uid.bundles.tensors import Array, TensorSpec
from uid.engines.contract import Backend, Buffer, Engine, Launch, check_bindings, raise_if_out_of_memory
from uid.engines.threads import pool_size
from uid.errors import BackendError, BundleError, ModelError, OutputError
from uid.install import how_to_install

DEVICE = "CPU"
OLDEST = (2026, 4)  # those before it do not keep the timestep's angles in float32, whatever they are told
DIGEST = 32  # bytes of sha256 that a cached file begins with
NO_MEMORY = "bad_alloc"  # its errors have no class for it: the word tells
# In OpenVINO's XML: a layer that stays in float32. From Python there is no other way to say it.
IN_FLOAT32 = '<rt_info><attribute name="DisablePrecisionConversion" version="0" value="dynamic:f16"/></rt_info>'


class OpenvinoBuffer(Buffer):
    """An ``ov.Tensor``, which owns its memory."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        try:
            self.tensor = ov.Tensor(ov.Type(dtype), list(shape))
        except RuntimeError as error:
            check_memory(error, f"a buffer of {dtype}{list(shape)}")
            raise

    def write(self, array: Array) -> None:
        """Copy a host array of this shape and dtype in."""
        if (array.shape, array.dtype) != (self.shape, self.dtype):
            raise self.mismatch(array)
        self.tensor.data[...] = array

    def read(self) -> Array:
        """Copy the contents to a host array of its own."""
        return np.array(self.tensor.data)


class OpenvinoEngine(Engine):
    """One compiled model. ``names`` are the graph's own, to which compiling may add others; ``memory`` outlives it.

    A run that memory does not hold cannot be told: OpenVINO 2026.4 then goes on with wrong numbers, or crashes.
    """

    def __init__(
        self,
        compiled: ov.CompiledModel,
        names: set[str],
        memory: Array | None = None,
    ) -> None:
        self.compiled, self.memory = compiled, memory
        self.inputs = {spec.name: spec for spec in specs_of(compiled.inputs, names)}
        self.outputs = {spec.name: spec for spec in specs_of(compiled.outputs, names)}

    def bind(self, buffers: Mapping[str, Buffer]) -> Launch:
        """Bind a buffer to every input and output by name; returns the launch, which reads and writes them in place."""
        check_bindings(self, buffers)
        request = self.compiled.create_infer_request()
        for name in (*self.inputs, *self.outputs):
            try:
                request.set_tensor(name, tensor_of(buffers[name]))
            except RuntimeError as error:
                raise ModelError(f"OpenVINO does not take {name!r} at this size: {error}") from error

        def launch() -> None:
            try:
                request.infer(share_outputs=True)  # or it would return copies
            except RuntimeError as error:
                raise ModelError(f"OpenVINO cannot run the model at this size: {error}") from error

        return launch


class OpenvinoBackend(Backend):
    """OpenVINO's CPU device, computing in ``precision`` ("f32" or "bf16")."""

    def __init__(self, name: str, precision: str, threads: int | None) -> None:
        super().__init__()
        self.name = name
        self.precision = "bf16" if precision == "bf16" else None
        self.core = ov.Core()
        self.settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned, two processes on one machine would share its first cores.
            "ENABLE_CPU_PINNING": False,
        }
        if (pool := pool_size(threads)) is not None:
            self.settings["INFERENCE_NUM_THREADS"] = pool

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> OpenvinoBuffer:
        """A new buffer in the host's memory."""
        return OpenvinoBuffer(shape, dtype)

    def load(self, path: Path) -> OpenvinoEngine:
        """Compile the graph at ``path`` for all sizes; nothing is stored on disk."""
        check_graph(path)
        with load_errors(path):
            model = self.read(path)
            names = {port.any_name for port in (*model.inputs, *model.outputs)}
            return OpenvinoEngine(self.core.compile_model(model, DEVICE, self.settings), names)

    def load_component(self, bundle: Bundle, component: Component, sizes: Mapping[str, int]) -> OpenvinoEngine:
        """The component compiled before, or now; for all ``sizes``."""

        def make() -> tuple[ov.CompiledModel, Array | None]:
            compiled = self.compiled(bundle, component, path.parent)
            try:
                self.store(compiled, path)
            except OutputError as error:
                self.report(f"the next process will compile again: {error}")
            return compiled, None

        try:
            path = self.cached_path(bundle, component)
            compiled, memory = reuse_or_make(path.parent, lambda: self.cached(path), make, self.report)
        except OutputError as error:
            self.report(f"the next process will compile again: {error}")
            compiled, memory = self.compiled(bundle, component), None
        names = {spec.name for spec in (*component.inputs, *component.outputs)}
        return OpenvinoEngine(compiled, names, memory)

    def compiled(self, bundle: Bundle, component: Component, folder: Path | None = None) -> ov.CompiledModel:
        """A component compiled now; ``folder``: where its graph is copied to meanwhile."""
        with private_copy(bundle, component.file, folder) as path, load_errors(bundle.folder / component.file):
            return self.core.compile_model(self.read(path), DEVICE, self.settings)

    def read(self, path: Path) -> ov.Model:
        """The graph at ``path``, safe to compile."""
        model = self.core.read_model(path)
        fold_constants(self.core, model)
        keep_angles(self.core, model)
        return model

    def cached_path(self, bundle: Bundle, component: Component) -> Path:
        """Where a compiled component is stored."""
        cpu = [self.core.get_property(DEVICE, name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
        name = f"{component.name}.{self.name}"
        return path_for(bundle, "openvino", name, component.file, ov.get_version(), *cpu, self.name, suffix=".blob")

    def cached(self, path: Path) -> tuple[ov.CompiledModel, Array | None] | None:
        """What ``store`` wrote, and the mapped file that it uses; None where there is none or it is damaged.

        OpenVINO itself reads a model whose weights were altered, without an error.
        """
        if not path.exists():
            return None
        try:
            data = np.memmap(path, np.uint8, "c")  # OpenVINO takes no memory that is read-only
            if hashlib.sha256(data[DIGEST:].data).digest() != data[:DIGEST].tobytes():
                raise BackendError("it is damaged")
            tensor = ov.Tensor(data[DIGEST:], shared_memory=True)
            return self.core.import_model(tensor, DEVICE, self.settings), data
        except (OSError, ValueError, RuntimeError, BackendError) as error:  # empty, or made for other instructions
            self.report(f"{path} is not used, and compiled again: {error}")
            remove(path)
            return None

    def store(self, compiled: ov.CompiledModel, path: Path) -> None:
        """Write a compiled model after its sha256; removes those of other versions and of an earlier bundle here.

        Raises ``OutputError`` where it cannot be written.
        """
        data = compiled.export_model().getbuffer()
        with written_whole(path) as temporary, temporary.open("wb") as file:
            file.write(hashlib.sha256(data).digest())
            file.write(data)
        remove_earlier(path)


def create_f32(threads: int | None) -> OpenvinoBackend:
    """OpenVINO in float32; raises ``BackendError`` where it is too old."""
    check_version()
    return OpenvinoBackend("openvino", "f32", threads)


def create_bf16(threads: int | None) -> OpenvinoBackend:
    """OpenVINO in bfloat16; raises ``BackendError`` where it is too old, or the CPU would only imitate it."""
    check_version()
    backend = OpenvinoBackend("openvino-bf16", "bf16", threads)
    if "BF16" not in backend.core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        raise BackendError(
            "this CPU has no bfloat16 instructions; use backend openvino, which computes in float32", option="backend"
        )
    return backend


def check_version() -> None:
    """Raise ``BackendError`` where OpenVINO is older than ``OLDEST``."""
    found = ov.get_version()
    if tuple(map(int, found.split(".")[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise BackendError(f"openvino is {found}; expected {oldest} or later: {how_to_install('openvino')} --upgrade")


def fold_constants(core: ov.Core, model: ov.Model) -> None:
    """Put values in place of the floats that a graph computes from constants alone, such as a Q-Former's first queries.

    OpenVINO 2026.4 computes those once, and then lets other tensors have their memory where float32 attention reads
    them: the first run is right, and all later ones are wrong. Casts, as of weights stored in float16, stay.
    """
    constant = constant_nodes(model)
    computed = [
        (port, readers)
        for node in model.get_ordered_ops()
        if node.get_name() in constant and node.get_type_name() not in ("Constant", "Convert")
        for port in node.outputs()
        if port.get_element_type().is_real() and (readers := readers_outside(port, constant))
    ]
    if not computed:
        return
    parts = ov.Model([port for port, _ in computed], [], "constants")
    values = core.compile_model(parts, DEVICE, {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request().infer({})
    for i, (_, readers) in enumerate(computed):
        value = opset13.constant(values[i]).output(0)
        for reader in readers:
            reader.replace_source_output(value)


def constant_nodes(model: ov.Model) -> set[str]:
    """Names of the nodes that depend on constants alone."""
    constant: set[str] = set()
    for node in model.get_ordered_ops():
        sources = [port.get_source_output().get_node().get_name() for port in node.inputs()]
        if node.get_type_name() == "Constant" or (sources and constant.issuperset(sources)):
            constant.add(node.get_name())
    return constant


def readers_outside(port: ov.Output, nodes: set[str]) -> list[ov.Input]:
    """The inputs that read an output and are not of ``nodes``."""
    return [one for one in port.get_target_inputs() if one.get_node().get_name() not in nodes]


def keep_angles(core: ov.Core, model: ov.Model) -> None:
    """Have sines and cosines of an input times constants, as of the timestep, computed in float32 whatever the rest is.

    In bfloat16 OpenVINO 2026.4 rounds the input first, timestep 967 to 968, and then the angle, to a multiple of 4.
    """
    for node in model.get_ordered_ops():
        product = source(node) if node.get_type_name() in ("Sin", "Cos") else None
        if product is None or product.get_type_name() != "Multiply":
            continue
        view, frequencies = source(product), source(product, 1)
        if (view.get_type_name(), frequencies.get_type_name()) != ("Unsqueeze", "Constant"):
            continue
        time = view.input(0).get_source_output()
        if time.get_node().get_type_name() == "Parameter":
            kept = in_float32(core, node.get_type_name(), np.array(frequencies.data), time)
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(kept)


def in_float32(core: ov.Core, function: str, frequencies: Array, time: ov.Output) -> ov.Output:
    """Sine or cosine ("Sin", "Cos") of ``time`` (1,) times ``frequencies`` (1, N), kept in float32: (1, N)."""
    angle = opset13.parameter([1], np.float32)
    values = getattr(opset13, function.lower())(opset13.multiply(angle, opset13.constant(frequencies)))
    with TemporaryDirectory() as name:
        xml, weights = Path(name) / "angle.xml", Path(name) / "angle.bin"
        ov.serialize(ov.Model([values], [angle], "angle"), xml, weights)
        marked = re.sub(rf'(<layer [^>]*type="(?:Multiply|{function})"[^>]*>)', rf"\1{IN_FLOAT32}", xml.read_text())
        model = core.read_model(marked.encode(), weights.read_bytes())
    for reader in model.inputs[0].get_target_inputs():
        reader.replace_source_output(time)
    return model.get_results()[0].input(0).get_source_output()


def source(node: ov.Node, i: int = 0) -> ov.Node:
    """The node that a node's input comes from."""
    return node.input(i).get_source_output().get_node()


def check_memory(error: Exception, wanted: str) -> None:
    """Raise ``OutOfMemoryError`` where OpenVINO says, in its own words, that memory ran out."""
    raise_if_out_of_memory(error, (NO_MEMORY,), f"OpenVINO has no memory for {wanted}")


@contextmanager
def load_errors(path: Path) -> Iterator[None]:
    """Raise ``BundleError`` for what OpenVINO cannot read or compile, ``OutOfMemoryError`` where memory ran out."""
    try:
        yield
    except RuntimeError as error:
        check_memory(error, str(path))
        raise BundleError(f"OpenVINO {ov.get_version()} cannot load {path}: {error}") from error


def tensor_of(buffer: Buffer) -> ov.Tensor:
    """The tensor of one of this backend's own buffers."""
    if not isinstance(buffer, OpenvinoBuffer):
        raise TypeError(f"got a {type(buffer).__name__}; buffers must come from this backend's allocate()")
    return buffer.tensor


def specs_of(ports: Sequence[Any], names: set[str]) -> Iterator[TensorSpec]:
    """OpenVINO's descriptions of inputs or outputs as ``TensorSpec``s; a size that is left open is "?"."""
    for port in ports:
        name = next((name for name in port.names if name in names), port.any_name)
        shape = tuple("?" if size.is_dynamic else size.get_length() for size in port.partial_shape)
        yield TensorSpec(name, port.element_type.to_dtype(), shape)
