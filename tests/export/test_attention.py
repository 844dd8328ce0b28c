"""Attention as one operator: found where it is, left alone where it has a mask, the same numbers either way."""

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from uid.bundles.manifest import read_bundle
from uid.bundles.tensors import resolve
from uid.engines.ort.cpu import create_cpu
from uid.export import validate
from uid.export.attention import fuse_attention
from uid.export.dummies import dummy_inputs

SIZES = {"height": 32, "width": 48, "blur_height": 20, "blur_width": 28}


def operators(path: Path, name: str) -> int:
    return sum(node.op_type == name for node in ir.load(path).graph)


@pytest.mark.parametrize("name", ["structure", "encoder", "step", "step_blur"])
def test_the_numbers_stay_the_same(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    component = read_bundle(tiny_bundle).components[name]
    shutil.copyfile(tiny_bundle / "weights.bin", tmp_path / "weights.bin")
    graph = ir.load(tiny_bundle / component.file)
    attentions = operators(tiny_bundle / component.file, "Softmax")
    fused = fuse_attention(graph)
    ir.save(graph, tmp_path / component.file)
    assert 0 < fused <= attentions
    assert operators(tmp_path / component.file, "MultiHeadAttention") == fused
    assert operators(tmp_path / component.file, "Softmax") == attentions - fused
    inputs = {key: tensor.numpy() for key, tensor in dummy_inputs(component, SIZES, seed=3).items()}
    backend = create_cpu(1)
    empty = {spec.name: np.empty(resolve(spec.shape, SIZES), np.float32) for spec in component.outputs}
    plain, other = (
        validate.run_engine(backend, backend.load(folder / component.file), validate.ParityCase(inputs, empty))
        for folder in (tiny_bundle, tmp_path)
    )
    for key, value in plain.items():
        np.testing.assert_allclose(other[key], value, rtol=0, atol=1e-5 * np.abs(value).max())


def test_what_has_a_mask_stays(tiny_bundle: Path) -> None:
    path = tiny_bundle / read_bundle(tiny_bundle).components["structure"].file
    graph = ir.load(path)
    masked = operators(path, "IsNaN")  # what the exporter writes behind a softmax with a mask
    assert 0 < masked == operators(path, "Softmax") - fuse_attention(graph)


def test_steps_come_with_a_variant_for_onnx_runtime(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    for name, component in bundle.components.items():
        assert set(component.variants) == ({"onnxruntime"} if name.startswith("step") else set())
        for file in component.variants.values():
            assert operators(tiny_bundle / file, "MultiHeadAttention") > 0
        assert operators(tiny_bundle / component.file, "MultiHeadAttention") == 0
