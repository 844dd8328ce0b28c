"""Fixtures that several folders share: a toy bundle, one tiny random checkpoint and the bundles exported from it."""

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from toy import make_toy, recorder

from uid.bundles.cache import writing
from uid.command import quieten_libraries

if TYPE_CHECKING:
    from uid.families.uid_diff.model import UIDDiff

__all__ = ["make_toy", "recorder"]

quieten_libraries()
# A run in a shell's background ignores Ctrl-C, and so would the processes that tests start to interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# "auto" may take a backend that computes in bfloat16; where a test names none, it expects float32.
os.environ["UID_BACKEND"] = "onnxruntime"
# Torch's threads, one per core by default, wait for each other busily beside other work. Processes of tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Examples have no deadline, and may be slow to draw: how long they take is the machine's business.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")
# What engines store for bundles that are not theirs to write goes away with the tests.
CACHE = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = CACHE.name


SharedFolder = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> SharedFolder:
    """Make a folder once in a test run, whichever of its processes needs it first; the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder = root / "shared" / name / name
        with writing(folder.parent, lambda line: None):
            if not folder.exists():
                make(folder)
        return folder

    return made


# torch takes seconds to import: what needs it does so itself.


@pytest.fixture(scope="session")
def tiny_checkpoint(shared_folder: SharedFolder) -> Path:
    """A seeded random checkpoint of the tiny configuration."""
    pytest.importorskip("torch", reason="the lean install has no torch to make a model with")
    from uid.families.uid_diff import checkpoint

    return shared_folder("checkpoint", lambda folder: checkpoint.write_random(folder, "tiny", seed=0))


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> "UIDDiff":
    """The reference model of the tiny checkpoint."""
    from uid.families.uid_diff import checkpoint

    return checkpoint.load(tiny_checkpoint)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, shared_folder: SharedFolder) -> Path:
    """The tiny checkpoint, exported in fp32; the export itself compares every component and the image with PyTorch."""
    from uid.export.bundle import export_bundle

    def export(folder: Path) -> None:
        export_bundle(tiny_checkpoint, folder, shortcuts=True, report=lambda _: None)

    return shared_folder("tiny", export)


@pytest.fixture(scope="session")
def half_bundle(tiny_checkpoint: Path, shared_folder: SharedFolder) -> Path:
    """The same in fp16."""
    from uid.export.bundle import export_bundle

    def export(folder: Path) -> None:
        export_bundle(tiny_checkpoint, folder, precision="fp16", image_steps=4, report=lambda _: None)

    return shared_folder("half", export)
