"""Fixtures of training: each test as if in a process of its own; small published models, and what is made of them."""

from collections.abc import Iterator
from pathlib import Path

import published
import pytest
from accelerate.state import AcceleratorState
from published import TINY_SD15

from uid.families.uid_diff.configs import CONFIGS


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate holds its precision and processes for a whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def small_sd15() -> Iterator[None]:
    """The configuration that the command makes, at the tiny size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "sd15", TINY_SD15)
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders sd, clip and blip."""
    folder = tmp_path_factory.mktemp("published")
    published.models(folder, TINY_SD15)
    return folder


@pytest.fixture(scope="session")
def assembled(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of them."""
    output = tmp_path_factory.mktemp("assembled") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "sd15", TINY_SD15)
        result = published.assemble(models, output)
    assert result.exit_code == 0, result.output
    return output
