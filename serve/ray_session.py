"""Start a Ray cluster on this machine, or join one. Nothing is told to anyone, and no port is open without a token."""

import contextlib
import ctypes
import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uid import telemetry
from uid.bundles.files import scratch_folder
from uid.errors import BackendError
from uid.install import how_to_install

LOCAL, AUTO = "local", "auto"
PATIENCE = 10.0  # seconds for an address to answer, where Ray itself tries for a quarter of an hour
SIGNALS = (signal.SIGINT, signal.SIGTERM)
STARTS = 3  # of a local cluster: Ray waits 30 s for its processes, which on a busy machine is not always enough
LONGEST = 40  # characters of a folder in which Ray's sockets have names that the system takes
TOKEN = Path("~/.ray/auth_token")  # where Ray looks for one


def imported() -> Any:
    """Ray. Raises ``BackendError`` where it is not installed."""
    telemetry.switch_off()
    try:
        import ray
    except ImportError as error:
        raise BackendError(f"a cluster needs Ray, which is not installed: {how_to_install('cluster')}") from error
    return ray


@contextlib.contextmanager
def joined(address: str, cpus: int | None = None) -> Iterator[Any]:
    """Ray, in a cluster until the end of the block.

    ``address`` is "local" for one of this machine alone, which ends with the block, "auto" for the one that this
    machine belongs to, or another's host and port. ``cpus`` of a local one; None: those of the machine.
    Raises ``BackendError`` where there is no such cluster.
    """
    local = address == LOCAL
    if address not in (LOCAL, AUTO):
        _check_answers(address)
    set_environment(local)
    ray = imported()
    logging.getLogger("ray").setLevel(logging.ERROR)  # what comes of it is told as errors of ours
    with contextlib.ExitStack() as stack:
        started: dict[str, Any] = {"include_dashboard": False, "num_cpus": cpus} if local else {}
        if local and (folder := stack.enter_context(_scratch())):
            started["_temp_dir"] = str(folder)
        for left in reversed(range(STARTS if local else 1)):
            try:
                with _own_signals():
                    ray.init(address=address, log_to_driver=False, configure_logging=False, **started)
                break
            except Exception as error:  # Ray raises plain ones too
                if not left or "timed out" not in str(error):
                    raise BackendError(f"cannot join the cluster {address}: {_first_line(error)}") from error
        stack.callback(ray.shutdown)
        yield ray


def nodes(ray: Any) -> list[Mapping[str, float]]:
    """What each living node of the cluster has, by resource: "CPU", "GPU" and others."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def set_environment(local: bool) -> None:
    """Say who may use a cluster's ports, which Ray reads when it is imported."""
    if not local:
        os.environ.setdefault("RAY_AUTH_MODE", "token" if _has_token() else "disabled")
        return
    # Loopback alone, as on those systems, and a token that this run's processes have; else Ray listens on all
    # addresses, and keeps a token in the home folder.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _check_answers(address: str) -> None:
    """Raise ``BackendError`` unless something listens at an address."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        raise BackendError(f"{address!r} is no address of a cluster; expected local, auto, or such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise BackendError(f"no cluster answers at {address} ({error}); expected the address of its head") from error


def _has_token() -> bool:
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or TOKEN.expanduser().exists()


@contextlib.contextmanager
def _scratch() -> Iterator[Path | None]:
    """A folder for Ray's sockets and logs, which goes away; None, for Ray's own, where its name would be too long."""
    folder = Path(tempfile.gettempdir())
    if len(str(folder)) > LONGEST:
        yield None
        return
    with scratch_folder(folder) as made:
        yield made


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of signals; Ray's own of SIGTERM aborts the process, or ends it where it is."""
    get, put = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
    get.restype = put.restype = ctypes.c_void_p
    get.argtypes, put.argtypes = [ctypes.c_int], [ctypes.c_int, ctypes.c_void_p]
    before, python = {number: get(number) for number in SIGNALS}, signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # in others Ray cannot set one, nor can we
            signal.signal(signal.SIGTERM, python)
        for number, handler in before.items():
            put(number, handler)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
