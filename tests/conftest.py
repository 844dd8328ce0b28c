"""Fixtures that several folders share: a toy bundle, one tiny random checkpoint and the bundles exported from it."""

import hashlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from importlib import metadata
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

ROOT = Path(__file__).parents[1]
quieten_libraries()
# A run in a shell's background ignores Ctrl-C, one under nohup SIGHUP, and so would the processes that tests end.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
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


LONG_EXPORTS = {"half_bundle", "shortcut_bundle"}


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is long
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what waits for a long export, and order files: of two processes, each of which starts with half of the
    tests, the first exports the tiny bundle, which takes longest, while the second runs what needs none.
    """
    needs: dict[Path, set[str]] = {}
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        needs.setdefault(item.path, set()).update(fixtures)
        if LONG_EXPORTS.intersection(fixtures):
            item.add_marker(pytest.mark.long)
    exported = [item for item in items if {"tiny_bundle", *LONG_EXPORTS} & needs[item.path]]
    exported.sort(key=lambda item: bool(LONG_EXPORTS & needs[item.path]))
    others = [item for item in items if not {"tiny_bundle", *LONG_EXPORTS} & needs[item.path]]
    half = len(items) // 2
    items[:] = exported[:half] + others + exported[half:]


SharedFolder = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared_folder(request: pytest.FixtureRequest) -> SharedFolder:
    """Make a folder once, whichever process needs it first; the others wait for it.

    Later runs take it from pytest's cache, as long as the code that makes bundles and the libraries are the same.
    """
    cache: pytest.Cache | None = getattr(request.config, "cache", None)
    assert cache is not None, "pytest runs without its cache plugin; leave out -p no:cacheprovider"
    root = cache.mkdir(f"bundles-{sources_digest()[:16]}")

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder = root / name / name
        with writing(folder.parent, lambda line: None, patience=3600.0):
            if not folder.exists():
                make(folder)
        return folder

    return made


def pytest_configure(config: pytest.Config) -> None:
    """Remove the bundles that earlier code made."""
    cache: pytest.Cache | None = getattr(config, "cache", None)
    if cache is not None and "PYTEST_XDIST_WORKER" not in os.environ:
        own = cache.mkdir(f"bundles-{sources_digest()[:16]}")
        for other in own.parent.glob("bundles-*"):
            if other != own:
                shutil.rmtree(other, ignore_errors=True)


def sources_digest() -> str:
    """Of all that an exported bundle follows from: the code below ``export``, and the versions of what is installed."""
    digest = hashlib.sha256()
    for layer in ("bundles", "engines", "runtime", "families", "export"):
        for path in sorted((ROOT / layer).rglob("*.py")):
            digest.update(path.read_bytes())
    installed = sorted({f"{one.name} {one.version}" for one in metadata.distributions()})  # once, wherever it is found
    return hashlib.sha256(digest.digest() + "\n".join(installed).encode()).hexdigest()


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
        export_bundle(tiny_checkpoint, folder, report=lambda _: None)

    return shared_folder("tiny", export)


@pytest.fixture(scope="session")
def shortcut_bundle(tiny_checkpoint: Path, shared_folder: SharedFolder) -> Path:
    """The same with the steps of a feature cache and without guidance."""
    from uid.export.bundle import export_bundle

    def export(folder: Path) -> None:
        export_bundle(tiny_checkpoint, folder, shortcuts=True, report=lambda _: None)

    return shared_folder("shortcuts", export)


@pytest.fixture(scope="session")
def half_bundle(tiny_checkpoint: Path, shared_folder: SharedFolder) -> Path:
    """The same in fp16."""
    from uid.export.bundle import export_bundle

    def export(folder: Path) -> None:
        export_bundle(tiny_checkpoint, folder, precision="fp16", image_steps=4, report=lambda _: None)

    return shared_folder("half", export)
