"""The user's own cache folder: what lies there was made by this user, and nobody else may change it.

Nothing is kept in a bundle's folder, which may come from a stranger with anything in it.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from uid.errors import OutputError

NAME = "uid-runtime"
ELSEWHERE = "or name another folder in $XDG_CACHE_HOME"


def base_folder() -> Path:
    """The folder that systems give programs for caches; raises ``OutputError`` where there is none."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():  # by its specification, a relative one is to be ignored
        return named
    try:
        return Path.home() / ".cache"
    except RuntimeError as error:
        raise OutputError(
            "there is no folder for a cache: this user has no home folder; name a folder in $XDG_CACHE_HOME"
        ) from error


def cache_folder(*names: str) -> Path:
    """A folder below this project's own in the user's cache, which need not be there yet.

    Raises ``OutputError`` where others may write to it, or to one that it lies in.
    """
    folder = base_folder().joinpath(NAME, *names)
    check_private(folder)
    return folder


def make_private(folder: Path) -> None:
    """Make a folder and those that it lies in, each for this user alone; raises ``OSError`` where it cannot be made.

    Raises ``OutputError`` where it is in the user's cache and others may write there.
    """
    for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)  # which fails for anything but a folder
    check_private(folder)


def check_private(folder: Path) -> None:
    """Raise ``OutputError`` where a folder in the user's cache, as far as it exists, may be changed by others.

    Folders anywhere else are the user's own choice.
    """
    try:
        base = base_folder()
    except OutputError:
        return
    if not hasattr(os, "geteuid") or not folder.is_relative_to(base / NAME):
        return
    try:
        for one in own_folders(folder, base):
            check_own(one)
        for one in folder.resolve().parents:
            if one.exists() and (mode := one.stat().st_mode) & stat.S_IWOTH and not mode & stat.S_ISVTX:
                raise OutputError(f"{one} may be written by anyone: chmod o-w {one}, {ELSEWHERE}")
    except OSError as error:
        raise OutputError(f"cannot look into {folder}: {error.strerror or error}; {ELSEWHERE}") from error


def own_folders(folder: Path, base: Path) -> Iterator[Path]:
    """The folders from the project's own in the user's cache down to ``folder`` that exist."""
    for one in reversed([folder, *folder.parents]):
        if one.is_relative_to(base / NAME) and os.path.lexists(one):
            yield one


def check_own(folder: Path) -> None:
    """Raise ``OutputError`` for a folder, or a link to one, of another user, and for one that others may write to."""
    found = folder.stat()
    if {folder.lstat().st_uid, found.st_uid} - {os.geteuid(), 0}:  # the administrator can do anything anyway
        raise OutputError(f"{folder} belongs to another user: remove it, {ELSEWHERE}")
    if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not is_private_group(found)):
        raise OutputError(f"{folder} may be written by others: remove it, since they may have, {ELSEWHERE}")


def is_private_group(found: os.stat_result) -> bool:
    """Whether a group has its user as its only member, as Debian and Fedora make one for each user."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(found.st_gid), pwd.getpwuid(found.st_uid)
    except KeyError:
        return False
    return group.gr_name == user.pw_name and not set(group.gr_mem) - {user.pw_name}
