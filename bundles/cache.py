"""Where engines are stored on disk, and that one process at a time writes there."""

import contextlib
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from uid import __version__
from uid.bundles.declarations import Bundle
from uid.bundles.user_cache import cache_folder, make_private
from uid.errors import OutputError

ENGINES = "engines"  # the folder of all bundles' engines in the user's cache
LOCK = ".lock"
PATIENCE = 60.0  # seconds to wait for another process: compiling once more for the CPU takes less
TELL_EVERY = 60.0  # seconds between two lines about the same wait
UNUSED_DAYS = 90  # after which the engines of a bundle are removed
FORMAT = 2  # of what is stored; raise it where an earlier version's is not to be used
Found = TypeVar("Found")
# What a writer that was killed leaves, under the temporary names of ``bundles/files.py``.
LEFTOVER = re.compile(r"\..+-[0-9a-f]{16}(\.[0-9a-f]{16})?\.[0-9a-f]{8}(\.(engine|json|cache|kernels|blob))?")


def default_folder(bundle: Bundle, backend: str) -> Path:
    """Where a bundle's engines are stored: in the user's own cache, by the bundle's contents.

    Raises ``OutputError`` where there is no such cache, or others may write to it.
    """
    return cache_folder(ENGINES, bundle.digest[:16], backend)


def path_for(bundle: Bundle, backend: str, component: str, file: str, *depends: object, suffix: str = "") -> Path:
    """Where what a backend makes of a component's graph is stored; the name ends in a hash of all that it depends on.

    The contents of the bundle and of the graph, and this package's version, are among that.
    """
    everything = repr((FORMAT, bundle.digest, component, file, bundle.files[file], __version__, *depends))
    return default_folder(bundle, backend) / f"{component}-{short_hash(everything)}{suffix}"


def short_hash(text: str) -> str:
    """The first 16 hexadecimal digits of a text's sha256; names in the cache end in them."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def reuse_or_make(
    folder: Path,
    find: Callable[[], Found | None],
    make: Callable[[], Found],
    report: Callable[[str], None],
    patience: float = PATIENCE,
) -> Found:
    """What ``find`` finds in ``folder``, or else what ``make`` makes there.

    One process makes at a time. The others wait, and then find what it made. Notes that ``folder`` was used; what no
    run has used for ``UNUSED_DAYS`` is removed whenever something is made. Raises ``OutputError`` when the folder
    cannot be written, or stays locked for ``patience`` seconds, and what ``find`` and ``make`` raise.
    """
    found = find()
    if found is None:
        with writing(folder, report, patience):
            found = find()  # again: the process that held the folder may have made it
            if found is None:
                found = make()
        with contextlib.suppress(OutputError):  # a folder of the caller's may be writable where the cache is not
            remove_unused(report)
    with contextlib.suppress(OSError):
        os.utime(folder)
    return found


@contextlib.contextmanager
def writing(folder: Path, report: Callable[[str], None], patience: float = PATIENCE) -> Iterator[None]:
    """Hold a folder for one writer; waits for another that does, and removes what a killed one left.

    The system frees it when its holder dies. Raises ``OutputError`` when the folder cannot be written, or another
    process has held it for ``patience`` seconds.
    """
    with contextlib.ExitStack() as stack:
        try:
            make_private(folder)
            file = stack.enter_context(open(folder / LOCK, "a+b", opener=open_no_link))
            wait_for_lock(file.fileno(), folder, report, patience)
            for path in folder.iterdir():
                if LEFTOVER.fullmatch(path.name):
                    remove(path)
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error
        yield


def wait_for_lock(descriptor: int, folder: Path, report: Callable[[str], None], patience: float) -> None:
    """Lock an open file of ``folder``, at the latest after ``patience`` seconds; raises ``OutputError`` then."""
    started = told = time.monotonic()
    if not try_lock(descriptor):
        report(f"waiting for another build in {folder}")
        while not try_lock(descriptor):
            time.sleep(0.2)
            now = time.monotonic()
            if now - started > patience:
                raise OutputError(
                    f"cannot write {folder}: another process has held {LOCK} there for {now - started:.0f} s; end it, "
                    "or remove the folder"
                )
            if now - told > TELL_EVERY:
                told = now
                report(f"waiting for another build in {folder} for {now - started:.0f} s")


def remove_unused(report: Callable[[str], None]) -> None:
    """Remove the folders of bundles, one for each backend, that no run has used for ``UNUSED_DAYS``.

    A folder that was copied here counts as used then. One that another process writes to is left.
    """
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for folder in cache_folder(ENGINES).glob("*/*/"):
        with contextlib.suppress(OSError), open(folder / LOCK, "a+b", opener=open_no_link) as file:
            if last_used(folder) < oldest and try_lock(file.fileno()):
                report(f"removing {folder}: not used for {UNUSED_DAYS} days")
                remove(folder)
                folder.parent.rmdir()  # or not, where it holds another backend's


def last_used(folder: Path) -> float:
    """When a folder was last used, written to or copied here, in seconds since 1970."""
    found = folder.stat()
    return max(found.st_mtime, found.st_ctime)


def open_no_link(path: str, flags: int) -> int:
    """Open a file, or fail where its name is a link, on systems that can tell."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process until it is closed; False if another holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def remove_earlier(path: Path) -> None:
    """Remove what ``path`` takes the place of: what lies beside it with another hash at the end of the same name."""
    same = re.compile(rf"{re.escape(path.stem.rpartition('-')[0])}-[0-9a-f]{{16}}{re.escape(path.suffix)}")
    for other in path.parent.iterdir():
        if other != path and same.fullmatch(other.name):
            remove(other)


def remove(path: Path) -> None:
    """Remove a file or a folder, or leave it, as one that another process has mapped on Windows."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
