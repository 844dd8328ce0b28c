"""Restorers as a family: one file of weights, one component from the image to the output."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from uid.bundles.declarations import FINISH, Component, Mode
from uid.bundles.tensors import BATCH, HEIGHT, IMAGE, OUTPUT, WIDTH, TensorSpec
from uid.bundles.wiring import mode_of
from uid.errors import CheckpointError
from uid.families.contract import ExportComponent, Family, Model, Noises
from uid.families.restorers.nafnet import NAFNet, config_of
from uid.families.weights import read_weights

FAMILY = "restorer"
TILE = 1024
NESTED = ("params_ema", "params", "state_dict")  # keys that files of restorers put their weights under
NAME = re.compile(r"[^A-Za-z0-9_-]+")


class Restorer(NamedTuple):
    """A network, and what it takes and gives."""

    architecture: str
    network: nn.Module  # (B, 3, H, W) in [0, 1] -> (B, 3, scale * H, scale * W)
    size_multiple: int
    min_side: int = 1
    scale: int = 1
    whole: bool = False  # whether tiles would harm it, so that images are run whole


class RestorerGraph(nn.Module):
    """The network in the dtype of its weights, with float32 pixels in [0, 1] in and out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Image -> output."""
        dtype = next(self.network.parameters()).dtype
        output: Tensor = self.network(image.to(dtype)).float()
        return output.clamp(0.0, 1.0)


class RestorerModel(Model):
    """A restorer's weights."""

    def __init__(self, restorer: Restorer, name: str) -> None:
        self.restorer, self.module = restorer, restorer.network.eval().requires_grad_(False)
        self.size_multiple, self.min_side = restorer.size_multiple, restorer.min_side
        self.graph = RestorerGraph(self.module)
        self.index = {"family": FAMILY, "name": name, "trained": True, "tile": WHOLE if restorer.whole else TILE}

    def components(self, precision: str, *, shortcuts: bool = False) -> list[ExportComponent]:
        """The one component."""
        full, scale = np.dtype(np.float32), self.restorer.scale
        height, width = (f"{side}*{scale}" if scale > 1 else side for side in (HEIGHT, WIDTH))
        image = TensorSpec(IMAGE, full, (BATCH, 3, HEIGHT, WIDTH))
        output = TensorSpec(OUTPUT, full, (BATCH, 3, height, width))
        return [ExportComponent(Component("restore", "restore.onnx", FINISH, (image,), (output,)), self.graph)]

    def modes(self, components: Sequence[ExportComponent]) -> dict[str, Mode]:
        """Deblurring, or whatever the weights were trained for."""
        return {"deblur": mode_of([one.declaration for one in components], prompt="", constants={})}

    def constants(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def prepare(self, mode: str, images: Mapping[str, Tensor], noise: Noises) -> Tensor:
        """The image."""
        return images["image"]

    def finish(self, features: Tensor, state: Tensor | None) -> Tensor:
        """The output."""
        output: Tensor = self.graph(features)
        return output


class RestorerFamily(Family):
    """Files of weights, whose architecture follows from their names and shapes."""

    def load(self, folder: Path, *, allow_pickle: bool = False) -> RestorerModel:
        """Load a file; a pickled one is always read with ``weights_only=True``."""
        weights = read_weights(folder, NESTED)
        restorer = nafnet(weights, folder) or by_spandrel(weights, folder)
        return RestorerModel(restorer, NAME.sub("-", folder.stem).strip("-")[:64] or restorer.architecture)

    def file_index(self, file: Path) -> dict[str, Any]:
        """The index that its model will have."""
        return dict(self.load(file).index)


WHOLE = 4096  # side in pixels of the tiles of a network that tiles harm


def nafnet(weights: Mapping[str, Tensor], file: Path) -> Restorer | None:
    """A NAFNet with these weights; None where they are of another architecture."""
    config = config_of(weights)
    if config is None:
        return None
    if config.channels != 3:
        raise CheckpointError(f"{file} is a NAFNet for {config.channels} channels; expected 3, for RGB images")
    if len(config.encoders) != len(config.decoders) or 0 in (config.width, config.middle):
        raise CheckpointError(
            f"{file} is not a whole NAFNet: it has {len(config.encoders)} levels on the way down and "
            f"{len(config.decoders)} on the way up; get the file again"
        )
    with torch.device("meta"):
        network = NAFNet(config)
    wanted = network.state_dict()
    wrong = sorted(key for key in {*wanted, *weights} if key not in weights or key not in wanted)
    wrong += [key for key, value in wanted.items() if key in weights and weights[key].shape != value.shape]
    if wrong:
        raise CheckpointError(f"{file} is not a whole NAFNet: {', '.join(wrong[:5])} do not fit; get the file again")
    network.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    return Restorer("NAFNet", network, network.size_multiple)


def by_spandrel(weights: Mapping[str, Tensor], file: Path) -> Restorer:
    """A network of any architecture that the spandrel library knows, by its own detection."""
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, ModelTiling, UnsupportedModelError
    except ImportError as error:
        raise CheckpointError(
            f"{file} is not a NAFNet, and other architectures need the spandrel library ({error}); pip install spandrel"
        ) from error
    try:
        found = ModelLoader().load_from_state_dict(dict(weights))
    except UnsupportedModelError as error:
        raise CheckpointError(f"{file} is of no architecture that spandrel knows: {error}") from error
    except Exception as error:  # whatever its networks raise for weights that are not whole
        raise CheckpointError(f"spandrel cannot load {file}: {error}; get the file again") from error
    if not isinstance(found, ImageModelDescriptor) or (found.input_channels, found.output_channels) != (3, 3):
        raise CheckpointError(f"{file} is a {found.architecture.name}; expected a network from RGB to RGB images")
    sizes = found.size_requirements
    if sizes.square:
        raise CheckpointError(f"{file} is a {found.architecture.name}, which takes square images alone")
    whole = found.tiling is not ModelTiling.SUPPORTED
    least = max(1, sizes.minimum)
    return Restorer(found.architecture.id, found.model, max(1, sizes.multiple_of), least, found.scale, whole)
