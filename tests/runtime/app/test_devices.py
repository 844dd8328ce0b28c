"""``--device`` chooses among the backends that run there, and hides the other GPUs from this process."""

import os

import pytest

from uid.engines.registry import BackendStatus
from uid.errors import BackendError
from uid.runtime.app import devices
from uid.runtime.app.devices import backend_on, spread


@pytest.fixture(autouse=True)
def works(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The backends that work; the others are not installed."""
    working = {"openvino", "tensorrt"}
    monkeypatch.setattr(devices, "probe", lambda name: BackendStatus(name, name in working, f"{name} tried"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is put back, whatever was there
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    return working


@pytest.mark.parametrize(
    ("device", "backend", "chosen"),
    [
        (None, "auto", "auto"),
        (None, "onnxruntime", "onnxruntime"),
        ("cpu", "auto", "openvino"),
        ("cpu", "onnxruntime", "onnxruntime"),  # what is named is tried, and says itself what is missing
        ("cuda", "auto", "tensorrt"),
        ("cuda:1", "onnxruntime-cuda", "onnxruntime-cuda"),
    ],
)
def test_the_first_that_works_on_the_device(device: str | None, backend: str, chosen: str) -> None:
    assert backend_on(device, backend) == chosen


@pytest.mark.parametrize(("device", "backend"), [("cpu", "tensorrt"), ("cuda", "openvino"), ("cuda:0", "onnxruntime")])
def test_a_backend_of_another_device(device: str, backend: str) -> None:
    with pytest.raises(BackendError, match=f"{backend} does not run on {device}; expected one of"):
        backend_on(device, backend)


def test_nothing_works_there(works: set[str]) -> None:
    works.clear()
    with pytest.raises(BackendError, match=r"no backend works on cuda here: .*tensorrt tried"):
        backend_on("cuda", "auto")


@pytest.mark.parametrize(
    ("allowed", "device", "left"),
    [(None, "cuda:3", "3"), ("2,5", "cuda:1", "5"), ("GPU-a, GPU-b", "cuda:1", "GPU-b"), ("4", "cuda", "4")],
)
def test_one_gpu_is_left(monkeypatch: pytest.MonkeyPatch, allowed: str | None, device: str, left: str) -> None:
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    backend_on(device, "tensorrt")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


@pytest.mark.parametrize(("allowed", "told"), [("2,5", "has 2, numbered from 0"), ("", "is empty")])
def test_a_gpu_that_may_not_be_seen(monkeypatch: pytest.MonkeyPatch, allowed: str, told: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    with pytest.raises(BackendError, match=told):
        backend_on("cuda:2", "auto")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == allowed


@pytest.mark.parametrize(
    ("devices", "workers", "allowed", "each"),
    [
        (None, None, None, [None]),
        (None, 3, None, [None, None, None]),
        ("cpu", 2, None, ["cpu", "cpu"]),
        ("cuda:0,cuda:2", None, None, ["cuda:0", "cuda:2"]),
        ("cuda:0,cuda:2", 3, None, ["cuda:0", "cuda:2", "cuda:0"]),
        ("cuda", None, "4,5", ["cuda"]),
        ("cuda", 2, "4,5", ["cuda:0", "cuda:1"]),
        ("cuda", 2, "4", ["cuda:0", "cuda:0"]),
    ],
)
def test_workers_take_the_devices_in_turn(
    monkeypatch: pytest.MonkeyPatch, devices: str | None, workers: int | None, allowed: str | None, each: list[str]
) -> None:
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert spread(devices, workers) == each
