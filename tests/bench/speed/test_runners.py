"""The reference's variants and the engines compute the same image, and runners are those that a choice names."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from uid.bench.speed.latency import agreement, sample_picture
from uid.bench.speed.lineup import Choice, Measurement, plan
from uid.bench.speed.oracle import Oracle, Terms
from uid.bench.speed.runners import EngineRunner, Task, TorchRunner
from uid.bundles.manifest import read_bundle
from uid.errors import BackendError, InputError
from uid.runtime.options import Options
from uid.runtime.pipeline import load


def test_the_compiled_reference_is_the_reference(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    task = Task(tiny_bundle, 7.5, 0, torch.get_num_threads())
    image = sample_picture(16, 24)
    eager, compiled = (TorchRunner(task, tiny_checkpoint, compiled=compiled) for compiled in (False, True))
    network = compiled.model.network
    assert all(part._compiled_call_impl is not None for part in (network.step, network.decoder))
    collecting: dict[TorchRunner, set[bool]] = {eager: set(), compiled: set()}
    for runner, seen in collecting.items():
        runner.model.network.step.register_forward_pre_hook(lambda *_, seen=seen: seen.add(gc.isenabled()))
    with torch.compiler.set_stance("force_eager"):  # real compilation takes minutes
        assert np.array_equal(compiled.run(image, 2).image, eager.run(image, 2).image)
    assert collecting == {eager: {True}, compiled: {False}}  # none where CUDA graphs may be captured
    assert gc.isenabled()


def test_the_reference_in_float16_is_near_the_one_in_float32(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    task = Task(tiny_bundle, 7.5, 0, torch.get_num_threads())
    exact, half = (TorchRunner(task, tiny_checkpoint, half=half) for half in (False, True))
    assert {weight.dtype for weight in half.model.network.parameters()} == {torch.float16}
    images = [runner.run(sample_picture(16, 24, np.float32), 4).image for runner in (exact, half)]
    psnr, difference = agreement(*reversed(images))
    assert psnr > 45.0
    assert difference > 0.0


@pytest.mark.parametrize("half", [False, True])
def test_the_reference_computes_on_one_device_alone(tiny_bundle: Path, tiny_checkpoint: Path, half: bool) -> None:
    """Torch's meta device holds no numbers, but refuses to mix with another as a GPU does."""
    runner = TorchRunner(Task(tiny_bundle, 7.5, 0, 1), tiny_checkpoint, half=half)
    runner.device = torch.device("meta")
    runner.model.to(runner.device)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # the image, at the end
        runner.run(sample_picture(16, 24), 3)
    structure = runner.model.network.structure.q_former
    structure.query_tokens = torch.nn.Parameter(torch.ones(structure.query_tokens.shape))
    with pytest.raises(RuntimeError, match="device"):
        runner.run(sample_picture(16, 24), 3)


def test_the_reference_with_channels_last_is_the_reference(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    task = Task(tiny_bundle, 7.5, 0, torch.get_num_threads())
    plain, last = (TorchRunner(task, tiny_checkpoint, channels_last=last) for last in (False, True))
    weight = last.model.network.step.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    image = sample_picture(16, 24, np.float32)
    psnr, _ = agreement(last.run(image, 3).image, plain.run(image, 3).image)
    assert psnr > 90.0


def test_runners_are_those_that_are_named(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    terms = Terms(16, 24, 2, 7.5, 0)
    Oracle(sample_picture(16, 24), "someone", terms).write(tmp_path / "oracle.npz")

    def planned(*backends: str, **more: Any) -> Measurement:
        choice = Choice(tiny_checkpoint, backends, sizes=[(16, 24)], steps=[2], threads=1)
        return plan(read_bundle(tiny_bundle), replace(choice, **more), print)

    def names(*backends: str, **more: Any) -> list[str]:
        return [runner.name for runner in planned(*backends, **more).runners]

    stored = {"oracle": tmp_path / "oracle.npz"}
    assert names("onnxruntime") == ["onnxruntime", "pytorch"]
    assert names("onnxruntime", "pytorch-fp16") == ["onnxruntime", "pytorch", "pytorch-fp16"]
    assert names("pytorch-fp16-channels-last", **stored) == ["pytorch-fp16-channels-last"]
    assert planned("onnxruntime", **stored).against == "someone"
    with pytest.raises(InputError, match="pytorch-fp16 needs the PyTorch model: give its checkpoint"):
        names("pytorch-fp16", checkpoint=None)
    with pytest.raises(InputError, match=r"of 16x24, 2 steps, guidance 7\.5, seed 0; this run makes 16x24, 3 steps"):
        names("onnxruntime", steps=[3], **stored)
    (tmp_path / "oracle.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="expected what `uid-bench oracle -o` writes"):
        names("onnxruntime", **stored)


def test_what_does_not_fit_is_refused(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    with pytest.raises(BackendError, match="unknown backend 'abacus'"):
        plan(bundle, Choice(backends=["abacus"]), print)
    with pytest.raises(InputError, match="PyTorch runs images whole: leave the tile or the checkpoint out"):
        plan(bundle, Choice(tiny_bundle, tile=16), print)


def test_tiles_are_those_of_the_pipeline(tiny_bundle: Path) -> None:
    image = sample_picture(64, 96)
    whole, tiled = (EngineRunner(Task(tiny_bundle, 7.5, 0, 1, tile), "onnxruntime") for tile in (None, 32))
    expected = load(tiny_bundle, backend="onnxruntime")(
        image, Options(steps=1, transforms=1, guidance=7.5, tile=32)
    ).image
    assert np.array_equal(tiled.run(image, 1).image, expected)
    assert not np.array_equal(whole.run(image, 1).image, expected)
