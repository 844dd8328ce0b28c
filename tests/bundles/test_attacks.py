"""Altered files of a bundle never give other pixels, and never end in anything but the project's own words."""

from pathlib import Path

import pytest
from attacked_bundles import attacked


def test_altered_bundles_are_refused_or_give_the_sound_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ends = attacked(16, seed=1, folder=tmp_path)
    assert set(ends) == {"refused", "same pixels"}
