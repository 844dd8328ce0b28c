"""Which installed distribution brings a backend, and which backends are tried before use."""

import sys
from pathlib import Path

import numpy as np
import pytest

from uid import engines
from uid.bench import rows
from uid.engines import registry
from uid.engines.ort.cpu import OrtBackend
from uid.errors import BackendError, BundleError
from uid.runtime.pixels import GRAPHS


def put(folder: Path, name: str, version: str) -> None:
    """What an installer leaves of a distribution, whose own spelling of its name may have hyphens."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("backend", "distribution"),
    [
        ("tensorrt-rtx", "tensorrt-rtx"),
        ("tensorrt-rtx", "tensorrt_rtx_cu13"),
        ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings"),
        ("tensorrt-rtx", "tensorrt_rtx_cu13_bindings"),
        ("tensorrt-rtx", "tensorrt_rtx_cu12_bindings"),
        ("tensorrt", "tensorrt_cu13_bindings"),
        ("tensorrt", "tensorrt-cu12-bindings"),
        ("onnxruntime", "onnxruntime_gpu"),
        ("onnxruntime", "onnxruntime_openvino"),
        ("onnxruntime-cuda", "onnxruntime_gpu"),
    ],
)
def test_a_distribution_that_brings_a_backend_counts(
    backend: str, distribution: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert engines.installed(engines.BACKENDS[backend]) == ""
    put(tmp_path, distribution, "1.6.1.120")
    found = engines.installed(engines.BACKENDS[backend])
    assert found.replace("_", "-") == f"{distribution.replace('_', '-')} 1.6.1.120"


@pytest.mark.parametrize(
    ("backend", "distribution"),
    [
        ("tensorrt-rtx", "tensorrt_rtx_cu13_libs"),  # no module to import
        ("tensorrt", "tensorrt_lean_cu13_bindings"),  # runs engines, and cannot build them
        ("tensorrt", "tensorrt_dispatch_cu13"),
        ("tensorrt", "tensorrt_rtx_cu13"),
        ("onnxruntime-cuda", "onnxruntime"),
    ],
)
def test_a_distribution_of_a_similar_name_does_not_count(
    backend: str, distribution: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    put(tmp_path, distribution, "1.6.1.120")
    assert engines.installed(engines.BACKENDS[backend]) == ""


def test_rows_have_the_version_whatever_the_distribution_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    put(tmp_path, "tensorrt-rtx-cu13-bindings", "1.6.1.120")
    put(tmp_path, "numpy", "2.4.6")
    found = rows.versions()
    assert (found["tensorrt-rtx"], found["numpy"], "tensorrt" in found) == ("1.6.1.120", "2.4.6", False)


def test_a_backend_in_doubt_is_tried_and_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    engines.create("onnxruntime", threads=1, report=lines.append)
    monkeypatch.setattr(OrtBackend, "doubt", "it is on trial")
    engines.create("onnxruntime", threads=1, report=lines.append)
    assert lines == ["it is on trial"]
    monkeypatch.setattr(registry, "PROBE", GRAPHS / "wrong.onnx")
    with pytest.raises(BundleError, match=r"cannot load .*wrong\.onnx"):
        engines.create("onnxruntime", threads=1)


def test_a_backend_that_computes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OrtBackend, "doubt", "it is on trial")
    monkeypatch.setattr("uid.engines.ort.cpu.OrtBuffer.read", lambda buffer: np.zeros(1, np.float32))
    with pytest.raises(BackendError, match=r"backend onnxruntime computed \[0\.\] where it should have copied 1"):
        engines.create("onnxruntime", threads=1)
    assert not engines.probe("onnxruntime").available
