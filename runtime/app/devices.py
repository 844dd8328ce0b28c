"""``--device``: where to compute, as people know it from PyTorch."""

import os
from pathlib import Path

from uid.engines import BACKENDS, probe
from uid.errors import BackendError
from uid.runtime.options import AUTO


def backend_on(device: str | None, backend: str) -> str:
    """The backend to use on a device: the one that is named, or for "auto" the first that works there.

    ``device`` is "cpu", "cuda" or "cuda:N", the GPU of that number, which becomes the only one that this process sees;
    None: any. Raises ``BackendError`` where the two contradict each other, or no backend works there.
    """
    if device is None:
        return backend
    kind, _, number = device.partition(":")
    names = [name for name, entry in BACKENDS.items() if entry.device == kind]
    if backend not in (AUTO, *names):
        raise BackendError(f"backend {backend} does not run on {device}; expected one of {', '.join(names)}")
    if number:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(int(number))
    if backend != AUTO:
        return backend
    tried = {}
    for name in names:
        status = probe(name)
        if status.available:
            return name
        tried[name] = status.detail
    reasons = "; ".join(f"{name}: {detail}" for name, detail in tried.items())
    raise BackendError(f"no backend works on {device} here: {reasons}", option="device")


def spread(devices: str | None, workers: int | None) -> list[str | None]:
    """The device of each worker: those that are named in turn, and where that is "cuda" each GPU.

    ``devices`` is as ``--device`` has it: names with commas between them; ``workers`` None: one for each of them.
    """
    names = devices.split(",") if devices else [None]
    if names == ["cuda"] and workers is not None and workers > 1:
        names = [f"cuda:{number}" for number in range(_gpus())] or names
    return [names[number % len(names)] for number in range(workers or len(names))]


def _gpus() -> int:
    """How many GPUs this process may see, as far as its surroundings tell without CUDA."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return len([name for name in allowed.split(",") if name.strip()])
    try:
        return len([*Path("/proc/driver/nvidia/gpus").iterdir()])
    except OSError:
        return 0


def _visible(number: int) -> str:
    """How CUDA names the GPU of this number among those that it may see already."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return str(number)
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    if number >= len(names):
        few = f"has {len(names)}, numbered from 0" if names else "is empty"
        raise BackendError(f"got GPU {number}, but CUDA_VISIBLE_DEVICES={allowed} {few}", option="device")
    return names[number]
