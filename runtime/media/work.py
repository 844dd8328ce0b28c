"""Work in progress beside its target: held by one run at a time, and found again by the next after a run that died.

The work of a target lies in a hidden folder beside it. The system frees the folder's lock when its holder dies,
however that is, so that what another run is busy with is told from what a dead one left.
"""

import contextlib
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from uid.bundles.cache import open_no_link, remove, try_lock
from uid.bundles.reading import sha256
from uid.errors import InputError, OutputError
from uid.runtime.media.formats import is_image_path

_LOCK, _KEY, _JOINED = "lock", "key", "joined"
_CHECKSUM = 4  # bytes


@dataclass
class Work:
    """The folder of one target's work; ``kept`` tells whether what is done is worth going on with."""

    folder: Path
    kept: Callable[[], int] = field(default=lambda: 0)  # frames done

    def joined(self) -> None:
        """Say that all is done, so that a next run only has to remove the folder."""
        store(self.folder / _JOINED, b"")


@contextlib.contextmanager
def work_beside(destination: Path, key: str | None, report: Callable[[str], None]) -> Iterator[Work]:
    """Hold the work of ``destination``, as an earlier run with the same ``key`` left it, or else empty.

    It is removed at the end. It stays after an error or an interrupt, for the next run to go on with, where there is a
    key and a frame is done; not after ``InputError``, which would come again. Raises ``OutputError`` when another run
    holds it, and for what the disk refuses.
    """
    try:
        folder = _folder(destination)
        with _held(folder, destination):
            work = _continued(folder, key)
            try:
                yield work
            except BaseException as error:
                if key is not None and not isinstance(error, InputError) and (done := work.kept()):
                    report(f"{destination}: {done} frames are done and kept; the same command goes on from there")
                    raise
                _emptied(folder)
                raise
            _emptied(folder)
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror or error}") from error


def sweep(destination: Path) -> None:
    """Remove the work of a target that was finished, which a run that was killed in that moment left."""
    folder = _folder(destination)
    if (folder / _JOINED).exists():
        with contextlib.suppress(OSError, OutputError), _held(folder, destination):
            _emptied(folder)


def _folder(destination: Path) -> Path:
    """Hidden, beside the target, and the same for each run; short, since the target's own name may be longest."""
    name = destination.resolve().name
    readable = name.encode()[:100].decode("utf-8", "ignore")
    return destination.parent / f".{readable}.{hashlib.sha256(name.encode()).hexdigest()[:12]}.uid-work"


@contextlib.contextmanager
def _held(folder: Path, destination: Path) -> Iterator[None]:
    """The folder, made and locked; gone at the end where it is empty."""
    lock = folder / _LOCK
    with contextlib.ExitStack() as stack:
        while True:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            file = stack.enter_context(open(lock, "a+b", opener=open_no_link))
            if not try_lock(file.fileno()):
                raise OutputError(f"another run is writing {destination}; wait for it, or choose another output")
            if _is_at(file, lock):  # else its last holder has removed it since
                break
            file.close()
        try:
            yield
        finally:
            if [path.name for path in folder.iterdir()] == [_LOCK]:
                if os.name == "nt":  # which does not remove what is open
                    file.close()
                shutil.rmtree(folder, ignore_errors=True)


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _continued(folder: Path, key: str | None) -> Work:
    """The work with this key; what has another one is removed."""
    stored = folder / _KEY
    if key is None or not stored.exists() or stored.read_text() != key:
        _emptied(folder)
        if key is not None:
            store(stored, key.encode())
    return Work(folder)


def _emptied(folder: Path) -> None:
    for path in sorted(folder.iterdir(), key=lambda path: path.name == _KEY):  # a folder without key is no one's work
        if path.name != _LOCK:
            remove(path)


def store(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file that is there whole, or not at all, whatever happens; its mode is ``mode``, less the umask."""
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "wb", opener=partial(os.open, mode=mode)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    put_in_place(temporary, path)


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a file that is safe on disk its name, and make that safe too."""
    temporary.replace(path)
    if os.name != "nt":  # where a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def make_safe(path: Path) -> None:
    """Wait until a file that is written is on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


class Spool:
    """Records of one size in a file, each safe once it is appended."""

    def __init__(self, path: Path, size: int) -> None:
        self._size = size
        self._file = path.open("a+b", buffering=0)
        self.count = sum(1 for _ in self.records())
        self._file.truncate(self.count * (size + _CHECKSUM))

    def records(self) -> Iterator[bytes]:
        """The whole ones from the start; one that was being written when a run died ends them."""
        self._file.seek(0)
        while len(record := _read(self._file, self._size + _CHECKSUM)) == self._size + _CHECKSUM:
            data, checksum = record[:-_CHECKSUM], record[-_CHECKSUM:]
            if zlib.crc32(data).to_bytes(_CHECKSUM, "big") != checksum:
                return
            yield data

    def append(self, data: bytes) -> None:
        left = memoryview(data + zlib.crc32(data).to_bytes(_CHECKSUM, "big"))
        while left:
            left = left[self._file.write(left) :]
        os.fsync(self._file.fileno())
        self.count += 1

    def close(self) -> None:
        self._file.close()


def _read(file: BinaryIO, size: int) -> bytes:
    parts: list[bytes] = []
    while size and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def identity(source: Path) -> str:
    """What tells a source from another: of a file its contents; of a folder its images' names, sizes and times."""
    if not source.is_dir():
        return sha256(source)
    digest = hashlib.sha256()
    for path in sorted(path for path in source.iterdir() if is_image_path(path) and path.name[0] != "."):
        status = path.stat()
        digest.update(repr((path.name, status.st_size, status.st_mtime_ns)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
