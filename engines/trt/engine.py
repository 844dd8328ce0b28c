"""Engines of TensorRT and TensorRT-RTX on the GPU: contexts, their scratch memory, launches. Not yet run on hardware.

An engine has an execution context for every size that it is bound at, which all bindings of that size share: a launch
sets the addresses of its buffers, which a CUDA graph keeps, and runs the context on the backend's one stream. So
contexts run one after another, and share their scratch memory.
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart

from uid.bundles.files import written_whole
from uid.bundles.tensors import TensorSpec
from uid.engines.contract import Buffer, Engine, Launch, check_bindings
from uid.engines.cuda_device import CudaBuffer, DeviceMemory, Stream, call
from uid.engines.trt.build import complaints, made
from uid.engines.trt.library import Library, error_of
from uid.engines.trt.profiles import Shape, nearest
from uid.errors import BackendError


class NotCapturableError(BackendError):
    """An engine that TensorRT cannot run inside a capture."""


class Scratch:
    """The memory that execution contexts compute in: one piece for all, since one stream runs one after another."""

    def __init__(self) -> None:
        self.users: weakref.WeakSet[Context] = weakref.WeakSet()
        self.newest: Callable[[], DeviceMemory | None] = lambda: None

    def memory(self) -> DeviceMemory:
        """A piece large enough for every context there is now.

        It is freed with the last context that was given it: graphs keep the address, so no context ever changes.
        """
        needed = max((context.scratch_bytes for context in self.users), default=0)
        memory = self.newest()
        if memory is None or memory.nbytes < needed:
            memory = DeviceMemory(max(needed, 1))
            self.newest = weakref.ref(memory)
        return memory


@dataclass(frozen=True)
class Shared:
    """What all engines of a backend share."""

    library: Library
    stream: Stream
    scratch: Scratch

    def captures(self) -> bool:
        """Whether the stream captures at present."""
        status = call(cudart.cudaStreamIsCapturing, self.stream.handle)
        return bool(status != cudart.cudaStreamCaptureStatus.cudaStreamCaptureStatusNone)


class Context:
    """An execution context of an engine, for one shape of every input."""

    def __init__(self, owner: "TensorrtEngine", shapes: Mapping[str, Shape]) -> None:
        """Raises ``BackendError`` when no profile of the engine covers ``shapes``, or the library refuses them."""
        self.owner, self.shapes = owner, shapes
        self.handle = owner.make_context()
        self.check("cannot make a context for", self.handle is not None)
        profile, stream = owner.nearest_profile(shapes), int(owner.shared.stream.handle)
        self.check("cannot select a profile of", self.handle.set_optimization_profile_async(profile, stream))
        for name, shape in shapes.items():
            self.check(f"refuses the shape of {name!r} of", self.handle.set_input_shape(name, shape))
        self.check("cannot infer the shapes of", self.infers_shapes())
        self.scratch_bytes = int(self.handle.update_device_memory_size_for_shapes())
        # Its only answer is a size, and 0 is one: an engine of one node may need none.
        self.check("cannot tell the scratch memory of", not owner.shared.library.logger.errors)
        self.memory: DeviceMemory | None = None  # given at the first run, when all contexts of a plan are there
        self.capturable = True
        owner.shared.scratch.users.add(self)

    def __str__(self) -> str:
        return f"{self.owner.name} at {', '.join(f'{name} {list(shape)}' for name, shape in self.shapes.items())}"

    def infers_shapes(self) -> bool:
        """Whether the library can tell the shapes of all tensors by those of the inputs."""
        try:
            return not self.handle.infer_shapes()
        except RuntimeError:
            return False

    def check(self, problem: str, ok: bool) -> None:
        """Raise what the library complains of, unless ``ok``."""
        if not ok:
            raise library_error(self.owner.shared.library, f"{problem} {self}")

    def run(self, addresses: Mapping[str, int]) -> None:
        """Put one run on the stream, with these addresses of its inputs and outputs."""
        shared, stream = self.owner.shared, int(self.owner.shared.stream.handle)
        shared.library.logger.errors.clear()
        if not self.capturable and shared.captures():
            raise NotCapturableError(f"{shared.library} cannot capture {self} in a CUDA graph")
        for name, address in addresses.items():
            self.check(f"refuses the buffer of {name!r} of", self.handle.set_tensor_address(name, address))
        if self.memory is None:
            self.memory = shared.scratch.memory()
            self.handle.set_device_memory(int(self.memory.handle), self.memory.nbytes)
            # TensorRT has no such question; what it cannot capture fails in the capture.
            if hasattr(self.handle, "is_stream_capturable"):
                self.capturable = self.handle.is_stream_capturable(stream)
        self.check("cannot run", self.handle.execute_async_v3(stream))


@dataclass(frozen=True)
class TensorrtLaunch:
    """One run of an engine on buffers, which it keeps alive."""

    context: Context
    buffers: Mapping[str, CudaBuffer]

    def __call__(self) -> None:
        self.context.run({name: buffer.address for name, buffer in self.buffers.items()})


class TensorrtEngine(Engine):
    """A deserialised engine."""

    def __init__(
        self,
        name: str,
        handle: Any,
        shared: Shared,
        covers: Callable[[Mapping[str, int]], bool] = lambda sizes: True,
        kernels: Path | None = None,
    ) -> None:
        """``handle`` is an ``ICudaEngine``; ``kernels`` is where those that TensorRT-RTX compiles are kept."""
        self.name, self.handle, self.shared, self.covered, self.kernels = name, handle, shared, covers, kernels
        module = shared.library.module
        specs = [spec_at(module, handle, index) for index in range(handle.num_io_tensors)]
        read = {spec.name for spec in specs if handle.get_tensor_mode(spec.name) == module.TensorIOMode.INPUT}
        self.inputs = {spec.name: spec for spec in specs if spec.name in read}
        self.outputs = {spec.name: spec for spec in specs if spec.name not in read}
        self.contexts: weakref.WeakValueDictionary[tuple[Shape, ...], Context] = weakref.WeakValueDictionary()
        self.config: Any = None  # TensorRT-RTX's settings for contexts
        self.compiled: Any = None  # its cache of compiled kernels
        self.kept = b""  # of those, what the disk has
        if shared.library.name == "tensorrt-rtx":
            self.configure()

    def covers(self, sizes: Mapping[str, int]) -> bool:
        """Whether a profile holds these values of the manifest's symbols."""
        return self.covered(sizes)

    def bind(self, buffers: Mapping[str, Buffer]) -> Launch:
        """Bind a buffer to every input and output by name; returns the launch."""
        check_bindings(self, buffers)
        bound = {name: own_buffer(buffers[name]) for name in (*self.inputs, *self.outputs)}
        shapes = {name: bound[name].shape for name in self.inputs}
        key = tuple(shapes.values())
        self.shared.library.logger.errors.clear()
        context = self.contexts.get(key) or Context(self, shapes)
        self.contexts[key] = context
        for name in self.outputs:
            shape = tuple(context.handle.get_tensor_shape(name))
            if shape != bound[name].shape:
                raise BackendError(
                    f"{context} writes {name!r} as {list(shape)}; its buffer is {list(bound[name].shape)}"
                )
        return TensorrtLaunch(context, bound)

    def make_context(self) -> Any:
        """An execution context whose scratch memory is the caller's; None where the library cannot make one."""
        strategy = self.shared.library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        return self.handle.create_execution_context(strategy if self.config is None else self.config)

    def configure(self) -> None:
        """Set how TensorRT-RTX makes contexts, and fill its cache of compiled kernels with those kept on disk."""
        library, module = self.shared.library, self.shared.library.module
        config = made(library, f"settings to run {self.name}", self.handle.create_runtime_config)
        config.set_execution_context_allocation_strategy(module.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Compiled before the first run returns: a graph captured from fallback kernels would keep them for good.
        config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = module.CudaGraphStrategy.DISABLED  # the plan captures its whole loop
        compiled = made(library, f"a cache for the kernels of {self.name}", config.create_runtime_cache)
        if self.kernels is not None and self.kernels.is_file():
            compiled.deserialize(self.kernels.read_bytes())  # which refuses what is not of this GPU, driver and release
        if not config.set_runtime_cache(compiled):
            raise library_error(library, f"refuses its own cache for the kernels of {self.name}")
        self.config, self.compiled = config, compiled

    def keep_kernels(self) -> None:
        """Write the kernels compiled so far to disk, if there are new ones.

        Raises ``BackendError`` where the library does not give them, ``OutputError`` where they cannot be written.
        """
        if self.compiled is None or self.kernels is None:
            return
        what = f"a file of the kernels of {self.name}"
        data = bytes(memoryview(made(self.shared.library, what, self.compiled.serialize)))
        if data != self.kept:
            with written_whole(self.kernels) as temporary:
                temporary.write_bytes(data)
            self.kept = data

    def nearest_profile(self, shapes: Mapping[str, Shape]) -> int:
        """Index of the profile to run ``shapes`` in: of those that hold them, the one with the nearest optimum."""
        dynamic = [name for name, spec in self.inputs.items() if spec.symbols]

        def limit(index: int, end: int) -> Shape:
            return tuple(size for name in dynamic for size in self.handle.get_tensor_profile_shape(name, index)[end])

        limits = [(limit(i, 0), limit(i, 1), limit(i, 2)) for i in range(self.handle.num_optimization_profiles)]
        found = nearest(limits, tuple(size for name in dynamic for size in shapes[name]))
        if found is None:
            sizes = ", ".join(f"{name} {list(shapes[name])}" for name in dynamic)
            raise BackendError(f"the engine of {self.name} does not cover {sizes}; use smaller tiles", option="tile")
        return found[0]


def spec_at(module: Any, handle: Any, index: int) -> TensorSpec:
    """Name, dtype and shape of an engine's tensor; a dimension that varies is "?"."""
    name = handle.get_tensor_name(index)
    dtype = np.dtype(module.nptype(handle.get_tensor_dtype(name)))
    return TensorSpec(name, dtype, tuple("?" if size == -1 else size for size in handle.get_tensor_shape(name)))


def own_buffer(buffer: Buffer) -> CudaBuffer:
    """One of the CUDA backends' own buffers."""
    if not isinstance(buffer, CudaBuffer):
        raise TypeError(f"got a {type(buffer).__name__}; buffers must come from this backend's allocate()")
    return buffer


def library_error(library: Library, problem: str, hint: str = "") -> BackendError:
    """The error for what a library could not do, with its own words and how to mend it."""
    return error_of(f"{library} {problem}: {complaints(library)}{hint}")
