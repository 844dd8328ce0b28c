"""Reading ahead and writing behind against doing one after another."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uid.runtime.media.prefetch import QUEUED, SingleThread, map_behind, prefetch


def chain(items: Iterator[int], spoilt: int | None) -> Iterator[int]:
    """Items read ahead, tripled here and halved behind; ``spoilt`` cannot be halved."""

    def halved(item: int) -> int:
        if item == spoilt:
            raise ValueError(f"cannot halve {item}")
        return item // 2

    with SingleThread() as reading, SingleThread() as writing:
        yield from map_behind(halved, (3 * item for item in prefetch(items, reading)), writing)


@given(count=st.integers(0, 30))
def test_all_come_out_in_order(count: int) -> None:
    assert list(chain(iter(range(count)), None)) == [3 * item // 2 for item in range(count)]


@given(count=st.integers(1, 30), data=st.data())
def test_an_error_comes_where_its_item_would(count: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, count - 1))
    made = []
    with pytest.raises(ValueError, match=f"cannot halve {3 * bad}$"):
        made.extend(chain(iter(range(count)), 3 * bad))
    assert made == [3 * item // 2 for item in range(bad)]

    def read() -> Iterator[int]:
        yield from range(bad)
        raise ValueError("cannot read on")

    read_before = []
    with SingleThread() as lane, pytest.raises(ValueError, match="cannot read on"):
        read_before.extend(prefetch(read(), lane))
    assert read_before == list(range(bad))


def test_few_are_held_and_nothing_goes_on_after_the_end() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            read.append(item)
            yield item

    threads = threading.active_count()
    with SingleThread() as reading, SingleThread() as writing:
        for done, _ in enumerate(map_behind(str, prefetch(items(), reading), writing), 1):
            assert len(read) <= done + 2 * QUEUED + 1
            if done == 10:
                break
    assert threading.active_count() == threads
    assert len(read) <= 10 + 2 * QUEUED + 1


def test_they_do_run_beside_one_another() -> None:
    """Each waits for the other, and would for ever one after another."""
    read_two, first_written = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        yield 2
        read_two.set()
        assert first_written.wait(300.0)
        yield 3

    def write(item: int) -> int:
        assert read_two.wait(300.0)
        first_written.set()
        return item

    with SingleThread() as reading, SingleThread() as writing:
        assert list(map_behind(write, prefetch(items(), reading), writing)) == [1, 2, 3]
