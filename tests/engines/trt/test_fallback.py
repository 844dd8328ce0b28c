"""Engines built instead where TensorRT-RTX fails at a range of sizes: the real library, on graphs that it fails at."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from uid.bundles.declarations import Bundle, Component, built_in
from uid.bundles.hashes import sha256
from uid.bundles.manifest import read_bundle
from uid.bundles.tensors import TensorSpec
from uid.engines.trt.backend import engine_path
from uid.engines.trt.build import NotBuiltError
from uid.engines.trt.cache import check, engine_for
from uid.engines.trt.library import Library
from uid.engines.trt.profiles import NAMED, Profile, Range, Target, fallbacks, parse_profile
from uid.engines.trt.sidecar import read_sidecar
from uid.errors import BackendError

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds engines without a GPU")

ANY = Target.ahead()  # for no compute capability by name, which is where ranges fail
CHANNELS = {"x": 32, "y": 64}
GROUPS = 16


@pytest.fixture(scope="module")
def edge() -> Bundle:
    return read_bundle(built_in())


def group_norms() -> onnx.GraphProto:
    """The part of ``edge``'s step that fails, as small as it goes: GroupNorms before and after a U-Net's skip."""
    nodes, parameters = list[onnx.NodeProto](), list[onnx.TensorProto]()

    def constant(name: str, value: object) -> str:
        parameters.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(kind: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"t{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    ones, zeros = constant("ones", np.ones(GROUPS, np.float32)), constant("zeros", np.zeros(GROUPS, np.float32))
    groups, twice = constant("groups", [0, GROUPS, -1]), constant("twice", np.float32([1, 1, 2, 2]))
    scale, weight = constant("scale", np.full((1, 1, 1), 2, np.float32)), np.ones((32, 96, 1, 1), np.float32)

    def group_norm(x: str) -> str:
        normal = add("InstanceNormalization", add("Reshape", x, groups), ones, zeros)
        return add("Mul", add("Reshape", normal, add("Shape", x)), scale)

    skip, below = group_norm(group_norm("x")), add("Resize", "y", "", twice, mode="nearest")
    joined = group_norm(add("Concat", below, skip, axis=1))
    group_norm(add("Conv", joined, constant("weight", weight)))
    return graph_of(nodes, parameters, {name: [1, CHANNELS[name], f"{name}0", f"{name}1"] for name in CHANNELS})


def contradiction() -> onnx.GraphProto:
    """X plus a constant, whose shape needs an image of 8000 pixels in height."""
    constant = numpy_helper.from_array(np.ones((1, 1, 1000, 1), np.float32), "constant")
    return graph_of([helper.make_node("Add", ["x", "constant"], ["t0"])], [constant], {"x": [1, 32, "x0", "x1"]})


def product_of_matrices() -> onnx.GraphProto:
    """A graph that cannot be built for compute capability 7.5."""
    square = helper.make_node("MatMul", ["x", "transposed"], ["t0"])
    return graph_of(
        [helper.make_node("Transpose", ["x"], ["transposed"], perm=[0, 1, 3, 2]), square],
        [],
        {"x": [1, 32, "x0", "x1"]},
    )


def graph_of(
    nodes: list[onnx.NodeProto], parameters: list[onnx.TensorProto], inputs: dict[str, list[int | str]]
) -> onnx.GraphProto:
    float32 = TensorProto.FLOAT
    read = [helper.make_tensor_value_info(name, float32, shape) for name, shape in inputs.items()]
    written = [helper.make_tensor_value_info(nodes[-1].output[0], float32, None)]
    return helper.make_graph(nodes, "part", read, written, parameters)


@pytest.fixture
def bundle_of(edge: Bundle, tmp_path: Path) -> Callable[[onnx.GraphProto], Bundle]:
    """A bundle whose one component is a graph; x is an eighth of the image's size, y a sixteenth."""

    def bundle_of(graph: onnx.GraphProto) -> Bundle:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, tmp_path / "part.onnx")
        files = {"part.onnx": sha256(tmp_path / "part.onnx")}
        shapes = {"x": (1, 32, "height/8", "width/8"), "y": (1, 64, "height/16", "width/16")}
        inputs = tuple(TensorSpec(each.name, np.dtype(np.float32), shapes[each.name]) for each in graph.input)
        part = Component("part", "part.onnx", "step", inputs, ())
        digest = hashlib.sha256(str(tmp_path).encode()).hexdigest()  # a place of its own for its engines
        return replace(edge, digest=digest, folder=tmp_path, components={"part": part}, files=files)

    return bundle_of


def profiles_of(engine: Path) -> list[Profile]:
    """The profiles of an engine, as its sidecar has them."""
    return [Profile.from_record(entry) for entry in read_sidecar(engine).key["profiles"]]


def covers(built: Profile, asked: Profile) -> bool:
    ends = [(getattr(asked.height, end), getattr(asked.width, end)) for end in ("minimum", "optimum", "maximum")]
    return all(built.covers(*size) for size in ends)


def built_instead(engine: Path, asked: Profile, lines: list[str]) -> Profile:
    """The profile an engine was built for; checks that the lines name each fallback up to it. Skips if it is ``asked``.

    The library fails at random, so now and then it builds the asked range.
    """
    (built,) = profiles_of(engine)
    if built == asked:
        pytest.skip("this time, or in this release, the library builds this range")
    tried = [profile for (profile,) in fallbacks([asked])]
    reason = r"(std::bad_alloc|crashed \(SIG).*; building instead for (.*) \(for one compute "
    told = [match[2] for match in (re.search(reason, line) for line in lines) if match]  # other lines report progress
    assert told == [str(profile) for profile in tried[: tried.index(built) + 1]]
    return built


@pytest.mark.parametrize("name", ["256", "512"])
def test_a_range_that_fails_is_built_as_another_one_and_then_reused(
    name: str, bundle_of: Callable[[onnx.GraphProto], Bundle], library: Library
) -> None:
    bundle, asked, lines = bundle_of(group_norms()), parse_profile(name), list[str]()
    part = bundle.components["part"]
    engine = engine_for(bundle, part, library, ANY, [asked], report=lines.append)
    assert check(engine) == (True, "")
    built = built_instead(engine, asked, lines)
    assert covers(built, asked)
    assert built.height.optimum == asked.height.optimum
    assert engine_for(bundle, part, library, ANY, [asked], report=lines.append) == engine
    assert lines[-1] == f"part: reusing {engine}"
    assert len(list(engine.parent.glob("*.engine"))) == 1


def test_the_optimum_alone_is_built_where_no_range_builds(
    bundle_of: Callable[[onnx.GraphProto], Bundle], library: Library
) -> None:
    bundle, lines = bundle_of(group_norms()), list[str]()
    part, asked = bundle.components["part"], Profile("small", Range(128, 192, 192), Range(128, 192, 192))
    # An engine of that size alone must not pass for the fallback of a range that was never tried.
    engine_for(bundle, part, library, ANY, [parse_profile("192x192")], report=lambda line: None)
    engine = engine_for(bundle, part, library, ANY, [asked], report=lines.append)
    if covers(built_instead(engine, asked, lines), asked):
        pytest.skip("this time a range was built")
    assert profiles_of(engine) == [asked.single()]
    assert engine_for(bundle, part, library, ANY, [asked], report=lines.append) == engine
    assert lines[-1].startswith("part: reusing")


def test_the_first_failure_is_raised_where_nothing_builds(
    bundle_of: Callable[[onnx.GraphProto], Bundle], library: Library
) -> None:
    bundle, lines, turing = bundle_of(product_of_matrices()), list[str](), Target.ahead(["7.5"])
    part = bundle.components["part"]
    with pytest.raises(NotBuiltError, match="FP32 GEMM is not supported") as failure:
        engine_for(bundle, part, library, turing, [parse_profile("256")], report=lines.append)
    told = [line for line in lines if "building instead for" in line]
    assert len(told) == len(fallbacks([parse_profile("256")]))
    assert str(failure.value) in told[0]
    lines.clear()
    with pytest.raises(NotBuiltError):
        engine_for(bundle, part, library, turing, [parse_profile("256x256")], report=lines.append)
    assert not any("instead" in line for line in lines)
    assert not list(bundle.folder.rglob("*.engine"))


def test_no_fallback_is_built_for_sizes_that_a_graph_cannot_have(
    bundle_of: Callable[[onnx.GraphProto], Bundle], library: Library
) -> None:
    bundle, lines = bundle_of(contradiction()), list[str]()
    part = bundle.components["part"]
    with pytest.raises(BackendError, match=r"cannot build part\.onnx .* dimensions not compatible") as error:
        engine_for(bundle, part, library, ANY, [parse_profile("256")], report=lines.append)
    assert not isinstance(error.value, NotBuiltError)
    assert len(lines) == 1


def test_a_wider_engine_is_used_at_the_asked_sizes(
    bundle_of: Callable[[onnx.GraphProto], Bundle], library: Library
) -> None:
    bundle, asked = bundle_of(group_norms()), parse_profile("512")
    part = bundle.components["part"]
    engine = engine_for(bundle, part, library, ANY, [asked], report=lambda line: None)

    def unexpected(line: str) -> None:
        raise AssertionError(line)

    for height, width in ((256, 256), (512, 320), (512, 512)):
        path, profiles, _ = engine_path(bundle, part, library, ANY, {"height": height, "width": width}, unexpected)
        assert (path, list(profiles)) == (engine, profiles_of(engine))


PROFILES = ("256", "512", "1024", *NAMED)
COMPONENTS = ("structure", "blur", "encoder", "step", "step_blur", "decoder")
SLOW = [
    pytest.param(*case, marks=pytest.mark.slow) for case in product(PROFILES, COMPONENTS) if case != ("512", "step")
]


def test_every_component_of_edge_is_tested(edge: Bundle) -> None:
    assert set(COMPONENTS) == set(edge.components)


@pytest.mark.long
@pytest.mark.parametrize(("name", "component"), [("512", "step"), *SLOW])
def test_every_profile_of_edge_is_covered(
    name: str, component: str, edge: Bundle, library: Library, tmp_path: Path
) -> None:
    asked, part = parse_profile(name).rounded(edge.size_multiple), edge.components[component]
    engine = engine_for(edge, part, library, ANY, [asked], folder=tmp_path)
    assert check(engine) == (True, "")
    (built,) = profiles_of(engine)
    assert covers(built, asked)
    assert built in {asked, *(profile for (profile,) in fallbacks([asked]))}
