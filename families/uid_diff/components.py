"""The components of a UID-Diff bundle, each declared once.

A declaration holds what everything else follows from: dummy inputs, dynamic axes, the ONNX file's tensor names, the
manifest entry and the validation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from uid.bundles.manifest import FULL, SHALLOW, STEPS, UNGUIDED, Component, Mode, images_read
from uid.bundles.tensors import BATCH, TensorSpec
from uid.families.contract import ExportComponent
from uid.families.uid_diff.model import BLURRY_PROMPT, SHARP_PROMPT, Kept, UIDDiff
from uid.families.uid_diff.unet import level_size

PROMPTS = {"deblur": SHARP_PROMPT, "blur-transfer": BLURRY_PROMPT}
DEEP, RESIDUAL = "deep", "residual_"  # the cached features


class Encode(nn.Module):
    """Refined VAE encoder with float32 pixels in."""

    def __init__(self, model: UIDDiff) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Image -> z_y, skip_0, ..."""
        z, skips = self.encoder(image.to(self.encoder.vae.dtype))
        return z, *skips


class Step(nn.Module):
    """The step with float32 latents and numbers, with guidance or without, whole or shallow."""

    def __init__(self, model: UIDDiff, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        super().__init__()
        self.step, self.names = model.step, [spec.name for spec in inputs]
        self.keeps = len(outputs) > 1

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The tensors that the inputs declare -> latent_next and, of a step that others reuse, what it leaves them."""
        given = dict(zip(self.names, values, strict=True))
        # Where guidance could be had and is not, the prompt is still both branches'.
        prompt = given["prompt"] if "guidance_scale" in given else given["prompt"][-1:]
        numbers = given["timestep"], given["alpha_bar"], given["alpha_bar_prev"], given.get("guidance_scale")
        if DEEP in given:
            kept = Kept(given[DEEP].flatten(0, 1), [given[name] for name in self.names if name.startswith(RESIDUAL)])
            return (self.step.shallow(given["latent"], prompt, *numbers, kept, given.get("f_b")),)
        x, kept = self.step(given["latent"], given["z_y"], given["f_s"], prompt, *numbers, given.get("f_b"))
        return (x, kept.deep.unflatten(0, (len(prompt), -1)), *kept.residuals) if self.keeps else (x,)


class Decode(nn.Module):
    """Refined VAE decoder with the float32 latent in."""

    def __init__(self, model: UIDDiff) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, *values: Tensor) -> Tensor:
        """latent, skip_0, ... -> output."""
        latent, *skips = values
        return self.decoder(latent.to(self.decoder.vae.dtype), skips)


def declare(model: UIDDiff, precision: str, *, guided: bool, shortcuts: bool = False) -> list[ExportComponent]:
    """Every component of ``model`` with its tensors; features between graphs have ``precision`` ("fp32", "fp16").

    Without ``guided`` the step computes the conditional branch alone. ``shortcuts`` adds steps that leave work out: the
    U-Net's outermost level alone and, where the step is guided, the conditional branch alone. Pixels, latents and the
    step's numbers are float32 in both precisions. All but the numbers and the prompt have a first dimension for
    pictures of one size that run together.
    """
    half = np.dtype(np.float16 if precision == "fp16" else np.float32)
    unet, factor = model.step.unet.config, model.latent_factor
    queries = model.structure.q_former.config
    text = model.text_encoder.config
    branches = 2 if guided else 1

    def tensor(name: str, *shape: int | str, dtype: np.dtype[Any] = half) -> TensorSpec:
        return TensorSpec(name, dtype, shape)

    def full(name: str, *shape: int | str) -> TensorSpec:
        return tensor(name, *shape, dtype=np.dtype(np.float32))

    def latents(channels: int) -> tuple[int | str, ...]:
        return BATCH, channels, f"height/{factor}", f"width/{factor}"

    image = full("image", BATCH, 3, "height", "width")
    blur_image = full("blur_image", BATCH, 3, "blur_height", "blur_width")
    f_s = tensor("f_s", BATCH, queries.queries, queries.hidden_size)
    f_b = tensor("f_b", BATCH, queries.queries, queries.hidden_size)
    z_y = tensor("z_y", *latents(unet.in_channels))
    skips = [
        tensor(f"skip_{i}", BATCH, width, divided("height", divisor), divided("width", divisor))
        for i, (width, divisor) in enumerate(model.skips)
    ]
    latent, latent_next = (full(name, *latents(unet.in_channels)) for name in ("latent", "latent_next"))
    prompt = tensor("prompt", branches, text.max_position_embeddings, text.hidden_size)
    numbers = [full(name, 1) for name in ("timestep", "alpha_bar", "alpha_bar_prev")]
    scale = [full("guidance_scale", 1)] if guided else []
    widths = unet.block_out_channels
    kept = [
        tensor(DEEP, branches, *latents(widths[min(1, len(widths) - 1)])),
        *(tensor(f"{RESIDUAL}{i}", *latents(widths[0])) for i in range(level_size(model.step.unet))),
    ]

    def component(
        name: str, stage: str, module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> ExportComponent:
        return ExportComponent(Component(name, f"{name}.onnx", stage, tuple(inputs), tuple(outputs)), module)

    def step(name: str, stage: str, inputs: Sequence[TensorSpec], left: Sequence[TensorSpec] = ()) -> ExportComponent:
        return component(name, stage, Step(model, inputs, [latent_next, *left]), inputs, [latent_next, *left])

    def steps(suffix: str, blur: Sequence[TensorSpec]) -> list[ExportComponent]:
        conditions = [latent, z_y, f_s, prompt, *numbers]
        whole = step(f"step{suffix}", FULL, [*conditions, *scale, *blur], kept if shortcuts else [])
        shallow = step(f"step_shallow{suffix}", SHALLOW, [latent, prompt, *numbers, *scale, *kept, *blur])
        unguided = step(f"step_unguided{suffix}", UNGUIDED, [*conditions, *blur])
        return [whole, *([shallow] if shortcuts else []), *([unguided] if shortcuts and guided else [])]

    return [
        component("structure", "prepare", model.structure, [image], [f_s]),
        component("blur", "prepare", model.blur, [blur_image], [f_b]),
        component("encoder", "prepare", Encode(model), [image], [z_y, *skips]),
        *steps("", []),
        *steps("_blur", [f_b]),
        component("decoder", "finish", Decode(model), [latent, *skips], [full("output", BATCH, 3, "height", "width")]),
    ]


def modes(components: Sequence[ExportComponent]) -> dict[str, Mode]:
    """The modes with the components that each runs: all but those of the other."""

    def mode(name: str, prompt: str) -> Mode:
        transfers = name == "blur-transfer"
        parts = [one.declaration for one in components]
        chosen = [
            part.name for part in parts if part.stage not in STEPS or ("f_b" in tensors(part.inputs)) == transfers
        ]
        if not transfers:
            chosen.remove("blur")
        constants = {"prompt": f"prompt.{name}"}
        inputs = images_read([part for part in parts if part.name in chosen], constants)
        return Mode(prompt, tuple(chosen), constants, inputs)

    return {name: mode(name, prompt) for name, prompt in PROMPTS.items()}


def tensors(specs: Sequence[TensorSpec]) -> set[str]:
    """The tensors' names."""
    return {spec.name for spec in specs}


def divided(symbol: str, divisor: int) -> str:
    """The symbol of a size over a divisor: "height/8", or plain "height" over 1."""
    return symbol if divisor == 1 else f"{symbol}/{divisor}"
