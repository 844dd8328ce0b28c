"""The seams: a backend in one class and a model family in a few, both defined here, run an image.

This is what a newcomer writes to add one. The backend evaluates graphs in numpy; the family moves a latent half way to
the image's 4 x 4 means at every step.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from uid.bundles.declarations import FINISH, FULL, PREPARE, Component, Mode
from uid.bundles.tensors import Array, TensorSpec
from uid.bundles.wiring import mode_of
from uid.engines import BACKENDS, Backend, Buffer, Engine, Launch
from uid.engines.contract import check_bindings
from uid.engines.registry import BackendEntry
from uid.errors import InputError
from uid.export.bundle import export_bundle
from uid.families.contract import ExportComponent, Family, Model, Noises
from uid.families.registry import FAMILIES, FamilyEntry
from uid.runtime import Options, load

FLOAT = np.dtype(np.float32)
IMAGE = TensorSpec("image", FLOAT, ("batch", 3, "height", "width"))
TINT = TensorSpec("tint_image", FLOAT, ("batch", 3, "tint_height", "tint_width"))
OUTPUT = TensorSpec("output", FLOAT, IMAGE.shape)
COLOUR = TensorSpec("colour", FLOAT, ("batch", 3, 1, 1))
MEANS, LATENT, NEXT = (
    TensorSpec(name, FLOAT, ("batch", 3, "height/4", "width/4")) for name in ("means", "latent", "latent_next")
)
PULL = TensorSpec("pull", FLOAT, (1,))  # a constant: how far each step goes


# -- a backend --------------------------------------------------------------------------------------------------------


class NumpyBuffer(Buffer):
    """An array."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype, self.array = shape, dtype, np.zeros(shape, dtype)

    def write(self, array: Array) -> None:
        if (array.shape, array.dtype) != (self.shape, self.dtype):
            raise self.mismatch(array)
        self.array[...] = array

    def read(self) -> Array:
        return self.array.copy()


class NumpyEngine(Engine):
    """A graph that ONNX's reference evaluator runs."""

    def __init__(self, path: Path) -> None:
        self.evaluator = ReferenceEvaluator(onnx.load(path))
        graph = onnx.load(path, load_external_data=False).graph
        self.inputs, self.outputs = ({v.name: spec_of(v) for v in side} for side in (graph.input, graph.output))

    def bind(self, buffers: Mapping[str, Buffer]) -> Launch:
        check_bindings(self, buffers)

        def launch() -> None:
            values = self.evaluator.run(None, {name: buffers[name].read() for name in self.inputs})
            for name, value in zip(self.outputs, values, strict=True):
                buffers[name].write(value)

        return launch


class NumpyBackend(Backend):
    """Graphs evaluated in numpy."""

    name = "numpy"
    largest_batch = 2

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NumpyBuffer:
        return NumpyBuffer(shape, dtype)

    def load(self, path: Path) -> NumpyEngine:
        return NumpyEngine(path)


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Name, dtype and shape of a graph's input or output."""
    tensor = value.type.tensor_type
    shape = tuple(size.dim_param or size.dim_value for size in tensor.shape.dim)
    return TensorSpec(value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape)


def create_numpy(threads: int | None) -> NumpyBackend:
    return NumpyBackend()


# -- a family ---------------------------------------------------------------------------------------------------------


class Means(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(image, 4)


class Colour(nn.Module):
    def forward(self, tint_image: Tensor) -> Tensor:
        return tint_image.mean((2, 3), keepdim=True)


class Step(nn.Module):
    def forward(self, latent: Tensor, means: Tensor, pull: Tensor) -> Tensor:
        return latent + pull * (means - latent)


class Enlarge(nn.Module):
    def forward(self, latent: Tensor) -> Tensor:
        return latent.repeat_interleave(4, 2).repeat_interleave(4, 3).clamp(0, 1)


class EnlargeTinted(nn.Module):
    def forward(self, latent: Tensor, colour: Tensor) -> Tensor:
        return (latent.repeat_interleave(4, 2).repeat_interleave(4, 3) * colour).clamp(0, 1)


class ToyModel(Model):
    """Two modes: "enlarge", and "tint", which multiplies by the mean colour of a further image."""

    size_multiple = 4

    def __init__(self, index: Mapping[str, Any]) -> None:
        self.index, self.module = index, nn.Module()
        self.schedule = dict.fromkeys(("beta_start", "beta_end"), 0.01) | {
            "num_train_timesteps": 100, "beta_schedule": "linear", "timestep_spacing": "leading", "steps_offset": 0,
            "set_alpha_to_one": True,
        }  # fmt: skip

    def components(self, precision: str, *, shortcuts: bool = False) -> list[ExportComponent]:
        def component(
            name: str, stage: str, module: nn.Module, inputs: Sequence[TensorSpec], output: TensorSpec
        ) -> ExportComponent:
            return ExportComponent(Component(name, f"{name}.onnx", stage, tuple(inputs), (output,)), module)

        return [
            component("means", PREPARE, Means(), [IMAGE], MEANS),
            component("colour", PREPARE, Colour(), [TINT], COLOUR),
            component("step", FULL, Step(), [LATENT, MEANS, PULL], NEXT),
            component("enlarge", FINISH, Enlarge(), [LATENT], OUTPUT),
            component("enlarge_tinted", FINISH, EnlargeTinted(), [LATENT, COLOUR], OUTPUT),
        ]

    def modes(self, components: Sequence[ExportComponent]) -> dict[str, Mode]:
        names = {"enlarge": ("means", "step", "enlarge"), "tint": ("means", "colour", "step", "enlarge_tinted")}
        declared = {component.declaration.name: component.declaration for component in components}
        return {
            mode: mode_of([declared[part] for part in parts], prompt="", constants={"pull": "half"})
            for mode, parts in names.items()
        }

    def constants(self) -> dict[str, Tensor]:
        return {"half": torch.tensor([0.5])}

    def prepare(self, mode: str, images: Mapping[str, Tensor], noise: Noises) -> tuple[Tensor, Tensor | None]:
        return Means()(images["image"]), Colour()(images["tint_image"]) if mode == "tint" else None

    def denoise(self, features: Any, noise: Noises, steps: int, guidance: float) -> Tensor:
        state = noise["latent"]
        for _ in range(steps):
            state = Step()(state, features[0], torch.tensor([0.5]))
        return state

    def finish(self, features: Any, state: Tensor | None) -> Tensor:
        assert state is not None
        output: Tensor = Enlarge()(state) if features[1] is None else EnlargeTinted()(state, features[1])
        return output


class ToyFamily(Family):
    """A checkpoint is its index."""

    def load(self, folder: Path, *, allow_pickle: bool = False) -> ToyModel:
        return ToyModel(json.loads((folder / "model_index.json").read_text()))


# -- one row in each table, and they run ------------------------------------------------------------------------------


def test_a_new_backend_and_a_new_family_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "numpy", BackendEntry(f"{__name__}:create_numpy", ("numpy",), "pip install numpy"))
    monkeypatch.setitem(FAMILIES, "toy", FamilyEntry(f"{__name__}:ToyFamily"))
    index = {"family": "toy", "name": "toy", "trained": True, "steps": 20, "guidance": 1.0, "tile": 40}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    export_bundle(tmp_path, tmp_path / "bundle", report=lambda line: None)

    pipeline = load(tmp_path / "bundle", backend="numpy")
    rng = np.random.default_rng(0)
    image, tint = rng.random((48, 44, 3), dtype=np.float32), rng.random((7, 9, 3), dtype=np.float32)
    means = image.reshape(12, 4, 11, 4, 3).mean((1, 3)).repeat(4, 0).repeat(4, 1)
    result = pipeline(image, Options(mode="enlarge", transforms=2))
    assert (result.backend, result.tiles, result.batch) == ("numpy", 4, 2)
    np.testing.assert_allclose(result.image, means, atol=1e-5)
    tinted = pipeline(image, Options(mode="tint"), tint_image=tint)
    np.testing.assert_allclose(tinted.image, means * tint.mean((0, 1)), atol=1e-5)
    with pytest.raises(InputError, match="mode 'tint' needs the image tint_image"):
        pipeline(image, Options(mode="tint"))
    with pytest.raises(InputError, match="mode 'enlarge' does not read the image tint_image"):
        pipeline(image, Options(mode="enlarge"), tint_image=tint)
