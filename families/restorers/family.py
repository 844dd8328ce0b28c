"""Restorers as a family: one file of weights, one component from the image to the output."""

import re
from collections.abc import Callable, Mapping, Sequence
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
from uid.families.restorers import fftformer, nafnet, restormer
from uid.families.weight_files import read_weights
from uid.families.weights import listed, misfits, not_finite

FAMILY = "restorer"
TILE, WHOLE = 1024, 4096  # sides in pixels of the tiles of spandrel's networks: of those that tiles harm the latter
NAME = re.compile(r"[^A-Za-z0-9_-]+")


class Restorer(NamedTuple):
    """A network, and what it takes and gives."""

    architecture: str
    network: nn.Module  # (B, 3, H, W) in [0, 1] -> (B, 3, scale * H, scale * W)
    size_multiple: int
    tile: int  # an image of more than tile x tile pixels is run in tiles of this side
    min_side: int = 1
    scale: int = 1


class Architecture(NamedTuple):
    """A network that is written here."""

    name: str
    config_of: Callable[[Mapping[str, Tensor]], Any]  # its size; None for weights of another architecture
    network: Callable[[Any], nn.Module]
    tile: int


# Tiles of these sides take some two gigabytes.
ARCHITECTURES = (
    Architecture("NAFNet", nafnet.config_of, nafnet.NAFNet, 1024),
    Architecture("Restormer", restormer.config_of, restormer.Restormer, 512),
    Architecture("FFTformer", fftformer.config_of, fftformer.FFTformer, 512),
)


class RestorerGraph(nn.Module):
    """The network in the dtype of its weights, with float32 pixels in [0, 1] in and out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Image -> output. What is infinite becomes NaN: clipped, an overflow would look like white or black."""
        dtype = next(self.network.parameters()).dtype
        output: Tensor = self.network(image.to(dtype)).float()
        return output.clamp(0.0, 1.0) + 0.0 * output


class RestorerModel(Model):
    """A restorer's weights."""

    def __init__(self, restorer: Restorer, name: str) -> None:
        self.restorer, self.module = restorer, restorer.network.eval().requires_grad_(False)
        self.size_multiple, self.min_side = restorer.size_multiple, restorer.min_side
        self.graph = RestorerGraph(self.module)
        self.index = {"family": FAMILY, "name": name, "trained": True, "tile": restorer.tile}

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
        weights = read_weights(folder)
        restorer = by_hand(weights, folder) or by_spandrel(weights, folder)
        return RestorerModel(restorer, NAME.sub("-", folder.stem).strip("-")[:64] or restorer.architecture)

    def file_index(self, file: Path) -> dict[str, Any]:
        """The index that its model will have."""
        return dict(self.load(file).index)


def by_hand(weights: Mapping[str, Tensor], file: Path) -> Restorer | None:
    """A network of one of the architectures that are written here; None where the weights are of another."""
    for architecture in ARCHITECTURES:
        config = architecture.config_of(weights)
        if config is not None:
            if config.channels != 3:
                raise CheckpointError(
                    f"{file} is a {architecture.name} for images of {config.channels} channels; expected 3, for RGB"
                )
            network = loaded(architecture, config, weights, file)
            return Restorer(architecture.name, network, network.size_multiple, architecture.tile)
    return None


def loaded(architecture: Architecture, config: Any, weights: Mapping[str, Tensor], file: Path) -> Any:
    """The network with these weights in float32; raises ``CheckpointError`` that names those that do not fit."""
    whole = f"{file} is not a whole {architecture.name}"
    try:
        with torch.device("meta"):
            network = architecture.network(config)
    except Exception as error:  # what sizes make torch raise has no common class
        raise CheckpointError(f"{whole}: {error}; get the file again") from error
    faults = misfits(weights, {key: tuple(value.shape) for key, value in network.state_dict().items()})
    if faults:
        raise CheckpointError(f"{whole}: it {'; it '.join(faults)}; get the file again")
    network.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    return network


def by_spandrel(weights: Mapping[str, Tensor], file: Path) -> Restorer:
    """A network of any architecture that the spandrel library knows, by its own detection."""
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, ModelTiling, UnsupportedModelError
    except ImportError as error:
        raise CheckpointError(
            f"{file} is no {', '.join(one.name for one in ARCHITECTURES)}, and other architectures need the spandrel "
            f"library ({error}); pip install spandrel"
        ) from error
    if broken := not_finite(weights):
        raise CheckpointError(f"{file} has NaN or infinity in {listed(broken)}; get the file again")
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
    tile = TILE if found.tiling is ModelTiling.SUPPORTED else WHOLE
    multiple, least = max(1, sizes.multiple_of), max(1, sizes.minimum)
    return Restorer(found.architecture.id, found.model, multiple, tile, least, found.scale)
