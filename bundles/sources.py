"""What is handed to a library: private copies of a bundle's files, hashed while they are copied.

A file that was checked may be another one by the time that a library opens it. So a library is given a copy in a folder
that only this user can enter, and the hash is that of the bytes that went into the copy.
"""

import hashlib
import os
import posixpath
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from uid.bundles.declarations import Bundle
from uid.bundles.files import scratch_folder
from uid.bundles.hashes import altered, inside, unreadable
from uid.bundles.onnx_data import External, external_data
from uid.bundles.reading import CHUNK, opened, read_limited
from uid.errors import BundleError, OutputError

LARGEST_GRAPH = 2 << 30  # bytes; protobuf has no larger messages


@contextmanager
def private_copy(bundle: Bundle, file: str, folder: Path | None = None) -> Iterator[Path]:
    """A copy of a graph with the data that it refers to, for the time of the block; yields the graph's path.

    It lies in ``folder``, which the caller holds (``cache.writing``), or where the system has its temporary files
    (None). Raises ``BundleError`` for a file that is not what the manifest lists, and for a graph that refers to
    anything but listed files, within their sizes; ``OutputError`` where there is no room.
    """
    with private_folder(file, folder) as copy:
        try:
            path = copied(bundle, file, copy)
        except OSError as error:
            raise no_room(file, copy, error) from error
        yield path


def check_graph(path: Path) -> None:
    """Check what the graph at ``path`` refers to, before a library follows it: files beside it, within their sizes.

    Raises ``BundleError``.
    """
    try:
        for one in external_data(read_limited(path, LARGEST_GRAPH), str(path)):
            with opened(path.parent / one.location) as file:
                if one.offset + one.length > (size := os.fstat(file.fileno()).st_size):
                    raise beyond(one.location, one.offset + one.length, size)
    except OSError as error:
        raise BundleError(f"cannot load {path}: {error}") from error


@contextmanager
def private_folder(file: str, parent: Path | None) -> Iterator[Path]:
    """A new folder for a copy of ``file`` that only this user can enter, removed after the block."""
    with ExitStack() as stack:
        try:
            parent = parent or Path(tempfile.gettempdir())
            folder = stack.enter_context(scratch_folder(parent))
        except OSError as error:  # also where no folder for temporary files can be written
            raise no_room(file, parent or "a temporary folder", error) from error
        yield folder


def no_room(file: str, folder: Path | str, error: OSError) -> OutputError:
    """The error for a copy that cannot be written."""
    return OutputError(
        f"cannot copy {file} to {folder}: {error.strerror or error}; make room there, or name another folder in $TMPDIR"
    )


def copied(bundle: Bundle, file: str, folder: Path) -> Path:
    """Copy a graph and the data that it refers to into ``folder``; returns the path of the graph's copy."""
    graph = verified_bytes(bundle.folder, file, bundle.files, LARGEST_GRAPH)
    parts: dict[str, list[External]] = {}
    for one in external_data(graph, str(bundle.folder / file)):
        parts.setdefault(one.location, []).append(one)
    path = folder / posixpath.basename(file)
    path.write_bytes(graph)
    for location, ranges in parts.items():
        own = folder / location
        if own == path:
            raise BundleError(f"{file} refers to itself as its data; do not use this bundle")
        own.parent.mkdir(parents=True, exist_ok=True)
        copy_ranges(bundle, posixpath.join(posixpath.dirname(file), location), own, ranges)
    return path


def verified_bytes(folder: Path, name: str, files: Mapping[str, str], most: int) -> bytes:
    """A listed file's contents, which have its sha256; raises ``BundleError`` otherwise, or for over ``most`` bytes."""
    expected, path = listed(name, files), inside(folder, name)
    try:
        data = read_limited(path, most)
    except OSError as error:
        raise unreadable(path, error) from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise altered(path)
    return data


def copy_ranges(bundle: Bundle, name: str, copy: Path, ranges: Sequence[External]) -> None:
    """Copy the parts of a listed file that a graph refers to, at their places; the rest of the copy stays empty.

    All of the file is hashed. Raises ``BundleError`` where its sha256 is not the manifest's, or a part is beyond it.
    """
    expected, path = listed(name, bundle.files), inside(bundle.folder, name)
    end = max(one.offset + one.length for one in ranges)
    try:
        with opened(path) as file, copy.open("wb") as target:
            size = os.fstat(file.fileno()).st_size
            if end > size:
                raise beyond(name, end, size)
            digest, at, wanted = hashlib.sha256(), 0, chunks_of(ranges)
            while at < size and (chunk := file.read(CHUNK)):
                digest.update(chunk)
                if at // CHUNK in wanted:
                    target.seek(at)
                    target.write(chunk)
                at += len(chunk)
            target.truncate(at)
    except OSError as error:
        if error.filename != str(path):  # of the copy
            raise
        raise unreadable(path, error) from error
    if digest.hexdigest() != expected:
        raise altered(path)


def beyond(name: str, end: int, size: int) -> BundleError:
    """The error for a part of a file that is not there."""
    return BundleError(f"a graph refers to bytes up to {end} of {name}, which has {size}; do not use this bundle")


def chunks_of(ranges: Sequence[External]) -> set[int]:
    """The numbers of the chunks of a file that hold any of its parts."""
    return {n for one in ranges for n in range(one.offset // CHUNK, (one.offset + one.length - 1) // CHUNK + 1)}


def listed(name: str, files: Mapping[str, str]) -> str:
    """A file's sha256 in the manifest: what is not listed is not opened."""
    if name not in files:
        raise BundleError(f"the bundle uses {name!r}, and its manifest lists no sha256 for it; export the bundle again")
    return files[name]
