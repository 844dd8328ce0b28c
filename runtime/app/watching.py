"""``--watch``: what is put into the input folders is done as it comes, until Ctrl-C."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from uid import stop
from uid.errors import InputError
from uid.install import how_to_install

SETTLED_MS = 1500  # without a change, before what was put there is taken for whole
LONGEST_MS = 60_000  # of changes without a pause, before what is there is looked at all the same


def changes(folders: Sequence[Path]) -> Iterator[None]:
    """Yield each time that something below the folders has changed and come to rest.

    Raises ``InputError`` where the library for it is not installed.
    """
    try:
        import watchfiles  # an extra
    except ImportError as error:
        raise InputError(f"--watch needs watchfiles, which is not installed: {how_to_install('watch')}") from error
    for _ in watchfiles.watch(*folders, debounce=LONGEST_MS, step=SETTLED_MS):
        stop.check()
        yield
