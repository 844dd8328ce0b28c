"""``--device``: where to compute, as people know it from PyTorch."""

import os

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
