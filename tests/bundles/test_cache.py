"""What the CPU backends store on disk: one writer at a time, no leftovers, and only their own files are removed."""

import importlib.util
import shutil
import threading
from pathlib import Path

import pytest

from uid import engines
from uid.bundles.cache import default_folder, remove_earlier, writing
from uid.bundles.declarations import Bundle
from uid.bundles.manifest import MANIFEST, read_bundle
from uid.engines import Backend

SIZES = {"height": 16, "width": 16}
OPENVINO = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    """A copy of the tiny bundle with an empty engine cache."""
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


def test_a_stored_component_replaces_only_its_own_earlier_versions(bundle: Bundle, backend: Backend) -> None:
    for name in ("step", "step_blur", "decoder"):
        backend.load_component(bundle, bundle.components[name], SIZES)
    before = stored(bundle, backend)
    manifest = bundle.folder / MANIFEST
    manifest.write_text(manifest.read_text() + " ")
    again = read_bundle(bundle.folder)
    backend.load_component(again, again.components["step"], SIZES)
    (gone,), (new,) = before - stored(bundle, backend), stored(bundle, backend) - before
    assert gone.startswith(("step-", "step."))
    assert new.startswith(("step-", "step."))


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


@pytest.mark.parametrize("linked", ["engines", "engines/openvino", "engines/onnxruntime"])
def test_a_link_in_a_bundle_is_not_followed(
    bundle: Bundle, backend: Backend, linked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle may come with a link to a private folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    outside, link = tmp_path / "outside", bundle.folder / linked
    outside.mkdir()
    leftover = f".mine-{16 * '0'}.{8 * '0'}"  # the name of a killed writer's leftover
    (outside / leftover).touch()
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    backend.load_component(bundle, bundle.components["decoder"], SIZES)
    assert [path.name for path in outside.rglob("*")] == [leftover]
    assert stored(bundle, backend)


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
    (bundle.folder / "engines").write_bytes(b"in the way")
    assert backend.load_component(bundle, bundle.components["decoder"], SIZES).covers(SIZES)
    assert len(lines) == 1
    assert "the next process will" in lines[0]
    assert "cannot write" in lines[0]
