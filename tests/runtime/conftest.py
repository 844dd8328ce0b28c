"""A toy bundle, made by hand: the runtime must run any family that keeps to the manifest, and exactly as it says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from uid.reference.presets import SCHEDULER
from uid.runtime.bundle import sha256

MakeToy = Callable[..., Path]

PICTURE = (1, 3, "height", "width")
LATENT = (1, 3, "height/4", "width/4")


def graph(nodes: list[onnx.NodeProto], inputs: dict[str, Any], outputs: dict[str, Any], **weights: Any) -> bytes:
    """An ONNX model of float32 tensors, as bytes."""
    infos = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    initializers = [onnx.numpy_helper.from_array(np.asarray(value, np.float32), key) for key, value in weights.items()]
    proto = helper.make_graph(nodes, "toy", *infos, initializers)
    return bytes(
        helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


@pytest.fixture
def make_toy(tmp_path: Path) -> MakeToy:
    """Make a toy bundle: z is the picture's 4 x 4 means, a step goes half way from the latent to z (+ shift).

    ``nan_below``: steps whose timestep is below this write NaN.
    """

    def make(nan_below: float = 0.0, shift: float = 0.0, tile: int = 32) -> Path:
        folder = tmp_path / "toy"
        folder.mkdir()
        node = helper.make_node
        encode = graph(
            [node("AveragePool", ["image"], ["z"], kernel_shape=[4, 4], strides=[4, 4])],
            {"image": PICTURE},
            {"z": LATENT},
        )
        step = graph(
            [
                node("Add", ["latent", "z"], ["sum"]),
                node("Mul", ["sum", "half"], ["mean"]),
                node("Sub", ["timestep", "nan_below"], ["left"]),
                node("Sqrt", ["left"], ["root"]),
                node("Mul", ["root", "zero"], ["poison"]),
                node("Add", ["mean", "poison"], ["sound"]),
                node("Add", ["sound", "offset"], ["latent_next"]),
            ],
            {"latent": LATENT, "z": LATENT, "offset": (1,), "timestep": (1,)},
            {"latent_next": LATENT},
            half=0.5,
            zero=0.0,
            nan_below=nan_below,
        )
        decode = graph(
            [
                node("Resize", ["latent", "", "scales"], ["large"], mode="nearest"),
                node("Clip", ["large", "low", "high"], ["output"]),
            ],
            {"latent": LATENT},
            {"output": PICTURE},
            scales=[1, 1, 4, 4],
            low=0.0,
            high=1.0,
        )
        for name, data in {"encode": encode, "step": step, "decode": decode}.items():
            (folder / f"{name}.onnx").write_bytes(data)
        save_file({"offset": np.array([shift], np.float32)}, folder / "constants.safetensors")

        def component(name: str, stage: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
            def tensors(side: dict[str, Any]) -> list[dict[str, Any]]:
                return [{"name": key, "dtype": "float32", "shape": shape} for key, shape in side.items()]

            return {
                "file": f"{name}.onnx",
                "stage": stage,
                "inputs": tensors(inputs),
                "outputs": tensors(outputs),
            }

        step_inputs = {"latent": LATENT, "z": LATENT, "offset": (1,), "timestep": (1,)}
        manifest = {
            "schema": 1,
            "family": "toy",
            "name": "toy",
            "trained": True,
            "precision": "fp32",
            "size_multiple": 4,
            "tile": tile,
            "steps": 12,
            "guidance": 1.0,
            "schedule": SCHEDULER,
            "modes": {
                "deblur": {"prompt": "", "components": ["encode", "step", "decode"], "constants": {"offset": "offset"}}
            },
            "components": {
                "encode": component("encode", "prepare", {"image": PICTURE}, {"z": LATENT}),
                "step": component("step", "step", step_inputs, {"latent_next": LATENT}),
                "decode": component("decode", "finish", {"latent": LATENT}, {"output": PICTURE}),
            },
            "constants": "constants.safetensors",
            "files": {path.name: sha256(path) for path in folder.iterdir()},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make
