"""Repositories for Triton: their configurations, as Triton's own library reads them, and the model that runs images.

No server is here. Another module stands in for the one that it gives its Python models, and real sessions of the
repository's graphs answer (``triton_python_backend_utils.py``).
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import triton_python_backend_utils as stand_in
from click.testing import CliRunner
from declared import NOISE, ancestral_parts, make_bundle
from toy import MakeToy

from uid.bundles.declarations import built_in
from uid.bundles.manifest import read_bundle
from uid.bundles.tensors import Array
from uid.engines.ort.cpu import OrtBackend
from uid.errors import BundleError, ModelError
from uid.export.cli import main
from uid.export.pbtxt import Word, text_of
from uid.export.triton import Serving, write_repository
from uid.runtime.options import Options
from uid.runtime.pipeline import Pipeline

ERROR = stand_in.TritonError
SESSIONS: dict[Path, dict[str, ort.InferenceSession]] = {}  # of a repository, opened once


def repository_of(bundle: Path, folder: Path, **serving: Any) -> Path:
    read = read_bundle(bundle)
    write_repository(read, folder, Serving(**{"name": read.name, **serving}), None, lambda line: None)
    return folder


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in bundle's repository, as the command writes it."""
    folder = tmp_path_factory.mktemp("triton") / "models"
    done = CliRunner().invoke(main, ["triton", str(built_in()), str(folder)])
    assert done.exit_code == 0, done.output
    return folder


def loaded(repository: Path, name: str, batch: int = 1) -> Any:
    """The model that runs whole images, made as Triton makes it, with a server that has the others."""
    stand_in.server = server = stand_in.Server(repository)
    server.sessions = SESSIONS.setdefault(repository, {})
    spec = importlib.util.spec_from_file_location("model", repository / name / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    config = {"parameters": {"batch": {"string_value": str(batch)}}}
    model.initialize({"model_name": name, "model_version": "1", "model_config": json.dumps(config)})
    return model


def answer(model: Any, images: dict[str, Array], **parameters: Any) -> Array:
    (response,) = model.execute([stand_in.client_request(images, json.dumps(parameters) if parameters else "")])
    assert not response.has_error(), response.error().message()
    (tensor,) = response.output_tensors()
    assert tensor.name() == "output"
    return tensor.as_numpy()


def refused(model: Any, images: dict[str, Array], parameters: str = "") -> tuple[int, str]:
    (response,) = model.execute([stand_in.client_request(images, parameters)])
    return response.error().code(), response.error().message()


def own_result(bundle: Path, image: Array, options: Options, **extra: Array) -> Array:
    """The project's own, by graphs that are not packed for its cache: as Triton opens them."""
    backend = OrtBackend(1)
    backend.caches = False
    return Pipeline(read_bundle(bundle), backend)(image, options, **extra).image


def photo(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# -- configurations ---------------------------------------------------------------------------------------------------


def parsed(repository: Path, name: str) -> Any:
    """A model's configuration, read by Triton's own library."""
    protobuf = pytest.importorskip("tritonclient.grpc.model_config_pb2", exc_type=(ImportError, RuntimeError))
    from google.protobuf import text_format

    text = (repository / name / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, protobuf.ModelConfig())


def types_of(config: Any, side: str) -> dict[str, tuple[int, list[int]]]:
    return {one.name: (one.data_type, list(one.dims)) for one in getattr(config, side)}


TRITON_TYPES = {"tensor(uint8)": 2, "tensor(int64)": 9, "tensor(float16)": 10, "tensor(float)": 11}


def test_every_configuration_is_that_of_its_graph(edge: Path) -> None:
    bundle, as_it_is = read_bundle(built_in()), ort.SessionOptions()
    as_it_is.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = {f"edge_{name}" for name in bundle.components}
    assert {path.name for path in edge.iterdir()} == names | {"edge"}
    for name in names:
        config = parsed(edge, name)
        assert (config.name, config.backend, config.max_batch_size) == (name, "onnxruntime", 0)
        session = ort.InferenceSession(edge / name / "1" / "model.onnx", as_it_is, providers=["CPUExecutionProvider"])
        for side, nodes in (("input", session.get_inputs()), ("output", session.get_outputs())):
            own = {
                node.name: (TRITON_TYPES[node.type], [size if isinstance(size, int) else -1 for size in node.shape])
                for node in nodes
            }
            assert types_of(config, side) == own
        (group,), (warm_up,) = config.instance_group, config.model_warmup
        assert (group.count, group.kind, warm_up.batch_size) == (1, group.KIND_CPU, 1)
        for one, (kind, dims) in types_of(config, "input").items():
            given = warm_up.inputs[one]
            assert (given.data_type, given.zero_data) == (kind, True)
            assert all(want in (-1, got) and got > 0 for want, got in zip(dims, given.dims, strict=True))
        assert not config.HasField("dynamic_batching")  # or images that were accepted would be refused half done


def test_the_model_of_whole_images_has_the_queue(edge: Path, make_toy: MakeToy, tmp_path: Path) -> None:
    config = parsed(edge, "edge")
    assert (config.backend, config.max_batch_size, config.instance_group[0].count) == ("python", 0, 1)
    assert types_of(config, "input") == {"image": (2, [-1, -1, 3]), "blur_image": (2, [-1, -1, 3])}
    assert [one.optional for one in config.input] == [False, True]
    assert types_of(config, "output") == {"output": (2, [-1, -1, 3])}
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (32, 300_000_000)
    assert (policy.timeout_action, config.parameters["batch"].string_value) == (policy.REJECT, "1")

    own = tmp_path / "gpu"
    words = ["--name", "b", "--backend", "onnxruntime-cuda", "--instances", "3", "--queue", "5", "--timeout", "1.5"]
    done = CliRunner().invoke(main, ["triton", str(make_toy()), str(own), *words])
    assert done.exit_code == 0, done.output
    config, step = parsed(own, "b"), parsed(own, "b_step")
    assert (config.instance_group[0].count, config.parameters["batch"].string_value) == (3, "8")
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (5, 1_500_000)
    (cuda,) = step.optimization.execution_accelerators.gpu_execution_accelerator
    assert (step.instance_group[0].kind, cuda.name, dict(cuda.parameters)) == (1, "cuda", {"use_tf32": "0"})


def test_an_engine_has_its_profiles_and_is_written_as_it_is(tmp_path: Path) -> None:
    serving = Serving("e", "tensorrt", profiles=2)
    plan = lambda component, path: path.write_text(f"engine of {component.name}")  # noqa: E731
    write_repository(read_bundle(built_in()), tmp_path / "models", serving, plan, lambda line: None)
    assert (tmp_path / "models/e_blur/1/model.plan").read_text() == "engine of blur"
    assert not list(tmp_path.rglob("*.onnx"))
    config = parsed(tmp_path / "models", "e_blur")
    assert (config.backend, list(config.instance_group[0].profile)) == ("tensorrt", ["0", "1"])


def test_text_keeps_what_protobuf_would_take_for_its_own() -> None:
    assert text_of({"a": 'x"\\\n', "b": Word("W"), "c": True, "d": [1, -1], "e": [{"f": []}]}) == (
        'a: "x\\"\\\\\\n"\nb: W\nc: true\nd: [1, -1]\ne {\n  f: []\n}\n'
    )


# -- graphs -----------------------------------------------------------------------------------------------------------


def test_a_model_has_the_weights_that_it_reads_and_no_others(edge: Path) -> None:
    whole = (built_in() / "weights.bin").stat().st_size
    for folder in edge.glob("edge_*/1"):
        graph = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        (place,) = {
            entry.value for one in graph.graph.initializer for entry in one.external_data if entry.key == "location"
        }
        assert place == "weights.bin"
        assert {path.name for path in folder.iterdir()} == {"model.onnx", "weights.bin"}
        assert (folder / place).stat().st_size < whole / 2
    step = onnx.load(str(edge / "edge_step/1/model.onnx"), load_external_data=False)
    assert "MultiHeadAttention" in {node.op_type for node in step.graph.node}  # the variant for ONNX Runtime


def test_a_graph_that_is_not_as_declared_is_refused(make_toy: MakeToy, tmp_path: Path) -> None:
    bundle = make_toy(guided=True)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["components"]["guide"]["outputs"][0]["shape"] = [2]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="'guide' declares"):
        repository_of(bundle, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    for words, told in (
        (["--name", "a/b"], "the name is 'a/b'"),
        (["--profile", "512"], "the backend is onnxruntime"),
    ):
        done = CliRunner().invoke(main, ["triton", str(built_in()), str(tmp_path / "models"), *words])
        assert done.exit_code == 1
        assert told in done.output
    assert not (tmp_path / "models").exists()


# -- images -----------------------------------------------------------------------------------------------------------


def test_an_image_is_the_projects_own(edge: Path) -> None:
    model, image = loaded(edge, "edge"), photo(64, 90)
    for parameters in ({}, {"preset": "fast", "seed": 3, "strength": 0.5}):
        own = own_result(built_in(), image, Options(**parameters))
        assert np.array_equal(answer(model, {"image": image}, **parameters), own)


def test_further_images_are_given_as_tensors(edge: Path) -> None:
    model, image, blurred = loaded(edge, "edge"), photo(64, 64), photo(50, 70, seed=1)
    sharp = answer(model, {"image": image, "blur_image": blurred}, mode="blur-transfer")
    assert np.array_equal(sharp, own_result(built_in(), image, Options("blur-transfer"), blur_image=blurred))


def test_loops_guidance_and_noise_are_the_plans(make_toy: MakeToy, tmp_path: Path) -> None:
    ancestral = make_bundle(tmp_path / "ddpm", ancestral_parts(), {"noise": NOISE})
    image = photo(24, 40)
    for name, bundle, guidance in (("toy", make_toy(guided=True, shift=0.01), 3.0), ("ddpm", ancestral, 1.0)):
        model = loaded(repository_of(bundle, tmp_path / f"models-{name}", name=name), name)
        options: dict[str, Any] = {"steps": 4, "guidance": guidance, "seed": 7}
        assert np.array_equal(answer(model, {"image": image}, **options), own_result(bundle, image, Options(**options)))


@pytest.fixture
def toy(make_toy: MakeToy, tmp_path: Path) -> tuple[Path, Path]:
    """A bundle of few nodes, and its repository."""
    bundle = make_toy(tile=32)
    return bundle, repository_of(bundle, tmp_path / "models", name="toy")


@pytest.mark.parametrize("batch", [1, 8])
def test_tiles_and_transforms_run_together_where_that_is_configured(toy: tuple[Path, Path], batch: int) -> None:
    bundle, repository = toy
    model, image = loaded(repository, "toy", batch), photo(16, 16)
    sharp = answer(model, {"image": image}, steps=2, transforms=8)
    assert np.array_equal(sharp, own_result(bundle, image, Options(steps=2, transforms=8)))
    most = max(shapes["image"][0] for name, shapes in stand_in.server.requests if name == "toy_encode")
    assert most == (1 if batch == 1 else 4)  # as many as have room in a tile


def test_errors_are_told_and_leave_the_next_request_alone(toy: tuple[Path, Path]) -> None:
    model, image = loaded(toy[1], "toy"), photo(16, 16)
    good = answer(model, {"image": image})
    for parameters, told in (
        ('{"stepz": 3}', "there is no option 'stepz'"),
        ('{"format": "png"}', "there is no option 'format'"),
        ('{"steps": "many"}', "not a valid integer"),
        ('{"preset": "best"}', "preset"),
        ('{"mode": "blur-transfer"}', "mode"),
    ):
        code, message = refused(model, {"image": image}, parameters)
        assert code == ERROR.INVALID_ARG
        assert told in message
    decoder = stand_in.server.models.pop("toy_decode")
    code, message = refused(model, {"image": image})
    assert code == ERROR.INTERNAL
    assert "'toy_decode' failed: Request for unknown model" in message
    stand_in.server.models["toy_decode"] = decoder
    assert np.array_equal(answer(model, {"image": image}), good)


def test_where_memory_runs_out_tiles_get_smaller(toy: tuple[Path, Path]) -> None:
    model, image = loaded(toy[1], "toy"), photo(32, 32)
    stand_in.server.largest_side = 16
    code, message = refused(model, {"image": image})
    assert code == ERROR.INTERNAL
    assert "no memory" in message
    assert answer(model, {"image": image}, tile="auto").shape == image.shape


def test_nobody_computes_for_a_client_that_has_left(toy: tuple[Path, Path]) -> None:
    model = loaded(toy[1], "toy")
    request = stand_in.client_request({"image": photo(16, 16)}, '{"steps": 9}')
    request.steps_until_cancelled = 2
    (response,) = model.execute([request])
    assert response.error().code() == ERROR.CANCELLED
    assert [name for name, _ in stand_in.server.requests].count("toy_step") == 2


def test_a_manifest_without_graphs_is_for_who_has_no_use_for_them(edge: Path) -> None:
    assert read_bundle(edge / "edge" / "1", graphs=False).digest == read_bundle(built_in()).digest
    with pytest.raises(BundleError):
        read_bundle(edge / "edge" / "1")
