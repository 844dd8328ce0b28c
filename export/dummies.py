"""Dummy inputs of a component, from its declaration: to trace it with, and to compare backends on."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from uid.bundles.declarations import Component
from uid.bundles.tensors import TensorSpec, resolve

MID_SCHEDULE = {
    "timestep": 501.0,
    "alpha_bar": 0.28,
    "alpha_bar_prev": 0.31,
    "sqrt_recip_alpha_bar": 1.89,
    "sqrt_recipm1_alpha_bar": 1.60,
    "posterior_mean_x0": 0.07,
    "posterior_mean_latent": 0.91,
    "posterior_std": 0.30,
    "guidance_scale": 7.5,
}
TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def dummy_inputs(component: Component, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
    """Random inputs in each tensor's range: pixels in [0, 1], features and latents Gaussian, a mid-schedule step."""
    generator = torch.Generator().manual_seed(seed)

    def dummy(spec: TensorSpec) -> Tensor:
        shape, dtype = resolve(spec.shape, sizes), TORCH_DTYPES[str(spec.dtype)]
        if spec.name in MID_SCHEDULE:
            return torch.full(shape, MID_SCHEDULE[spec.name])
        fill: Callable[..., Tensor] = torch.rand if spec.name.endswith("image") else torch.randn
        return fill(shape, generator=generator).to(dtype)

    return {spec.name: dummy(spec) for spec in component.inputs}
