"""Fixtures that several folders share: one tiny random checkpoint and the bundle exported from it, per test run."""

from pathlib import Path

import pytest

from uid.command import quieten_libraries
from uid.export.bundle import export_bundle
from uid.reference import checkpoint
from uid.reference.model import UIDDiff

quieten_libraries()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded random checkpoint of the tiny preset."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    checkpoint.write_random(folder, "tiny", seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> UIDDiff:
    """The reference model of the tiny checkpoint."""
    return checkpoint.load(tiny_checkpoint)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, exported in fp32; the export itself compares every component and the image with PyTorch."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    export_bundle(tiny_checkpoint, folder, report=lambda _: None)
    return folder
