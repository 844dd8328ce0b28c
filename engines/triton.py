"""Components that a Triton server runs: each launch is an inference request to another of its models.

For code that runs inside of Triton's Python backend, which alone can send such requests; so the registry does not list
it. It has not run on a server.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from uid.bundles.declarations import Bundle, Component
from uid.bundles.tensors import Array
from uid.engines.contract import Backend, Buffer, Engine, Launch, check_bindings, raise_if_out_of_memory
from uid.engines.ort.cpu import NO_MEMORY
from uid.errors import BackendError

NAME = "triton"


class TritonBuffer(Buffer):
    """A host array: what requests read and write goes through memory that Triton's processes share."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self.array: Array = np.zeros(shape, dtype)

    def write(self, array: Array) -> None:
        """Copy a host array of this shape and dtype in."""
        if (array.shape, array.dtype) != (self.shape, self.dtype):
            raise self.mismatch(array)
        np.copyto(self.array, array)

    def read(self) -> Array:
        """Copy the contents to a new host array."""
        return np.array(self.array)


class TritonEngine(Engine):
    """A model of the server that runs one component."""

    def __init__(self, utils: Any, model: str, component: Component) -> None:
        self.utils, self.model = utils, model
        self.inputs = {spec.name: spec for spec in component.inputs}
        self.outputs = {spec.name: spec for spec in component.outputs}

    def bind(self, buffers: Mapping[str, Buffer]) -> Launch:
        """Bind a buffer to every input and output by name; returns the launch, which waits for the response."""
        check_bindings(self, buffers)
        given = {name: host_buffer(buffers[name]) for name in (*self.inputs, *self.outputs)}
        return partial(self.launch, given)

    def launch(self, buffers: Mapping[str, TritonBuffer]) -> None:
        """Send one request, and copy the tensors of its response into their buffers."""
        utils = self.utils
        response = utils.InferenceRequest(
            model_name=self.model,
            requested_output_names=list(self.outputs),
            inputs=[utils.Tensor(name, buffers[name].array) for name in self.inputs],
            preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU),
        ).exec()
        if response.has_error():
            self.fail(response.error().message())
        for name in self.outputs:
            tensor = utils.get_output_tensor_by_name(response, name)
            if tensor is None:
                self.fail(f"its response lacks {name!r}")
            buffers[name].write(tensor.as_numpy())

    def fail(self, reason: str) -> None:
        """Raise ``OutOfMemoryError`` where a reason tells of that, else ``BackendError``."""
        error = BackendError(f"Triton's model {self.model!r} failed: {reason}")
        raise_if_out_of_memory(error, NO_MEMORY, f"Triton's model {self.model!r} has no memory for this size")
        raise error


class TritonBackend(Backend):
    """The models that ``uid-export triton`` writes."""

    name = NAME

    def __init__(self, utils: Any, model: str, largest_batch: int) -> None:
        """``utils`` is the module ``triton_python_backend_utils``; ``model`` is what the models' names begin with."""
        super().__init__()
        self.utils, self.model, self.largest_batch = utils, model, largest_batch

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> TritonBuffer:
        """A new buffer in the host's memory."""
        return TritonBuffer(shape, dtype)

    def load(self, path: Path) -> Engine:
        """Raise ``BackendError``: a server runs the models of its repository alone."""
        raise BackendError(f"Triton cannot load {path}; it runs the models of its repository")

    def load_component(self, bundle: Bundle, component: Component, sizes: Mapping[str, int]) -> TritonEngine:
        """The model that runs a component; whether the server has it shows at the first request."""
        return TritonEngine(self.utils, model_name(self.model, component.name), component)


def model_name(model: str, component: str) -> str:
    """What the model of a component is called, beside the ``model`` that runs whole images."""
    return f"{model}_{component}"


def host_buffer(buffer: Buffer) -> TritonBuffer:
    """One of this backend's own buffers."""
    if not isinstance(buffer, TritonBuffer):
        raise TypeError(f"got a {type(buffer).__name__}; buffers must come from this backend's allocate()")
    return buffer
