"""The components of a UID-Diff bundle, each declared once.

A declaration holds what everything else follows from: dummy inputs, dynamic axes, the ONNX file's tensor names, the
manifest entry and the validation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from uid.bundles.declarations import DDIM, FINISH, FULL, PREPARE, SAMPLERS, SHALLOW, STEPS, UNGUIDED, Component, Mode
from uid.bundles.tensors import BATCH, GUIDANCE, HEIGHT, IMAGE, NEXT_STATE, OUTPUT, STATE, WIDTH, TensorSpec
from uid.bundles.wiring import mode_of
from uid.families.contract import ExportComponent
from uid.families.uid_diff.model import BLURRY_PROMPT, SHARP_PROMPT, CachedFeatures, StepCoefficients, UIDDiff
from uid.families.uid_diff.unet import level_size

PROMPTS = {"deblur": SHARP_PROMPT, "blur-transfer": BLURRY_PROMPT}
DEEP, RESIDUAL, RESIDUAL_OUTPUT = "deep", "residual_", "output_residual"  # the cached features


class EncoderGraph(nn.Module):
    """Refined VAE encoder with float32 pixels in."""

    def __init__(self, model: UIDDiff) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Image -> z_y, skip_0, ..."""
        z, skips = self.encoder(image.to(self.encoder.vae.dtype))
        return z, *skips


class StepGraph(nn.Module):
    """The step with float32 latents and coefficients; with guidance or without, full or from cached features."""

    def __init__(self, model: UIDDiff, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        super().__init__()
        self.step, self.names = model.step, [spec.name for spec in inputs]
        self.leaves_features = len(outputs) > 1

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The tensors that the inputs declare -> latent_next and, where they are outputs, the features to cache."""
        given = dict(zip(self.names, values, strict=True))
        # An unguided step of a guided model is given both branches' prompts.
        prompt = given["prompt"] if GUIDANCE in given else given["prompt"][-1:]
        coefficients, scale = StepCoefficients(*(given[name] for name in SAMPLERS[DDIM])), given.get(GUIDANCE)
        if DEEP in given:
            residuals = [given[name] for name in self.names if name.startswith(RESIDUAL)]
            cached = CachedFeatures(given[DEEP].flatten(0, 1), residuals, given.get(RESIDUAL_OUTPUT))
            return (self.step.shallow(given["latent"], prompt, coefficients, scale, cached, given.get("f_b")),)
        conditions = given["latent"], given["z_y"], given["f_s"], prompt
        x, cached = self.step(*conditions, coefficients, scale, given.get("f_b"))
        if not self.leaves_features:
            return (x,)
        output = [] if cached.output is None else [cached.output]
        return x, cached.deep.unflatten(0, (len(prompt), -1)), *cached.residuals, *output


class DecoderGraph(nn.Module):
    """Refined VAE decoder with the float32 latent in."""

    def __init__(self, model: UIDDiff) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, *values: Tensor) -> Tensor:
        """latent, skip_0, ... -> output."""
        latent, *skips = values
        return self.decoder(latent.to(self.decoder.vae.dtype), skips)


@dataclass(frozen=True)
class Tensors:
    """Every tensor that components exchange."""

    image: TensorSpec
    blur_image: TensorSpec
    output: TensorSpec
    f_s: TensorSpec
    f_b: TensorSpec
    z_y: TensorSpec
    skips: list[TensorSpec]  # of the refined VAE
    latent: TensorSpec
    latent_next: TensorSpec
    prompt: TensorSpec
    coefficients: list[TensorSpec]
    scale: list[TensorSpec]  # the guidance scale; none without guidance
    cached: list[TensorSpec]  # what a full step leaves for those that use a feature cache


def tensors_of(model: UIDDiff, precision: str, guided: bool) -> Tensors:
    """The tensors of a model; features between graphs have ``precision``, all others are float32.

    All but the coefficients and the prompt have a batch axis, for images of one size that run together.
    """
    half = np.dtype(np.float16 if precision == "fp16" else np.float32)
    unet, factor, text = model.step.unet.config, model.latent_factor, model.text_encoder.config
    widths, queries = unet.block_out_channels, model.structure.q_former.config
    branches = 2 if guided else 1
    leads_out = model.step.adapter.config.output_residual

    def feature(name: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name, half, shape)

    def full(name: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name, np.dtype(np.float32), shape)

    def latents(channels: int) -> tuple[int | str, ...]:
        return BATCH, channels, f"{HEIGHT}/{factor}", f"{WIDTH}/{factor}"

    return Tensors(
        image=full(IMAGE, BATCH, 3, HEIGHT, WIDTH),
        blur_image=full("blur_image", BATCH, 3, "blur_height", "blur_width"),
        output=full(OUTPUT, BATCH, 3, HEIGHT, WIDTH),
        f_s=feature("f_s", BATCH, queries.queries, queries.hidden_size),
        f_b=feature("f_b", BATCH, queries.queries, queries.hidden_size),
        z_y=feature("z_y", *latents(unet.in_channels)),
        skips=[
            feature(f"skip_{i}", BATCH, width, divided(HEIGHT, divisor), divided(WIDTH, divisor))
            for i, (width, divisor) in enumerate(model.skips)
        ],
        latent=full(STATE, *latents(unet.in_channels)),
        latent_next=full(NEXT_STATE, *latents(unet.in_channels)),
        prompt=feature("prompt", branches, text.max_position_embeddings, text.hidden_size),
        coefficients=[full(name, 1) for name in SAMPLERS[DDIM]],
        scale=[full(GUIDANCE, 1)] if guided else [],
        cached=[
            feature(DEEP, branches, *latents(widths[min(1, len(widths) - 1)])),
            *(feature(f"{RESIDUAL}{i}", *latents(widths[0])) for i in range(level_size(model.step.unet))),
            *([feature(RESIDUAL_OUTPUT, *latents(unet.in_channels))] if leads_out else []),
        ],
    )


def declare(model: UIDDiff, precision: str, *, guided: bool, shortcuts: bool = False) -> list[ExportComponent]:
    """Every component of ``model`` with its tensors; features between graphs have ``precision`` ("fp32", "fp16").

    Without ``guided`` the step computes the conditional branch alone. ``shortcuts`` adds the steps of a feature cache
    and, where the step is guided, without guidance.
    """
    t = tensors_of(model, precision, guided)

    def component(
        name: str, stage: str, module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> ExportComponent:
        return ExportComponent(Component(name, f"{name}.onnx", stage, tuple(inputs), tuple(outputs)), module)

    def step(name: str, stage: str, inputs: Sequence[TensorSpec], left: Sequence[TensorSpec] = ()) -> ExportComponent:
        outputs = [t.latent_next, *left]
        return component(name, stage, StepGraph(model, inputs, outputs), inputs, outputs)

    def steps(suffix: str, blur: Sequence[TensorSpec]) -> list[ExportComponent]:
        conditions = [t.latent, t.z_y, t.f_s, t.prompt, *t.coefficients]
        full = step(f"step{suffix}", FULL, [*conditions, *t.scale, *blur], t.cached if shortcuts else [])
        shallow_inputs = [t.latent, t.prompt, *t.coefficients, *t.scale, *t.cached, *blur]
        shallow = step(f"step_shallow{suffix}", SHALLOW, shallow_inputs)
        unguided = step(f"step_unguided{suffix}", UNGUIDED, [*conditions, *blur])
        return [full, *([shallow] if shortcuts else []), *([unguided] if shortcuts and guided else [])]

    return [
        component("structure", PREPARE, model.structure, [t.image], [t.f_s]),
        component("blur", PREPARE, model.blur, [t.blur_image], [t.f_b]),
        component("encoder", PREPARE, EncoderGraph(model), [t.image], [t.z_y, *t.skips]),
        *steps("", []),
        *steps("_blur", [t.f_b]),
        component("decoder", FINISH, DecoderGraph(model), [t.latent, *t.skips], [t.output]),
    ]


def modes(components: Sequence[ExportComponent], colour_fix: str) -> dict[str, Mode]:
    """The modes with the components that each runs: all but those of the other."""

    def mode(name: str, prompt: str) -> Mode:
        transfers = name == "blur-transfer"
        parts = [one.declaration for one in components]
        chosen = [
            part.name
            for part in parts
            if part.stage not in STEPS or any(spec.name == "f_b" for spec in part.inputs) == transfers
        ]
        if not transfers:
            chosen.remove("blur")
        read = [part for part in parts if part.name in chosen]
        return mode_of(read, prompt=prompt, constants={"prompt": f"prompt.{name}"}, colour_fix=colour_fix)

    return {name: mode(name, prompt) for name, prompt in PROMPTS.items()}


def divided(symbol: str, divisor: int) -> str:
    """The symbol of a size over a divisor: "height/8", or plain "height" over 1."""
    return symbol if divisor == 1 else f"{symbol}/{divisor}"
