"""The components of a DeblurDiff bundle, each declared once."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from uid.bundles.declarations import (
    ADAIN,
    DDPM,
    FINISH,
    FULL,
    PER_STEP,
    PREPARE,
    SAMPLERS,
    UNGUIDED,
    Component,
    Mode,
    Noise,
)
from uid.bundles.tensors import BATCH, GUIDANCE, HEIGHT, IMAGE, NEXT_STATE, OUTPUT, STATE, WIDTH, TensorSpec
from uid.bundles.wiring import mode_of
from uid.families.contract import ExportComponent
from uid.families.deblurdiff.configs import LATENT_CHANNELS, LATENT_FACTOR, TOKENS, Tiling
from uid.families.deblurdiff.model import Branch, Coefficients, DeblurDiff
from uid.families.deblurdiff.translations import TRANSLATIONS

DEBLUR, TILED, BETTER_START = "deblur", "deblur-tiled", "deblur-better-start"
MODES = {  # and the components that each runs
    DEBLUR: ("encoder", "step", "step_unguided", "decoder"),
    TILED: ("encoder_tiled", "step_tiled", "step_tiled_unguided", "decoder_tiled"),
    BETTER_START: ("encoder", "start", "step", "step_unguided", "decoder"),
}
POSTERIOR_NOISE = ("posterior_noise", "posterior_noise_negative")
START_NOISE = ("start_posterior_noise", "start_noise")
NOISE = (*POSTERIOR_NOISE, *START_NOISE, STATE)  # that is drawn once, in this order
PROMPTS = "prompt.deblur"  # the negative prompt and the prompt
LATENT = (BATCH, LATENT_CHANNELS, f"{HEIGHT}/{LATENT_FACTOR}", f"{WIDTH}/{LATENT_FACTOR}")
PIXELS = (BATCH, 3, HEIGHT, WIDTH)


class EncoderGraph(nn.Module):
    """Two samples of the image's latent, in the dtype of the weights: each branch of guidance has its own."""

    def __init__(self, model: DeblurDiff) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, noise: Tensor, negative_noise: Tensor) -> tuple[Tensor, Tensor]:
        """Image and noises -> c_img, c_img_negative."""
        dtype = self.model.vae.dtype
        mean, log_variance = self.model.moments(image.to(dtype))
        samples = [self.model.sampled(mean.float(), log_variance.float(), one) for one in (noise, negative_noise)]
        return samples[0].to(dtype), samples[1].to(dtype)


class StartGraph(nn.Module):
    """A first latent that holds the image's low frequencies, float32."""

    def __init__(self, model: DeblurDiff) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, posterior_noise: Tensor, noise: Tensor) -> Tensor:
        """Image and noises -> latent."""
        return self.model.better_start(image.to(self.model.vae.dtype), posterior_noise, noise).float()


class TiledEncoderGraph(nn.Module):
    """The mean of the image's latent, encoded in tiles; both branches of guidance share it."""

    def __init__(self, model: DeblurDiff, tiling: Tiling) -> None:
        super().__init__()
        self.model, self.tiling = model, tiling

    def forward(self, image: Tensor) -> Tensor:
        """Image -> c_img."""
        return self.model.encode(image.to(self.model.vae.dtype), None, self.tiling)


class StepGraph(nn.Module):
    """A step with float32 latents, noise and coefficients; with guidance or without, in tiles or whole."""

    def __init__(self, model: DeblurDiff, inputs: Sequence[TensorSpec], tiling: Tiling | None) -> None:
        super().__init__()
        self.model, self.names, self.tiling = model, [spec.name for spec in inputs], tiling

    def forward(self, *values: Tensor) -> Tensor:
        """The tensors that the inputs declare -> latent_next."""
        given = dict(zip(self.names, values, strict=True))
        batch = given[STATE].shape[0]
        texts = [text.expand(batch, -1, -1) for text in given["prompt"].split(1)]
        branches = [Branch(given["c_img"], texts[-1])]
        if GUIDANCE in given:
            branches.insert(0, Branch(given.get("c_img_negative", given["c_img"]), texts[0]))
        row = Coefficients(**{name: given[name] for name in SAMPLERS[DDPM]})
        return self.model.step(given[STATE], branches, row, given["step_noise"], given.get(GUIDANCE), self.tiling)


class DecoderGraph(nn.Module):
    """The autoencoder's decoder with the float32 latent in."""

    def __init__(self, model: DeblurDiff, tiling: Tiling | None) -> None:
        super().__init__()
        self.model, self.tiling = model, tiling

    def forward(self, latent: Tensor) -> Tensor:
        """Latent -> output, float32."""
        return self.model.decode(latent.to(self.model.vae.dtype), self.tiling).float()


class Specs:
    """Every tensor of the graphs; features between them have ``precision`` ("fp32", "fp16")."""

    def __init__(self, model: DeblurDiff, precision: str) -> None:
        half, full = np.dtype(np.float16 if precision == "fp16" else np.float32), np.dtype(np.float32)
        self.c_img, self.negative = (TensorSpec(name, half, LATENT) for name in ("c_img", "c_img_negative"))
        self.latent, self.latent_next = (TensorSpec(name, full, LATENT) for name in (STATE, NEXT_STATE))
        self.prompt = TensorSpec("prompt", half, (2, TOKENS, model.text_encoder.config.hidden_size))
        self.image, self.output = TensorSpec(IMAGE, full, PIXELS), TensorSpec(OUTPUT, full, PIXELS)
        self.coefficients = [TensorSpec(name, full, (1,)) for name in SAMPLERS[DDPM]]
        self.guidance, self.step_noise = TensorSpec(GUIDANCE, full, (1,)), TensorSpec("step_noise", full, LATENT)
        self.posterior_noise = [TensorSpec(name, full, LATENT) for name in POSTERIOR_NOISE]
        self.start_noise = [TensorSpec(name, full, LATENT) for name in START_NOISE]


def component(
    name: str, stage: str, module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> ExportComponent:
    """A component of one graph."""
    declaration = Component(name, f"{name}.onnx", stage, tuple(inputs), tuple(outputs))
    return ExportComponent(declaration, module, TRANSLATIONS)


def declare(model: DeblurDiff, precision: str, modes: Sequence[str], tiling: Tiling) -> list[ExportComponent]:
    """The components of these modes, in the order that they run in, each once."""
    specs = Specs(model, precision)
    latents = [specs.c_img, specs.negative]
    parts = [
        component("encoder", PREPARE, EncoderGraph(model), [specs.image, *specs.posterior_noise], latents),
        component("encoder_tiled", PREPARE, TiledEncoderGraph(model, tiling), [specs.image], latents[:1]),
        component("start", PREPARE, StartGraph(model), [specs.image, *specs.start_noise], [specs.latent]),
        *step_and_decoder(model, specs, latents, "", None),
        *step_and_decoder(model, specs, latents[:1], "_tiled", tiling),
    ]
    used = {name for mode in modes for name in MODES[mode]}
    return [part for part in parts if part.declaration.name in used]


def step_and_decoder(
    model: DeblurDiff, specs: Specs, latents: Sequence[TensorSpec], suffix: str, tiling: Tiling | None
) -> list[ExportComponent]:
    """A step with guidance, one without, and the decoder; ``latents`` are those of the image."""
    unguided = [specs.latent, specs.c_img, specs.prompt, *specs.coefficients, specs.step_noise]
    guided = [specs.latent, *latents, specs.prompt, *specs.coefficients, specs.guidance, specs.step_noise]
    step, step_unguided = (StepGraph(model, inputs, tiling) for inputs in (guided, unguided))
    return [
        component(f"step{suffix}", FULL, step, guided, [specs.latent_next]),
        component(f"step{suffix}_unguided", UNGUIDED, step_unguided, unguided, [specs.latent_next]),
        component(f"decoder{suffix}", FINISH, DecoderGraph(model, tiling), [specs.latent], [specs.output]),
    ]


def modes(
    names: Sequence[str], components: Sequence[ExportComponent], prompt: str, negative_prompt: str
) -> dict[str, Mode]:
    """Modes by name. The noise is drawn in the original's order: posterior samples, first latent, steps."""
    declared = {one.declaration.name: one.declaration for one in components}

    def mode(parts: Sequence[Component]) -> Mode:
        read = {spec.name: spec for part in parts for spec in part.inputs}
        written = {spec.name for part in parts for spec in part.outputs}
        once = [Noise(read[name]) for name in NOISE if name in read and name not in written]
        return mode_of(
            parts,
            prompt=prompt,
            constants={"prompt": PROMPTS},
            noise=[*once, Noise(read["step_noise"], PER_STEP)],
            colour_fix=ADAIN,
            negative_prompt=negative_prompt,
        )

    return {name: mode([declared[part] for part in MODES[name]]) for name in names}


def prompts(model: DeblurDiff, negative: Tensor, positive: Tensor) -> Tensor:
    """The embeddings of both prompts, (2, 77, D) float32, from their token ids."""
    with torch.inference_mode():
        return torch.cat([model.embedded(negative), model.embedded(positive)])
