"""Engines: the contract, one file or folder per backend, and the registry that makes a backend by name.

``contract``      what every backend offers: buffers, engines, launches, capture
``registry``      the table of backends; ``create``, ``report``
``ort/``          ONNX Runtime on the CPU and on CUDA
``openvino_cpu``  OpenVINO on the CPU
``trt/``          TensorRT and TensorRT-RTX: profiles, builds, the engine cache
``cuda_device``   the CUDA device layer that the GPU backends share
``triton``        models of a Triton server; for code inside of it, so not in the registry
"""

from uid.engines.contract import (
    Backend,
    Buffer,
    Engine,
    Launch,
    OneByOne,
    Progress,
    Report,
    Seconds,
    Work,
)
from uid.engines.registry import BACKENDS, BackendStatus, create, installed, probe, report

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendStatus",
    "Buffer",
    "Engine",
    "Launch",
    "OneByOne",
    "Progress",
    "Report",
    "Seconds",
    "Work",
    "create",
    "installed",
    "probe",
    "report",
]
