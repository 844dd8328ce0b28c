"""TensorRT and TensorRT-RTX behind one handle: which library is installed, what it can target, what it complains of.

Both have one Python interface, so everything that follows takes a ``Library`` and asks it what it offers.
"""

import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uid.engines.trt.profiles import Target
from uid.errors import BackendError, OutOfMemoryError
from uid.install import how_to_install, install_command

if TYPE_CHECKING:
    from uid.engines.cuda_device import Device

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST = {"tensorrt": (10, 8), "tensorrt-rtx": (1, 4)}
MAGIC = {"tensorrt": b"ftrt", "tensorrt-rtx": b"vtrt"}  # what an engine file starts with
# In TensorRT's own words, in lower case; the last of a tensor of more than 2^40 numbers.
NO_MEMORY = ("out of memory", "outofmemory", "tensor volume exceeds")
# The last TensorRT-RTX that loads engines on GPUs that NVIDIA does not support it on; later ones refuse.
UNCHECKING = "1.6.1.120"
RTX_VERSION = slice(24, 28)  # where TensorRT-RTX writes its own version, a byte for each of its four numbers


@dataclass(frozen=True)
class Library:
    """An installed TensorRT."""

    name: str  # "tensorrt" or "tensorrt-rtx"
    version: str
    module: Any
    logger: Any  # its ``errors`` list fills with what the library reports

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@functools.cache
def open_library(name: str) -> Library:
    """The TensorRT called ``name``; raises ``BackendError`` when it is unknown, missing or too old."""
    if name not in MODULES:
        raise BackendError(f"unknown engine builder {name!r}; expected {' or '.join(MODULES)}")
    install = how_to_install(name)
    try:
        module: Any = importlib.import_module(MODULES[name])
    except ImportError as error:
        raise BackendError(f"{name} is not installed or does not load ({error}): {install}") from error
    version = str(module.__version__)
    if numbers(version) < OLDEST[name]:
        oldest = ".".join(str(part) for part in OLDEST[name])
        raise BackendError(f"{name} is {version}; expected {oldest} or later: {install} --upgrade")
    return Library(name, version, module, make_logger(module))


def make_logger(module: Any) -> Any:
    """A logger that keeps the messages of errors. A process has one: the library ignores any later one."""

    class ErrorLog(module.ILogger):  # type: ignore[misc]  # the base is of a module that is chosen at run time
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.ERROR:
                self.errors.append(" ".join(message.split()))

    return ErrorLog()


def error_of(message: str, kind: type[BackendError] = BackendError) -> BackendError:
    """An error of this kind, or an ``OutOfMemoryError`` where the message says that memory ran out."""
    return (OutOfMemoryError if any(words in message.lower() for words in NO_MEMORY) else kind)(message)


def target_of(device: "Device") -> Target:
    """The target of engines that are built on a GPU for itself."""
    return Target(device.name, device.compute_capability, ".".join(str(part) for part in device.driver))


def check_target(library: Library, target: Target) -> None:
    """Raise ``BackendError`` when the library cannot build for ``target``."""
    if library.name == "tensorrt" and target.ahead_of_time is not None:
        raise BackendError(
            "tensorrt builds engines on the GPU that they are to run on, not ahead of time; "
            "build there, or use tensorrt-rtx",
            option="backend",
        )
    known = compute_capabilities(library)
    for name in target.ahead_of_time or ():
        if name not in known:
            raise BackendError(f"{library} cannot target compute capability {name}; expected {', '.join(known)}")


def compute_capabilities(library: Library) -> dict[str, Any]:
    """The compute capabilities that the library can build for without the GPU, oldest first: {"8.9": its value}."""
    if library.name == "tensorrt":
        return {}
    members = library.module.ComputeCapability.__members__
    numbers = {int(name[2:]): value for name, value in members.items() if name.startswith("SM")}
    return {f"{number // 10}.{number % 10}": numbers[number] for number in sorted(numbers)}


def supports(library: Library, capability: str) -> bool:
    """Whether NVIDIA supports the library on a compute capability: one that has a name in it, or a later one.

    Of TensorRT's own list nothing is known here: it says so itself.
    """
    known = [numbers(name) for name in compute_capabilities(library)]
    return not known or numbers(capability) in known or numbers(capability) > max(known)


def numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, or a compute capability: (8, 9) of "8.9"."""
    return tuple(int(part) for part in version.split(".")[:2])


def remedy(library: Library, capability: str) -> str:
    """What to add to the error where no engine loads on a compute capability that the library refuses, or ""."""
    if supports(library, capability) or numbers(library.version) <= numbers(UNCHECKING):
        return ""
    return (
        f". NVIDIA does not support {library.name} {UNCHECKING} there either, but that one loads engines: "
        f"{install_command([f'{library.name}=={UNCHECKING}'])}"
    )


def header_problem(library_name: str, version: str, header: bytes) -> str:
    """Why an engine file that starts so is not of this library and version, or ""."""
    magic = MAGIC[library_name]
    if not header.startswith(magic):
        return f"starts with {header[:4]!r}, expected {magic!r} of {library_name}"
    written = ".".join(str(number) for number in header[RTX_VERSION])
    if library_name == "tensorrt-rtx" and written != ".".join(version.split(".")[:4]):
        return f"was written by {library_name} {written}, expected {version}"
    return ""
