"""What a bundle is compared with: its own refined VAE alone, and two classical methods."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from uid.engines import Array, Engine, create
from uid.runtime.pipeline import Options, Pipeline
from uid.runtime.pixels import interleaved, planes
from uid.runtime.plan import OUTPUT, STATE, resolve
from uid.runtime.views import turned, turned_back
from uid.train.blur import Kernel, Pixels, blur, to_linear, to_srgb

# Chosen by mean PSNR over the cases themselves: a bar set in favour of the classical methods.
UNSHARP_SIGMA, UNSHARP_AMOUNT = 3.0, 0.5
RICHARDSON_LUCY_ITERATIONS = 50

BLURRED, UNSHARP, RICHARDSON_LUCY = "blurred", "unsharp mask", "richardson-lucy"
REFINED_VAE, UID = "refined VAE", "uid"


@dataclass(frozen=True)
class Case:
    """A photo and what blur made of it; both (H, W, 3) float32 sRGB in [0, 1]."""

    photo: str
    kernel: str  # family
    sharp: Pixels
    psf: Kernel  # the kernel itself
    blurred: Pixels


Method = Callable[[Case], Pixels]


def methods(pipeline: Pipeline, options: Options) -> dict[str, Method]:
    """What is compared. Only Richardson-Lucy is told the kernel."""
    tried: dict[str, Method] = {
        BLURRED: lambda case: case.blurred,
        UNSHARP: lambda case: unsharp_mask(case.blurred),
        RICHARDSON_LUCY: lambda case: richardson_lucy(case.blurred, case.psf),
    }
    if {"encoder", "decoder"} <= set(pipeline.bundle.components):
        alone = RefinedVAE(pipeline, pipeline.chosen(options).views)
        tried[REFINED_VAE] = lambda case: alone(case.blurred)
    tried[UID] = lambda case: pipeline(case.blurred, options).image
    return tried


class RefinedVAE:
    """A bundle without its diffusion: what the refined decoder makes of the refined encoder's own latent z_y.

    The mean over as many views as the whole bundle has.
    """

    def __init__(self, pipeline: Pipeline, views: int) -> None:
        self.bundle, self.views = pipeline.bundle, views
        self.backend = create(pipeline.backend)
        self.parts = [self.bundle.components[name] for name in ("encoder", "decoder")]
        self.engines: dict[str, Engine] = {}

    def __call__(self, image: Pixels) -> Pixels:
        """(H, W, 3) in [0, 1], sides multiples of the bundle's -> the same."""
        given = planes(image)
        made = [turned_back(self.view(turned(given, number)), number) for number in range(self.views)]
        return interleaved(list(np.mean(made, axis=0)))

    def view(self, given: Array) -> Array:
        """What the planes of one view give."""
        sizes = {"height": given.shape[1], "width": given.shape[2]}
        tensors: dict[str, Array] = {"image": given[None]}
        for part in self.parts:
            engine = self.engines.get(part.name)
            if engine is None or not engine.covers(sizes):
                engine = self.engines[part.name] = self.backend.load_component(self.bundle, part, sizes)
            buffers = {
                s.name: self.backend.allocate(resolve(s.shape, sizes), s.dtype) for s in (*part.inputs, *part.outputs)
            }
            for spec in part.inputs:
                buffers[spec.name].write(tensors[spec.name].astype(spec.dtype))
            engine.bind(buffers)()
            tensors |= {spec.name: buffers[spec.name].read() for spec in part.outputs}
            tensors.setdefault(STATE, tensors["z_y"])
        output: Array = tensors[OUTPUT][0]
        return output


def unsharp_mask(blurred: Pixels, sigma: float = UNSHARP_SIGMA, amount: float = UNSHARP_AMOUNT) -> Pixels:
    """Add ``amount`` times what a Gaussian of ``sigma`` pixels takes away; sRGB in [0, 1]."""
    sharpened: Pixels = blurred + amount * (blurred - cv2.GaussianBlur(blurred, (0, 0), sigma))
    return sharpened.clip(0.0, 1.0)


def richardson_lucy(blurred: Pixels, psf: Kernel, iterations: int = RICHARDSON_LUCY_ITERATIONS) -> Pixels:
    """Richardson-Lucy deconvolution (Richardson 1972, Lucy 1974) in linear light; sRGB in [0, 1] in and out.

    Unlike in scikit-image's, the picture goes on beyond its border as ``blur`` has it: no dark frame grows inwards.
    """
    light = to_linear(blurred)
    mirrored = psf[::-1, ::-1]
    estimate = light
    for _ in range(iterations):
        estimate = estimate * blur(light / np.maximum(blur(estimate, psf), 1e-6), mirrored)
    return to_srgb(estimate)
