"""Errors that a user can mend. Each message says what was got, what was expected and how to mend it."""

from functools import partial
from typing import Any


def printable(text: str) -> str:
    """Text that a terminal may be given: control characters but line ends are spelled out."""
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


class UIDError(Exception):
    """Base of every error this project raises on purpose; command lines print its text without a traceback.

    The text may quote a file, or a library that quotes one: control characters are spelled out. ``option`` names the
    argument that mends the error, such as "tile"; a command line adds the flag of that name.
    """

    def __init__(self, message: str, *, option: str = "") -> None:
        super().__init__(message)
        self.option = option

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), option=self.option), (super().__str__(),)

    def __str__(self) -> str:
        return printable(super().__str__())


class InputError(UIDError):
    """An image, video, array or option that cannot be processed as given."""


class OutputError(UIDError):
    """A result that cannot be written where it was asked for."""


class BundleError(UIDError):
    """A bundle that is missing, incomplete, altered, or from a newer schema."""


class BackendError(UIDError):
    """A backend that is unknown, not installed, or cannot run here."""


class OutOfMemoryError(BackendError):
    """A backend's memory does not hold what was asked of it."""


class ModelError(UIDError):
    """A model that produced NaN or infinity, or whose graphs do not fit its manifest."""


class ParityError(UIDError):
    """An exported component whose names, shapes or values differ from PyTorch."""


class CheckpointError(UIDError):
    """A checkpoint folder that cannot be loaded as documented."""
