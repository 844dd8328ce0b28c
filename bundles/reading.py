"""Files that come from strangers: read whole, within limits, and never from anything but a regular file."""

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

LARGEST_JSON = 1 << 20  # bytes of a manifest or sidecar
DEEPEST_JSON = 32  # objects and lists inside each other
CHUNK = 1 << 20  # bytes read at once


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A regular file, open for reading; raises ``OSError`` for a pipe, a device or a folder, without waiting for it."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        yield file


def read_limited(path: Path, most: int) -> bytes:
    """The contents of a regular file; raises ``OSError`` for more than ``most`` bytes."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
        return file.read(size)  # no more, since memory is taken for all that is asked for


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a regular file's contents; raises ``OSError`` where it cannot be read."""
    digest = hashlib.sha256()
    with opened(path) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def parsed_json(data: bytes) -> Any:
    """What JSON text says; raises ``ValueError`` for what the standard does not have, or does not define.

    That is NaN and infinity, numbers that no float holds, a key given twice, and nesting beyond ``DEEPEST_JSON``.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=without_doubles, parse_constant=refuse_constant, parse_float=finite
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    level, depth = [value], 0
    while level := [item for one in level for item in contents(one)]:
        depth += 1
        if depth > DEEPEST_JSON:
            raise ValueError(f"it is nested deeper than {DEEPEST_JSON} levels")
    return value


def contents(value: Any) -> list[Any]:
    """What a list or an object of JSON holds."""
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ``ValueError`` for a key that it has twice, since readers differ in which one counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"it has the key {double[:40]!r} twice")
    return found


def refuse_constant(name: str) -> None:
    """Raise ``ValueError`` for NaN and infinity."""
    raise ValueError(f"it has {name}, which is no number of JSON's")


def finite(text: str) -> float:
    """A number; raises ``ValueError`` where it is too large for a float."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it has the number {text[:40]}, which is too large")
    return value
