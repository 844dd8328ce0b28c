"""Builds in a process of their own."""

import re
from pathlib import Path

import pytest

from uid.engines.trt import isolated_build as apart
from uid.engines.trt.build import BuildOptions, NotBuiltError, Shapes, build
from uid.engines.trt.isolated_build import build_apart, crash
from uid.engines.trt.library import Library, open_library
from uid.engines.trt.profiles import Target
from uid.errors import BackendError, OutOfMemoryError

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds engines without a GPU")

GRAPH = Path(apart.__file__).with_name("pixels_in.onnx")
AHEAD = Target.ahead(["8.9"])
OTHER = "import os, sys; {}"  # what a process does that is not to answer


@pytest.fixture(scope="module")
def library() -> Library:
    return open_library("tensorrt-rtx")


def shapes(*sides: int) -> list[Shapes]:
    minimum, optimum, maximum = ((1, 3, side, side) for side in sides)
    return [{"image_pixels": (minimum, optimum, maximum)}]


def test_it_gives_what_a_build_in_this_process_gives(library: Library) -> None:
    here, there = (
        each(library, GRAPH, shapes(64, 64, 64), AHEAD, BuildOptions(), report=lambda _: None)
        for each in (build, build_apart)
    )
    assert (bytes(there.plan), there.tensors) == (bytes(here.plan), here.tensors)


def test_its_errors_come_back(library: Library, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError, match=r"tensorrt-rtx .* cannot parse .*missing\.onnx"):
        build_apart(library, tmp_path / "missing.onnx", [], AHEAD, BuildOptions())
    with pytest.raises(BackendError, match=r"cannot build pixels_in\.onnx .* no optimization profile has been defined"):
        build_apart(library, GRAPH, [], AHEAD, BuildOptions())
    assert "Traceback" not in capfd.readouterr().err


def test_its_lines_come_back_and_who_hears_them_may_end_it(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    often = "import uid.engines.trt.build as module; module.REPORT_EVERY = 0; from uid."
    monkeypatch.setattr(apart, "PROGRAM", apart.PROGRAM.replace("from uid.", often))
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
def test_a_process_that_ends_without_an_answer_is_an_error(
    act: str, kind: type[BackendError], message: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "PROGRAM", OTHER.format(act))
    with pytest.raises(BackendError, match=message) as error:
        build_apart(library, GRAPH, shapes(16, 32, 64), AHEAD, BuildOptions())
    assert type(error.value) is kind


def test_a_crash_on_windows_is_told_by_its_status() -> None:
    assert "crashed (0xc0000005)" in str(crash(0xC0000005, "work"))
