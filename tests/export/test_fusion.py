"""Graphs for ONNX Runtime on CUDA: in its operators, with the same numbers once those are spelled out again."""

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from uid.bundles.manifest import read_bundle
from uid.bundles.tensors import resolve
from uid.engines.ort.cpu import create_cpu
from uid.export import validate
from uid.export.dummies import dummy_inputs
from uid.export.expand import expand, unknown_operators
from uid.export.fusion import fuse_for_cuda, fuse_gated_gelu

SIZES = {"height": 32, "width": 48, "blur_height": 20, "blur_width": 28}
FUSED = ["encoder", "step", "step_blur", "decoder"]


def nodes(graph: ir.Model, *names: str) -> list[ir.Node]:
    return [node for node in graph.graph if node.op_type in names]


@pytest.mark.parametrize("name", FUSED)
def test_the_numbers_stay_the_same(half_bundle: Path, tmp_path: Path, name: str) -> None:
    component = read_bundle(half_bundle).components[name]
    shutil.copy(half_bundle / "weights.bin", tmp_path)
    graph = ir.load(half_bundle / component.variants["onnxruntime-cuda"])
    expand(graph)
    ir.save(graph, tmp_path / component.file)
    inputs = {key: tensor.numpy() for key, tensor in dummy_inputs(component, SIZES, seed=3).items()}
    backend = create_cpu(1)
    empty = {spec.name: np.empty(resolve(spec.shape, SIZES), np.float32) for spec in component.outputs}
    plain, other = (
        validate.run_engine(backend, backend.load(folder / component.file), validate.ParityCase(inputs, empty))
        for folder in (half_bundle, tmp_path)
    )
    for key, value in plain.items():
        error = np.abs(other[key].astype(np.float32) - value).max() / np.abs(value).max()
        assert error < 2e-3, (key, error)


def test_what_is_fused_and_what_is_not(half_bundle: Path) -> None:
    bundle = read_bundle(half_bundle)
    assert [name for name, part in bundle.components.items() if "onnxruntime-cuda" in part.variants] == FUSED
    for name in FUSED:
        part = bundle.components[name]
        plain, fused = (ir.load(half_bundle / file) for file in (part.file, part.variants["onnxruntime-cuda"]))
        norms, left = (len(nodes(graph, "InstanceNormalization")) for graph in (plain, fused))
        assert len(nodes(fused, "GroupNorm", "SkipGroupNorm")) == norms - left
        # The attention of the VAE's halves is no image then, and a refiner's groups have one channel each.
        assert left == (0 if name.startswith("step") else 3)
        assert len(nodes(fused, "NhwcConv")) == len(nodes(plain, "Conv"))
        assert nodes(fused, "SkipGroupNorm", "SkipLayerNormalization")
        for node in nodes(fused, "GroupNorm", "SkipGroupNorm"):
            assert [value.dtype for value in node.inputs[1:3] if value is not None] == 2 * [ir.DataType.FLOAT]


def test_weights_are_those_of_the_portable_graph(half_bundle: Path) -> None:
    def places(file: str) -> set[tuple[str, int | None]]:
        tensors = [value.const_value for value in ir.load(half_bundle / file).graph.initializers.values()]
        return {(str(t.location), t.offset) for t in tensors if isinstance(t, ir.ExternalTensor)}

    for component in read_bundle(half_bundle).components.values():
        for file in component.variants.values():
            assert places(file) <= places(component.file)
            assert (half_bundle / file).stat().st_size < 2 * (half_bundle / component.file).stat().st_size


def gated(width: int) -> ir.Model:
    """Y = a * gelu(b) for the halves a, b of x w + c, in float32."""
    generator = np.random.default_rng(0)
    constants = {"w": generator.standard_normal((8, width)), "c": generator.standard_normal(width)}
    proto = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Add", ["product", "c"], ["biased"]),
            helper.make_node("Split", ["biased"], ["a", "b"], axis=2, num_outputs=2),
            helper.make_node("Gelu", ["b"], ["gelu"], name="gelu"),
            helper.make_node("Mul", ["a", "gelu"], ["y"]),
        ],
        "gated",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, width // 2])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    return ir.serde.deserialize_model(
        helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    )


def test_gated_gelu_is_one_operator_where_cuda_has_its_width(tmp_path: Path) -> None:
    x, results = np.random.default_rng(1).standard_normal((1, 3, 8)).astype(np.float32), []
    for fuses in (False, True):
        model = gated(2560)
        if fuses:
            fuse_gated_gelu(nodes(model, "Gelu")[0])
            assert len(nodes(model, "BiasSplitGelu")) == 1
            expand(model)
        ir.save(model, tmp_path / "gated.onnx")
        results.append(create_cpu(1).load(tmp_path / "gated.onnx").session.run(None, {"x": x})[0])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-5)
    other = gated(2562)
    fuse_gated_gelu(nodes(other, "Gelu")[0])
    assert not nodes(other, "BiasSplitGelu")


def test_a_graph_without_normalisations_and_operators_that_nothing_checks_are_left_out(half_bundle: Path) -> None:
    part = read_bundle(half_bundle).components["structure"]
    assert fuse_for_cuda(ir.load(half_bundle / part.file)) is None
    model = gated(2560)
    model.graph.append(ir.node("FusedConv", [model.graph.outputs[0]], domain="com.microsoft"))
    assert unknown_operators(model) == ["FusedConv"]
