"""The check of the files that a manifest lists."""

from collections.abc import Mapping
from pathlib import Path

from uid.bundles.names import FILE, LONGEST_SHOWN
from uid.bundles.reading import sha256
from uid.errors import BundleError

__all__ = ["altered", "inside", "sha256", "unreadable", "verify_files"]


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Check that every listed file lies in the folder and has its sha256; raises ``BundleError`` where one does not."""
    for name, expected in files.items():
        path = inside(folder, name)
        try:
            found = sha256(path)
        except OSError as error:
            raise unreadable(path, error) from error
        if found != expected:
            raise altered(path)


def inside(folder: Path, name: str) -> Path:
    """The path of a listed file; raises ``BundleError`` for anything but a plain name below the folder, and for a link
    that leads out of it.
    """
    path = folder / name
    try:
        if FILE.fullmatch(name) and path.resolve().is_relative_to(folder.resolve()):
            return path
    except (OSError, RuntimeError) as error:  # a link to itself
        raise BundleError(f"the manifest lists {name!r}, which cannot be followed: {error}") from error
    raise BundleError(
        f"the manifest lists {repr(name)[:LONGEST_SHOWN]}, which is no plain name or leads out of the "
        "bundle's folder; do not use this bundle"
    )


def altered(path: Path) -> BundleError:
    """The error for a file with another hash."""
    return BundleError(f"{path} was altered or damaged: its sha256 is not the manifest's; copy or export it again")


def unreadable(path: Path, error: OSError) -> BundleError:
    """The error for a file that is not there, or cannot be read."""
    if isinstance(error, FileNotFoundError):
        return BundleError(f"the bundle lacks {path.name}: expected at {path}; copy or export it again")
    return BundleError(f"cannot read {path}: {error.strerror or error}; copy or export the bundle again")
