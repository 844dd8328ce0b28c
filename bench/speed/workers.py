"""Processes of their own for what is measured: memory, loaded libraries and thread pools are then each one's own."""

import contextlib
import importlib
import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from uid.errors import BackendError, UIDError

CLOSING_SECONDS = 5.0  # before a process that was told to stop is ended


@dataclass(frozen=True)
class Spec:
    """What a process serves: an object whose methods are called from outside."""

    name: str
    factory: str  # "module:function", imported in the process and called with ``arguments``
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Failure:
    """What went wrong in the process."""

    text: str


class Worker:
    """A process that serves the object of a ``Spec``; a ``BackendError`` says why it could not, or why it ended.

    It ends with the ``with`` block, and by itself when its parent is gone.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.started = time.perf_counter()
        context = multiprocessing.get_context("spawn")  # a fork would share what is to be measured apart
        self.connection, remote = context.Pipe()
        self.process = context.Process(target=serve, args=(remote, spec), name=spec.name, daemon=True)
        try:
            self.process.start()
            remote.close()
            self.receive()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object served, and wait for its answer."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it ended: what it last said is still to read
            self.connection.send((method, arguments))
        return self.receive()

    def receive(self) -> Any:
        """The next answer."""
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(CLOSING_SECONDS)
            raise BackendError(f"{self.spec.name}: {ending(self.process.exitcode)}") from None
        if isinstance(answer, Failure):
            raise BackendError(f"{self.spec.name}: {answer.text}")
        return answer

    def close(self) -> None:
        """End the process: it is asked to, and made to if it goes on."""
        self.connection.close()
        if self.process.pid is None:
            return
        self.process.join(0.0 if self.process.exitcode is None and sys.exc_info()[0] else CLOSING_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ending(code: int | None) -> str:
    """How a process ended that was not told to, in words."""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            memory = "; where memory ran out the kernel does that" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{memory}"
    return f"its process ended with exit status {code}"


def serve(connection: Connection, spec: Spec) -> None:
    """Make the object, say so, and answer calls until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and the parent ends this process
    try:
        module, function = spec.factory.split(":")
        served = getattr(importlib.import_module(module), function)(*spec.arguments)
        connection.send(None)
        for method, arguments in requests(connection):
            connection.send(getattr(served, method)(*arguments))
    except BrokenPipeError:
        return
    except Exception as error:  # whatever it is, the parent reports it and goes on with the others
        text = str(error) if isinstance(error, UIDError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(BrokenPipeError):
            connection.send(Failure(text))


def requests(connection: Connection) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Calls, until the other end closes."""
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            yield connection.recv()


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss starts with what the parent had, VmHWM with the program itself
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
