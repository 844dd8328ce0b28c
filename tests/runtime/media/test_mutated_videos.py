"""Damaged videos end in this project's own errors."""

from collections import Counter
from pathlib import Path

from mutated_videos import outcomes


def test_mutated_videos_are_read_or_refused(tmp_path: Path) -> None:
    found = Counter(outcomes(tmp_path, 80, seed=3))
    assert found["read"]
    assert found["InputError"]
    assert set(found) == {"read", "InputError"}
