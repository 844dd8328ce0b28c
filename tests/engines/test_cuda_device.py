"""The device layer. What needs no GPU runs everywhere; how graphs are captured and replayed in order is also tested
without one, in tests/runtime/test_plan.py.
"""

import gc
from collections.abc import Iterator

import numpy as np
import pytest

cuda = pytest.importorskip("uid.engines.cuda_device", reason="needs cuda-bindings", exc_type=ImportError)

from cuda.bindings import runtime as cudart  # noqa: E402, after the skip

from uid.engines import Work  # noqa: E402
from uid.errors import BackendError, OutOfMemoryError  # noqa: E402

DRIVER = cuda.call(cudart.cudaDriverGetVersion)


def missing_gpu() -> str:
    """Why there is no GPU here; empty where there is one."""
    try:
        cuda.Device.find()
    except BackendError as error:
        return str(error)
    return ""


needs_gpu = pytest.mark.skipif(bool(missing_gpu()), reason=missing_gpu() or "there is a GPU")


@pytest.fixture
def stream() -> Iterator["cuda.Stream"]:
    cuda.Device.find().select()
    with cuda.Stream() as stream:
        yield stream


# Everywhere


def test_a_failed_call_is_named_with_its_arguments_and_reason() -> None:
    def cudaMalloc(size: int) -> tuple[object, None]:  # noqa: N802, as CUDA has it
        return cudart.cudaError_t.cudaErrorMemoryAllocation, None

    with pytest.raises(OutOfMemoryError, match=r"^cudaMalloc\(4096\): cudaErrorMemoryAllocation: out of memory$"):
        cuda.call(cudaMalloc, 4096)
    mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal

    def cudaStreamBeginCapture(stream: object, mode: object) -> tuple[object]:  # noqa: N802
        return (cudart.cudaError_t.cudaErrorIllegalState,)

    with pytest.raises(
        BackendError, match=r"BeginCapture\(cudaStream_t, cudaStreamCaptureModeThreadLocal\): cudaErr"
    ) as e:
        cuda.call(cudaStreamBeginCapture, cudart.cudaStream_t(), mode)
    assert not isinstance(e.value, OutOfMemoryError)


def test_results_come_without_their_code() -> None:
    ok = cudart.cudaError_t.cudaSuccess
    assert cuda.call(lambda: (ok, 7)) == 7
    assert cuda.call(lambda: (ok, 7, 8)) == (7, 8)
    assert cuda.call(lambda: (ok,)) == ()


@pytest.mark.skipif(DRIVER != 0, reason="there is an NVIDIA driver")
def test_without_a_driver_the_error_says_what_is_missing() -> None:
    with pytest.raises(BackendError, match="no NVIDIA driver here; CUDA needs an NVIDIA GPU and its driver"):
        cuda.Device.find()
    with pytest.raises(BackendError, match=r"^cudaMalloc\(4096\): cudaErrorInsufficientDriver: CUDA driver version is"):
        cuda.DeviceMemory(4096)
    with pytest.raises(BackendError, match=r"^cudaStreamCreateWithFlags\(1\): cudaErrorInsufficientDriver"):
        cuda.Stream()


def test_a_driver_too_old_is_told_which_bindings_suit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    major = cuda.call(cudart.cudaRuntimeGetVersion) // 1000
    version = 1000 * (major - 1) + 90
    monkeypatch.setattr(cudart, "cudaDriverGetVersion", lambda: (cudart.cudaError_t.cudaSuccess, version))
    wanted = rf"supports CUDA up to {major - 1}\.9, cuda-bindings is for {major}: .*'cuda-bindings=={major - 1}\.\*'"
    with pytest.raises(BackendError, match=wanted):
        cuda.Device.find()


# On a GPU


@pytest.mark.gpu
@needs_gpu
def test_device_tells_what_it_is() -> None:
    device = cuda.Device.find()
    major, minor = device.compute_capability.split(".")
    assert (device.index, bool(device.name), int(major) >= 5, minor.isdigit()) == (0, True, True, True)
    assert device.driver >= (12, 0)
    free, total = device.memory()
    assert 0 < free <= total
    count = cuda.call(cudart.cudaGetDeviceCount)
    with pytest.raises(BackendError, match=f"GPU {count} was asked for; there are {count} here"):
        cuda.Device.find(count)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("count", [3, 1_000_000])
def test_there_and_back(stream: "cuda.Stream", count: int) -> None:
    sent, got = np.random.default_rng(0).random((2, count))
    with cuda.DeviceMemory(sent.nbytes) as memory:
        memory.copy_from(sent, stream)
        memory.copy_to(got, stream)
        stream.synchronize()
        np.testing.assert_array_equal(got, sent)
        memory.clear(stream)
        memory.copy_to(got, stream)
        stream.synchronize()
        assert not got.any()
        with pytest.raises(ValueError, match="bytes for"):
            memory.copy_from(sent[1:], stream)
        with pytest.raises(ValueError, match="scattered"):
            memory.copy_from(np.stack([sent, sent], axis=1)[:, 0], stream)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("shape", [(1,), (1, 300, 400, 3)])
def test_buffers_keep_to_the_contract(stream: "cuda.Stream", shape: tuple[int, ...]) -> None:
    buffer = cuda.CudaBuffer(shape, np.dtype(np.uint8), stream)
    assert not buffer.read().any()
    value = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    buffer.write(value)
    before = buffer.read()
    buffer.write(np.zeros_like(value))
    np.testing.assert_array_equal(before, value)
    with pytest.raises(ValueError, match=r"got float32\[2\] for a buffer of uint8"):
        buffer.write(np.zeros(2, np.float32))


@pytest.mark.gpu
@needs_gpu
def test_a_pinned_array_outlives_its_maker(stream: "cuda.Stream") -> None:
    view = cuda.PinnedMemory((4, 5), np.dtype(np.float32)).array[1:]
    gc.collect()
    view[...] = 2.0
    assert view.sum() == 30.0
    with cuda.DeviceMemory(view.nbytes) as memory:
        memory.copy_from(np.ones_like(view), stream)
        memory.copy_to(view, stream)
        stream.synchronize()
    assert view.sum() == 15.0


@pytest.mark.gpu
@needs_gpu
def test_a_replay_does_what_the_launches_do(stream: "cuda.Stream") -> None:
    buffers = [cuda.CudaBuffer((50, 50), np.dtype(np.float32), stream) for _ in range(3)]

    def copy(source: "cuda.CudaBuffer", target: "cuda.CudaBuffer") -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        cuda.call(cudart.cudaMemcpyAsync, target.address, source.address, source.nbytes, kind, stream.handle)

    there, on = (lambda: copy(buffers[0], buffers[1])), (lambda: copy(buffers[1], buffers[2]))
    replay, reports = cuda.GraphReplay(Work([], [there, on], []), stream), []
    for seed in range(3):
        value = np.random.default_rng(seed).random((50, 50), dtype=np.float32)
        buffers[0].write(value)
        assert not np.array_equal(buffers[2].read(), value)  # what was captured has not run yet
        seconds = replay(reports.append)
        assert seconds.keys() == {"prepare", "step", "finish"}
        assert 0.0 <= seconds["prepare"] <= seconds["step"] < 1.0
        np.testing.assert_array_equal(buffers[2].read(), value)
    assert reports == [2, 2, 2]


@pytest.mark.gpu
@needs_gpu
def test_a_capture_that_fails_leaves_the_stream_usable(stream: "cuda.Stream") -> None:
    with pytest.raises(ZeroDivisionError), stream.capture():
        _ = 1 / 0
    with pytest.raises(BackendError, match="cudaErrorStreamCapture"), stream.capture():
        stream.synchronize()
    with pytest.raises(BackendError, match="inside its own capture"), stream.capture() as graph:
        graph.launch(stream)
    stream.synchronize()


@pytest.mark.gpu
@needs_gpu
def test_events_measure(stream: "cuda.Stream") -> None:
    with cuda.Event() as start, cuda.Event() as end, cuda.DeviceMemory(1 << 26) as memory:
        start.record(stream)
        memory.clear(stream)
        end.record(stream)
        end.synchronize()
        assert end.seconds_since(start) > 0.0


@pytest.mark.gpu
@needs_gpu
def test_too_much_memory_is_its_own_error_and_closing_gives_it_back() -> None:
    device = cuda.Device.find()
    free, total = device.memory()
    with pytest.raises(OutOfMemoryError, match=rf"cudaMalloc\({2 * total}\): cudaErrorMemoryAllocation"):
        cuda.DeviceMemory(2 * total)
    memory = cuda.DeviceMemory(free // 2)
    memory.close()
    memory.close()
    assert device.memory()[0] > free * 0.9
