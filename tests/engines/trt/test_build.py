"""Building and inspecting real engines with TensorRT-RTX, which needs no GPU for that."""

import dataclasses
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from uid.bundles.declarations import Bundle
from uid.bundles.manifest import read_bundle
from uid.engines.trt import build as tensorrt_build
from uid.engines.trt.build import BuildOptions, build
from uid.engines.trt.cache import check, engine_name
from uid.engines.trt.library import Library, check_target, open_library, remedy, supports
from uid.engines.trt.profiles import NAMED, Profile, Range, Target, profile_shapes
from uid.engines.trt.sidecar import read_sidecar
from uid.errors import BackendError
from uid.export.cli import main
from uid.install import how_to_install, install_command

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx, which builds engines without a GPU"
)
SMALL = Profile("small", Range(8, 16, 16), Range(8, 16, 32))
AHEAD = Target.ahead(["8.9"])
# Two kinds of profile, as small as the tiny bundle allows: a square's range, and one size, to be rounded up.
BUILD = ["--backend", "tensorrt-rtx", "--profile", "16", "--profile", "13x50"]
BUILD += ["--target-compute-capability", "8.9", "--target-compute-capability", "12.0"]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return read_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def built(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engines of every component, built by the command line."""
    folder = tmp_path_factory.mktemp("engines")
    result = CliRunner().invoke(main, ["build", str(tiny_bundle), *BUILD, "-o", str(folder)])
    assert result.exit_code == 0, result.output
    assert "profile 13x50: height 16; width 52" in result.output
    return folder


def refused(folder: Path) -> str:
    result = CliRunner().invoke(main, ["inspect", str(folder)])
    assert result.exit_code == 2
    return " ".join(result.output.split())


@pytest.mark.long
@needs_rtx
def test_every_component_builds_for_every_profile(built: Path, bundle: Bundle, library: Library) -> None:
    engines = {read_sidecar(path).key["component"]: path for path in built.glob("*.engine")}
    assert set(engines) == set(bundle.components)
    for name, path in engines.items():
        assert check(path) == (True, "")
        header = path.read_bytes()[:28]
        assert header.startswith(b"vtrt")
        assert ".".join(str(number) for number in header[24:]) == library.version
        tensors = {(entry["name"], entry["dtype"]) for entry in read_sidecar(path).tensors}
        part = bundle.components[name]
        assert tensors == {(spec.name, str(spec.dtype)) for spec in (*part.inputs, *part.outputs)}
        assert [profile["name"] for profile in read_sidecar(path).key["profiles"]] == ["16", "13x50"]


@needs_rtx
@pytest.mark.parametrize("profile", NAMED.values(), ids=list(NAMED))
def test_named_profiles_build(profile: Profile, bundle: Bundle, library: Library) -> None:
    structure = bundle.components["structure"]  # its memory does not grow with the square of the image size
    shapes = profile_shapes(structure.inputs, profile.rounded(bundle.size_multiple))
    built = build(library, bundle.folder / structure.file, [shapes], AHEAD, BuildOptions())
    assert bytes(built.plan[:4]) == b"vtrt"


@pytest.mark.long
@needs_rtx
def test_building_again_reuses_all_engines(built: Path, tiny_bundle: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in built.iterdir()}
    result = CliRunner().invoke(main, ["build", str(tiny_bundle), *BUILD, "-o", str(built)])
    assert result.output.count("reusing") == len(list(built.glob("*.engine")))
    assert {path.name: path.stat().st_mtime_ns for path in built.iterdir()} == before


@pytest.mark.long
@needs_rtx
def test_inspect_shows_what_an_engine_was_built_for(built: Path, library: Library) -> None:
    path = next(built.glob("decoder-*.engine"))
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 0
    for text in (
        "decoder, fp32",
        f"tensorrt-rtx {library.version}",
        "ahead of time, 8.9, 12.0",
        "workspace_mib: None",
        "13x50: height 16; width 52",
        "latent float32[batch, 4, height/2, width/2]",
        "output float32[?, 3,",
    ):
        assert text in result.output, result.output


@pytest.mark.long
@needs_rtx
def test_inspect_shows_engines_of_a_version_without_batches(built: Path, tmp_path: Path) -> None:
    source = next(built.glob("decoder-*.engine"))
    sidecar = json.loads(source.with_suffix(".json").read_text())
    for profile in sidecar["key"]["profiles"]:
        del profile["batch"]
    engine = tmp_path / engine_name(sidecar["key"])
    engine.write_bytes(source.read_bytes())
    engine.with_suffix(".json").write_text(json.dumps(sidecar))
    result = CliRunner().invoke(main, ["inspect", str(engine)])
    assert (result.exit_code, "13x50: height 16; width 52" in result.output) == (0, True), result.output


@pytest.mark.long
@needs_rtx
def test_inspect_refuses_a_damaged_engine(built: Path, tmp_path: Path) -> None:
    source = next(built.glob("encoder-*.engine"))
    engine = tmp_path / source.name
    data = source.read_bytes()
    engine.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert f"{engine.name} may not be loaded: it has no sidecar" in refused(tmp_path)
    engine.with_suffix(".json").write_bytes(source.with_suffix(".json").read_bytes())
    assert f"{engine.name} may not be loaded: it has sha256" in refused(engine)


@pytest.mark.long
@needs_rtx
def test_inspect_refuses_an_engine_of_another_release(
    built: Path, monkeypatch: pytest.MonkeyPatch, library: Library
) -> None:
    later = dataclasses.replace(library, version="1.9.0.1")
    monkeypatch.setattr("uid.engines.trt.library.open_library", lambda name: later)
    assert f"was built with tensorrt-rtx {library.version}, installed is 1.9.0.1" in refused(built)


def test_inspect_of_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert (result.exit_code, "holds no engine" in result.output) == (1, True)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_the_error_of_a_missing_library_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name.replace("-", "_"), None)
    message = rf"^{name} is not installed or does not load \(.*\): {re.escape(how_to_install(name))}$"
    with pytest.raises(BackendError, match=message):
        open_library.__wrapped__(name)


@needs_rtx
def test_invalid_targets_and_profiles_are_refused(library: Library, tiny_bundle: Path, tmp_path: Path) -> None:
    for name in ("9.0", "10.3"):
        message = rf"cannot target compute capability {name}; expected 7\.5, 8\.0, 8\.6, 8\.9, 12\.0, 12\.1"
        with pytest.raises(BackendError, match=message):
            check_target(library, Target.ahead(["8.9", name]))
    check_target(library, Target("NVIDIA H200", "9.0", "13.0"))
    with pytest.raises(BackendError, match="tensorrt builds engines on the GPU that they are to run on"):
        check_target(dataclasses.replace(library, name="tensorrt"), AHEAD)
    words = ["build", str(tiny_bundle), "--backend", "tensorrt-rtx", "-o", str(tmp_path), "--profile"]
    assert "unknown profile '8k'; expected 720p" in CliRunner().invoke(main, [*words, "8k"]).output


@needs_rtx
def test_the_remedy_on_an_unsupported_gpu_names_the_release_that_loads(library: Library) -> None:
    answers = {name: supports(library, name) for name in ("8.0", "8.9", "9.0", "10.3", "12.1", "13.0")}
    assert answers == {"8.0": True, "8.9": True, "9.0": False, "10.3": False, "12.1": True, "13.0": True}
    later, earlier = (dataclasses.replace(library, version=version) for version in ("1.7.1.116", "1.6.1.120"))
    assert remedy(later, "9.0").endswith(f"loads engines: {install_command(['tensorrt-rtx==1.6.1.120'])}")
    assert remedy(later, "8.9") == remedy(earlier, "9.0") == ""
    assert supports(dataclasses.replace(library, name="tensorrt"), "9.0")


@needs_rtx
def test_stripping_is_for_tensorrt_and_reaches_the_builder(library: Library, bundle: Bundle, tiny_bundle: Path) -> None:
    words = ["build", str(tiny_bundle), "--backend", "tensorrt-rtx", "--strip"]
    message = "cannot leave the weights out; keep them, or use tensorrt (--strip)"
    assert message in CliRunner().invoke(main, words).output
    encoder = bundle.components["encoder"]
    shapes, graph = [profile_shapes(encoder.inputs, SMALL)], bundle.folder / encoder.file
    here, tensorrt = Target("NVIDIA RTX 4090", "8.9", "13.0"), dataclasses.replace(library, name="tensorrt")
    build(tensorrt, graph, shapes, here, BuildOptions())
    # TensorRT-RTX takes the same flags, but not without a GPU.
    with pytest.raises(BackendError, match=r"cannot build encoder\.onnx"):
        build(tensorrt, graph, shapes, here, BuildOptions(stripped=True))


@needs_rtx
def test_a_failed_parse_is_reported_in_the_parsers_words(library: Library, bundle: Bundle, tmp_path: Path) -> None:
    graph = tmp_path / "encoder.onnx"  # without its external data
    graph.write_bytes((bundle.folder / "encoder.onnx").read_bytes())
    with pytest.raises(BackendError, match=r"tensorrt-rtx .* cannot parse .*Failed to import initializer"):
        build(library, graph, [], AHEAD, BuildOptions())


@needs_rtx
def test_a_failed_build_is_reported_in_the_builders_words(library: Library, bundle: Bundle) -> None:
    decoder = bundle.components["decoder"]
    shapes = profile_shapes(decoder.inputs, SMALL)
    contradictory = {**shapes, "latent": tuple((*shape[:2], 3, 3) for shape in shapes["latent"])}
    with pytest.raises(BackendError, match=r"cannot build decoder\.onnx for ahead of time, 8\.9: .*contradictory"):
        build(library, bundle.folder / decoder.file, [contradictory], AHEAD, BuildOptions())  # type: ignore[list-item]


@needs_rtx
def test_progress_is_reported_and_a_failing_report_ends_the_build(
    library: Library, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_build, "REPORT_EVERY", 0.0)
    encoder, lines = bundle.components["encoder"], list[str]()
    shapes, graph = [profile_shapes(encoder.inputs, SMALL)], bundle.folder / encoder.file
    build(library, graph, shapes, AHEAD, BuildOptions(workspace_mib=256), report=lines.append)
    assert all(re.fullmatch(r"[A-Z].*: \d+ of \d+", line) for line in lines)
    assert len(lines) > 100

    def fail(line: str) -> None:
        if line == lines[50]:
            raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        build(library, graph, shapes, AHEAD, BuildOptions(), report=fail)


@needs_rtx
@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_timings_are_stored_for_tensorrt_only(library: Library, bundle: Bundle, tmp_path: Path) -> None:
    """TensorRT-RTX takes the same calls as no-ops, so their order and argument types are tested on it."""
    encoder, timings = bundle.components["encoder"], tmp_path / "timing.cache"

    def run(library: Library, target: Target) -> None:
        shapes = [profile_shapes(encoder.inputs, SMALL)]
        build(library, bundle.folder / encoder.file, shapes, target, BuildOptions(), timing_cache=timings)

    run(library, AHEAD)
    assert not timings.exists()
    tensorrt = dataclasses.replace(library, name="tensorrt")
    gpu = Target("NVIDIA L4", "8.9", "13.0")
    run(tensorrt, gpu)
    stored = timings.read_bytes()
    assert stored
    run(tensorrt, gpu)
    assert timings.read_bytes() == stored
