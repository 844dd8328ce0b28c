"""Files that appear whole or not at all, and what writers that were killed leave behind.

A temporary file lies beside its destination under a name of its own kind, and is locked as long as its writer lives.
So the next writer tells those of the living from those of the dead, whatever their age, and removes the latter.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from uid.errors import OutputError

# Recognised beyond doubt, since what matches may be removed; short, so that names of 255 bytes can be written.
TEMPORARY = re.compile(r"\.uid-[0-9a-f]{16}\.[0-9a-f]{8}(\.\w{1,16})?")
# How file systems say that they know no hard links.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EACCES}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
_SYSTEM = {Path("/dev"), Path("/proc")}
LINKS = 40  # as many as Linux follows
_own: set[tuple[int, Path]] = set()  # process and path of what is being written
_swept: set[str] = set()  # folders from which this process has removed the leftovers of others


@contextlib.contextmanager
def written_whole(
    destination: Path,
    *,
    replace: bool = True,
    parents: bool = True,
    before: Callable[[Path], None] | None = None,
    mode: int = 0o666,
) -> Iterator[Path]:
    """Yield a temporary path beside ``destination``; put it there when the block ends, remove it when it raises.

    The temporary file exists, empty. Its name keeps the destination's suffix, since writers choose their format by it.
    A new file has ``mode``, less the umask. One that is replaced passes on its own and, where that is allowed, its
    owner. ``replace`` False: what appears at the destination meanwhile is left, and the block ends in an error. Parent
    folders are made unless ``parents`` is False. ``before`` is called with the temporary path, whole by then, right
    before it is put in place.
    Raises ``OutputError`` when the folder cannot be written, is gone, or the disk is full, and when a folder, device or
    pipe lies at the destination.
    """
    check_replaceable(destination)
    temporary = _beside(destination, destination.suffix)
    try:
        with _tracked(temporary):
            _ready(destination.parent, parents)
            with _held(temporary, destination, mode) as held:
                yield temporary
                os.fsync(held.descriptor)  # or a power cut could leave the name without the contents
                if before is not None:
                    before(temporary)
                if os.name == "nt":  # which does not rename what is open
                    held.close()
                _put(temporary, destination, replace)
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror or error}") from error


def mode_like(*sources: Path) -> int:
    """The mode, before the umask, of a new file made from ``sources``: none for whom one of them is not readable."""
    mode = 0o666
    for source in sources:
        with contextlib.suppress(OSError):
            readable = source.stat().st_mode & 0o044
            mode &= 0o600 | readable | readable >> 1
    return mode


def dress(new: Path, destination: Path, mode: int) -> None:
    """Give a file the mode and owner of the one that it is about to replace, else no more than ``mode``."""
    before = _replaced(destination)
    if before is None:
        new.chmod(new.stat().st_mode & mode)
    else:
        _inherit(new, before)


def check_replaceable(destination: Path) -> None:
    """Raise ``OutputError`` where a folder, device, pipe or socket is, or a link to one: none may become a file."""
    kind = not_a_file(destination)
    if kind is not None:
        raise OutputError(f"cannot write {destination}: it is {kind}, not a file; choose the name of a file")


def not_a_file(path: Path) -> str | None:
    """What lies at ``path``, links followed, in words; None: a regular file, or nothing that can be looked at.

    A link by way of /dev or /proc, as /dev/stdout is, stands for an open file: to replace it would take it from all.
    """
    if any(step.is_symlink() and _SYSTEM & {*step.parents} for step in _steps(path)):
        return "a name of an open file"
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "a special file")


def _steps(path: Path) -> Iterator[Path]:
    """A path, and those that it leads to where it is a link, and so on."""
    for _ in range(LINKS):
        path = Path(os.path.abspath(path))  # noqa: PTH100  (Path.resolve would follow all links at once)
        yield path
        if not path.is_symlink():
            return
        path = path.parent / path.readlink()


@contextlib.contextmanager
def folder_written_whole(destination: Path) -> Iterator[Path]:
    """Like ``written_whole``, for a folder that does not exist yet or is empty; in use, it raises ``OutputError``."""
    temporary = _beside(destination, "")
    try:
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise OutputError(f"{destination} is in use; choose an empty or a new folder")
        with _tracked(temporary):
            _ready(destination.parent, parents=True)
            with _new_folder(temporary):
                yield temporary
                if destination.exists():
                    destination.rmdir()
                temporary.replace(destination)
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror or error}") from error


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent`` that only this user can enter, removed after the block.

    One whose process was killed is removed by the next process that needs one there. Raises ``OSError``.
    """
    remove_dead(parent)
    folder = _beside(parent / "scratch", "")
    with _tracked(folder), _new_folder(folder, 0o700):
        yield folder


def remove_dead(folder: Path) -> None:
    """Remove the temporary files and folders below which no writer lives any more; those of other users stay."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if TEMPORARY.fullmatch(path.name):
                _remove_if_dead(path)


def remove_own() -> None:
    """Remove what this process is writing, as the last thing before it ends."""
    for process, path in list(_own):
        if process == os.getpid():
            _remove(path)


def _beside(destination: Path, suffix: str) -> Path:
    suffix = suffix if re.fullmatch(r"\.\w{1,16}", suffix) else ""
    return destination.with_name(f".uid-{secrets.token_hex(8)}.{secrets.token_hex(4)}{suffix}")


@contextlib.contextmanager
def _tracked(temporary: Path) -> Iterator[None]:
    """Remove a temporary path at the end of the block, or when the process is told to end while that is being done."""
    entry = os.getpid(), temporary.absolute()
    _own.add(entry)
    try:
        yield
    finally:
        _remove(temporary)
        _own.discard(entry)


def _ready(folder: Path, parents: bool) -> None:
    """Make the folder, unless it is one that is itself being written, and remove what dead writers left there."""
    if not parents or any(map(TEMPORARY.fullmatch, folder.parts)):
        if not folder.is_dir():
            raise OutputError(f"cannot write to {folder}: the folder is gone; it was there when the run began")
    else:
        folder.mkdir(parents=True, exist_ok=True)
    key = os.path.abspath(folder)  # noqa: PTH100  (Path.resolve would read links, which may change)
    if key not in _swept:
        _swept.add(key)
        remove_dead(folder)


@contextlib.contextmanager
def _held(temporary: Path, destination: Path, mode: int) -> "Iterator[_Held]":
    """The temporary file, made and locked, with the mode and owner of the file that it will replace."""
    before = _replaced(destination)
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0)
        held = _Held(os.open(temporary, flags, mode if before is None else 0o600))
        try:
            _lock(held.descriptor, wait=True)
            if os.fstat(held.descriptor).st_nlink:  # else a sweeper came between the two calls
                if before is not None:
                    _inherit(temporary, before)
                yield held
                return
        finally:
            held.close()


class _Held:
    """An open file descriptor, closed once."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _replaced(destination: Path) -> os.stat_result | None:
    """The status of the file that is replaced, if any."""
    try:
        return destination.stat()
    except OSError:
        return None


def _inherit(temporary: Path, before: os.stat_result) -> None:
    with contextlib.suppress(OSError, AttributeError):  # AttributeError: Windows has no owners
        os.chown(temporary, before.st_uid, before.st_gid)
    temporary.chmod(stat.S_IMODE(before.st_mode) & 0o777)


def _put(temporary: Path, destination: Path, replace: bool) -> None:
    """Rename; where ``replace`` is False, fail if something is there, without a moment between look and act."""
    if replace:
        check_replaceable(destination)
        temporary.replace(destination)
        return
    try:
        if os.name == "nt":
            temporary.rename(destination)  # which never replaces
            return
        try:
            os.link(temporary, destination)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.close(os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL))  # reserves the name
            temporary.replace(destination)
    except FileExistsError as error:
        raise OutputError(f"{destination} was made by another program meanwhile, and is left as it is") from error


@contextlib.contextmanager
def _new_folder(folder: Path, mode: int = 0o777) -> Iterator[None]:
    """Make a folder and hold it; Windows cannot hold one, so that a killed writer's stays there."""
    if os.name == "nt":
        folder.mkdir(mode=mode)
        yield
        return
    descriptor = _made_and_locked(folder, mode)
    try:
        yield
    finally:
        os.close(descriptor)


def _made_and_locked(folder: Path, mode: int) -> int:
    """A new folder's descriptor, which holds it."""
    while True:
        folder.mkdir(mode=mode)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # a sweeper took it for a dead one's
            continue
        _lock(descriptor, wait=True)
        if folder.exists():  # a sweeper removes while it holds the lock
            return descriptor
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file or folder until it is closed; whether that was possible."""
    if sys.platform == "win32":
        return False  # there, nobody removes what is open
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # another holds it, or the file system has no locks: then nothing is ever taken for dead
        return False
    return True


def _remove_if_dead(path: Path) -> None:
    """Remove a temporary file or folder of this user that no process holds; it is locked meanwhile."""
    if os.name == "nt":
        if path.is_file():
            _remove(path)  # which fails while it is open
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        status = os.fstat(descriptor)
        kind = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        if kind and status.st_uid == os.geteuid() and _lock(descriptor, wait=False):
            _remove(path)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # nothing to remove, or a parent that is no folder
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
