"""sha256 of files, and the check of those that a manifest lists."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from uid.bundles.names import FILE, LONGEST_SHOWN
from uid.errors import BundleError


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's contents."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Check that every listed file lies in the folder and has its sha256; raises ``BundleError`` where one does not."""
    for name, expected in files.items():
        path = inside(folder, name)
        if not path.is_file():
            raise BundleError(f"the bundle lacks {name}: expected at {path}; copy or export it again")
        if sha256(path) != expected:
            raise BundleError(
                f"{path} was altered or damaged: its sha256 is not the manifest's; copy or export it again"
            )


def inside(folder: Path, name: str) -> Path:
    """The path of a listed file; raises ``BundleError`` for anything but a plain name below the folder, and for a link
    that leads out of it.
    """
    path = folder / name
    if not FILE.fullmatch(name) or not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(
            f"the manifest lists {repr(name)[:LONGEST_SHOWN]}, which is no plain name or leads out of the "
            "bundle's folder; do not use this bundle"
        )
    return path
