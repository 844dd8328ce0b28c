"""``uid-train init`` at the published sizes, with random weights: 17 GB of disk, so only with ``pytest -m slow -s``."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import onnx_ir as ir
import published
import pytest
import torch

from uid.engines import create
from uid.export import validate
from uid.export.bundle import case_of, smallest_side
from uid.export.graph import WeightStore, store_weights, to_onnx
from uid.families import registry
from uid.families.uid_diff.conditioning import clip_pixels
from uid.families.uid_diff.configs import SD15
from uid.families.uid_diff.family import UIDDiffModel
from uid.families.uid_diff.unet import predict

pytestmark = pytest.mark.slow
GB = 1e9


def size(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / GB


@pytest.mark.parametrize("half", [True, False], ids=["fp16", "fp32"])
def test_published_sizes_become_a_checkpoint_that_computes(tmp_path: Path, half: bool) -> None:
    models, output = tmp_path / "models", tmp_path / "out"
    # In a process of its own: of one that starts another, the memory counts as the other's.
    maker = multiprocessing.get_context("spawn").Process(target=published.models, args=(models, SD15, half))
    maker.start()
    maker.join()
    assert maker.exitcode == 0
    command = [sys.executable, "-m", "uid", "train", "init", output, "--stable-diffusion", models / "sd"]
    start = time.perf_counter()
    running = subprocess.Popen([*command, "--clip", models / "clip", "--qformer", models / "blip"])
    _, status, used = os.wait4(running.pid, 0)
    seconds, peak = time.perf_counter() - start, used.ru_maxrss * 1024 / GB
    assert status == 0
    print(f"{size(models):.1f} GB to {size(output):.1f} GB in {seconds:.0f} s, at most {peak:.1f} GB in memory")
    assert peak < 5.0

    image = torch.rand(1, 3, 200, 300)
    ids = torch.tensor([[101, 3252, 102]])  # [CLS] structure [SEP]
    with torch.inference_mode():
        expected = published.features(models / "blip" / "qformer", clip_pixels(image, 224), ids)
    shutil.rmtree(models)
    model = registry.load(output)
    assert isinstance(model, UIDDiffModel)
    assert torch.equal(model.network.structure.text_ids, ids)
    with torch.inference_mode():
        error = (model.network.structure(image) - expected).abs().max() / expected.abs().max()
    print(f"f_s differs from BLIP-Diffusion's by {float(error):.1e} of its largest value")
    assert error < 1e-5
    begins_at_stable_diffusion(model)
    exports(model, tmp_path)
    shutil.rmtree(output)


@torch.inference_mode()
def begins_at_stable_diffusion(model: UIDDiffModel) -> None:
    """One forward pass with adapter and blur attention gives what the U-Net alone gives."""
    step = model.network.step
    x, z_y = torch.randn(2, 1, 4, 32, 32)
    f_s, f_b, text = torch.randn(1, 16, 768), torch.randn(1, 16, 768), model.network.prompts("sharp and clean image")
    residuals = step.adapter(x, z_y, torch.tensor([501.0]), f_s)
    got, _ = predict(step.unet, x, torch.tensor([501.0]), text, residuals.down, residuals.middle, f_b)
    expected = step.unet(x.repeat(2, 1, 1, 1), 501, text).sample
    torch.testing.assert_close(got, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def exports(model: UIDDiffModel, folder: Path) -> None:
    """The component that reads the published Q-Former goes to ONNX and agrees with PyTorch."""
    component = next(one for one in model.components("fp32") if one.declaration.name == "structure")
    case = case_of(component, 128)
    graph = to_onnx(component, model.size_multiple, smallest_side(model))
    with WeightStore(folder / "weights.bin") as store:
        store_weights(graph, store)
    ir.save(graph, folder / "structure.onnx")
    backend = create("onnxruntime")
    engine = backend.load(folder / "structure.onnx")
    parity = validate.check_component(backend, engine, component.declaration, case, validate.TOLERANCES["fp32"])
    print(f"structure in ONNX differs from PyTorch by {parity.error:.1e} of its largest value")
