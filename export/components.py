"""The components of a UID-Diff bundle, each declared once.

A declaration holds what everything else follows from: dummy inputs, dynamic axes, the ONNX file's tensor names, the
manifest entry and the validation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from uid.engines.contract import TensorSpec
from uid.reference.model import BLURRY_PROMPT, SHARP_PROMPT, UIDDiff
from uid.runtime.bundle import Component, Mode

MODES = {
    "deblur": Mode(SHARP_PROMPT, ("structure", "encoder", "step", "decoder"), {"prompt": "prompt.deblur"}),
    "blur-transfer": Mode(
        BLURRY_PROMPT,
        ("structure", "blur", "encoder", "step_blur", "decoder"),
        {"prompt": "prompt.blur-transfer"},
    ),
}

TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class ExportComponent:
    """A component's declaration beside the PyTorch module it is exported from."""

    declaration: Component
    module: nn.Module  # flat tensors in, flat tensors out, in the declared order


class Encode(nn.Module):
    """Refined VAE encoder with float32 pixels in."""

    def __init__(self, model: UIDDiff) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Image -> z_y, skip_0, ..."""
        z, skips = self.encoder(image.to(self.encoder.vae.dtype))
        return z, *skips


class UnguidedStep(nn.Module):
    """The step of a model that is run without guidance."""

    def __init__(self, model: UIDDiff) -> None:
        super().__init__()
        self.step = model.step

    def forward(
        self,
        latent: Tensor,
        z_y: Tensor,
        f_s: Tensor,
        prompt: Tensor,
        timestep: Tensor,
        alpha_bar: Tensor,
        alpha_bar_prev: Tensor,
        f_b: Tensor | None = None,
    ) -> Tensor:
        """Everything but guidance_scale -> latent_next."""
        return self.step.unguided(latent, z_y, f_s, prompt, timestep, alpha_bar, alpha_bar_prev, f_b)


class Decode(nn.Module):
    """Refined VAE decoder with the float32 latent in."""

    def __init__(self, model: UIDDiff) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, latent: Tensor, *skips: Tensor) -> Tensor:
        """latent, skip_0, ... -> output."""
        return self.decoder(latent.to(self.decoder.vae.dtype), list(skips))


def declare(model: UIDDiff, precision: str, *, guided: bool) -> list[ExportComponent]:
    """Every component of ``model`` with its tensors; features between graphs have ``precision`` ("fp32", "fp16").

    Without ``guided`` the step computes the conditional branch alone. Pixels, latents and the step's numbers are
    float32 in both precisions.
    """
    half = np.dtype(np.float16 if precision == "fp16" else np.float32)
    unet, factor = model.step.unet.config, model.latent_factor
    queries = model.structure.q_former.config
    text = model.text_encoder.config
    latent_shape = (1, unet.in_channels, f"height/{factor}", f"width/{factor}")

    def tensor(name: str, *shape: int | str, dtype: np.dtype[Any] = half) -> TensorSpec:
        return TensorSpec(name, dtype, shape)

    def full(name: str, *shape: int | str) -> TensorSpec:
        return tensor(name, *shape, dtype=np.dtype(np.float32))

    image = full("image", 1, 3, "height", "width")
    blur_image = full("blur_image", 1, 3, "blur_height", "blur_width")
    f_s = tensor("f_s", 1, queries.queries, queries.hidden_size)
    f_b = tensor("f_b", 1, queries.queries, queries.hidden_size)
    z_y = tensor("z_y", *latent_shape)
    skips = [
        tensor(f"skip_{i}", 1, width, divided("height", divisor), divided("width", divisor))
        for i, (width, divisor) in enumerate(model.skips)
    ]
    latent, latent_next = full("latent", *latent_shape), full("latent_next", *latent_shape)
    prompt = tensor("prompt", 2 if guided else 1, text.max_position_embeddings, text.hidden_size)
    numbers = [full(name, 1) for name in ("timestep", "alpha_bar", "alpha_bar_prev")]
    step_inputs = [latent, z_y, f_s, prompt, *numbers, *([full("guidance_scale", 1)] if guided else [])]
    step = model.step if guided else UnguidedStep(model)

    def component(
        name: str, stage: str, module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> ExportComponent:
        return ExportComponent(Component(name, f"{name}.onnx", stage, tuple(inputs), tuple(outputs)), module)

    return [
        component("structure", "prepare", model.structure, [image], [f_s]),
        component("blur", "prepare", model.blur, [blur_image], [f_b]),
        component("encoder", "prepare", Encode(model), [image], [z_y, *skips]),
        component("step", "step", step, step_inputs, [latent_next]),
        component("step_blur", "step", step, [*step_inputs, f_b], [latent_next]),
        component("decoder", "finish", Decode(model), [latent, *skips], [full("output", 1, 3, "height", "width")]),
    ]


def divided(symbol: str, divisor: int) -> str:
    """The symbol of a size over a divisor: "height/8", or plain "height" over 1."""
    return symbol if divisor == 1 else f"{symbol}/{divisor}"


def dummy_inputs(component: Component, sizes: dict[str, int], seed: int = 0) -> dict[str, Tensor]:
    """Random inputs in each tensor's range: pixels in [0, 1], features and latents Gaussian, a mid-schedule step."""
    from uid.runtime.plan import resolve

    generator = torch.Generator().manual_seed(seed)
    numbers = {"timestep": 501.0, "alpha_bar": 0.28, "alpha_bar_prev": 0.31, "guidance_scale": 7.5}

    def dummy(spec: TensorSpec) -> Tensor:
        shape, dtype = resolve(spec.shape, sizes), TORCH_DTYPES[str(spec.dtype)]
        if spec.name in numbers:
            return torch.full(shape, numbers[spec.name])
        fill: Callable[..., Tensor] = torch.rand if spec.name.endswith("image") else torch.randn
        return fill(shape, generator=generator).to(dtype)

    return {spec.name: dummy(spec) for spec in component.inputs}
