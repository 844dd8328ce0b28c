"""Builds in a process of their own."""

import re
from pathlib import Path

import pytest

from uid.engines.trt import isolated_build
from uid.engines.trt.build import BuildOptions, NotBuiltError, Shapes, build
from uid.engines.trt.isolated_build import build_apart, crash
from uid.engines.trt.library import Library
from uid.engines.trt.profiles import Target
from uid.errors import BackendError, OutOfMemoryError
from uid.runtime.pixels import GRAPHS, PIXELS_IN

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds engines without a GPU")

GRAPH = GRAPHS / PIXELS_IN.file
AHEAD = Target.ahead(["8.9"])
OTHER = "import os, sys; {}"  # a process that does something else and gives no answer


def shapes(*sides: int) -> list[Shapes]:
    minimum, optimum, maximum = ((1, 3, side, side) for side in sides)
    return [{"image_pixels": (minimum, optimum, maximum)}]


def test_the_engine_is_that_of_a_build_in_this_process(library: Library) -> None:
    here, there = (
        each(library, GRAPH, shapes(64, 64, 64), AHEAD, BuildOptions(), report=lambda _: None)
        for each in (build, build_apart)
    )
    assert (bytes(there.plan), there.tensors) == (bytes(here.plan), here.tensors)


def test_errors_of_the_process_are_raised_here(
    library: Library, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackendError, match=r"tensorrt-rtx .* cannot parse .*missing\.onnx"):
        build_apart(library, tmp_path / "missing.onnx", [], AHEAD, BuildOptions())
    with pytest.raises(BackendError, match=r"cannot build pixels_in\.onnx .* no optimization profile has been defined"):
        build_apart(library, GRAPH, [], AHEAD, BuildOptions())
    assert "Traceback" not in capfd.readouterr().err


def test_lines_of_the_process_are_reported_and_a_failing_report_ends_it(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = "import uid.engines.trt.build as module; module.REPORT_EVERY = 0; from uid."
    monkeypatch.setattr(isolated_build, "PROGRAM", isolated_build.PROGRAM.replace("from uid.", often))
    lines: list[str] = []
    build_apart(library, GRAPH, shapes(16, 32, 64), AHEAD, BuildOptions(), report=lines.append)
    assert any(re.fullmatch(r"[A-Z].*: \d+ of \d+", line) for line in lines)

    def fail(line: str) -> None:
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        build_apart(library, GRAPH, shapes(16, 32, 64), AHEAD, BuildOptions(), report=fail)


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (
            "os.abort()",
            NotBuiltError,
            r"building pixels_in\.onnx for ahead of time, 8\.9: the library crashed \(SIGABRT\)",
        ),
        (
            "os.kill(os.getpid(), 9)",
            OutOfMemoryError,
            "the process was killed, as a system does that runs out of memory",
        ),
        ("sys.exit('no such module')", BackendError, "the process failed, as it has printed"),
    ],
)
def test_a_process_that_ends_without_an_answer_raises(
    act: str, kind: type[BackendError], message: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated_build, "PROGRAM", OTHER.format(act))
    with pytest.raises(BackendError, match=message) as error:
        build_apart(library, GRAPH, shapes(16, 32, 64), AHEAD, BuildOptions())
    assert type(error.value) is kind


def test_a_crash_on_windows_is_reported_with_its_status() -> None:
    assert "crashed (0xc0000005)" in str(crash(0xC0000005, "work"))
