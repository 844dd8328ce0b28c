"""Fixtures that the tests of TensorRT engines share; what needs the library is imported once a test asks for it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fake_tensorrt import Rig

    from uid.engines.trt.library import Library


@pytest.fixture(scope="module")
def library() -> "Library":
    from uid.engines.trt.library import open_library

    return open_library("tensorrt-rtx")


@pytest.fixture
def rig(library: "Library", monkeypatch: pytest.MonkeyPatch) -> "Rig":
    """A backend and engines on a fake GPU."""
    from fake_tensorrt import FakeMemory, Rig

    from uid.engines.trt import engine

    monkeypatch.setattr(engine, "DeviceMemory", FakeMemory)
    return Rig(library)
