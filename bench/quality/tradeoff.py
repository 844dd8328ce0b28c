"""What quality costs: settings of a bundle on the held-out photos, each held against the sharp photo and the first.

Speed and likeness are measured in the same interleaved runs. A setting is on the front when none that is as fast comes
nearer to the sharp photos.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

from uid.bench.quality.comparison import check_size
from uid.bench.quality.fidelity import inside, psnr, ssim
from uid.bench.quality.perceptual import haarpsi
from uid.bundles.declarations import Preset
from uid.bundles.manifest import read_bundle, record_figures
from uid.runtime.options import Options
from uid.runtime.pipeline import Pipeline
from uid.train.blur import RgbImage
from uid.train.held_out import cases


@dataclass(frozen=True)
class Setting:
    """What one may choose to trade quality for speed or size."""

    bundle: str  # name of its folder
    steps: int  # denoising steps; 0 where there is no loop
    transforms: int
    cache_interval: int = 1  # of so many steps one is computed in full
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # part of the steps that guidance acts in

    @property
    def options(self) -> Options:
        """What the pipeline is told."""
        return Options(
            steps=self.steps or None,
            transforms=self.transforms,
            cache_interval=self.cache_interval,
            guidance_interval=self.guidance_interval,
        )


def settings(
    bundles: Iterable[str],
    steps: Iterable[int],
    transforms: Iterable[int],
    cache_interval: Iterable[int],
    intervals: Iterable[tuple[float, float]],
) -> list[Setting]:
    """Every combination; of the first bundle, the fullest first: most steps and transforms, no shortcut."""
    most_steps, most_transforms = (sorted(set(values), reverse=True) for values in (steps, transforms))
    longest = sorted({(0.0, 1.0), *intervals}, key=lambda ends: ends[0] - ends[1])
    combinations = itertools.product(bundles, most_steps, most_transforms, sorted({1, *cache_interval}), longest)
    return list(itertools.starmap(Setting, combinations))


@dataclass(frozen=True)
class TradeoffRow:
    """One setting on one case."""

    photo: str
    kernel: str  # family
    bundle: str  # name of its folder
    steps: int
    transforms: int
    cache_interval: int
    guidance_interval: tuple[float, float]
    gain: float  # dB over the blurred input
    haarpsi: float  # against the sharp photo, as in ``perceptual``
    psnr_to_first: float  # dB against the first setting's image, at most 100
    ssim_to_first: float
    seconds: float
    step_seconds: float  # of those, what all of the denoising steps took
    height: int  # pixels
    width: int


@dataclass(frozen=True)
class TradeoffSummary:
    """One setting over all cases: means, and the median of the times."""

    setting: Setting
    gain: float  # dB
    worst: float  # dB, the smallest gain
    haarpsi: float
    psnr_to_first: float  # dB
    ssim_to_first: float
    speed: float  # times as fast as the first setting
    step_speed: float  # the same, of the denoising steps alone
    front: bool  # whether no other is at least as fast and gains more


def measure(
    pipelines: Mapping[str, Pipeline], settings: Sequence[Setting], photos: Mapping[str, RgbImage], *, noise: float
) -> Iterator[TradeoffRow]:
    """Every setting on every case, in turn; ``pipelines`` by the names of their bundles' folders."""
    for pipeline in pipelines.values():
        check_size(pipeline, Options())
    for sharp in {sharp.shape: sharp for sharp in photos.values()}.values():
        for setting in settings:
            pipelines[setting.bundle](sharp, setting.options)  # engines load and plans are made outside of the seconds
    for photo, sharp in photos.items():
        for case in cases(photo, sharp, noise=noise, jpeg=None):
            first: RgbImage | None = None
            for setting in settings:
                started = time.perf_counter()
                result = pipelines[setting.bundle](case.blurred, setting.options)
                seconds, image = time.perf_counter() - started, result.image
                first = image if first is None else first
                yield TradeoffRow(
                    photo,
                    case.kernel,
                    **asdict(setting),
                    gain=psnr(image, sharp) - psnr(case.blurred, sharp),
                    haarpsi=haarpsi(inside(image), inside(sharp)),
                    psnr_to_first=psnr(image, first),
                    ssim_to_first=ssim(image, first),
                    seconds=seconds,
                    step_seconds=result.seconds["step"],
                    height=sharp.shape[0],
                    width=sharp.shape[1],
                )


def summarise(rows: Iterable[TradeoffRow]) -> list[TradeoffSummary]:
    """The rows by setting, in order of appearance; speeds are of images of one size, then averaged over sizes."""
    groups: dict[Setting, list[TradeoffRow]] = {}
    for row in rows:
        groups.setdefault(setting_of(row), []).append(row)
    first = next(iter(groups.values()))
    speeds = {setting: times_as_fast(group, first, lambda row: row.seconds) for setting, group in groups.items()}
    gains = {setting: fmean(row.gain for row in group) for setting, group in groups.items()}

    def beaten(one: Setting) -> bool:
        return any(speeds[other] >= speeds[one] and gains[other] > gains[one] for other in groups)

    return [
        TradeoffSummary(
            setting,
            gain=gains[setting],
            worst=min(row.gain for row in group),
            haarpsi=fmean(row.haarpsi for row in group),
            psnr_to_first=fmean(row.psnr_to_first for row in group),
            ssim_to_first=fmean(row.ssim_to_first for row in group),
            speed=speeds[setting],
            step_speed=times_as_fast(group, first, lambda row: row.step_seconds),
            front=not beaten(setting),
        )
        for setting, group in groups.items()
    ]


def setting_of(row: TradeoffRow) -> Setting:
    """The setting that a row is of."""
    return Setting(row.bundle, row.steps, row.transforms, row.cache_interval, row.guidance_interval)


def times_as_fast(
    rows: Sequence[TradeoffRow], first: Sequence[TradeoffRow], seconds: Callable[[TradeoffRow], float]
) -> float:
    """How many times as fast as the ``first`` ones: of the median of each size of image, averaged over sizes."""
    medians = []
    for group in (first, rows):
        times: dict[tuple[int, int], list[float]] = {}
        for row in group:
            times.setdefault((row.height, row.width), []).append(seconds(row))
        medians.append({size: median(values) for size, values in times.items()})
    theirs, ours = medians
    return fmean(theirs[size] / ours[size] for size in theirs)


def record(folder: Path, summaries: Iterable[TradeoffSummary]) -> list[str]:
    """Write the figures of each of the bundle's presets that was measured into its manifest; returns their names."""
    bundle, found = read_bundle(folder), {line.setting: line for line in summaries}
    measured = {name: found[key] for name, key in settings_of(folder.name, bundle.presets).items() if key in found}
    record_figures(folder, {name: figures_of(line) for name, line in measured.items()})
    return list(measured)


def figures_of(line: TradeoffSummary) -> dict[str, float]:
    """A summary as a manifest states it."""
    return {
        "gain_db": round(line.gain, 3),
        "haarpsi": round(line.haarpsi, 4),
        "psnr_to_first_db": round(line.psnr_to_first, 2),
        "ssim_to_first": round(line.ssim_to_first, 4),
        "speed": round(line.speed, 2),
    }


def settings_of(bundle: str, presets: Mapping[str, Preset]) -> dict[str, Setting]:
    """The setting of each preset."""
    return {name: Setting(bundle, preset.steps, preset.transforms) for name, preset in presets.items()}
