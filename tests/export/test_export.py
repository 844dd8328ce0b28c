"""Exports: what a bundle holds, and that a wrong one is caught."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from uid.bundles.manifest import read_bundle
from uid.engines import create
from uid.errors import OutputError, ParityError
from uid.export import validate
from uid.export.bundle import case_of, export_bundle
from uid.export.cli import main
from uid.export.graph import WeightStore, store_weights
from uid.families import registry
from uid.families.uid_diff.components import declare
from uid.families.uid_diff.model import UIDDiff
from uid.runtime.options import Options
from uid.runtime.pipeline import load


def test_bundle_holds_what_it_declares(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    assert (bundle.name, bundle.family, bundle.trained, bundle.precision) == ("tiny", "uid-diff", False, "fp32")
    assert (bundle.steps, bundle.guidance) == (30, 7.5)
    assert set(bundle.modes) == {"deblur", "blur-transfer"}
    files = {path.name for path in tiny_bundle.iterdir() if path.is_file()} - {"manifest.json"}
    assert files == set(json.loads((tiny_bundle / "manifest.json").read_text())["files"])


def test_graphs_carry_no_local_paths(tiny_bundle: Path) -> None:
    for path in tiny_bundle.glob("*.onnx"):
        data = path.read_bytes()
        assert b"site-packages" not in data, path
        assert str(Path(__file__).parents[2]).encode() not in data, path


def test_shared_weights_are_stored_once(tiny_bundle: Path, tiny_model: UIDDiff) -> None:
    parameters = sum(p.numel() * 4 for p in tiny_model.parameters() if p.numel() >= 1024)
    assert (tiny_bundle / "weights.bin").stat().st_size < 1.1 * parameters


def test_parity_checks_see_names_shapes_and_values(tiny_bundle: Path, tiny_model: UIDDiff) -> None:
    component = next(c for c in declare(tiny_model, "fp32", guided=True) if c.declaration.name == "encoder")
    declaration = component.declaration
    case = case_of(component, tiny_model.size_multiple)
    backend = create("onnxruntime")
    engine = backend.load(tiny_bundle / declaration.file)
    parity = validate.check_component(backend, engine, declaration, case, 1e-4)
    assert parity.error <= 1e-4

    off = case.outputs["z_y"].copy()
    off.flat[7] += 2e-4 * np.abs(off).max()
    wrong = dataclasses.replace(case, outputs={**case.outputs, "z_y": off})
    with pytest.raises(ParityError, match=r"encoder: 'z_y' differs from PyTorch by 2\.\d\de-04; tolerance 1e-04"):
        validate.check_component(backend, engine, declaration, wrong, 1e-4)
    nan = dataclasses.replace(case, outputs={**case.outputs, "z_y": np.full_like(off, np.nan)})
    with pytest.raises(ParityError, match="by inf"):
        validate.check_component(backend, engine, declaration, nan, 1e-4)
    renamed = dataclasses.replace(declaration, outputs=(dataclasses.replace(declaration.outputs[0], name="z"),))
    with pytest.raises(ParityError, match="the graph's outputs are"):
        validate.check_component(backend, engine, renamed, case, 1e-4)


def test_image_check_sees_a_wrong_image(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    model = registry.load(tiny_checkpoint)
    case = validate.image_case(model, model.components("fp32"), steps=2, guidance=7.5)
    bundle, backend = read_bundle(tiny_bundle), create("onnxruntime")
    found = validate.check_image(bundle, backend, case)
    assert [parity.name for parity in found] == ["deblur image, 2 steps", "blur-transfer image, 2 steps"]
    assert all(parity.error <= 1 / 255 for parity in found)
    wrong = dataclasses.replace(case, results={**case.results, "deblur": case.results["deblur"] + 0.01})
    with pytest.raises(ParityError, match="the deblur image differs from PyTorch's by"):
        validate.check_image(bundle, backend, wrong)


def test_half_precision_bundle(tiny_bundle: Path, half_bundle: Path) -> None:
    bundle = read_bundle(half_bundle)
    assert {str(spec.dtype) for spec in bundle.components["encoder"].outputs} == {"float16"}
    assert {str(spec.dtype) for spec in bundle.components["step"].outputs} == {"float32"}
    assert (half_bundle / "weights.bin").stat().st_size < 0.55 * (tiny_bundle / "weights.bin").stat().st_size
    image = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    full, half = (load(path)(image, Options(steps=4)).image for path in (tiny_bundle, half_bundle))
    assert 10 * np.log10(1 / np.mean((full - half) ** 2)) > 45.0


def test_weights_that_float16_holds_are_stored_so_and_come_back(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    exact = generator.random((64, 64), dtype=np.float32).astype(np.float16).astype(np.float32)
    inexact = generator.random((64, 64), dtype=np.float32)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy")
    nodes = [helper.make_node("MatMul", ["x", "exact"], ["h"]), helper.make_node("MatMul", ["h", "inexact"], ["y"])]
    opset = [helper.make_opsetid("", 21)]
    weights = [numpy_helper.from_array(exact, "exact"), numpy_helper.from_array(inexact, "inexact")]
    proto = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), ir_version=10, opset_imports=opset)
    with WeightStore(tmp_path / "weights.bin") as store:
        for name in ("first", "second"):
            model = ir.serde.deserialize_model(proto)
            store_weights(model, store)
            ir.save(model, tmp_path / f"{name}.onnx")
    assert (tmp_path / "weights.bin").stat().st_size == exact.nbytes // 2 + inexact.nbytes
    backend = create("onnxruntime")
    value = generator.random((1, 64), dtype=np.float32)
    case = validate.ParityCase({"x": value}, {"y": np.zeros((1, 64), np.float32)})
    for name in ("first", "second"):
        result = validate.run_engine(backend, backend.load(tmp_path / f"{name}.onnx"), case)["y"]
        np.testing.assert_allclose(result, value @ exact @ inexact, rtol=1e-5)


def test_weights_in_whole_multiples_are_stored_in_eight_bits_and_come_back(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    scale = generator.random((1, 64), dtype=np.float32) / 127
    whole = generator.integers(-127, 128, (64, 64)).astype(np.float32)
    whole[0] = 127
    whole[:, 3] = 0
    kernel = (whole * scale).T.reshape(64, 64, 1, 1).copy()
    near = (whole + 0.1 * generator.random((64, 64), dtype=np.float32)) * scale
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [64, 64]), ("y", None))
    )
    nodes = [
        helper.make_node("MatMul", ["x", "whole"], ["a"]),
        helper.make_node("MatMul", ["a", "near"], ["b"]),
        helper.make_node("Reshape", ["b", "shape"], ["c"]),
        helper.make_node("Conv", ["c", "kernel"], ["d"]),
        helper.make_node("Reshape", ["d", "back"], ["e"]),
        helper.make_node("MatMul", ["both", "e"], ["f"]),  # as a first factor too, which has no output channels
        helper.make_node("MatMul", ["f", "both"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(value, name)
        for name, value in {
            "whole": whole * scale,
            "near": near,
            "kernel": kernel,
            "both": whole * scale[:, ::-1],
            "shape": np.array([64, 64, 1, 1]),
            "back": np.array([64, 64]),
        }.items()
    ]
    graph, opset = helper.make_graph(nodes, "g", [x], [y], weights), [helper.make_opsetid("", 20)]
    model = ir.serde.deserialize_model(helper.make_model(graph, ir_version=9, opset_imports=opset))
    with WeightStore(tmp_path / "weights.bin") as store:
        store_weights(model, store)
    ir.save(model, tmp_path / "g.onnx")
    stored = {str(value.name): value.dtype for value in model.graph.initializers.values()}
    assert {name for name, dtype in stored.items() if dtype == ir.DataType.INT8} == {"whole.int8", "kernel.int8"}
    value = generator.random((64, 64), dtype=np.float32)
    backend, case = create("onnxruntime"), validate.ParityCase({"x": value}, {"y": np.zeros((64, 64), np.float32)})
    result = validate.run_engine(backend, backend.load(tmp_path / "g.onnx"), case)["y"]
    both = whole * scale[:, ::-1]
    product = both @ (value @ (whole * scale) @ near @ kernel[:, :, 0, 0].T) @ both
    np.testing.assert_allclose(result, product, rtol=0, atol=1e-5 * np.abs(product).max())


def test_an_existing_output_is_left_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "kept").write_text("kept")
    with pytest.raises(OutputError, match="is in use"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "kept").read_text() == "kept"


def test_command_line_names_errors_without_a_traceback(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bundle", str(tmp_path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "is not a checkpoint: cannot read model_index.json" in result.output
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(main, ["random", "tiny", str(tmp_path / "tiny")])
    assert result.exit_code == 0
    assert (tmp_path / "tiny" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
