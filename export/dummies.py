"""Dummy inputs of a component, from its declaration: to trace it with, and to compare backends on."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from uid.bundles.manifest import Component
from uid.bundles.tensors import TensorSpec, resolve

TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def dummy_inputs(component: Component, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
    """Random inputs in each tensor's range: pixels in [0, 1], features and latents Gaussian, a mid-schedule step."""
    generator = torch.Generator().manual_seed(seed)
    numbers = {"timestep": 501.0, "alpha_bar": 0.28, "alpha_bar_prev": 0.31, "guidance_scale": 7.5}

    def dummy(spec: TensorSpec) -> Tensor:
        shape, dtype = resolve(spec.shape, sizes), TORCH_DTYPES[str(spec.dtype)]
        if spec.name in numbers:
            return torch.full(shape, numbers[spec.name])
        fill: Callable[..., Tensor] = torch.rand if spec.name.endswith("image") else torch.randn
        return fill(shape, generator=generator).to(dtype)

    return {spec.name: dummy(spec) for spec in component.inputs}
