"""CUDA's libraries in another site-packages than ONNX Runtime's, with small libraries in their place."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

needs_cc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)
# Loads a library in the provider's place before and after preload(); prints what was loaded and what it computes.
SCRIPT = """
import ctypes, sys
from uid.engines.ort.nvidia_libraries import preload

provider, version = sys.argv[1:]
try:
    ctypes.CDLL(provider)
    print("loaded by itself")
except OSError as error:
    print("missing", str(error).partition(":")[0])
for path in preload(version):
    print(path)
print(ctypes.CDLL(provider).answer())
"""


def library(path: Path, code: str, *needed: Path) -> Path:
    """Compile a shared library that is called by its file's name and needs others without saying where they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", path, f"-Wl,-soname,{path.name}"]
    subprocess.run([*words, "-x", "none", "-Wl,--no-as-needed", *needed], input=code, text=True, check=True)
    return path


def run(path: list[Path], *words: str) -> list[str]:
    """The lines that the script prints, with these folders first on Python's path."""
    code = f"import sys; sys.path[:0] = {[str(folder) for folder in path]}\n{SCRIPT}"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@needs_cc
def test_libraries_beside_another_package_are_found_and_the_cuda_version_matches(tmp_path: Path) -> None:
    torch, other, site = (tmp_path / name for name in ("torch", "other", "site"))
    lt = library(torch / "nvidia/cu13/lib/libcublasLt.so.13", "int lt(void) { return 40; }")
    blas = library(torch / "nvidia/cu13/lib/libcublas.so.13", "int lt(void); int blas(void) { return lt() + 2; }", lt)
    cudnn = library(torch / "nvidia/cudnn/lib/libcudnn.so.9", "int dnn(void) { return 100; }")
    random = library(torch / "nvidia/cu13/lib/libcurand.so.10", "int random13(void) { return 1000; }")
    library(torch / "nvidia/cu12/lib/libcurand.so.10", "int random12(void) { return 0; }")
    library(torch / "nvidia/cu12/lib/libcublas.so.12", "int blas(void) { return 0; }")
    library(other / "nvidia/cudnn/lib/libcudnn.so.9", "int dnn(void) { return 7; }")
    code = "int blas(void), dnn(void), random13(void); int answer(void) { return blas() + dnn() + random13(); }"
    provider = library(site / "onnxruntime/capi/provider.so", code, blas, cudnn, random)
    found = [str(path) for path in (lt, blas, random, cudnn)]
    assert run([site, torch, other], str(provider), "13.0") == ["missing libcublas.so.13", *found, "1142"]


@needs_cc
def test_a_library_that_is_loaded_already_stays(tmp_path: Path) -> None:
    """As where PyTorch was imported before: a second copy of a library would be useless."""
    first = library(tmp_path / "first/nvidia/cudnn/lib/libcudnn.so.9", "int dnn(void) { return 1; }")
    library(tmp_path / "second/nvidia/cudnn/lib/libcudnn.so.9", "int dnn(void) { return 2; }")
    provider = library(tmp_path / "provider.so", "int dnn(void); int answer(void) { return dnn(); }", first)
    code = f"import ctypes; ctypes.CDLL({str(first)!r})\n"
    code += f"import sys; sys.path.insert(0, {str(tmp_path / 'second')!r})\n{SCRIPT}"
    done = subprocess.run([sys.executable, "-c", code, provider, "12.8"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["loaded by itself", "1"]
