"""Every method on every case, and what that adds up to."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from uid.bench.quality.fidelity import inside, largest, psnr, ssim, tenengrad
from uid.bench.quality.gates import gates
from uid.bench.quality.methods import BLURRED, RICHARDSON_LUCY, UID, UNSHARP, Method, methods, options_of_each, restored
from uid.bench.quality.metrics import Score
from uid.bench.quality.perceptual import gmsd, haarpsi, vif
from uid.bench.quality.wide import sharp_cases, wide_cases
from uid.errors import InputError
from uid.runtime.options import Options
from uid.runtime.pipeline import Pipeline
from uid.train.blur import RgbImage
from uid.train.held_out import BlurCase, cases, following

UID_ON_SHARP = "uid on sharp"


# -- one case ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QualityRow:
    """One method on one case."""

    photo: str
    kernel: str  # family, or "none" where the sharp image itself went in
    length: float | None  # of the blur, pixels; None where the family draws it
    noise_levels: float | None  # standard deviation of white noise; None where it is a camera's
    method: str
    psnr: float  # dB, at most PSNR_CAP
    ssim: float
    haarpsi: float  # 0 to 1, higher is better; this and the next two as in ``perceptual``
    gmsd: float  # lower is better
    vif: float  # higher is better
    largest: float  # the largest deviation of any value from the sharp image's, border included; levels of 8 bits
    sharpness: float  # Tenengrad relative to the sharp image's, 1 when as sharp; noise raises it too
    seconds: float
    height: int  # pixels
    width: int
    metrics: Mapping[str, float] = field(default_factory=dict)  # learned ones that were asked for


@dataclass(frozen=True)
class Comparison:
    """Every method on one case: the figures, and the images by method."""

    case: BlurCase
    rows: tuple[QualityRow, ...]
    images: Mapping[str, RgbImage]


def compare(case: BlurCase, tried: Mapping[str, Method], metrics: Mapping[str, Score] = {}) -> Comparison:
    """Run and score the methods; ``metrics`` as ``metrics.load`` gives them."""
    rows, images = [], {}
    for name, method in tried.items():
        started = time.perf_counter()
        image = images[name] = method(case)
        rows.append(scored(case, name, image, time.perf_counter() - started, metrics))
    return Comparison(case, tuple(rows), images)


def scored(case: BlurCase, method: str, image: RgbImage, seconds: float, metrics: Mapping[str, Score]) -> QualityRow:
    """The row of a method's image."""
    within, sharp = inside(image), inside(case.sharp)
    return QualityRow(
        photo=case.photo,
        kernel=case.kernel,
        length=case.length,
        noise_levels=case.noise,
        method=method,
        psnr=psnr(image, case.sharp),
        ssim=ssim(image, case.sharp),
        haarpsi=haarpsi(within, sharp),
        gmsd=gmsd(within, sharp),
        vif=vif(within, sharp),
        largest=largest(image, case.sharp),
        sharpness=tenengrad(image) / (tenengrad(case.sharp) or 1.0),
        seconds=seconds,
        height=image.shape[0],
        width=image.shape[1],
        metrics={name: score(within, sharp) for name, score in metrics.items()},
    )


# -- all of them ------------------------------------------------------------------------------------------------------


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
    """Every case of every photo, with the gates; then what is sharp through the pipeline, which must come back near.

    ``others`` are further pipelines, by what they are called, on the same cases; each runs with those of the options
    that it has.
    """
    own, tried = all_methods(pipeline, options, photos, others)
    tried |= gates(pipeline, own, {photo: following(photo) for photo in photos})
    for photo, sharp in photos.items():
        for case in cases(photo, sharp, noise=noise, jpeg=jpeg):
            yield compare(case, tried, metrics)
    for case in sharp_cases(photos):
        # Learned metrics are of photos: on a flat image some have no value.
        yield compare(case, {UID_ON_SHARP: tried[UID]}, metrics if case.photo in photos else {})


def measure_wide(
    pipeline: Pipeline,
    options: Options,
    photos: Mapping[str, RgbImage],
    *,
    metrics: Mapping[str, Score] = {},
    others: Mapping[str, Pipeline] = {},
) -> Iterator[Comparison]:
    """The photos under blur of each family, length and level of noise, without gates and Richardson-Lucy."""
    _, tried = all_methods(pipeline, options, photos, others)
    del tried[RICHARDSON_LUCY]
    for case in wide_cases(photos):
        yield compare(case, tried, metrics)


def all_methods(
    pipeline: Pipeline, options: Options, photos: Mapping[str, RgbImage], others: Mapping[str, Pipeline]
) -> tuple[Options, dict[str, Method]]:
    """The first pipeline's own options, and the methods; each pipeline has loaded its engines for the photos' sizes."""
    pipelines = (pipeline, *others.values())
    each = options_of_each(options, [one.bundle for one in pipelines])
    for one, used in zip(pipelines, each, strict=True):
        check_size(one, used)
        for sharp in {sharp.shape: sharp for sharp in photos.values()}.values():
            one(sharp, used)  # engines load and plans are made outside of the seconds
    own, *theirs = each
    added = {name: restored(others[name], used) for name, used in zip(others, theirs, strict=True)}
    return own, methods(pipeline, own) | added


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
    haarpsi: float
    gmsd: float
    vif: float
    sharpness: float
    seconds: float
    gain: float | None  # dB over the blurred input
    worst: float | None  # dB, the smallest gain of any case: negative where the method did harm
    beats_unsharp: float | None  # share of cases with a higher PSNR than the unsharp mask, 0 to 1
    looks_better: float | None  # share of cases with a higher HaarPSI than the unsharp mask
    metrics: Mapping[str, float]  # the rows' learned ones


def summarise(rows: Iterable[QualityRow]) -> list[QualitySummary]:
    """The rows by method, in order of appearance."""
    scores: dict[str, dict[object, QualityRow]] = {}
    for row in rows:
        scores.setdefault(row.method, {})[row.photo, row.kernel, row.length, row.noise_levels] = row
    return [_summary(method, scores) for method in scores]


def _summary(method: str, scores: Mapping[str, Mapping[object, QualityRow]]) -> QualitySummary:
    mine, blurred, unsharp = scores[method], scores[BLURRED], scores[UNSHARP]
    gains = [row.psnr - blurred[case].psnr for case, row in mine.items() if case in blurred]
    pairs = [(row, unsharp[case]) for case, row in mine.items() if case in unsharp]

    learned = next(iter(mine.values())).metrics

    def mean(name: str) -> float:
        return fmean(getattr(row, name) for row in mine.values())

    return QualitySummary(
        method,
        psnr=mean("psnr"),
        ssim=mean("ssim"),
        haarpsi=mean("haarpsi"),
        gmsd=mean("gmsd"),
        vif=mean("vif"),
        sharpness=mean("sharpness"),
        seconds=mean("seconds"),
        gain=fmean(gains) if gains else None,
        worst=min(gains, default=None),
        beats_unsharp=fmean(row.psnr > other.psnr for row, other in pairs) if pairs else None,
        looks_better=fmean(row.haarpsi > other.haarpsi for row, other in pairs) if pairs else None,
        metrics={name: fmean(row.metrics[name] for row in mine.values() if row.metrics) for name in learned},
    )
