"""Weights of any family: read from one file, and changed for smaller checkpoints."""

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from uid.errors import CheckpointError

INT8_MAX = 127  # largest magnitude of an 8-bit weight
NOTHING = "(?!)"  # a pattern that nothing matches
SHOWN = 5  # names of tensors in an error


def halved(module: nn.Module) -> nn.Module:
    """The module with float16 weights: half the size, and what an fp16 bundle holds."""
    return module.half()


@torch.no_grad()
def rounded_to_int8(module: nn.Module) -> nn.Module:
    """The module with the weights of linear layers and convolutions rounded to 8 bits, in place.

    Those of each output channel become whole multiples, from -127 to 127, of a scale of its own. They stay float32 in
    the checkpoint, so that it loads as any other; a bundle exported from it stores them in 8 bits.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            largest = layer.weight.abs().amax(dim=tuple(range(1, layer.weight.ndim)), keepdim=True)
            scale = (largest / INT8_MAX).where(largest > 0, 1.0)
            layer.weight.copy_((layer.weight / scale).round() * scale)
    return module


def read_weights(file: Path, nested: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of one file, safetensors or pickled; those under the first key of ``nested`` that is there.

    A pickled file is read with ``weights_only=True``, which runs no code of it. Raises ``CheckpointError``.
    """
    try:
        if file.suffix == ".safetensors":
            return checked_weights(load_file(file), file)
        mapped = zipfile.is_zipfile(file)  # the files of PyTorch before 1.6 are none, and cannot be mapped
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is no checkpoint, or holds more than tensors, which may be code; expected a state dict, as it is "
            "published"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        first = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"cannot read {file}: it is cut off or no checkpoint ({first})") from error
    if isinstance(weights, dict):
        weights = next((weights[key] for key in nested if key in weights), weights)
    return checked_weights(weights, file)


def checked_weights(weights: object, file: Path) -> dict[str, Tensor]:
    """Tensors by name, all finite; raises ``CheckpointError`` for anything else."""
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and isinstance(one, Tensor) for key, one in weights.items()
    ):
        raise CheckpointError(f"{file} is no flat dict of tensors; expected a state dict, as it is published")
    broken = [key for key, one in weights.items() if one.is_floating_point() and not torch.isfinite(one.float()).all()]
    if broken:
        raise CheckpointError(f"{file} has NaN or infinity in {listed(broken)}; get the file again")
    return weights


def misfits(weights: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], unused: str = NOTHING) -> list[str]:
    """What is wrong with weights that should have these shapes, by name: "lacks a, b"; an empty list if nothing is.

    ``unused`` is a pattern of the names of weights that may be there beside them.
    """
    shared = sorted(set(shapes) & set(weights))
    misshapen = [key for key in shared if tuple(weights[key].shape) != tuple(shapes[key])]
    faults = {
        "lacks": sorted(set(shapes) - set(weights)),
        "has unknown": sorted(key for key in set(weights) - set(shapes) if not re.fullmatch(unused, key)),
        "has other shapes:": [f"{key} {list(weights[key].shape)} for {list(shapes[key])}" for key in misshapen],
        "has no floating-point numbers in": [key for key in shared if not weights[key].is_floating_point()],
    }
    return [f"{what} {listed(names)}" for what, names in faults.items() if names]


def listed(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
