"""A real interleaved run at tiny size, with runners that are wrong, fail and crash, and the commands."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from uid.bench.cli import main
from uid.bench.rows import gpu_memory, gpus, read_rows, write_png
from uid.bench.speed.flops import component_flops, picture_flops
from uid.bench.speed.latency import Crew, agreement, measure, sample_picture
from uid.bench.speed.lineup import Choice, Runner, plan
from uid.bench.speed.startup import reference
from uid.bench.speed.summary import summarise
from uid.bench.speed.workers import Spec, Worker
from uid.bundles.manifest import read_bundle
from uid.errors import BackendError
from uid.export.dummies import dummy_inputs
from uid.families.uid_diff.components import declare
from uid.families.uid_diff.model import UIDDiff
from uid.runtime.media.decode import read_image
from uid.runtime.options import Options
from uid.runtime.pipeline import load

SERVED = """
import dataclasses, os, signal
from uid.bench.speed.runners import EngineRunner

class Wrong(EngineRunner):
    def run(self, image, steps):
        result = super().run(image, steps)
        return dataclasses.replace(result, image=result.image // 2)

class Crashing(EngineRunner):
    left = 4
    def run(self, image, steps):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().run(image, steps)

class Refusing:
    def run(self, image, steps):
        raise ValueError("no such image")

class Echo:
    def run(self, image, steps):
        return os.getpid()

def unable():
    raise RuntimeError("no library")
"""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module that the processes can import."""
    (tmp_path / "served_by_test.py").write_text(SERVED)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "served_by_test"


def test_flops_are_those_that_torch_counts(tiny_model: UIDDiff, tiny_bundle: Path) -> None:
    sizes = {"height": 64, "width": 48, "blur_height": 40, "blur_width": 56}
    bundle = read_bundle(tiny_bundle)
    counted = {}
    for part in declare(tiny_model, "fp32", guided=True):
        inputs = dummy_inputs(part.declaration, sizes)
        # Torch counts no fused attention on the CPU.
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            part.module(*inputs.values())
        name = part.declaration.name
        counted[name] = counter.get_total_flops()
        assert component_flops(bundle.folder, bundle.components[name], sizes) == pytest.approx(counted[name], rel=0.02)
    assert picture_flops(bundle, 64, 48, 5) == {
        "prepare": pytest.approx(counted["structure"] + counted["encoder"], rel=0.02),
        "step": pytest.approx(5 * counted["step"], rel=0.02),
        "finish": pytest.approx(counted["decoder"], rel=0.02),
    }


@pytest.mark.long
def test_runners_in_turn_against_the_reference(tiny_bundle: Path, tiny_checkpoint: Path, served: str) -> None:
    lines: list[str] = []
    choice = Choice(tiny_checkpoint, ["onnxruntime"], sizes=[(16, 22)], steps=[2], threads=1)
    measurement = plan(read_bundle(tiny_bundle), choice, lines.append, repeats=2, warm_up=1)
    engine, reference = measurement.runners
    arguments = engine.pictures.arguments

    def other(name: str, factory: str) -> Runner:
        return Runner(name, Spec(name, f"{served}:{factory}", arguments), engine.roofline)

    extra = (other("wrong", "Wrong"), other("crashing", "Crashing"), other("unable", "unable"))
    rows = list(measure(replace(measurement, runners=(engine, *extra, reference)), lines.append))

    # Two images to load, one to warm up; the next one crashes. Who goes first changes.
    order = ["onnxruntime", "wrong", "pytorch", "wrong", "pytorch", "onnxruntime"]
    assert [row.runner for row in rows] == order
    assert [row.repeat for row in rows] == [0, 0, 0, 1, 1, 1]
    assert any(line == "crashing: its process was ended by SIGSEGV; the others go on" for line in lines)
    assert any(line.startswith("unable: ") and line.endswith("; the others go on") for line in lines)
    by_name = {line.runner: line for line in summarise(rows)}
    assert {name for name, line in by_name.items() if not line.sound} == {"wrong"}
    assert by_name["onnxruntime"].psnr > 60.0
    assert by_name["pytorch"].psnr == 100.0
    for row in rows:
        assert row.against == "pytorch, fp32"
        assert row.flops == sum(picture_flops(measurement.bundle, 16, 24, 2).values())
        assert 0.0 < row.prepare + row.step + row.finish <= row.seconds
        assert row.load_seconds > 0.0
        assert row.flop_ceiling > 1e8
        assert row.copy_ceiling > 1e8
        assert 2e7 < row.peak_bytes < 4e9
    assert by_name["onnxruntime"].peak_bytes < by_name["pytorch"].peak_bytes
    assert not children()


def test_the_drivers_memory_report_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text(
        '#!/bin/sh\n[ "$1" = --query-gpu=memory.used ] && printf "1024\\n[N/A]\\n" || echo "NVIDIA H200"\n'
    )
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert (gpus(), gpu_memory()) == (["NVIDIA H200"], 1 << 30)
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert (gpus(), gpu_memory()) == ([], 0)


def test_who_goes_first_changes_and_who_fails_leaves(served: str) -> None:
    lines: list[str] = []
    with Worker(Spec("a", f"{served}:Echo", ())) as a, Worker(Spec("b", f"{served}:Refusing", ())) as b:
        crew = Crew({"a": a, "b": b}, lines.append)
        image = np.zeros((4, 4, 3), np.uint8)
        assert [name for name, _ in crew.turn(0, image, 1)] == ["a"]
        assert lines == ["b: ValueError: no such image; the others go on"]
        assert [(name, got) for name, got in crew.turn(1, image, 1)] == [("a", a.process.pid)]
    assert not children()


def test_a_process_that_cannot_start_says_why(served: str) -> None:
    with pytest.raises(BackendError, match=r"^it: RuntimeError: no library$"):
        Worker(Spec("it", f"{served}:unable", ()))
    assert not children()


def test_agreement_against_a_slow_reference() -> None:
    a, b = sample_picture(8, 12), sample_picture(8, 12)
    assert agreement(a, b) == (100.0, 0.0)
    b[3, 4, 1] ^= 16
    b[0, 0, 0] ^= 1
    psnr = 10.0 * np.log10(1.0 / ((16**2 + 1) / 255**2 / a.size))
    assert agreement(a, b) == (pytest.approx(psnr), pytest.approx(16 / 255))
    assert agreement(a[:-1], b) == (0.0, 1.0)
    assert agreement(np.full((2, 2, 3), np.nan, np.float32), np.zeros((2, 2, 3), np.float32)) == (0.0, 1.0)


# -- commands ---------------------------------------------------------------------------------------------------------


def test_latency_writes_rows_table_and_plot(tiny_bundle: Path, tmp_path: Path) -> None:
    rows, table, plot = (tmp_path / name for name in ("rows.jsonl", "rows.csv", "plot.png"))
    words = ["latency", "-m", str(tiny_bundle), "--backend", "onnxruntime", "--size", "16", "--steps", "1"]
    words += ["--threads", "1", "--repeats", "2", "--warm-up", "0", "-o", str(rows), "--csv", str(table)]
    result = CliRunner().invoke(main, [*words, "--plot", str(plot)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "the paper, one A100, sd15 size" in result.output
    assert [json.loads(line)["against"] for line in rows.read_text().splitlines()] == 2 * ["onnxruntime, fp32 bundle"]
    assert len(table.read_text().splitlines()) == 3
    assert cv2.imread(str(plot)) is not None


def test_rows_of_a_run_that_is_cut_off_are_there(tiny_bundle: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("of an earlier run\n")
    words = [sys.executable, "-m", "uid.bench.cli", "latency", "-m", str(tiny_bundle), "--backend", "onnxruntime"]
    words += ["--no-peaks", "--size", "16", "--threads", "1", "--repeats", "100000", "--steps", "1", "-o", str(rows)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60.0
    while len(rows.read_text().splitlines()) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    found = read_rows(rows)
    assert [row.repeat for row in found] == list(range(len(found)))
    assert {row.flop_ceiling for row in found} == {0.0}


@pytest.mark.long
def test_images_are_compared_with_a_stored_oracle(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    oracle, rows = tmp_path / "oracle.npz", tmp_path / "rows.jsonl"
    common = ["--checkpoint", str(tiny_checkpoint), "--size", "16x24", "--steps", "2"]
    result = CliRunner().invoke(main, ["oracle", *common, "-o", str(oracle)], catch_exceptions=False)
    assert result.output == f"wrote {oracle}: 16x24, 2 steps, guidance 7.5, seed 0, by pytorch, fp32\n"
    words = ["latency", "-m", str(tiny_bundle), *common, "--oracle", str(oracle), "--backend", "onnxruntime"]
    words += ["--no-peaks", "--repeats", "1", "--warm-up", "0", "-o", str(rows)]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert "of product" in result.output
    assert "Matrix product" not in result.output
    (row,) = read_rows(rows)
    assert (row.runner, row.against, row.captured) == ("onnxruntime", "pytorch, fp32", False)
    assert row.psnr > 60.0


@pytest.mark.long
def test_memory_and_parity_measure_the_same_runs(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    common = ["-m", str(tiny_bundle), "--backend", "onnxruntime", "--threads", "1"]
    sizes = ["--size", "16", "--size", "32", "--size", "64x32"]
    result = CliRunner().invoke(main, ["memory", *common, *sizes], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "onnxruntime, 64x32: " in result.output
    assert "MB per megapixel; " in result.output
    words = ["parity", *common, "--checkpoint", str(tiny_checkpoint), "--size", "16", "--steps", "2"]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for what in ("structure (f_s)", "encoder (", "step (", "decoder (output)", "16x16, 2 steps"):
        assert f"onnxruntime, {what}" in result.output
    assert "WRONG" not in result.output


@pytest.mark.long
def test_a_whole_process_in_stages(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "starts.jsonl"
    words = ["latency", "--process", "-m", str(tiny_bundle), "--backend", "onnxruntime", "--size", "16x24"]
    words += ["--checkpoint", str(tiny_checkpoint)]
    words += ["--steps", "1", "--repeats", "1", "--warm-up", "0", "-o", str(output)]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["backend"] for row in rows] == ["onnxruntime", "pytorch"]
    for row in rows:
        assert row["seconds"] == pytest.approx(sum(row[name] for name in ("interpreter", "imports", "load", "compute")))
        assert row["seconds"] > row["interpreter"] > 0.0
        assert row["compute"] > 0.0


def test_the_reference_process_computes_what_the_runtime_computes(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.png", tmp_path / "out.png"
    image = sample_picture(16, 24)
    write_png(source, image)
    reference(str(tiny_checkpoint), str(source), str(output), steps=2, transforms=2, guidance=7.5, threads=1)
    expected = load(tiny_bundle, backend="onnxruntime")(image, Options(steps=2, transforms=2, guidance=7.5)).image
    assert np.abs(read_image(output).pixels.astype(int) - expected).max() <= 1


def test_ctrl_c_leaves_no_process(tiny_bundle: Path) -> None:
    words = [sys.executable, "-m", "uid.bench.cli", "latency", "-m", str(tiny_bundle), "--backend", "onnxruntime"]
    words += ["--size", "64", "--threads", "1", "--repeats", "100000", "--steps", "2"]
    group = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert group.stderr is not None
    while "loading" not in group.stderr.readline():
        assert group.poll() is None
    deadline = time.monotonic() + 300.0
    while not (started := psutil.Process(group.pid).children(recursive=True)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(group.pid, signal.SIGINT)  # as a terminal does: to all of them
    try:
        group.communicate(timeout=300.0)
    except subprocess.TimeoutExpired:
        os.killpg(group.pid, signal.SIGKILL)
        raise
    assert group.returncode == 1
    gone, alive = psutil.wait_procs(started, timeout=300.0)
    assert not alive
    assert gone


def children() -> list[str]:
    """Processes of this one that still run, but for Python's own resource tracker."""
    return list(names())


def names() -> Iterator[str]:
    for child in psutil.Process().children(recursive=True):
        words = " ".join(child.cmdline())
        if child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in words:
            yield words
