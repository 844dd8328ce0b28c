"""How well a bundle sharpens photos that nothing was trained on, beside classical methods.

Held-out photos are blurred with kernels of families that training never shows; every method gets the same blurred
image, and what it makes of it is compared with the sharp one.
"""

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from uid.bench.quality.methods import BLURRED, UID, UNSHARP, BlurCase, Method, methods, options_of_each, restored
from uid.bench.quality.metrics import Score
from uid.errors import InputError
from uid.install import install_command
from uid.runtime.options import Options
from uid.runtime.pipeline import Pipeline
from uid.train.blur import UNKNOWN_KERNELS, RgbImage, degrade

CASE_SEED = 2024  # of kernels and noise: the same cases in every run, whatever the seed of the pipeline
KERNELS_A_PHOTO = 2
SIDES = (384, 256)  # of a held-out photo, multiples of 64
REDUCTION = 1.15  # at least: pixels as a camera interpolates them are not sharp
BORDER = 16  # pixels that no metric looks at: what lies beyond the frame is a guess for every method
PSNR_CAP = 100.0  # dB, for equal images: JSON has no infinity

UID_ON_SHARP = "uid on sharp"
NO_KERNEL = "none"


# -- cases ------------------------------------------------------------------------------------------------------------


def _sample(name: str) -> NDArray[Any]:
    """One of scikit-learn's photos; found by name, since scikit-learn need not be there."""
    photo: NDArray[Any] = importlib.import_module("sklearn.datasets").load_sample_image(f"{name}.jpg")
    return photo


SCIKIT_LEARN = ("china", "flower")
# Natural photos that packages carry, so that nothing is downloaded. New ones go last: a case is seeded by its position.
PHOTOS: Mapping[str, Callable[[], NDArray[Any]]] = {
    "astronaut": data.astronaut,
    "coffee": data.coffee,
    "chelsea": data.chelsea,
    "rocket": data.rocket,
    "motorcycle_left": lambda: data.stereo_motorcycle()[0],
    "motorcycle_right": lambda: data.stereo_motorcycle()[1],
    "china": lambda: _sample("china"),
    "flower": lambda: _sample("flower"),
}


def held_out(names: Sequence[str] = ()) -> dict[str, RgbImage]:
    """The held-out photos by name, (S, S, 3) float32 sRGB in [0, 1], S in ``SIDES``; no names: all that are installed.

    Raises ``InputError`` for a name that is unknown, or whose photo scikit-learn would bring.
    """
    missing = () if importlib.util.find_spec("sklearn") else SCIKIT_LEARN
    for name in names:
        if name not in PHOTOS:
            raise InputError(f"no photo {name!r}; expected one of {', '.join(PHOTOS)}")
        if name in missing:
            raise InputError(
                f"photo {name!r} comes with scikit-learn, which is missing: {install_command(['scikit-learn'])}"
            )
    return {name: reduced(PHOTOS[name]()) for name in names or [name for name in PHOTOS if name not in missing]}


def reduced(photo: NDArray[Any]) -> RgbImage:
    """The middle square of (H, W, 3) uint8, made smaller by area averaging; float32 in [0, 1]."""
    short = min(photo.shape[:2])
    side = next(side for side in SIDES if side * REDUCTION <= short)
    top, left = ((size - short) // 2 for size in photo.shape[:2])
    square = photo[top : top + short, left : left + short].astype(np.float32) / np.float32(255.0)
    return np.asarray(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)).clip(0.0, 1.0)


def cases(photo: str, sharp: RgbImage, *, noise: float, jpeg: int | None) -> Iterator[BlurCase]:
    """A photo under ``KERNELS_A_PHOTO`` kernels of unknown families; ``noise`` and ``jpeg`` as in ``degrade``."""
    families = list(UNKNOWN_KERNELS)
    first = KERNELS_A_PHOTO * list(PHOTOS).index(photo)
    for number in range(first, first + KERNELS_A_PHOTO):
        family = families[number % len(families)]
        rng = np.random.default_rng([CASE_SEED, number])
        psf = UNKNOWN_KERNELS[family](rng)
        yield BlurCase(photo, family, sharp, psf, degrade(rng, sharp, psf, noise=noise, jpeg=jpeg))


# -- metrics ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QualityRow:
    """One method on one case."""

    photo: str
    kernel: str  # family, or "none" where the sharp photo itself went in
    method: str
    psnr: float  # dB, at most PSNR_CAP
    ssim: float
    sharpness: float  # Tenengrad relative to the sharp photo's, 1 when as sharp; noise raises it too
    seconds: float
    height: int  # pixels
    width: int
    metrics: Mapping[str, float] = field(default_factory=dict)  # learned ones that were asked for


def psnr(image: RgbImage, sharp: RgbImage) -> float:
    """Peak signal-to-noise ratio inside the border, in dB, at most ``PSNR_CAP``."""
    with np.errstate(divide="ignore"):  # equal images
        return min(float(peak_signal_noise_ratio(inside(sharp), inside(image), data_range=1.0)), PSNR_CAP)


def ssim(image: RgbImage, sharp: RgbImage) -> float:
    """Structural similarity inside the border with the Gaussian window of Wang et al. (2004), mean over RGB."""
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(inside(sharp), inside(image), data_range=1.0, channel_axis=2, **window))


def tenengrad(image: RgbImage) -> float:
    """Mean squared Sobel gradient of the luma (BT.601) inside the border."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    squares = [cv2.Sobel(luma, cv2.CV_32F, *order, ksize=3) ** 2 for order in ((1, 0), (0, 1))]
    return float(inside(np.add(*squares)).mean(dtype=np.float64))


def inside(image: RgbImage) -> RgbImage:
    """The image without its border."""
    return image[BORDER:-BORDER, BORDER:-BORDER]


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Every method on one case: the figures, and the images by method."""

    case: BlurCase
    rows: tuple[QualityRow, ...]
    images: Mapping[str, RgbImage]


def compare(case: BlurCase, tried: Mapping[str, Method], metrics: Mapping[str, Score] = {}) -> Comparison:
    """Run and score the methods; ``metrics`` as ``metrics.load`` gives them."""
    sharp = inside(case.sharp)
    rows, images = [], {}
    for name, method in tried.items():
        started = time.perf_counter()
        image = images[name] = method(case)
        seconds = time.perf_counter() - started
        sharpness = tenengrad(image) / tenengrad(case.sharp)
        scores = psnr(image, case.sharp), ssim(image, case.sharp), sharpness
        learned = {metric: score(inside(image), sharp) for metric, score in metrics.items()}
        height, width = image.shape[:2]
        rows.append(QualityRow(case.photo, case.kernel, name, *scores, seconds, height, width, learned))
    return Comparison(case, tuple(rows), images)


def measure(
    pipeline: Pipeline,
    options: Options,
    photos: Mapping[str, RgbImage],
    *,
    noise: float,
    jpeg: int | None,
    metrics: Mapping[str, Score] = {},
    others: Mapping[str, Pipeline] = {},
) -> Iterator[Comparison]:
    """Every case of every photo; then the sharp photo itself through the pipeline, which must come back near.

    ``others`` are further pipelines, by what they are called, on the same cases; each runs with those of the options
    that it has.
    """
    pipelines = (pipeline, *others.values())
    own, *theirs = options_of_each(options, [one.bundle for one in pipelines])
    for one, used in zip(pipelines, (own, *theirs), strict=True):
        check_size(one, used)
    tried = methods(pipeline, own)
    tried |= {name: restored(others[name], used) for name, used in zip(others, theirs, strict=True)}
    for sharp in {sharp.shape: sharp for sharp in photos.values()}.values():
        for one, used in zip(pipelines, (own, *theirs), strict=True):
            one(sharp, used)  # engines load and plans are made outside of the seconds
    for photo, sharp in photos.items():
        for case in cases(photo, sharp, noise=noise, jpeg=jpeg):
            yield compare(case, tried, metrics)
        unblurred = BlurCase(photo, NO_KERNEL, sharp, np.ones((1, 1), np.float32), sharp)
        yield compare(unblurred, {UID_ON_SHARP: tried[UID]}, metrics)


def check_size(pipeline: Pipeline, options: Options) -> None:
    """Raise ``InputError`` for a bundle whose outputs are larger than its inputs."""
    bundle, mode = pipeline.bundle, options.resolved(pipeline.bundle).mode
    if (scale := bundle.output_scale(mode)) != 1:
        raise InputError(f"bundle {bundle.name!r} enlarges images {scale} times; expected one that keeps their size")


# -- summary ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QualitySummary:
    """One method over all of its cases: means, and how it compares case by case; None where it has no counterpart."""

    method: str
    psnr: float  # dB
    ssim: float
    sharpness: float
    seconds: float
    gain: float | None  # dB over the blurred input
    worst: float | None  # dB, the smallest gain of any case: negative where the method did harm
    beats_unsharp: float | None  # share of cases with a higher PSNR than the unsharp mask, 0 to 1
    metrics: Mapping[str, float]  # the rows' learned ones


def summarise(rows: Iterable[QualityRow]) -> list[QualitySummary]:
    """The rows by method, in order of appearance."""
    scores: dict[str, dict[tuple[str, str], QualityRow]] = {}
    for row in rows:
        scores.setdefault(row.method, {})[row.photo, row.kernel] = row
    return [_summary(method, scores) for method in scores]


def _summary(method: str, scores: Mapping[str, Mapping[tuple[str, str], QualityRow]]) -> QualitySummary:
    mine, blurred, unsharp = scores[method], scores[BLURRED], scores[UNSHARP]
    gains = [row.psnr - blurred[case].psnr for case, row in mine.items() if case in blurred]
    wins = [row.psnr > unsharp[case].psnr for case, row in mine.items() if case in unsharp]
    return QualitySummary(
        method,
        psnr=fmean(row.psnr for row in mine.values()),
        ssim=fmean(row.ssim for row in mine.values()),
        sharpness=fmean(row.sharpness for row in mine.values()),
        seconds=fmean(row.seconds for row in mine.values()),
        gain=fmean(gains) if gains else None,
        worst=min(gains, default=None),
        beats_unsharp=fmean(wins) if wins else None,
        metrics={name: fmean(row.metrics[name] for row in mine.values()) for name in next(iter(mine.values())).metrics},
    )


# -- contact sheet ----------------------------------------------------------------------------------------------------

SHEET_PHOTOS = 4
CELL = 256  # pixels of a photo's middle that a cell shows, unscaled
CAPTION = 20  # pixels above them


def contact_sheet(comparisons: Iterable[Comparison]) -> NDArray[np.uint8]:
    """One row per photo, its first case: sharp, then each method. (H, W, 3) RGB uint8."""
    shown: dict[str, Comparison] = {}
    for comparison in comparisons:
        if comparison.case.kernel != NO_KERNEL and len(shown) < SHEET_PHOTOS:
            shown.setdefault(comparison.case.photo, comparison)
    return np.concatenate([_sheet_row(comparison) for comparison in shown.values()])


def _sheet_row(comparison: Comparison) -> NDArray[np.uint8]:
    case = comparison.case
    cells = [cell(case.sharp, f"{case.photo}, {case.kernel}")]
    cells += [cell(comparison.images[row.method], f"{row.method}  {row.psnr:.1f} dB") for row in comparison.rows]
    return np.concatenate(cells, axis=1)


def cell(image: RgbImage, caption: str) -> NDArray[np.uint8]:
    """The middle of an image under its caption."""
    top, left = ((size - CELL) // 2 for size in image.shape[:2])
    cell = np.zeros((CAPTION + CELL, CELL, 3), np.uint8)
    cell[CAPTION:] = np.rint(image[top : top + CELL, left : left + CELL] * 255.0)
    cv2.putText(cell, caption, (4, CAPTION - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return cell
