"""How many threads a library may start here. ONNX Runtime 1.32 waits for ever where the system starts fewer."""

import os
import sys
import threading
from pathlib import Path

ARENA = 128 << 20  # bytes of addresses that glibc may take for a thread's allocations
STACK = 8 << 20  # bytes of a thread's stack, where the system has no limit of its own


def pool_size(threads: int | None) -> int | None:
    """``threads``, or fewer where the system allows fewer; None, one per core, stays None where it allows those."""
    allowed = allowed_cpus()
    wanted = threads or allowed
    startable = startable_threads(min(wanted, room_for_threads()))
    if threads is None and startable == allowed == os.cpu_count():
        return None
    return startable


def allowed_cpus() -> int:
    """How many CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def room_for_threads() -> int:
    """How many threads half of the addresses that are left to this process have room for; 1 at least."""
    if not sys.platform.startswith("linux"):
        return sys.maxsize
    import resource

    limit, stack = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_STACK))
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    each = ARENA + (STACK if stack == resource.RLIM_INFINITY else stack)
    return max(1, (limit - used) // 2 // each)


def startable_threads(most: int) -> int:
    """How many threads, up to ``most``, the system lets this process have, with its own; 1 at least."""
    end, started = threading.Event(), []
    try:
        for _ in range(most - 1):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError):  # no more of them
        pass
    finally:
        end.set()
        for thread in started:
            thread.join()
    return 1 + len(started)
