"""Changes to the weights of any family's modules, for smaller checkpoints."""

import torch
from torch import nn

INT8_MAX = 127  # largest magnitude of an 8-bit weight


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
