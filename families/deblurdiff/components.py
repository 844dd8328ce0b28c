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
    STEPS,
    UNGUIDED,
    Component,
    Mode,
    Noise,
)
from uid.bundles.tensors import BATCH, GUIDANCE, HEIGHT, IMAGE, NEXT_STATE, OUTPUT, STATE, WIDTH, TensorSpec
from uid.bundles.wiring import mode_of
from uid.families.contract import ExportComponent
from uid.families.deblurdiff.configs import LATENT_CHANNELS, LATENT_FACTOR, TOKENS
from uid.families.deblurdiff.model import Branch, Coefficients, DeblurDiff
from uid.families.deblurdiff.operators import TRANSLATIONS

DEBLUR = "deblur"
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


class StepGraph(nn.Module):
    """A step with float32 latents, noise and coefficients; with guidance or without."""

    def __init__(self, model: DeblurDiff, inputs: Sequence[TensorSpec]) -> None:
        super().__init__()
        self.model, self.names = model, [spec.name for spec in inputs]

    def forward(self, *values: Tensor) -> Tensor:
        """The tensors that the inputs declare -> latent_next."""
        given = dict(zip(self.names, values, strict=True))
        batch = given[STATE].shape[0]
        texts = [text.expand(batch, -1, -1) for text in given["prompt"].split(1)]
        branches = [Branch(given["c_img"], texts[-1])]
        if GUIDANCE in given:
            branches.insert(0, Branch(given["c_img_negative"], texts[0]))
        row = Coefficients(**{name: given[name] for name in SAMPLERS[DDPM]})
        return self.model.step(given[STATE], branches, row, given["step_noise"], given.get(GUIDANCE))


class DecoderGraph(nn.Module):
    """The autoencoder's decoder with the float32 latent in."""

    def __init__(self, model: DeblurDiff) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent: Tensor) -> Tensor:
        """Latent -> output, float32."""
        return self.model.decode(latent.to(self.model.vae.dtype)).float()


def declare(model: DeblurDiff, precision: str) -> list[ExportComponent]:
    """Every component of ``model``; features between graphs have ``precision`` ("fp32", "fp16")."""
    half, full = np.dtype(np.float16 if precision == "fp16" else np.float32), np.dtype(np.float32)
    width = model.text_encoder.config.hidden_size
    c_img, negative = (TensorSpec(name, half, LATENT) for name in ("c_img", "c_img_negative"))
    latent, latent_next, step_noise = (TensorSpec(name, full, LATENT) for name in (STATE, NEXT_STATE, "step_noise"))
    posterior = [TensorSpec(name, full, LATENT) for name in ("posterior_noise", "posterior_noise_negative")]
    prompt = TensorSpec("prompt", half, (2, TOKENS, width))
    numbers = [TensorSpec(name, full, (1,)) for name in SAMPLERS[DDPM]]
    image, output = TensorSpec(IMAGE, full, PIXELS), TensorSpec(OUTPUT, full, PIXELS)

    def component(
        name: str, stage: str, module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> ExportComponent:
        declaration = Component(name, f"{name}.onnx", stage, tuple(inputs), tuple(outputs))
        return ExportComponent(declaration, module, TRANSLATIONS if stage in STEPS else {})

    unguided = [latent, c_img, prompt, *numbers, step_noise]
    guided = [latent, c_img, negative, prompt, *numbers, TensorSpec(GUIDANCE, full, (1,)), step_noise]
    return [
        component("encoder", PREPARE, EncoderGraph(model), [image, *posterior], [c_img, negative]),
        component("step", FULL, StepGraph(model, guided), guided, [latent_next]),
        component("step_unguided", UNGUIDED, StepGraph(model, unguided), unguided, [latent_next]),
        component("decoder", FINISH, DecoderGraph(model), [latent], [output]),
    ]


def modes(components: Sequence[ExportComponent], prompt: str, negative_prompt: str) -> dict[str, Mode]:
    """Deblurring. The noise is drawn in the original's order: posterior samples, first latent, steps."""
    parts = [one.declaration for one in components]
    full = np.dtype(np.float32)
    once = [TensorSpec(name, full, LATENT) for name in ("posterior_noise", "posterior_noise_negative", STATE)]
    noise = [*map(Noise, once), Noise(TensorSpec("step_noise", full, LATENT), PER_STEP)]
    mode = mode_of(
        parts,
        prompt=prompt,
        constants={"prompt": PROMPTS},
        noise=noise,
        colour_fix=ADAIN,
        negative_prompt=negative_prompt,
    )
    return {DEBLUR: mode}


def prompts(model: DeblurDiff, negative: Tensor, positive: Tensor) -> Tensor:
    """The embeddings of both prompts, (2, 77, D) float32, from their token ids."""
    with torch.inference_mode():
        return torch.cat([model.embedded(negative), model.embedded(positive)])
