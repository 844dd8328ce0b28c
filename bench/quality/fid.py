"""FID (Heusel et al., 2017) by torch-fidelity: how far apart two sets of images are, not image by image."""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uid.bench.quality.metrics import check_torchvision, check_weights, torch_hub
from uid.errors import InputError
from uid.install import how_to_install
from uid.runtime.media.decode import read_image
from uid.runtime.pixels import in_dtype, to_float

FID = "FID"
WEIGHTS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
ENOUGH = 2048  # images, below which the covariance of as many features has no full rank


def check_fid() -> None:
    """Raise ``InputError`` unless the library and its weights are there."""
    if importlib.util.find_spec("torch_fidelity") is None:
        raise InputError(f"FID needs torch-fidelity, which is missing: {how_to_install('metrics')}")
    check_torchvision()
    check_weights(FID, torch_hub(), WEIGHTS)


def fid(images: Sequence[Path], sharp: Sequence[Path]) -> float:
    """The distance of a set of image files from the sharp ones, of any sizes; ``check_fid`` has been called."""
    torch = importlib.import_module("torch")
    first, second = (files_as_tensors(torch, paths) for paths in (images, sharp))
    made = importlib.import_module("torch_fidelity").calculate_metrics(
        input1=first,
        input2=second,
        fid=True,
        cuda=torch.cuda.is_available(),
        batch_size=1,  # images of different sizes do not go together
        samples_shuffle=False,
        feature_extractor_weights_path=str(torch_hub() / Path(WEIGHTS[0]).name),
        cache=False,
        verbose=False,
    )
    return float(made["frechet_inception_distance"])


def files_as_tensors(torch: Any, paths: Sequence[Path]) -> Any:
    """A torch data set of the files: (3, H, W) uint8."""

    class Files(torch.utils.data.Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            pixels = in_dtype(to_float(read_image(paths[index]).pixels), np.dtype(np.uint8))
            return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    return Files()
