"""A graph may refer to nothing but listed files of its bundle, and no library sees one that does."""

import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from uid.bundles.hashes import sha256
from uid.bundles.manifest import read_bundle
from uid.bundles.onnx_data import External, external_data
from uid.bundles.sources import check_graph, private_copy
from uid.errors import BundleError, OutputError
from uid.runtime.pipeline import load

MakeToy = Callable[..., Path]
BACKENDS = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
HALF = np.array([0.5], np.float32).tobytes()
SOUND = {"location": "weights.bin", "offset": "8", "length": "4"}
BAD = {
    "address": ({"location": "*/_ORT_MEM_ADDR_/*", "offset": "4096"}, "reserved name _ORT_MEM_ADDR_"),
    "upwards": ({"location": "../weights.bin"}, "no plain name"),
    "absolute": ({"location": "/etc/passwd"}, "no plain name"),
    "drive": ({"location": "C:\\\\weights.bin"}, "no plain name"),
    "pattern": ({"location": "*"}, "no plain name"),
    "codes": ({"location": "\x1b[31mred"}, "no plain name"),
    "nothing": ({"location": ""}, "no plain name"),
    "not listed": ({"location": "others.bin"}, "lists no sha256"),
    "itself": ({"location": "step.onnx", "offset": "0"}, "refers to itself"),
    "negative offset": ({"offset": "-4"}, "expected offset and length"),
    "huge offset": ({"offset": "999999999999999999"}, "refers to bytes up to 1000000000000000003"),
    "beyond the end": ({"offset": "13"}, "refers to bytes up to 17 of weights.bin, which has 16"),
    "a number of another kind": ({"offset": "0x8"}, "expected offset and length"),
    "too long": ({"length": "8"}, "refers to 8 bytes of weights.bin for a tensor of 4"),
    "too short": ({"length": "0"}, "refers to 0 bytes"),
}


def external(changes: dict[str, str] | None = None, dims: tuple[int, ...] = ()) -> onnx.TensorProto:
    """A tensor with its values in a file."""
    tensor = TensorProto(name="half", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (SOUND | (changes or {})).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def in_initializers(tensor: onnx.TensorProto, model: onnx.ModelProto) -> None:
    model.graph.initializer.append(tensor)


def in_attribute(tensor: onnx.TensorProto, model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["own"], value=tensor))


def in_list(tensor: onnx.TensorProto, model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Constant", output=["own"])
    node.attribute.add(name="values", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)


def in_sparse_tensor(tensor: onnx.TensorProto, model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add(dims=[1]).indices.CopyFrom(tensor)


def in_sparse_attribute(tensor: onnx.TensorProto, model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Constant", output=["own"])
    node.attribute.add(name="sparse_value").sparse_tensor.values.CopyFrom(tensor)


def in_subgraph(tensor: onnx.TensorProto, model: onnx.ModelProto) -> None:
    inner = onnx.GraphProto(name="inner", initializer=[tensor])
    middle = onnx.GraphProto(name="middle", node=[helper.make_node("If", ["x"], ["y"], then_branch=inner)])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], else_branch=middle))


def in_function(tensor: onnx.TensorProto, model: onnx.ModelProto) -> None:
    model.functions.add(name="f").node.append(helper.make_node("Constant", [], ["own"], value=tensor))


def in_default(tensor: onnx.TensorProto, model: onnx.ModelProto) -> None:
    model.functions.add(name="f").attribute_proto.append(helper.make_attribute("value", tensor))


def in_training(tensor: onnx.TensorProto, model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.initializer.append(tensor)


PLACES = [in_initializers, in_attribute, in_list, in_sparse_tensor, in_sparse_attribute, in_subgraph]
PLACES += [in_function, in_default, in_training]


def with_external(folder: Path, changes: dict[str, str], *listed: str) -> Path:
    """The toy bundle with one number of its step in ``weights.bin``; only files of ``listed`` are."""
    model = onnx.load(folder / "step.onnx")
    half = next(one for one in model.graph.initializer if one.name == "half")
    half.CopyFrom(external(changes))
    (folder / "weights.bin").write_bytes(HALF * 4)
    (folder / "others.bin").write_bytes(HALF * 4)
    onnx.save(model, folder / "step.onnx")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"].update({name: sha256(folder / name) for name in ("step.onnx", *listed)})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def image() -> Any:
    return np.random.default_rng(0).random((16, 24, 3), dtype=np.float32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("place", PLACES)
def test_every_place_of_a_graph_is_looked_at(place: Callable[[onnx.TensorProto, onnx.ModelProto], None]) -> None:
    for tensor in (external(), external({"location": "sub/weights.bin"})):
        model = onnx.ModelProto(ir_version=8)
        place(tensor, model)
        location = next(one.value for one in tensor.external_data if one.key == "location")
        assert external_data(model.SerializeToString(), "g") == [External(location, 8, 4)]
        for change, message in (BAD["upwards"], BAD["address"], BAD["too long"]):
            model = onnx.ModelProto(ir_version=8)
            place(external(change), model)
            with pytest.raises(BundleError, match=message):
                external_data(model.SerializeToString(), "g")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", BAD)
def test_no_library_sees_a_graph_with_a_bad_reference(make_toy: MakeToy, kind: str, backend: str) -> None:
    changes, message = BAD[kind]
    folder = with_external(make_toy(), changes, "weights.bin")
    with pytest.raises(BundleError, match=message) as caught:
        load(folder, backend=backend)(image())
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sound_reference_runs_as_the_same_number_in_the_graph(make_toy: MakeToy, backend: str) -> None:
    expected = load(make_toy(), backend=backend)(image()).image
    folder = with_external(make_toy(), {}, "weights.bin")
    np.testing.assert_array_equal(load(folder, backend=backend)(image()).image, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("swapped", ["weights.bin", "step.onnx", "encode.onnx"])
def test_a_file_that_is_swapped_after_the_check_is_not_used(make_toy: MakeToy, swapped: str, backend: str) -> None:
    """Nor is what it makes stored for the sound bundle."""
    folder = with_external(make_toy(), {}, "weights.bin")
    sound, other = (folder / swapped).read_bytes(), with_external(make_toy(), {}) / swapped
    model = onnx.load(folder / swapped) if swapped.endswith("onnx") else None
    if model is None:
        other.write_bytes(bytes(16))
    else:
        model.producer_name = "somebody else"
        onnx.save(model, other)
    pipeline = load(folder, backend=backend)
    (folder / swapped).write_bytes(other.read_bytes())
    with pytest.raises(BundleError, match=f"{swapped} was altered"):
        pipeline(image())
    (folder / swapped).write_bytes(sound)
    np.testing.assert_array_equal(pipeline(image()).image, load(make_toy(), backend=backend)(image()).image)


def test_a_copy_holds_what_the_graph_refers_to_and_goes_away(make_toy: MakeToy) -> None:
    folder = with_external(make_toy(), {}, "weights.bin")
    with private_copy(read_bundle(folder), "step.onnx") as path:
        assert path.parent.stat().st_mode & 0o777 == 0o700 or importlib.util.find_spec("msvcrt")
        assert (path.parent / "weights.bin").read_bytes() == HALF * 4
        assert {one.name for one in path.parent.iterdir()} == {"step.onnx", "weights.bin"}
    assert not path.parent.exists()


def test_a_system_where_no_copy_can_be_written_says_so(make_toy: MakeToy, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read_bundle(make_toy())
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    told = r"cannot copy step.onnx to a temporary folder: No usable .* in \$TMPDIR"
    with pytest.raises(OutputError, match=told), private_copy(bundle, "step.onnx"):
        pass


def test_parts_of_a_large_file_are_at_their_places_in_its_copy(make_toy: MakeToy) -> None:
    folder = with_external(make_toy(), {"offset": str(3 << 20)}, "weights.bin")
    data = np.random.default_rng(0).bytes(5 << 20)
    (folder / "weights.bin").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["weights.bin"] = sha256(folder / "weights.bin")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with private_copy(read_bundle(folder), "step.onnx") as path:
        copy = (path.parent / "weights.bin").read_bytes()
    assert len(copy) == len(data)
    assert copy[3 << 20 : 4 << 20] == data[3 << 20 : 4 << 20]
    assert copy[: 3 << 20] == bytes(3 << 20)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<net name='x'/>", "does not begin as an ONNX file"),
        (b"", "does not begin as an ONNX file"),
        (b"\x08\x08\x3a\x7f", "it is cut off"),
        (b"\x08\x08\x3c", "wire type 4"),
        (b"\x08\x08\x38\x01", "field 7 of a model has wire type 0"),
        (b"\x08\x08\x3a\x00\x3a\x00", "a model has its field 7 twice"),
        (b"\x08" + b"\xff" * 10, "more than 64 bits"),
        (b"\x08\x08\x3a", "cannot load"),
        (b"\x08\x08" + b"\x3a\x06\x2a\x04\x08\x05\x10\x63", "data type 99"),
        (b"\x08\x08" + b"\x3a\x09\x2a\x07\x08\x05\x10\x01\x4a\x01\x00", "a tensor of 20 bytes has 1"),
    ],
)
def test_what_no_exporter_writes_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=message):
        check_graph(tmp_path / "g.onnx")


def test_an_entry_that_is_there_twice_is_refused() -> None:
    tensor = external()
    tensor.external_data.add(key="location", value="other.bin")
    model = onnx.ModelProto(ir_version=8)
    in_initializers(tensor, model)
    with pytest.raises(BundleError, match="the 'location' of its external data twice"):
        external_data(model.SerializeToString(), "g")


def test_graphs_inside_graphs_end_somewhere() -> None:
    graph = onnx.GraphProto(name="inner")
    for _ in range(25):
        graph = onnx.GraphProto(name="g", node=[helper.make_node("If", ["x"], ["y"], then_branch=graph)])
    with pytest.raises(BundleError, match="nested deeper than 64"):
        external_data(onnx.ModelProto(ir_version=8, graph=graph).SerializeToString(), "g")
