"""Ctrl-C, SIGTERM and SIGHUP end every command in one way: what is written is whole, what was begun is removed.

The first signal raises ``Stopped`` where the program is, so that every ``finally`` runs. A library may swallow that, as
C++ code does that calls Python: then ``check`` raises it again, and the command line asks ``received`` in the end. The
second signal ends the program at once, without the wait for what is still being computed.
"""

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

MESSAGE = "interrupted: what was written is whole, no partial file is left"
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
_received: list[int] = []  # the signals so far


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end. Like its base class, no handler of errors catches it."""


def install() -> None:
    """Take the signals over, but for those that are ignored, as SIGHUP is under nohup; call it in the main thread."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)
    sys.unraisablehook = _unraisable


def received() -> bool:
    """Whether a signal has asked the program to end."""
    return bool(_received)


def check() -> None:
    """Raise ``Stopped`` if a signal has come, even one that a library swallowed."""
    if _received:
        raise Stopped(_received[0])


def status() -> int:
    """What a shell reports of a program that the signal ended: 130 of Ctrl-C, 143 of SIGTERM, 129 of SIGHUP."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def end_now(code: int) -> NoReturn:
    """End without waiting for anything, after the removal of what is being written."""
    files = sys.modules.get("uid.bundles.files")  # not imported: nothing is being written
    if files is not None:
        files.remove_own()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def no_more_waiting() -> None:
    """From now on the first signal ends the program at once too: it is about to end anyway."""
    for number in _SIGNALS:
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, lambda number, frame: end_now(128 + number))


def _on_signal(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    if len(_received) > 1:
        with contextlib.suppress(Exception):
            os.write(2, f"{MESSAGE}\n".encode())
        end_now(status())
    raise Stopped(number)


def _forget() -> None:
    """In a process that was forked: ``terminate`` is to end it as it always does."""
    _received.clear()
    for number in _SIGNALS:
        if signal.getsignal(number) is _on_signal and number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)


def _unraisable(unraisable: Any) -> None:
    """Python tells on standard error of what it cannot raise; a ``Stopped`` is raised again by ``check``."""
    if unraisable.exc_type is None or not issubclass(unraisable.exc_type, Stopped):
        sys.__unraisablehook__(unraisable)
