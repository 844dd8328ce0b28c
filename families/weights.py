"""Weights of any family: checked by name, shape and value, and changed for smaller checkpoints."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from uid.errors import CheckpointError

INT8_MAX = 127  # largest magnitude of an 8-bit weight
SHOWN = 5  # names of tensors in an error

Shape = Sequence[int | None]
"""Sizes of a weight; None: any."""


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


def checked_weights(weights: Mapping[str, Tensor], file: object) -> dict[str, Tensor]:
    """The weights, if each stores as many numbers as its shape says; raises ``CheckpointError`` that names others.

    No value is looked at, and nothing is allocated.
    """
    odd = [f"{key} ({kind})" for key, one in weights.items() if (kind := kind_of(one))]
    if odd:
        raise CheckpointError(
            f"{file} has tensors of kinds that weights do not have: {listed(odd)}; expected plain ones"
        )
    return dict(weights)


def kind_of(tensor: Tensor) -> str:
    """What a tensor is that does not store each of its numbers; "" for an ordinary one."""
    kinds = {"nested": tensor.is_nested, "quantised": tensor.is_quantized, "without values": tensor.is_meta}
    if tensor.layout is not torch.strided:
        return "sparse"
    if found := next((kind for kind, is_so in kinds.items() if is_so), ""):
        return found
    stored = tensor.untyped_storage().nbytes()
    return f"{list(tensor.shape)} repeated from {stored} bytes" if tensor.numel() * tensor.itemsize > stored else ""


def misfits(weights: Mapping[str, Tensor], shapes: Mapping[str, Shape], unused: Mapping[str, Shape] = {}) -> list[str]:
    """What is wrong with weights that should have these shapes, by name: "lacks a, b"; an empty list if nothing is.

    ``unused``: those that may be there beside them, whose values do not matter. Values are looked at last, once
    everything else is right: a shape of another network may be larger than memory.
    """
    known = {**unused, **shapes}
    shared = sorted(set(shapes) & set(weights))
    misshapen = [key for key in sorted(set(known) & set(weights)) if not has_shape(weights[key], known[key])]
    faults = {
        "lacks": sorted(set(shapes) - set(weights)),
        "has unknown": sorted(set(weights) - set(known)),
        "has other shapes:": [f"{key} {list(weights[key].shape)} for {shown(known[key])}" for key in misshapen],
        "has no floating-point numbers in": [key for key in shared if not weights[key].is_floating_point()],
    }
    if not any(faults.values()):
        faults = {"has NaN or infinity in": not_finite({key: weights[key] for key in shared})}
    return [f"{what} {listed(names)}" for what, names in faults.items() if names]


def has_shape(weight: Tensor, shape: Shape) -> bool:
    """Whether a weight is of a shape."""
    return weight.ndim == len(shape) and all(size in (None, own) for own, size in zip(weight.shape, shape, strict=True))


def shown(shape: Shape) -> str:
    """A shape as an error shows it."""
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """The names of weights with values that float32 does not hold."""
    return [key for key, one in weights.items() if one.is_floating_point() and not torch.isfinite(one.float()).all()]


def listed(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
