"""A server that all tests of a module may ask."""

from collections.abc import Iterator

import pytest
from serving import Running, served


@pytest.fixture
def server() -> Iterator[Running]:
    """A server with one worker and three places."""
    with served(queue=3, max_bytes=1 << 20, max_pixels=100_000) as running:
        yield running
        assert not running.logged, "nothing unexpected happened"
