"""The variants of the paper's ablation on the held-out photos."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean

from uid.bench.quality.fidelity import psnr, ssim
from uid.train.blur import RgbImage
from uid.train.held_out import cases

NOISE = 0.003  # of the camera, as in ``uid-bench quality``


@dataclass(frozen=True)
class AblationRow:
    """One variant on the held-out photos."""

    variant: str
    psnr: float  # dB, mean
    ssim: float  # mean
    gain: float  # dB over the blurred input, mean
    steps: int  # of training


def score(name: str, method: Callable[[RgbImage], RgbImage], photos: Mapping[str, RgbImage], steps: int) -> AblationRow:
    """A method over every case; ``steps`` is how long it was trained."""
    tried = [case for photo, sharp in photos.items() for case in cases(photo, sharp, noise=NOISE, jpeg=None)]
    outputs = [method(case.blurred) for case in tried]
    figures = [psnr(output, case.sharp) for output, case in zip(outputs, tried, strict=True)]
    before = [psnr(case.blurred, case.sharp) for case in tried]
    similar = [ssim(output, case.sharp) for output, case in zip(outputs, tried, strict=True)]
    return AblationRow(name, fmean(figures), fmean(similar), fmean(figures) - fmean(before), steps)
