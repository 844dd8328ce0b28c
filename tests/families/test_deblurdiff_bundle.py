"""A DeblurDiff bundle in ONNX Runtime gives the numbers of the original code. The export takes minutes."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
from safetensors.numpy import save_file  # noqa: E402  (torch is there)
from safetensors.torch import load_file  # noqa: E402

from uid.bundles.hashes import sha256  # noqa: E402
from uid.bundles.manifest import read_bundle, read_manifest, save_manifest  # noqa: E402
from uid.export.bundle import write  # noqa: E402
from uid.families.deblurdiff import checkpoint  # noqa: E402
from uid.families.deblurdiff.components import MODES  # noqa: E402
from uid.families.deblurdiff.configs import CONFIGS, SCHEDULE, text_encoder  # noqa: E402
from uid.families.deblurdiff.family import DeblurDiffModel, index_of  # noqa: E402
from uid.runtime import Options, Pipeline, load  # noqa: E402
from uid.runtime.schedule import coefficients  # noqa: E402

FIXTURE = Path(__file__).with_name("deblurdiff_fixture")
TOLERANCE = 1e-3  # of the largest value

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture's model as a bundle, with prompts that the tests replace."""
    config = CONFIGS["deblurdiff-tiny"]
    CONFIGS["fixture"] = type(config)(**{**vars(config), "text_encoder": text_encoder(512, 32, 4, 3), "min_side": 64})
    weights = {key: tensor.float() for key, tensor in load_file(FIXTURE / "weights.safetensors").items()}
    network = checkpoint.loaded(CONFIGS["fixture"], weights, "the fixture")
    network.run_in_windows()
    network.text_encoder.config.hidden_size = 64  # of the context, which the cases hold
    index = index_of("fixture", trained=False) | {"modes": list(MODES)}
    model = DeblurDiffModel(network, index, torch.zeros(2, 77, 64))
    folder = tmp_path_factory.mktemp("deblurdiff") / "bundle"
    folder.mkdir()
    write(model, folder, "fp32", False, print)
    return folder


def with_prompts(folder: Path, negative: np.ndarray, positive: np.ndarray) -> Pipeline:
    """The bundle with these contexts."""
    save_file({"prompt.deblur": np.concatenate([negative, positive])}, folder / "constants.safetensors")
    manifest = read_manifest(folder)
    manifest["files"]["constants.safetensors"] = sha256(folder / "constants.safetensors")
    save_manifest(folder, manifest)
    return load(folder, backend="onnxruntime")


def noise_of(known: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """What the case drew, by the names of a bundle's noise; tiles take the mean of the image's latent."""
    names = {
        "posterior_noise": "posterior_noise",
        "posterior_noise_neg": "posterior_noise_negative",
        "better_start_posterior_noise": "start_posterior_noise",
        "better_start_q_noise": "start_noise",
        "step_noise": "step_noise",
        "x_T": "latent",
    }
    yield from ((name, known[key]) for key, name in names.items() if key in known)
    if "posterior_noise" in known and "posterior_noise_neg" not in known:  # read, and of no effect without guidance
        yield "posterior_noise_negative", known["posterior_noise"]


def near(got: np.ndarray, expected: np.ndarray) -> bool:
    return got.shape == expected.shape and bool(np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "mode", "guidance"),
    [
        ("small", "deblur", 1.0),
        ("window", "deblur", 1.0),
        ("tiled", "deblur-tiled", 1.0),
        ("cfg", "deblur-better-start", 2.5),
    ],
)
def test_images_are_those_of_the_original(bundle: Path, name: str, mode: str, guidance: float) -> None:
    known = dict(np.load(FIXTURE / f"case_{name}.npz"))
    pipeline = with_prompts(bundle, known.get("context_neg", known["context"]), known["context"])
    options = Options(mode=mode, steps=len(known["timesteps"]), guidance=guidance)
    result = pipeline(known["lq_u8"], options, noise=dict(noise_of(known)))
    (plan,) = pipeline._plans.cached.values()
    assert near(plan.result.read(), known["latent_final"])
    assert near(plan.buffers["c_img"].read(), known["c_img"])
    assert np.mean(result.image != known["image_u8"]) < 2e-3
    assert result.tiles == 1, "of the runtime, which blends images"
    height, width = known["lq_u8"].shape[:2]
    cropped = 2 * plan.buffers["output"].read()[:, :, :height, :width] - 1
    for key, stride in (("decoded", 1), ("decoded_cropped", 1), ("decoded_cropped_stride2", 2)):
        assert key not in known or near(cropped[:, :, ::stride, ::stride], known[key])


def opened(folder: Path, tmp_path: Path) -> tuple[onnxruntime.InferenceSession, dict[str, str]]:
    """The step without guidance whose graph also gives its parts' results; their names by the fixture's."""
    graph = onnx.load(folder / "step_unguided.onnx", load_external_data=False)
    by_weight = {name: node for node in graph.graph.node for name in node.input if name.endswith(".weight")}
    by_output = {name: node for node in graph.graph.node for name in node.output}
    networks = "model.denoiser."
    names = {
        "kernel": by_weight[f"{networks}kernel_network.conv_out.weight"].output[0],
        "lkpn": by_output[by_weight[f"{networks}control_net.conv_in.weight"].input[0]].input[2],
        "eps": by_weight[f"{networks}unet.conv_out.weight"].output[0],
        "control_12": by_weight[f"{networks}control_net.middle_output.weight"].output[0],
    }
    for number in range(12):
        names[f"control_{number:02}"] = by_weight[f"{networks}control_net.outputs.{number}.weight"].output[0]
    graph.graph.output.extend(
        onnx.helper.make_tensor_value_info(one, onnx.TensorProto.FLOAT, None) for one in names.values()
    )
    os.link(folder / "weights.bin", tmp_path / "weights.bin")
    onnx.save(graph, tmp_path / "step.onnx")
    return onnxruntime.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"]), names


def test_every_network_of_every_step(bundle: Path, tmp_path: Path) -> None:
    session, names = opened(bundle, tmp_path)
    for case in ("small", "window"):
        known = dict(np.load(FIXTURE / f"case_{case}.npz"))
        for i, row in enumerate(coefficients(SCHEDULE, len(known["timesteps"]))):
            given = {name: np.array([value], np.float32) for name, value in row}
            given |= {"latent": known["x_t"][i : i + 1], "c_img": known["c_img"], "step_noise": known["step_noise"][i]}
            given["prompt"] = np.concatenate([known["context"]] * 2)
            got = dict(zip(names, session.run(list(names.values()), given), strict=True))
            assert near(got["eps"], known["eps"][i : i + 1])
            assert near(got["lkpn"], known["lkpn"][i : i + 1])
            assert i or case == "window" or near(got["kernel"], known["kernel_step0"])
            for number in range(13):
                expected = known.get(f"control_step{i}_{number:02}")
                assert expected is None or near(got[f"control_{number:02}"], expected)


def test_the_manifest_says_what_is_special(bundle: Path) -> None:
    found = read_bundle(bundle)
    mode = found.modes["deblur"]
    assert (found.padding, found.rounding, mode.colour_fix) == ("zeros", "down", "adain")
    assert [(one.spec.name, one.draw) for one in mode.noise] == [
        ("posterior_noise", "once"),
        ("posterior_noise_negative", "once"),
        ("latent", "once"),
        ("step_noise", "per-step"),
    ]
    assert mode.negative_prompt is not None
