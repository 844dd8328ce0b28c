"""Which engines are reused, which are refused and why; on real engines, which TensorRT-RTX builds without a GPU."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from uid.bundles.cache import default_folder, writing
from uid.bundles.declarations import Bundle
from uid.bundles.manifest import read_bundle
from uid.engines.trt.build import BuildOptions
from uid.engines.trt.cache import Key, check, engine_for, engine_name, key_for, runtime_cache_path
from uid.engines.trt.library import Library
from uid.engines.trt.profiles import Target, parse_profile, square
from uid.engines.trt.sidecar import read_sidecar
from uid.errors import BackendError, OutOfMemoryError, OutputError

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds engines without a GPU")

PROFILES = (square(16),)
AHEAD = Target.ahead(["8.9"])
BUILD = """
import sys
from pathlib import Path
from uid.bundles.manifest import read_bundle
from uid.engines.trt.cache import engine_for
from uid.engines.trt.library import open_library
from uid.engines.trt.profiles import Target, square

bundle, library = read_bundle(Path(sys.argv[1])), open_library("tensorrt-rtx")
component = bundle.components[sys.argv[3]]
say = lambda line: print(line, flush=True)
engine_for(bundle, component, library, Target.ahead(["8.9"]), [square(16)], folder=Path(sys.argv[2]), report=say)
"""


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return read_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def built(bundle: Bundle, library: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the engines of two components."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("encoder", "decoder"):
        engine_for(bundle, bundle.components[name], library, AHEAD, PROFILES, folder=folder, report=lambda _: None)
    return folder


@pytest.fixture
def engines(built: Path, tmp_path: Path) -> Path:
    """A copy of those engines, to damage."""
    return Path(shutil.copytree(built, tmp_path / "engines"))


@pytest.fixture
def key(bundle: Bundle, library: Library) -> Key:
    """The key of the encoder's engine."""
    return key_for(bundle, bundle.components["encoder"], library, AHEAD, PROFILES, BuildOptions())


def engine_of(folder: Path, key: Key) -> Path:
    return folder / engine_name(key.recorded())


def edit_sidecar(engine: Path, change: Callable[[dict[str, object]], object]) -> None:
    sidecar = engine.with_suffix(".json")
    data = json.loads(sidecar.read_text())
    change(data)
    sidecar.write_text(json.dumps(data))


def flip_a_byte(engine: Path) -> None:
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)


def truncate(engine: Path) -> None:
    os.truncate(engine, engine.stat().st_size - 1)


def put_the_decoder_there(engine: Path) -> None:
    shutil.copy(next(engine.parent.glob("decoder-*.engine")), engine)


def put_the_decoder_and_its_sidecar_there(engine: Path) -> None:
    decoder = next(engine.parent.glob("decoder-*.engine"))
    shutil.copy(decoder, engine)
    shutil.copy(decoder.with_suffix(".json"), engine.with_suffix(".json"))


def start_it_as(start: bytes) -> Callable[[Path], None]:
    """Other first bytes, with a sidecar that agrees with them."""

    def damage(engine: Path) -> None:
        data = start + engine.read_bytes()[len(start) :]
        engine.write_bytes(data)
        edit_sidecar(engine, lambda sidecar: sidecar.update(sha256=hashlib.sha256(data).hexdigest()))

    return damage


def release_before(engine: Path) -> None:
    start_it_as(engine.read_bytes()[:26] + b"\x06")(engine)


DAMAGE: dict[Callable[[Path], object], str] = {
    flip_a_byte: r"has sha256 .*, expected",
    truncate: r"has \d+ bytes, expected \d+",
    put_the_decoder_there: r"has \d+ bytes, expected \d+",
    put_the_decoder_and_its_sidecar_there: r"has component 'decoder', expected 'encoder'",
    start_it_as(b"ftrt"): r"starts with b'ftrt', expected b'vtrt' of tensorrt-rtx",
    release_before: r"was written by tensorrt-rtx 1\.\d+\.6\.\d+, expected",
    lambda engine: engine.with_suffix(".json").unlink(): "has no sidecar, so its build did not finish",
    lambda engine: engine.with_suffix(".json").write_text("{"): "has a malformed sidecar",
    lambda engine: engine.with_suffix(".json").write_text("[]"): "has a malformed sidecar",
    lambda engine: edit_sidecar(engine, lambda sidecar: sidecar.pop("sha256")): "has a malformed sidecar",
    lambda engine: edit_sidecar(engine, lambda sidecar: sidecar.update(key={})): "has a malformed sidecar",
    lambda engine: edit_sidecar(
        engine,
        lambda sidecar: sidecar["key"].update(version="1.0.0.1"),  # type: ignore[attr-defined]
    ): r"has version '1\.0\.0\.1', expected '\d",
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.items())
def test_a_damaged_engine_is_refused(damage: Callable[[Path], object], reason: str, engines: Path, key: Key) -> None:
    engine = engine_of(engines, key)
    assert check(engine, key) == (True, "")
    damage(engine)
    sound, found = check(engine, key)
    assert not sound
    assert re.match(reason, found), found


def test_a_refused_engine_is_built_again(engines: Path, key: Key, bundle: Bundle, library: Library) -> None:
    engine = engine_of(engines, key)
    flip_a_byte(engine)
    lines: list[str] = []
    encoder = bundle.components["encoder"]
    again = engine_for(bundle, encoder, library, AHEAD, PROFILES, folder=engines, report=lines.append)
    assert again == engine
    assert f"since {engine.name} has sha256" in lines[0]
    assert check(engine, key) == (True, "")


def test_swapped_engines_are_both_refused(engines: Path) -> None:
    first, second = sorted(engines.glob("*.engine"))
    for suffix in (".engine", ".json"):
        here, there = first.with_suffix(suffix), second.with_suffix(suffix)
        here.rename(engines / "aside")
        there.rename(here)
        (engines / "aside").rename(there)
    assert check(first) == (False, f"has the sidecar of {second.name}")
    assert check(second) == (False, f"has the sidecar of {first.name}")


def test_every_field_of_the_key_is_compared(engines: Path, key: Key) -> None:
    engine = engine_of(engines, key)
    changes = {
        "sources.weights.bin": replace(key, sources={**key.sources, "weights.bin": "0" * 64}),
        "sources.encoder.onnx": replace(key, sources={**key.sources, "encoder.onnx": "0" * 64}),
        "precision": replace(key, precision="fp16"),
        "backend": replace(key, backend="tensorrt"),
        "version": replace(key, version="1.4.0.1"),
        "target.ahead_of_time.0": replace(key, target=Target.ahead(["8.6"])),
        "target.gpu": replace(key, target=Target("NVIDIA RTX 5090", "12.0", "13.0")),
        "profiles.0.name": replace(key, profiles=(square(32),)),
        "profiles.1.name": replace(key, profiles=(*PROFILES, square(32))),
        "options.workspace_mib": replace(key, options=BuildOptions(512)),
        "options.stripped": replace(key, options=BuildOptions(stripped=True)),
    }
    names = {engine.name}
    for field, wanted in changes.items():
        sound, reason = check(engine, wanted)
        assert not sound
        assert re.match(rf"has {re.escape(field)} .*, expected ", reason), reason
        names.add(engine_name(wanted.recorded()))
    assert len(names) == 1 + len(changes)


def test_the_key_holds_the_graph_and_the_weights_and_no_other_graph(key: Key) -> None:
    assert set(key.sources) == {"encoder.onnx", "weights.bin"}


def test_an_engine_built_ahead_of_time_serves_the_gpus_it_is_for(
    engines: Path, key: Key, bundle: Bundle, library: Library
) -> None:
    encoder, lines = bundle.components["encoder"], list[str]()
    gpu = Target("NVIDIA L4", "8.9", "13.0")
    assert engine_for(bundle, encoder, library, gpu, PROFILES, folder=engines, report=lines.append) == engine_of(
        engines, key
    )
    older = Target("NVIDIA A10", "8.6", "13.0")
    other = engine_for(bundle, encoder, library, older, PROFILES, folder=engines, report=lines.append)
    # A slow build also reports its progress.
    assert [lines[i].split()[1] for i in (0, 1, -1)] == ["reusing", "building", "built"]
    assert "has target.gpu '', expected 'NVIDIA A10'" in lines[1]
    assert runtime_cache_path(other, older) != runtime_cache_path(other, replace(older, driver="13.1"))


def test_a_size_that_is_no_multiple_is_refused_before_anything_is_built(
    bundle: Bundle, library: Library, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match=r"profile '10x16' has height 10; expected multiples of 4"):
        engine_for(
            bundle, bundle.components["encoder"], library, AHEAD, [parse_profile("10x16")], folder=tmp_path / "engines"
        )
    assert not (tmp_path / "engines").exists()


def test_no_other_sizes_are_tried_when_memory_runs_out(bundle: Bundle, library: Library, tmp_path: Path) -> None:
    step, lines = bundle.components["step"], list[str]()
    with pytest.raises(OutOfMemoryError, match=r"cannot build step\.onnx .*(OutOfMemory|tensor volume exceeds)"):
        engine_for(bundle, step, library, AHEAD, [square(8192)], folder=tmp_path, report=lines.append)
    assert not any("instead" in line for line in lines)


def start_build(bundle: Bundle, folder: Path, component: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", BUILD, str(bundle.folder), str(folder), component]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_the_second_of_two_builders_waits_and_reuses(bundle: Bundle, tmp_path: Path) -> None:
    first = start_build(bundle, tmp_path, "step")
    assert "step: building" in first_line(first)
    second = start_build(bundle, tmp_path, "step")
    outputs = [process.communicate(timeout=300)[0] for process in (first, second)]
    assert "step: built in" in outputs[0]
    assert outputs[1].splitlines()[0] == f"waiting for another build in {tmp_path}"
    assert outputs[1].splitlines()[1].startswith("step: reusing")
    assert len(list(tmp_path.glob("*.engine"))) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_build_leaves_no_engine(number: signal.Signals, bundle: Bundle, tmp_path: Path) -> None:
    process = start_build(bundle, tmp_path, "step")
    assert "step: building" in first_line(process)
    time.sleep(0.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert number != signal.SIGINT or errors.rstrip().endswith("KeyboardInterrupt")
    assert not list(tmp_path.glob("*.engine"))
    with writing(tmp_path, print):  # which removes what a killed one left
        assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def test_files_of_a_killed_build_are_removed_and_not_used(
    bundle: Bundle, library: Library, engines: Path, key: Key
) -> None:
    engine = engine_of(engines, key)
    engine.with_suffix(".json").unlink()  # killed before the sidecar
    half = engines / f".{engine.stem}.0123abcd.engine"  # killed while the engine was written
    half.write_bytes(engine.read_bytes()[:1000])
    others = engines / ".settings.json"
    others.touch()
    lines: list[str] = []
    engine_for(bundle, bundle.components["encoder"], library, AHEAD, PROFILES, folder=engines, report=lines.append)
    assert "has no sidecar" in lines[0]
    assert not half.exists()
    assert others.exists()
    assert check(engine, key) == (True, "")


def test_engines_are_stored_in_the_users_cache(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = default_folder(bundle, "tensorrt-rtx")
    assert folder.parent.parent == tmp_path / "uid-runtime" / "engines"
    assert re.fullmatch("[0-9a-f]{16}", folder.parent.name)


def test_an_unwritable_folder_is_an_error(bundle: Bundle, library: Library, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file: .*; choose another folder"):
        engine_for(bundle, bundle.components["encoder"], library, AHEAD, PROFILES, folder=tmp_path / "file")


def test_the_sidecar_lists_the_inputs_and_outputs(engines: Path, key: Key, bundle: Bundle) -> None:
    tensors = read_sidecar(engine_of(engines, key)).tensors
    encoder = bundle.components["encoder"]
    for mode, specs in (("input", encoder.inputs), ("output", encoder.outputs)):
        found = [(entry["name"], entry["dtype"]) for entry in tensors if entry["mode"] == mode]
        assert found == [(spec.name, str(spec.dtype)) for spec in specs]
