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
from uid.bundles.declarations import BUILT_IN, Bundle
from uid.errors import OutputError

LOCK = ".lock"
Found = TypeVar("Found")
# What a writer that was killed leaves, under the temporary names of ``bundles/files.py``.
LEFTOVER = re.compile(r"\..+-[0-9a-f]{16}(\.[0-9a-f]{16})?\.[0-9a-f]{8}(\.(engine|json|cache|kernels|blob))?")


def default_folder(bundle: Bundle, backend: str) -> Path:
    """Where a bundle's engines are stored: in the bundle, or in the user's cache when the bundle cannot be written.

    A link in the bundle is not followed: it may come with the bundle, and lead anywhere.
    """
    folder = bundle.folder.resolve()
    own = folder / "engines" / backend
    if os.access(folder, os.W_OK) and own.resolve() == own and not folder.is_relative_to(BUILT_IN.resolve()):
        return bundle.folder / "engines" / backend
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "uid-runtime" / "engines" / bundle.digest[:16] / backend


def path_for(bundle: Bundle, backend: str, name: str, *depends: object, suffix: str = "") -> Path:
    """Where what a backend makes of a component is stored; the name ends in a hash of all that it depends on.

    The bundle's contents and this package's version are among that.
    """
    everything = repr((bundle.digest, __version__, *depends))
    return default_folder(bundle, backend) / f"{name}-{short_hash(everything)}{suffix}"


def short_hash(text: str) -> str:
    """The first 16 hexadecimal digits of a text's sha256; names in the cache end in them."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def reuse_or_make(
    folder: Path, find: Callable[[], Found | None], make: Callable[[], Found], report: Callable[[str], None]
) -> Found:
    """What ``find`` finds in ``folder``, or else what ``make`` makes there.

    One process makes at a time. The others wait, and then find what it made. Raises ``OutputError`` when the folder
    cannot be written, and what ``find`` and ``make`` raise.
    """
    found = find()
    if found is None:
        with writing(folder, report):
            found = find()  # again: the process that held the folder may have made it
            if found is None:
                found = make()
    return found


@contextlib.contextmanager
def writing(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold a folder for one writer; waits for another that does, and removes what a killed one left.

    The system frees it when its holder dies. Raises ``OutputError`` when the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / LOCK, "a+b", opener=open_no_link))
            if not try_lock(file.fileno()):
                report(f"waiting for another build in {folder}")
                while not try_lock(file.fileno()):
                    time.sleep(0.2)
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error
        for path in folder.iterdir():
            if LEFTOVER.fullmatch(path.name):
                remove(path)
        yield


def open_no_link(path: str, flags: int) -> int:
    """Open a file, or fail where its name is a link, on systems that can tell."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


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
