"""Stands in for the module of this name that Triton gives its Python models.

It has what they use of the real one, by the same names. Requests to other models are answered by ONNX Runtime sessions
of ``server``'s repository, opened with the options that Triton's backend takes from a configuration.
"""

from pathlib import Path

import numpy as np
import onnxruntime as ort

from uid.bundles.tensors import Array

TRITONSERVER_MEMORY_CPU = 0
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class PreferredMemory:
    def __init__(self, preferred_memory: int, preferred_device_id: int = 0) -> None:
        self.memory = preferred_memory


class Tensor:
    def __init__(self, name: str, array: Array) -> None:
        self._name, self._array = name, np.ascontiguousarray(array)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        return self._array


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self._tensors, self._error = output_tensors, error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class BorrowedResponse(InferenceResponse):
    """Of another model: its tensors lie in shared memory, which others use once it is gone."""

    def __del__(self) -> None:
        for tensor in self._tensors:
            tensor.as_numpy().fill(77)


class InferenceRequest:
    """One that a model sends to another, or that ``client_request`` makes."""

    def __init__(
        self,
        inputs: list[Tensor],
        requested_output_names: list[str],
        model_name: str,
        preferred_memory: PreferredMemory | None = None,
    ) -> None:
        self._inputs, self._outputs, self.model = inputs, requested_output_names, model_name
        self.on_host = preferred_memory is not None and preferred_memory.memory == TRITONSERVER_MEMORY_CPU
        self._parameters, self.steps_until_cancelled = "", -1

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def parameters(self) -> str:
        return self._parameters

    def is_cancelled(self) -> bool:
        self.steps_until_cancelled -= 1
        return self.steps_until_cancelled == 0

    def exec(self) -> InferenceResponse:
        assert server is not None
        assert self.on_host, "without that, as_numpy() of an output on a GPU raises"
        return server.answer(self.model, {one.name(): one.as_numpy() for one in self._inputs}, self._outputs)


def client_request(images: dict[str, Array], parameters: str = "") -> InferenceRequest:
    """A request as a client sends it."""
    request = InferenceRequest([Tensor(name, image) for name, image in images.items()], ["output"], "")
    request._parameters = parameters
    return request


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
    return next((one for one in response.output_tensors() if one.name() == name), None)


class Server:
    """The models of a repository that are ONNX graphs."""

    def __init__(self, repository: Path) -> None:
        self.models = {path.parents[1].name: path for path in repository.glob("*/1/model.onnx")}
        self.sessions: dict[str, ort.InferenceSession] = {}
        self.largest_side = 1 << 16  # of an input; more gets the answer of a GPU whose memory is full
        self.requests: list[tuple[str, dict[str, tuple[int, ...]]]] = []

    def session(self, model: str) -> ort.InferenceSession:
        """A model's session, opened when it is first asked for."""
        if model not in self.sessions:
            options = ort.SessionOptions()
            options.enable_mem_pattern, options.intra_op_num_threads = False, 1
            path = str(self.models[model])
            self.sessions[model] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return self.sessions[model]

    def answer(self, model: str, given: dict[str, Array], wanted: list[str]) -> InferenceResponse:
        shapes = {name: array.shape for name, array in given.items()}
        self.requests.append((model, shapes))
        if model not in self.models:
            return InferenceResponse([], TritonError(f"Request for unknown model: '{model}' is not found"))
        session = self.session(model)
        expected = {one.name: TYPES[one.type] for one in session.get_inputs()}
        got = {name: array.dtype for name, array in given.items()}
        if got != expected or not set(wanted) <= {one.name for one in session.get_outputs()}:
            return InferenceResponse([], TritonError(f"got {got} for {expected}, {wanted} wanted"))
        if max(max(shape) for shape in shapes.values()) > self.largest_side:
            return InferenceResponse([], TritonError("onnx runtime error 6: Failed to allocate memory for buffer"))
        # Copies: what a session returns must not be what the model reads.
        outputs = session.run(wanted, {name: array.copy() for name, array in given.items()})
        return BorrowedResponse([Tensor(name, output) for name, output in zip(wanted, outputs, strict=True)])


server: Server | None = None  # that answers
