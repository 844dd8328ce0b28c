"""A build in a process of its own: a library that crashes, or writes where it should not, does so to nobody else.

TensorRT-RTX does at some ranges of sizes (docs/engines.md), mostly with an error, and now and then with a crash.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from uid.engines.trt.build import BuildOptions, Built, NotBuiltError, Report, Shapes, build
from uid.engines.trt.library import Library, open_library
from uid.engines.trt.profiles import Target
from uid.errors import BackendError, OutOfMemoryError, UIDError

# -c and not -m, since the search path has to be this process's before anything is imported.
PROGRAM = "import sys; sys.path[:] = {path!r}; from uid.engines.trt.isolated_build import main; main()"
PYTHON_FAILED, KILLED = 1, -9  # as what a process ended
PROTOCOL = 5  # of pickle: the first that takes a buffer without copying it


def build_apart(
    library: Library,
    onnx: Path,
    profiles: Sequence[Shapes],
    target: Target,
    options: BuildOptions,
    *,
    timing_cache: Path | None = None,
    report: Report = print,
) -> Built:
    """As ``build``, in another process, which an interrupt ends at once.

    Raises what ``build`` does; ``NotBuiltError`` too when the process crashes.
    """
    command = [sys.executable, "-c", PROGRAM.format(path=sys.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin as task:
                pickle.dump((library.name, onnx, profiles, target, options, timing_cache), task)
            outcome = listen(process.stdout, report)
            if outcome is None:
                raise crash(process.wait(), f"{library}, building {onnx.name} for {target}")
        finally:
            process.kill()  # nothing where it has ended
    if isinstance(outcome, Exception):
        raise outcome
    plan, tensors, seconds = outcome
    return Built(memoryview(plan), tensors, seconds)


def listen(stream: IO[bytes], report: Report) -> Any:
    """Report lines until the outcome comes: an error, or an engine's parts; None if the process ends without one."""
    while True:
        try:
            said = pickle.load(stream)  # noqa: S301  (from the process that was started here)
        except (EOFError, pickle.UnpicklingError):
            return None
        if not isinstance(said, str):
            return said
        report(said)


def crash(status: int, work: str) -> BackendError:
    """The error for a process that ended with this status, negative if by a signal, and told nothing."""
    if status == PYTHON_FAILED:
        return BackendError(f"{work}: the process failed, as it has printed")
    if status == KILLED:
        return OutOfMemoryError(f"{work}: the process was killed, as a system does that runs out of memory")
    name = signal.Signals(-status).name if status < 0 else hex(status)
    return NotBuiltError(f"{work}: the library crashed ({name})")


def main() -> None:
    """The other process: take a task from standard input, put lines and then the outcome on standard output."""
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library itself prints is no part of the answer

    def say(thing: object) -> None:
        pickle.dump(thing, channel, protocol=PROTOCOL)
        channel.flush()

    name, onnx, profiles, target, options, timing_cache = pickle.load(sys.stdin.buffer)  # noqa: S301  (from who started it)
    try:
        built = build(open_library(name), onnx, profiles, target, options, timing_cache=timing_cache, report=say)
        say((pickle.PickleBuffer(built.plan), built.tensors, built.seconds))
    except UIDError as error:
        say(error)
    except (BrokenPipeError, KeyboardInterrupt):  # the other side is gone, or told the same
        sys.exit(1)
