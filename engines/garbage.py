"""Python's garbage collector, kept out of the capture of a CUDA graph."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

CAPTURES = threading.RLock()


@contextmanager
def no_collection() -> Iterator[None]:
    """Collect garbage now, and none within the block: a collection that frees device memory ends a capture.

    One thread at a time has it, since the collector is the whole process's.
    """
    with CAPTURES:
        enabled = gc.isenabled()
        gc.collect()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()
