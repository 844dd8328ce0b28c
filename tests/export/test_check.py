"""Layer by layer: the layer that overflows or adds an error is named, and a sound bundle has none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from uid.bundles.declarations import built_in
from uid.bundles.hashes import sha256
from uid.bundles.manifest import read_bundle
from uid.errors import InputError
from uid.export import check_memory, compare_layers
from uid.export.check import check, example_image, in_float32
from uid.export.check_memory import largest_tensor, sizes_at
from uid.export.cli import main
from uid.export.findings import LayerRow, worst_first
from uid.export.layers import HALF, largest_sum, layers_of, save, tensors_of

SIDE = 32
MADE = example_image(None, SIDE)


def changed(source: Path, destination: Path, change: Callable[[ir.Graph], str]) -> tuple[Path, str]:
    """A copy of a bundle whose decoder ``change`` alters, and the name of the tensor that it says it did."""
    shutil.copytree(source, destination)
    path = destination / "decoder.onnx"
    model = ir.load(path)
    tensor = change(model.graph)
    ir.save(model, path)
    manifest = json.loads((destination / "manifest.json").read_text())
    manifest["files"][path.name] = sha256(path)
    (destination / "manifest.json").write_text(json.dumps(manifest))
    return destination, tensor


def scaled(factor: float, number: int) -> Callable[[ir.Graph], str]:
    """Multiply the weights of a convolution that feeds a normalization alone, which hides it from the output."""

    def change(graph: ir.Graph) -> str:
        fits = [node for node in graph if node.op_type == "Conv" and normalized(node.outputs[0])]
        weight = fits[number].inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        array = weight.const_value.numpy()
        weight.const_value = ir.tensor((array * np.float32(factor)).astype(array.dtype), name=weight.name)
        return str(fits[number].outputs[0].name)

    return change


def normalized(value: ir.Value) -> bool:
    """Whether nothing but a GroupNorm reads it: its shape, and its values in groups."""
    readers = {node.op_type: node for node in value.consumers()}
    if set(readers) != {"Reshape", "Shape"}:
        return False
    return [node.op_type for node in readers["Reshape"].outputs[0].consumers()] == ["InstanceNormalization"]


def rows_of(folder: Path, **options: object) -> list[LayerRow]:
    return check(read_bundle(folder), MADE, components=["decoder"], report=lambda _: None, **options)  # type: ignore[arg-type]


def test_a_sound_bundle_is_clean(tiny_bundle: Path, half_bundle: Path) -> None:
    for folder, compared in ((tiny_bundle, False), (half_bundle, True)):
        rows = check(read_bundle(folder), MADE, report=lambda _: None)
        assert {row.component for row in rows} == set(read_bundle(folder).components)
        assert not [row for row in rows if row.wrong]
        assert all((row.difference is not None) == compared for row in rows)


def test_a_bundle_that_is_checked_stays_readable_meanwhile(tiny_bundle: Path, tmp_path: Path) -> None:
    save(ir.load(tiny_bundle / "decoder.onnx"), tiny_bundle, tmp_path / "apart" / "decoder.onnx")
    weights = tiny_bundle / "weights.bin"
    assert (tmp_path / "apart" / "weights.bin").read_bytes() == weights.read_bytes()
    assert weights.stat().st_nlink == 1, "ONNX's readers refuse weights that have two names"


@pytest.mark.long
def test_what_ships_holds_in_half_precision() -> None:
    # Not structure and blur: the cubes in their GELUs overflow, where the tanh after them is 1 either way.
    parts = ("encoder", "step", "step_blur", "decoder")
    rows = check(read_bundle(built_in()), example_image(None, 64), components=parts, report=lambda _: None)
    assert not [row for row in rows if row.wrong]


def test_chunks_of_any_size_see_the_same(half_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [row.record() for row in rows_of(half_bundle)]
    monkeypatch.setattr(compare_layers, "CHUNK_BYTES", 1 << 19)
    parts = [row.record() for row in rows_of(half_bundle)]
    for one, other in zip(whole, parts, strict=True):
        assert one["tensor"] == other["tensor"]
        assert one["largest"] == pytest.approx(other["largest"], rel=1e-4)
        assert one["relative_error"] == pytest.approx(other["relative_error"], abs=1e-3)


def test_the_layer_that_overflows_is_first(tiny_bundle: Path, half_bundle: Path, tmp_path: Path) -> None:
    full, tensor = changed(tiny_bundle, tmp_path / "full", scaled(1e7, 1))
    first = worst_first(rows_of(full))[0]
    assert (first.layer.tensor, first.layer.op, first.findings[0]) == (tensor, "Conv", "overflow")
    assert first.layer.module.startswith("decoder.")
    assert first.values.largest > 65504

    half, tensor = changed(half_bundle, tmp_path / "half", scaled(1e5, 1))
    rows = worst_first(rows_of(half))
    assert (rows[0].layer.tensor, rows[0].findings[:2]) == (tensor, ("jump", "overflow"))
    assert rows[0].difference is not None
    assert rows[0].difference.infinite > 0
    assert not any(row.wrong for row in rows[1:])  # what reads it has the error, and does not add it


@pytest.mark.parametrize("backend", [None, "onnxruntime"])
def test_the_layer_whose_weight_is_wrong_is_where_the_error_jumps(
    half_bundle: Path, tmp_path: Path, backend: str | None
) -> None:
    wrong, tensor = changed(half_bundle, tmp_path / "wrong", scaled(1.2, 2))
    rows = rows_of(wrong, reference=read_bundle(half_bundle), backend=backend)
    assert [row.layer.tensor for row in rows if row.wrong] == [tensor]
    found = worst_first(rows)[0]
    assert found.findings[0] == "jump"
    assert found.difference is not None
    assert found.difference.relative == pytest.approx(0.2, abs=0.1)
    assert found.before < 2e-3


def test_bundles_of_other_precision_are_compared_by_name(tiny_bundle: Path, half_bundle: Path) -> None:
    rows = rows_of(half_bundle, reference=read_bundle(tiny_bundle))
    # the tensors that the exporter named; the others it numbered, by each graph's own count
    assert sum(row.difference is not None for row in rows) > len(rows) / 3
    assert not any(row.wrong for row in rows)


def test_the_sums_of_a_normalisation_and_a_product_are_bounded(tiny_bundle: Path) -> None:
    def node(op: str, count: int, **attributes: int) -> ir.Value:
        values = [ir.Value(name=name) for name in ("a", "b")[:count]]
        return ir.node(op, values, attributes=attributes).outputs[0]

    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((1, 8, 8), dtype=np.float32) for _ in range(2))
    groups = (a.reshape(2, 32).astype(np.float64) ** 2).sum(axis=1).max()
    assert largest_sum(node("GroupNormalization", 1, num_groups=2), {"a": a}) == pytest.approx(groups)
    partial = max(np.abs(np.cumsum(a[0, i] * b[0, :, j])).max() for i in range(8) for j in range(8))
    assert partial <= largest_sum(node("MatMul", 2), {"a": a, "b": b}) <= 8 * np.abs(a).max() * np.abs(b).max()
    assert largest_sum(node("MatMul", 2), {"a": a}) == 0
    assert largest_sum(node("Relu", 1), {"a": a}) == 0


def test_the_exporters_note_names_the_module(half_bundle: Path) -> None:
    graph = ir.load(half_bundle / "decoder.onnx").graph
    for value in tensors_of(graph).values():
        value.type = ir.TensorType(ir.DataType.FLOAT) if value.dtype == HALF else value.type
    node = next(node for node in graph if node.op_type == "Sigmoid")

    def module() -> str:
        return next(layer for layer in layers_of(graph) if layer.node == node.name).module

    noted = module()
    assert ".refiners." in noted or ".decoder." in noted
    assert not noted.startswith("after")
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'decoder', 'decoder.act', 'silu_3']"
    assert module() == "decoder.act"
    del node.metadata_props["pkg.torch.onnx.name_scopes"]
    assert module().startswith("after ")


def test_command_line(half_bundle: Path, tmp_path: Path) -> None:
    wrong, tensor = changed(half_bundle, tmp_path / "wrong", scaled(1e5, 0))
    arguments = ["--component", "decoder", "--size", str(SIDE), "-o", str(tmp_path / "rows.jsonl")]
    for folder, status in ((half_bundle, 0), (wrong, 1)):
        result = CliRunner().invoke(main, ["check", str(folder), *arguments])
        assert result.exit_code == status, result.output
        rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        assert [row["tensor"] for row in rows if "jump" in row["findings"]] == [tensor] * status
    assert "1 overflow in float16" in result.output
    result = CliRunner().invoke(main, ["check", str(half_bundle), "--component", "encode"])
    assert (result.exit_code, "there is no component 'encode'" in result.output) == (1, True)


def test_a_step_that_the_bundle_does_not_take_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="step is 31; expected 1 to 30"):
        check(read_bundle(tiny_bundle), MADE, step=31)


@pytest.mark.long
def test_memory_is_told_before_and_held_against_what_is_free(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle, told = read_bundle(tiny_bundle), list[str]()
    exact = in_float32(bundle, tmp_path / "exact")
    small, middle, large = (largest_tensor(bundle, exact, "step", side, tmp_path / "cut") for side in (16, 64, 256))
    measured = sizes_at(bundle, exact, "step", 64, tmp_path / "cut")
    assert middle == pytest.approx(max(measured.values()), rel=0.1), "extrapolated from smaller sides"
    assert small < middle / 4
    assert large > 16 * middle, "attention grows with the fourth power of the side"
    monkeypatch.setattr(check_memory, "free_memory", lambda: 10 << 30)
    with pytest.raises(InputError, match=r"at 512 x 512 pixels the largest tensor has .* take a smaller size"):
        check(bundle, example_image(None, 512), report=told.append)
    assert "512 x 512 pixels this takes up to " in told[0]
    assert not any(line.startswith("running") for line in told)
