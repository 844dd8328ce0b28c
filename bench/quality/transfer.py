"""Blur transfer on held-out photos: does a sharp photo take on the blur of another, and keep its own structure?

Each photo is given the blur of the next one: kernels of families that training never shows, and one that training does,
ever stronger, so that it can be seen whether a stronger blur gives a stronger one. The same kernel applied to the photo
itself is what a perfect transfer would give, so the output is judged by its distance to that, beside the distance that
the untouched photo has.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uid.bench.quality.fidelity import psnr, ssim, tenengrad
from uid.bench.quality.sheet import cell
from uid.runtime.options import Options
from uid.runtime.pipeline import Pipeline
from uid.train.blur import RgbImage, degrade, distance, normalised
from uid.train.held_out import CASE_SEED, BlurCase, cases

STRENGTHS = (0.5, 1.0, 2.0, 3.0)  # deviations of a Gaussian, in pixels


@dataclass(frozen=True)
class TransferRow:
    """One photo given one blur."""

    photo: str  # the sharp one, which should keep its structure
    blur_from: str  # the photo that came with the blur
    kernel: str  # family of that blur, of a Gaussian with its deviation in pixels
    psnr: float  # dB, output against the photo under the same kernel
    psnr_untouched: float  # dB, the photo as it was against the same
    ssim: float  # output against the photo under the same kernel
    sharpness: float  # Tenengrad of the output relative to the sharp photo's
    sharpness_wanted: float  # of the photo under the same kernel
    seconds: float
    height: int  # pixels
    width: int


@dataclass(frozen=True)
class BlurTransferCase:
    """A row and its images, each (H, W, 3) float32 in [0, 1]."""

    row: TransferRow
    blurred: RgbImage  # gives the blur
    sharp: RgbImage  # takes it
    output: RgbImage
    wanted: RgbImage  # the sharp photo under the same kernel


def measure(pipeline: Pipeline, options: Options, photos: Mapping[str, RgbImage]) -> Iterator[BlurTransferCase]:
    """Every photo with each blur of the next photo. ``options.mode`` is "blur-transfer"."""

    def blurs(photo: str) -> Iterator[BlurCase]:
        yield from cases(photo, photos[photo], noise=0.0, jpeg=None)
        yield from ever_stronger(photo, photos[photo])

    names = list(photos)
    for photo, other in zip(names, [*names[1:], names[0]], strict=True):
        sharp = photos[photo]
        for case in blurs(other):
            wanted = degrade(np.random.default_rng(CASE_SEED), sharp, case.psf)
            started = time.perf_counter()
            output = pipeline(sharp, options, blur_image=case.blurred).image
            seconds = time.perf_counter() - started
            row = TransferRow(
                photo=photo,
                blur_from=other,
                kernel=case.kernel,
                psnr=psnr(output, wanted),
                psnr_untouched=psnr(sharp, wanted),
                ssim=ssim(output, wanted),
                sharpness=tenengrad(output) / tenengrad(sharp),
                sharpness_wanted=tenengrad(wanted) / tenengrad(sharp),
                seconds=seconds,
                height=sharp.shape[0],
                width=sharp.shape[1],
            )
            yield BlurTransferCase(row, case.blurred, sharp, output, wanted)


def ever_stronger(photo: str, sharp: RgbImage) -> Iterator[BlurCase]:
    """A photo under Gaussians of ``STRENGTHS``."""
    for deviation in STRENGTHS:
        psf = normalised(np.exp(-((distance() / deviation) ** 2) / 2.0))
        yield BlurCase(
            photo, f"gaussian {deviation:g}", sharp, psf, degrade(np.random.default_rng(CASE_SEED), sharp, psf)
        )


def sheet(transfers: Iterable[BlurTransferCase], rows: int = 4) -> NDArray[np.uint8]:
    """One row per photo: the image that gives its blur, the sharp one, the output, and what was wanted. RGB uint8."""
    shown: dict[str, BlurTransferCase] = {}
    for transfer in transfers:
        if len(shown) < rows:
            shown.setdefault(transfer.row.photo, transfer)
    return np.concatenate([_row(transfer) for transfer in shown.values()])


def _row(transfer: BlurTransferCase) -> NDArray[np.uint8]:
    row = transfer.row
    cells = [
        cell(transfer.blurred, f"{row.blur_from}, {row.kernel}"),
        cell(transfer.sharp, f"{row.photo}  {row.psnr_untouched:.1f} dB"),
        cell(transfer.output, f"uid  {row.psnr:.1f} dB"),
        cell(transfer.wanted, "wanted"),
    ]
    return np.concatenate(cells, axis=1)
