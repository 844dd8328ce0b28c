"""Rows to figures: medians with their spread, fits over sizes and steps, ratios with an interval. No library needed."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

from uid.bench.rows import LatencyRow

# An image that is less than this near the reference's is not the same image: at 40 dB the typical difference is
# 1 % of the range, which an eye finds when it flips between the two. fp16 and reordered sums stay well above.
SOUND_PSNR = 40.0

# The published figure: 30 steps with guidance, at Stable Diffusion 1.5's size.
PAPER_SECONDS, PAPER = 25.0, "the paper, one A100, sd15 size"

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Case = tuple[str, int, int, int]  # runner, height, width, steps


@dataclass(frozen=True)
class LatencySummary:
    """One runner at one size and number of steps, over its repeats."""

    runner: str
    height: int
    width: int
    steps: int
    repeats: int
    seconds: float  # median
    spread: float  # interquartile range
    prepare: float  # medians of the stages; step is all of the steps
    step: float
    finish: float
    load_seconds: float
    peak_bytes: int
    gpu_bytes: int
    flop_rate: float  # FLOP/s at the median
    peak_flop_rate: float  # FLOP/s of a large matrix product; 0: not measured
    peak_copy_rate: float  # bytes a second
    psnr: float  # dB, of the worst repeat
    max_difference: float  # likewise, of 1.0
    against: str

    @property
    def seconds_per_step(self) -> float:
        """Of the loop alone; 0 where there is none."""
        return self.step / self.steps if self.steps else 0.0

    @property
    def of_peak(self) -> float | None:
        """Share of the matrix product's rate, 0 to 1; None where that was not measured."""
        return self.flop_rate / self.peak_flop_rate if self.peak_flop_rate else None

    @property
    def sound(self) -> bool:
        """Whether every image was the reference's."""
        return self.psnr >= SOUND_PSNR


def summarise(rows: Iterable[LatencyRow]) -> list[LatencySummary]:
    """The rows by case, in order of appearance."""
    return [summary(group) for group in grouped(rows, case_of).values()]


def case_of(row: "LatencyRow | LatencySummary") -> Case:
    """What repeats have in common."""
    return row.runner, row.height, row.width, row.steps


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by key, both in order of appearance."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def summary(rows: Sequence[LatencyRow]) -> LatencySummary:
    """The repeats of one case."""
    first = rows[0]
    seconds = median(row.seconds for row in rows)
    worst = min(rows, key=lambda row: row.psnr)
    return LatencySummary(
        *case_of(first),
        repeats=len(rows),
        seconds=seconds,
        spread=interquartile_range([row.seconds for row in rows]),
        prepare=median(row.prepare for row in rows),
        step=median(row.step for row in rows),
        finish=median(row.finish for row in rows),
        load_seconds=first.load_seconds,
        peak_bytes=max(row.peak_bytes for row in rows),
        gpu_bytes=first.gpu_bytes,
        flop_rate=first.flops / seconds,
        peak_flop_rate=first.flop_ceiling,
        peak_copy_rate=first.copy_ceiling,
        psnr=worst.psnr,
        max_difference=max(row.max_difference for row in rows),
        against=worst.against,
    )


def interquartile_range(values: Sequence[float]) -> float:
    """Distance of the quartiles, interpolated between the values; 0 for a single one."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low


# -- fits -------------------------------------------------------------------------------------------------------------

STRAIGHT = 0.05  # a line fits when no point is further from it than this share of their range


@dataclass(frozen=True)
class Line:
    """A least-squares line through points."""

    start: float  # y at x = 0
    slope: float
    miss: float  # the largest distance of a point from it, as a share of the range of y

    @property
    def straight(self) -> bool:
        """Whether the points lie on it, near enough."""
        return self.miss <= STRAIGHT


def fit_line(points: Sequence[tuple[float, float]]) -> Line | None:
    """The line through (x, y); None with fewer than three different x, which any line or none would fit."""
    if len({x for x, _ in points}) < 3:
        return None
    mean_x, mean_y = (math.fsum(values) / len(points) for values in zip(*points, strict=True))
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / math.fsum((x - mean_x) ** 2 for x, _ in points)
    start = mean_y - slope * mean_x
    span = max(y for _, y in points) - min(y for _, y in points)
    miss = max(abs(y - start - slope * x) for x, y in points) / span if span else 0.0
    return Line(start, slope, miss)


# -- ratios -----------------------------------------------------------------------------------------------------------

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """The median of B over that of A, with an interval that holds the true ratio with ``CONFIDENCE``."""

    case: Case
    ratio: float
    low: float | None  # None: too few repeats for any interval
    high: float | None

    @property
    def verdict(self) -> str:
        """What may be said."""
        if self.low is None or self.high is None:
            return f"too few repeats to tell: {fewest_repeats()} are needed"
        if self.low <= 1.0 <= self.high:
            return "no difference shown: the interval contains 1"
        return "B is faster" if self.high < 1.0 else "B is slower"


def compare(rows_a: Iterable[LatencyRow], rows_b: Iterable[LatencyRow]) -> list[Ratio]:
    """B against A for every case that both have."""
    a, b = grouped(rows_a, case_of), grouped(rows_b, case_of)
    return [ratio(case, [r.seconds for r in a[case]], [r.seconds for r in b[case]]) for case in a if case in b]


def ratio(case: Case, a: Sequence[float], b: Sequence[float]) -> Ratio:
    """Medians' ratio, and the interval of Mann and Whitney: the k-th smallest and largest of all ratios of two repeats.

    It assumes that times of A and B are distributed alike but for the factor in question, and nothing about how.
    """
    k = rank(len(a), len(b))
    pairs = sorted(y / x for x in a for y in b)
    low, high = (pairs[k - 1], pairs[-k]) if k else (None, None)
    return Ratio(case, median(b) / median(a), low, high)


def rank(count_a: int, count_b: int) -> int:
    """The largest k for which the interval of ``ratio`` is sure enough; 0 when not even the extremes are."""
    ways = ways_to_lose(count_a, count_b)
    allowed = (1.0 - CONFIDENCE) / 2.0 * sum(ways)
    k = beyond = 0
    while beyond + ways[k] <= allowed:
        beyond += ways[k]
        k += 1
    return k


def ways_to_lose(count_a: int, count_b: int) -> list[int]:
    """In how many orders of all values exactly u of the pairs have B's below A's, for u from 0 to all of them.

    The distribution of Mann and Whitney's U: coefficients of the Gaussian binomial, one factor after the other.
    """
    pairs = count_a * count_b
    ways = [1] + [0] * pairs
    for i in range(1, count_b + 1):
        for u in range(pairs, count_a + i - 1, -1):
            ways[u] -= ways[u - count_a - i]
        for u in range(i, pairs + 1):
            ways[u] += ways[u - i]
    return ways


def fewest_repeats() -> int:
    """The repeats of both from which on a ratio has an interval."""
    return next(count for count in range(1, 100) if rank(count, count))
