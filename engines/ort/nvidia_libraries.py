"""NVIDIA's CUDA libraries where wheels put them: in ``nvidia/*/lib`` of any folder that Python imports from.

ONNX Runtime itself looks beside its own folder and where the system's loader looks. With PyTorch in another
site-packages, the libraries are beside PyTorch.
"""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path


def preload(cuda_version: str) -> list[Path]:
    """Load the libraries of a CUDA version, such as "13.0", that are found and not loaded yet; returns which.

    What depends on them then finds them loaded. Only on Linux do wheels have them so; elsewhere nothing is done.
    """
    loaded: list[Path] = []
    if not sys.platform.startswith("linux") or not cuda_version:
        return loaded
    major = cuda_version.partition(".")[0]
    for name in names(major):
        path = find(name, major)
        if path is not None and not is_loaded(name):
            with suppress(OSError):  # ONNX Runtime then says what is missing
                ctypes.CDLL(str(path))
                loaded.append(path)
    return loaded


def names(major: str) -> list[str]:
    """File names of what ONNX Runtime needs, each after those that it needs in turn."""
    own = [f"lib{library}.so.{major}" for library in ("cudart", "nvJitLink", "nvrtc", "cublasLt", "cublas")]
    return [*own, "libcurand.so.10", f"libcufft.so.{11 if major == '12' else 12}", "libcudnn.so.9"]


def find(name: str, major: str) -> Path | None:
    """The first file of this name on Python's path; in a folder, CUDA's own part first."""
    for entry in sys.path:
        parts = sorted(Path(entry, "nvidia").glob("*/lib"), key=lambda part: part.parent.name != f"cu{major}")
        for part in parts:
            if (part / name).is_file():
                return part / name
    return None


def is_loaded(name: str) -> bool:
    """Whether the process has a library of this name, wherever it is from."""
    try:
        ctypes.CDLL(name, os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True
