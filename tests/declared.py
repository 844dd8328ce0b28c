"""Bundles of schema 2 whose graphs are a few nodes, and what they give by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from safetensors.numpy import save_file
from toy import SCHEDULE, graph

from uid.bundles.hashes import sha256
from uid.bundles.manifest import read_bundle
from uid.bundles.tensors import Array
from uid.runtime.schedule import coefficients

PIXELS = ("batch", 3, "height", "width")
DOUBLE = ("batch", 3, "height*2", "width*2")
LATENT = ("batch", 3, "height/4", "width/4")
DDPM = {**SCHEDULE, "sampler": "ddpm", "timestep_spacing": "respaced"}
NOISE = [
    {"name": "latent", "dtype": "float32", "shape": LATENT, "draw": "once"},
    {"name": "step_noise", "dtype": "float32", "shape": LATENT, "draw": "per-step"},
    {"name": "start", "dtype": "float32", "shape": LATENT, "draw": "once"},
]

Part = tuple[str, dict[str, Any], dict[str, Any], list[onnx.NodeProto], dict[str, Any]]


def make_bundle(folder: Path, parts: dict[str, Part], mode: dict[str, Any], **changes: Any) -> Path:
    """A bundle of schema 2 with these components, by name: stage, inputs, outputs, nodes, weights."""
    folder.mkdir()
    for name, (_, inputs, outputs, nodes, weights) in parts.items():
        (folder / f"{name}.onnx").write_bytes(graph(nodes, inputs, outputs, **weights))
    save_file({"unused": np.zeros(1, np.float32)}, folder / "constants.safetensors")

    def tensors(side: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"name": name, "dtype": "float32", "shape": shape} for name, shape in side.items()]

    manifest = {
        "schema": 2,
        "family": "toy",
        "name": "toy",
        "trained": True,
        "precision": "fp32",
        "size_multiple": 4,
        "tile": 64,
        "steps": 5,
        "guidance": 1.0,
        "schedule": DDPM,
        "modes": {"deblur": {"prompt": "", "components": list(parts), "constants": {}} | mode},
        "components": {
            name: {"file": f"{name}.onnx", "stage": stage, "inputs": tensors(inputs), "outputs": tensors(outputs)}
            for name, (stage, inputs, outputs, _, _) in parts.items()
        },
        "constants": "constants.safetensors",
        "files": {path.name: sha256(path) for path in folder.iterdir()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return folder


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node with its tensors in words."""
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def ancestral_parts() -> dict[str, Part]:
    """Z is the image's 4 x 4 means and the noise ``start``; a DDPM step whose x0 is z; the latent is the output."""
    encode = [
        node("AveragePool", "image", "means", kernel_shape=[4, 4], strides=[4, 4]),
        node("Add", "means start", "z"),
    ]
    step = [
        node("Mul", "posterior_mean_x0 z", "a"),
        node("Mul", "posterior_mean_latent latent", "b"),
        node("Mul", "posterior_std step_noise", "c"),
        node("Add", "a b", "ab"),
        node("Add", "ab c", "latent_next"),
    ]
    numbers = dict.fromkeys(("posterior_mean_x0", "posterior_mean_latent", "posterior_std"), (1,))
    decode = [
        helper.make_node("Resize", ["latent", "", "scales"], ["large"], mode="nearest"),
        node("Sigmoid", "large", "output"),
    ]
    return {
        "encode": ("prepare", {"image": PIXELS, "start": LATENT}, {"z": LATENT}, encode, {}),
        "step": (
            "step",
            {"latent": LATENT, "z": LATENT, "step_noise": LATENT, **numbers},
            {"latent_next": LATENT},
            step,
            {},
        ),
        "decode": ("finish", {"latent": LATENT}, {"output": PIXELS}, decode, {"scales": [1, 1, 4, 4]}),
    }


def ancestral(folder: Path, image: Array, noise: dict[str, Array], steps: int) -> Array:
    """The slow reference of ``ancestral_parts``; the image's sides are multiples of 4."""
    height, width = image.shape[:2]
    z = image.reshape(height // 4, 4, width // 4, 4, 3).mean((1, 3)).transpose(2, 0, 1)[None] + noise["start"]
    x = noise["latent"].astype(np.float64)
    for row, own in zip(coefficients(read_bundle(folder).schedule, steps), noise["step_noise"], strict=True):
        values = dict(row)
        x = values["posterior_mean_x0"] * z + values["posterior_mean_latent"] * x + values["posterior_std"] * own
    return 1 / (1 + np.exp(-x[0].transpose(1, 2, 0).repeat(4, 0).repeat(4, 1)))


def random_image(height: int, width: int, dtype: type = np.float32) -> Array:
    """Uniform noise."""
    values = np.random.default_rng(0).random((height, width, 3), dtype=np.float32)
    return values if dtype is np.float32 else (values * np.iinfo(dtype).max).astype(dtype)


def from_seed(seed: int, steps: int, height: int, width: int) -> dict[str, Array]:
    """What the runtime has to draw: one generator, in the declared order."""
    generator, shape = np.random.Generator(np.random.PCG64(seed)), (1, 3, height // 4, width // 4)
    return {
        "latent": generator.standard_normal(shape, dtype=np.float32),
        "step_noise": generator.standard_normal((steps, *shape), dtype=np.float32),
        "start": generator.standard_normal(shape, dtype=np.float32),
    }


def finish_parts(nodes: list[onnx.NodeProto], output: tuple[Any, ...] = PIXELS, **weights: Any) -> dict[str, Part]:
    """One component, from the image to the output."""
    return {"finish": ("finish", {"image": PIXELS}, {"output": output}, nodes, weights)}


INVERT = finish_parts([node("Sub", "one image", "output")], one=1.0)
RESIZE = helper.make_node("Resize", ["image", "", "scales"], ["output"], mode="nearest")
DOUBLED = finish_parts([RESIZE], DOUBLE, scales=[1, 1, 2, 2])
