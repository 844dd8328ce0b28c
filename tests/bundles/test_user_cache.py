"""Only a folder that this user made, and that nobody else may change, is a cache."""

import os
import stat
from pathlib import Path

import pytest

from uid.bundles import user_cache
from uid.bundles.cache import writing
from uid.bundles.user_cache import cache_folder
from uid.errors import OutputError

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no modes of this kind")
NAMES = ("engines", "0123456789abcdef", "onnxruntime")
OTHER = 12345  # a user who is not this one


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_every_folder_that_is_made_is_for_this_user_alone(base: Path) -> None:
    previous = os.umask(0)
    try:
        with writing(cache_folder(*NAMES), print):
            pass
    finally:
        os.umask(previous)
    made = [base, *base.rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_dir()} == {0o700}
    assert len(made) == 6
    assert stat.S_IMODE((cache_folder(*NAMES) / ".lock").stat().st_mode) == 0o600


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("mode", [0o777, 0o702, 0o770])
def test_a_folder_that_others_may_write_is_not_used(
    base: Path, level: int, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache_folder(*NAMES)
    folder.mkdir(parents=True)
    assert cache_folder(*NAMES) == folder  # at 0755
    [folder, *folder.parents][level].chmod(mode)
    monkeypatch.setattr(user_cache, "is_private_group", lambda found: False)
    with pytest.raises(OutputError, match="may be written by others: remove it"):
        cache_folder(*NAMES)
    with pytest.raises(OutputError, match="may be written by others"), writing(folder, print):
        pass
    if mode == 0o770:
        monkeypatch.setattr(user_cache, "is_private_group", lambda found: True)
        assert cache_folder(*NAMES) == folder


@pytest.mark.parametrize("level", range(4))
def test_a_folder_of_another_user_is_not_used(base: Path, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache_folder(*NAMES)
    folder.mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown([folder, *folder.parents][level], OTHER, OTHER)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    with pytest.raises(OutputError, match="belongs to another user: remove it"):
        cache_folder(*NAMES)


@pytest.mark.parametrize(("mode", "used"), [(0o777, False), (0o1777, True), (0o755, True)])
def test_the_folder_around_it_is_not_for_anyone_to_rename_in(base: Path, mode: int, used: bool) -> None:
    base.mkdir()
    base.chmod(mode)
    if used:
        cache_folder(*NAMES)
        return
    with pytest.raises(OutputError, match="may be written by anyone: chmod o-w"):
        cache_folder(*NAMES)


def test_a_link_to_a_folder_that_others_may_write_is_not_used(base: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    base.mkdir()
    (base / "uid-runtime").symlink_to(target)
    assert cache_folder(*NAMES) == base.joinpath("uid-runtime", *NAMES)
    target.chmod(0o777)
    with pytest.raises(OutputError, match="may be written by others"):
        cache_folder(*NAMES)


def test_a_relative_name_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(*NAMES) == tmp_path.joinpath(".cache", "uid-runtime", *NAMES)
