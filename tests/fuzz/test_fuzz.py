"""Altered bundles and sidecars are refused in the project's own words, or run; nothing else happens.

Some seconds here; for an hour by hand: ``UID_FUZZ_SECONDS=3600 pytest tests/fuzz``. What fails is written to
``$UID_FUZZ_FOLDER`` (default: the test's temporary folder), from where it may go into ``corpus/`` once mended.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz.targets import Fuzzer, save

from uid import engines

SECONDS = float(os.environ.get("UID_FUZZ_SECONDS", "8"))


def test_altered_files_are_refused_in_words_or_run(
    make_toy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    backend = engines.create("onnxruntime", threads=1)
    seed = random.SystemRandom().randrange(1 << 32) if SECONDS > 60 else 0
    fuzzer = Fuzzer(make_toy(), tmp_path, backend, seed)
    fuzzer.run(SECONDS, least=20)
    print(f"seed {seed}: {fuzzer.counts}")
    assert fuzzer.failures == [], "".join(save(fuzzer.failures, Path(os.environ.get("UID_FUZZ_FOLDER", tmp_path))))
