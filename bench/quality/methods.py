"""What a bundle is compared with: the blurred image, and two classical methods."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from uid.bundles.declarations import Bundle
from uid.bundles.tensors import GUIDANCE
from uid.errors import InputError
from uid.runtime.options import Options, check_names, reads
from uid.runtime.pipeline import Pipeline
from uid.train.blur import Kernel, RgbImage, blur, to_linear, to_srgb
from uid.train.held_out import BlurCase

# Chosen by mean PSNR over the cases themselves: a bar set in favour of the classical methods.
UNSHARP_SIGMA, UNSHARP_AMOUNT = 3.0, 0.5
RICHARDSON_LUCY_ITERATIONS = 50

BLURRED, UNSHARP, RICHARDSON_LUCY = "blurred", "unsharp mask", "richardson-lucy"
UID = "uid"
RESERVED = (BLURRED, UNSHARP, RICHARDSON_LUCY, UID)


Method = Callable[[BlurCase], RgbImage]


def methods(pipeline: Pipeline, options: Options) -> dict[str, Method]:
    """What is compared. Only Richardson-Lucy is told the kernel."""
    tried: dict[str, Method] = {
        BLURRED: lambda case: case.blurred,
        UNSHARP: lambda case: unsharp_mask(case.blurred),
        RICHARDSON_LUCY: lambda case: richardson_lucy(case.blurred, case.psf),
    }
    tried[UID] = restored(pipeline, options)
    return tried


def method_names(folders: Sequence[Path]) -> list[str]:
    """What further bundles are called, each by its folder; raises ``InputError`` for a name that is taken."""
    names = [folder.resolve().name for folder in folders]
    if len({*names, *RESERVED}) < len(names) + len(RESERVED):
        raise InputError(
            f"the bundles are called {', '.join(names)}; expected different names, none of them {', '.join(RESERVED)}: "
            "rename a folder"
        )
    return names


def own_options(options: Options, bundle: Bundle) -> Options:
    """The options without those about a loop or guidance that the bundle does not have."""
    steps = options.steps if bundle.has_steps(options.mode) else None
    guidance = options.guidance if reads(bundle, options.mode, GUIDANCE) else None
    return replace(options, steps=steps, guidance=guidance)


def options_of_each(options: Options, bundles: Sequence[Bundle]) -> list[Options]:
    """What each of the bundles that are compared is run with; raises ``InputError`` for an option that none has."""
    for bundle in bundles:
        check_names(options, bundle)
    each = [own_options(options, bundle) for bundle in bundles]
    for key in ("steps", "guidance"):
        if getattr(options, key) is not None and all(getattr(one, key) is None for one in each):
            options.resolved(bundles[0])  # which says so
    return each


def restored(pipeline: Pipeline, options: Options) -> Method:
    """What a pipeline makes of the blurred image."""
    return lambda case: pipeline(case.blurred, options).image


def unsharp_mask(blurred: RgbImage, sigma: float = UNSHARP_SIGMA, amount: float = UNSHARP_AMOUNT) -> RgbImage:
    """Add ``amount`` times what a Gaussian of ``sigma`` pixels takes away; sRGB in [0, 1]."""
    sharpened: RgbImage = blurred + amount * (blurred - cv2.GaussianBlur(blurred, (0, 0), sigma))
    return sharpened.clip(0.0, 1.0)


def richardson_lucy(blurred: RgbImage, psf: Kernel, iterations: int = RICHARDSON_LUCY_ITERATIONS) -> RgbImage:
    """Richardson-Lucy deconvolution (Richardson 1972, Lucy 1974) in linear light; sRGB in [0, 1] in and out.

    Unlike in scikit-image's, the image goes on beyond its border as ``blur`` has it: no dark frame grows inwards.
    """
    light = to_linear(blurred)
    mirrored = psf[::-1, ::-1]
    estimate = light
    for _ in range(iterations):
        estimate = estimate * blur(light / np.maximum(blur(estimate, psf), 1e-6), mirrored)
    return to_srgb(estimate)
