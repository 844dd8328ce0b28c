"""A library is asked for no more threads than the system lets it start."""

import os
import subprocess
import sys

import pytest

from uid.engines.threads import allowed_cpus, pool_size, startable_threads

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
PROGRAM = """
import resource, sys
kind, limit, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
from uid import engines
import onnxruntime
resource.setrlimit(getattr(resource, kind), (limit, limit))
engines.registry.check(engines.create("onnxruntime", threads=threads or None))
from uid.engines.threads import pool_size
print(pool_size(threads or None))
"""


def test_what_was_asked_for_is_taken_where_it_can_be() -> None:
    assert pool_size(2) == 2
    assert startable_threads(5) == 5
    assert pool_size(None) in (None, allowed_cpus())


@LINUX
def test_the_threads_are_those_of_the_cpus_that_are_allowed() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert pool_size(None) == (None if os.cpu_count() == 1 else 1)
    finally:
        os.sched_setaffinity(0, before)


@LINUX
@pytest.mark.parametrize(("room", "threads"), [(900 << 20, 64), (2 << 30, 500), (700 << 20, 300)])
def test_few_addresses_are_no_reason_to_wait_for_ever(room: int, threads: int) -> None:
    command = [sys.executable, "-c", PROGRAM, "RLIMIT_AS", str(room), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout) < threads
