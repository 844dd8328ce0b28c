"""Files that appear whole or not at all."""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from uid.errors import OutputError


@contextlib.contextmanager
def written_whole(destination: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``destination``; rename it there when the block ends, remove it when it raises.

    The temporary name keeps the destination's suffix, since writers choose their format by it. Parent folders are
    made. Raises ``OutputError`` when the folder cannot be written or the disk is full.
    """
    temporary = destination.with_name(f".{destination.stem}.{secrets.token_hex(4)}{destination.suffix}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(destination)
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # nothing to remove, or a parent that is no folder
            temporary.unlink()


@contextlib.contextmanager
def folder_written_whole(destination: Path) -> Iterator[Path]:
    """Like ``written_whole``, for a folder that does not exist yet or is empty; in use, it raises ``OutputError``."""
    temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}")
    try:
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise OutputError(f"{destination} is in use; choose an empty or a new folder")
        temporary.mkdir(parents=True)
        yield temporary
        if destination.exists():
            destination.rmdir()
        temporary.replace(destination)
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
