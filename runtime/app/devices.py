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
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[int(number)] if int(number) < len(seen) and seen[0] else number
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
