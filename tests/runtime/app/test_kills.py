"""Runs that are killed at random moments leave nothing behind; ``tests/kill_runs.py`` does it more often."""

import signal
from pathlib import Path

import pytest
from kill_runs import faults


@pytest.mark.long
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
@pytest.mark.parametrize("how", ["--prefetch", "--workers"])
def test_a_dozen_kills_leave_no_fault(tmp_path: Path, how: str) -> None:
    numbers = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
    assert list(faults(tmp_path, 12, 3, numbers, "--steps", "150", how, "2")) == []
