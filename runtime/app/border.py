"""The border around each file: whatever goes wrong with one is told in a line, and the others are done."""

import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from uid import command
from uid.errors import OutOfMemoryError

Record = dict[str, Any]  # what --json prints for one file
Made = TypeVar("Made")
FLAGS = {"blur_image": "blur-from"}  # where the flag that mends an error is not called like the argument
SHORT_OF_MEMORY = "short_of_memory"  # a key that --json does not print
_PASSED_ON = (KeyboardInterrupt, SystemExit, GeneratorExit, BrokenPipeError)  # the last: nobody reads the output


def guarded(work: Callable[[], Made], debug: Callable[[str], None] | None = None) -> Made | Record:
    """What ``work`` returns, or a record of its failure, whatever is raised but an interruption.

    Libraries raise what they like for a damaged file, also what is no ``Exception``. ``debug`` is given the traceback.
    """
    try:
        return work()
    except _PASSED_ON:
        raise
    except BaseException as error:
        if debug is not None:
            debug("".join(traceback.format_exception(error)))
        return failed(error)


def failed(error: BaseException) -> Record:
    """The record of a failure; SHORT_OF_MEMORY is in it where more memory would help."""
    record: Record = {"ok": False, "error": explained(error)}
    return record | {SHORT_OF_MEMORY: True} if isinstance(error, MemoryError | OutOfMemoryError) else record


def explained(error: BaseException) -> str:
    """An error in a line: what a user can mend as it says itself, anything else by its kind and text."""
    if isinstance(error, MemoryError):
        return "memory does not hold it; give a smaller --tile, fewer --workers, or more memory"
    return command.explained(error, FLAGS)
