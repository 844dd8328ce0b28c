"""What ONNX Runtime's backends share: sessions, their tensors, and what its errors mean."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort

from uid.engines.contract import TensorSpec
from uid.errors import BackendError, BundleError, OutOfMemoryError

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}
# ONNX Runtime's errors have no class for it: its own, the C++ library's and CUDA's words tell.
NO_MEMORY = ("Failed to allocate memory", "bad_alloc", "out of memory")


def session_options(threads: int | None) -> ort.SessionOptions:
    """How any session is made and run."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Denormals cost hundreds of cycles each and carry nothing at float32.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    # Weights stored in 8 bits are made floats once, at loading, and not in every run.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Scratch memory is not planned ahead: the plan comes after the first run and doubles what that one took.
    options.enable_mem_pattern = False
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def open_session(
    path: Path, options: ort.SessionOptions, provider: str, provider_options: Mapping[str, str]
) -> ort.InferenceSession:
    """A session on a provider; raises ``BackendError`` if another one loaded in its place."""
    try:
        session = ort.InferenceSession(
            str(path), options, providers=[provider], provider_options=[dict(provider_options)]
        )
    except Exception as error:  # its exceptions share no base class
        raise BundleError(f"ONNX Runtime {ort.__version__} cannot load {path}: {error}") from error
    if provider not in session.get_providers():
        raise BackendError(
            f"ONNX Runtime loaded {session.get_providers()} where {provider} was asked for: CUDA or cuDNN could "
            "not be loaded. Install them with pip install 'onnxruntime-gpu[cuda,cudnn]', or use another --backend"
        )
    return session


def inputs_of(session: ort.InferenceSession) -> dict[str, TensorSpec]:
    """A session's inputs by name."""
    return {node.name: spec_of(node) for node in session.get_inputs()}


def outputs_of(session: ort.InferenceSession) -> dict[str, TensorSpec]:
    """A session's outputs by name."""
    return {node.name: spec_of(node) for node in session.get_outputs()}


def spec_of(node: ort.NodeArg) -> TensorSpec:
    """ONNX Runtime's description of an input or output as a ``TensorSpec``."""
    if node.type not in DTYPES:
        raise BundleError(f"tensor {node.name!r} is {node.type}; expected one of {sorted(DTYPES)}")
    return TensorSpec(node.name, np.dtype(DTYPES[node.type]), tuple(node.shape))


@contextmanager
def memory_errors(wanted: str) -> Iterator[None]:
    """Raise ``OutOfMemoryError`` where ONNX Runtime says, in its own ways, that memory ran out."""
    try:
        yield
    except Exception as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        raise OutOfMemoryError(f"ONNX Runtime has no memory for {wanted}") from error
