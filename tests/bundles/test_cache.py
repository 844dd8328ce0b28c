"""What the CPU backends store on disk: one writer at a time, no leftovers, and only their own files are removed."""

import importlib.util
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from uid import engines
from uid.bundles import cache
from uid.bundles.cache import default_folder, remove_earlier, try_lock, writing
from uid.bundles.declarations import Bundle, built_in
from uid.bundles.manifest import MANIFEST, read_bundle
from uid.bundles.tensors import Array, resolve
from uid.engines import Backend
from uid.errors import OutputError

SIZES = {"height": 16, "width": 16}
OPENVINO = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A copy of the tiny bundle with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return read_bundle(Path(shutil.copytree(tiny_bundle, tmp_path / "tiny", ignore=shutil.ignore_patterns("engines"))))


@pytest.fixture
def lines() -> list[str]:
    """Lines that the backend reports."""
    return []


@pytest.fixture(params=["onnxruntime", pytest.param("openvino", marks=OPENVINO)])
def backend(request: pytest.FixtureRequest, lines: list[str]) -> Backend:
    return engines.create(request.param, threads=1, report=lines.append)


def stored(bundle: Bundle, backend: Backend) -> set[str]:
    """Names of the stored components and of leftovers."""
    return {path.name for path in default_folder(bundle, backend.name).iterdir() if path.name != ".lock"}


def test_a_stored_component_replaces_only_its_own_earlier_versions(
    bundle: Bundle, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("step", "step_blur", "decoder"):
        backend.load_component(bundle, bundle.components[name], SIZES)
    before = stored(bundle, backend)
    monkeypatch.setattr(cache, "__version__", "0.0.9")
    backend.load_component(bundle, bundle.components["step"], SIZES)
    (gone,), (new,) = before - stored(bundle, backend), stored(bundle, backend) - before
    assert gone.startswith(("step-", "step."))
    assert new.startswith(("step-", "step."))


def test_another_manifest_has_another_folder(bundle: Bundle, backend: Backend) -> None:
    backend.load_component(bundle, bundle.components["decoder"], SIZES)
    manifest = bundle.folder / MANIFEST
    manifest.write_text(manifest.read_text() + " ")
    assert not default_folder(read_bundle(bundle.folder), backend.name).exists()


def test_a_name_with_the_same_prefix_is_not_an_earlier_version(tmp_path: Path) -> None:
    names = [f"step.{name}-{16 * digit}.blob" for name in ("openvino", "openvino-bf16") for digit in "01"]
    for name in names:
        (tmp_path / name).touch()
    remove_earlier(tmp_path / names[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_pattern_characters_in_a_name_match_literally(tmp_path: Path) -> None:
    for name in ("photos", "step", "[a-z]*"):
        (tmp_path / f"{name}-{16 * '0'}.blob").touch()
    remove_earlier(tmp_path / f"[a-z]*-{16 * '1'}.blob")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}-{16 * '0'}.blob" for name in ("photos", "step")
    ]


def test_nothing_is_read_from_or_written_to_a_bundles_own_folder(bundle: Bundle, backend: Backend) -> None:
    """A bundle may come with prepared models of its maker's."""
    part = bundle.components["decoder"]
    expected = decoded(bundle, backend)
    other = read_bundle(built_in())
    backend.load_component(other, other.components["decoder"], SIZES)
    own, theirs = (next(default_folder(one, backend.name).glob("decoder*")) for one in (bundle, other))
    planted = bundle.folder / "engines" / backend.name / own.name
    (shutil.copytree if theirs.is_dir() else shutil.copy)(theirs, make_parent(planted))
    shutil.rmtree(default_folder(bundle, backend.name))
    before = {path: path.read_bytes() for path in bundle.folder.rglob("*") if path.is_file()}
    np.testing.assert_array_equal(decoded(bundle, backend), expected)
    assert {path: path.read_bytes() for path in bundle.folder.rglob("*") if path.is_file()} == before
    assert stored(bundle, backend)
    assert part.file in bundle.files


def make_parent(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path


def decoded(bundle: Bundle, backend: Backend) -> Array:
    """What the decoder makes of random numbers."""
    part, generator = bundle.components["decoder"], np.random.default_rng(0)
    specs = (*part.inputs, *part.outputs)
    buffers = {spec.name: backend.allocate(resolve(spec.shape, SIZES), spec.dtype) for spec in specs}
    for spec in part.inputs:
        buffers[spec.name].write(generator.random(buffers[spec.name].shape).astype(spec.dtype))
    backend.load_component(bundle, part, SIZES).bind(buffers)()
    return buffers["output"].read()


def test_a_lock_that_is_a_link_is_not_followed(
    bundle: Bundle, backend: Backend, lines: list[str], tmp_path: Path
) -> None:
    folder = default_folder(bundle, backend.name)
    folder.mkdir(parents=True)
    (folder / ".lock").symlink_to(tmp_path / "made")
    assert backend.load_component(bundle, bundle.components["decoder"], SIZES).covers(SIZES)
    assert not (tmp_path / "made").exists()
    assert "cannot write" in lines[0]


def test_leftovers_of_a_killed_writer_are_removed(bundle: Bundle, backend: Backend) -> None:
    folder = default_folder(bundle, backend.name)
    half = folder / f".encoder-{16 * '0'}.01234567"
    half.mkdir(parents=True)
    (half / "weights.bin").write_bytes(b"half of it")
    (folder / f".encoder.openvino-{16 * '0'}.01234567.blob").write_bytes(b"half of it")
    (folder / ".mine").touch()
    backend.load_component(bundle, bundle.components["decoder"], SIZES)
    (decoder,) = stored(bundle, backend) - {".mine"}
    assert decoder.startswith("decoder")


def test_what_no_run_used_for_long_is_removed_when_something_is_made(
    bundle: Bundle, backend: Backend, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = default_folder(bundle, backend.name).parents[1]
    old, held, recent = (others / name / "onnxruntime" for name in ("old", "held", "recent"))
    for folder in (old, held, recent):
        folder.mkdir(parents=True, mode=0o700)
        (folder / "step.onnx").touch()
    used = {old: 0.0, held: 0.0}
    monkeypatch.setattr(cache, "last_used", lambda folder: used.get(folder, time.time()))
    with writing(held, print):
        backend.load_component(bundle, bundle.components["decoder"], SIZES)
    assert not old.parent.exists()
    assert (held / "step.onnx").exists()
    assert (recent / "step.onnx").exists()
    assert f"removing {old}: not used for 90 days" in lines


def test_reuse_counts_as_use(bundle: Bundle, backend: Backend) -> None:
    backend.load_component(bundle, bundle.components["decoder"], SIZES)
    folder = default_folder(bundle, backend.name)
    os.utime(folder, (0, 0))
    backend.load_component(bundle, bundle.components["decoder"], SIZES)
    assert folder.stat().st_mtime > 1e9


def test_one_writer_at_a_time(bundle: Bundle, backend: Backend, lines: list[str]) -> None:
    part = bundle.components["decoder"]
    with writing(default_folder(bundle, backend.name), print):
        other = threading.Thread(target=backend.load_component, args=(bundle, part, SIZES))
        other.start()
        while not lines:
            other.join(0.01)
            assert other.is_alive()
        assert not stored(bundle, backend)
    other.join(300.0)
    assert lines == [f"waiting for another build in {default_folder(bundle, backend.name)}"]
    assert len(stored(bundle, backend)) == 1


def test_an_unwritable_folder_is_reported_in_one_line(bundle: Bundle, backend: Backend, lines: list[str]) -> None:
    make_parent(default_folder(bundle, backend.name)).write_bytes(b"in the way")
    assert backend.load_component(bundle, bundle.components["decoder"], SIZES).covers(SIZES)
    assert len(lines) == 1
    assert "the next process will" in lines[0]
    assert "cannot write" in lines[0]


@pytest.mark.parametrize("without", ["a home folder", "room"])
def test_without_a_cache_a_component_is_prepared_for_this_process(
    bundle: Bundle, backend: Backend, lines: list[str], without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = decoded(bundle, backend)
    if without == "room":
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(os, "getuid", lambda: 54321)  # whom the system does not know
    np.testing.assert_allclose(decoded(bundle, backend), expected, rtol=0, atol=1e-5)
    assert len(lines) == 1
    assert ("this user has no home folder" if without == "a home folder" else "cannot write /proc/none") in lines[0]


@pytest.mark.parametrize("held", ["a+b", "rb"])
def test_a_lock_that_is_never_released_is_not_waited_for_without_end(tmp_path: Path, held: str) -> None:
    lines: list[str] = []
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open(held) as file:
        assert try_lock(file.fileno())
        with pytest.raises(OutputError, match=r"another process has held \.lock there"):  # noqa: SIM117
            with writing(tmp_path, lines.append, patience=0.5):
                pass
    assert lines == [f"waiting for another build in {tmp_path}"]
    with writing(tmp_path, lines.append):
        assert len(lines) == 1
