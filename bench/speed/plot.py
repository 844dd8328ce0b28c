"""Times as an image: a bar per runner, time against steps and against size, and the published figure as a line."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from uid.bench.speed.summary import PAPER, PAPER_SECONDS, LatencySummary, grouped
from uid.bundles.files import written_whole


def plot(path: Path, lines: Sequence[LatencySummary], title: str) -> None:
    """Write a PNG. Seconds are logarithmic, since a bundle and the published model are far apart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    bars, steps, sizes = figure.subplots(1, 3)
    draw_bars(bars, lines)
    largest = max(line.height * line.width for line in lines)
    most = max(line.steps for line in lines)
    at_size = [line for line in lines if line.height * line.width == largest]
    draw_lines(steps, at_size, lambda line: line.steps, f"steps, at {at_size[0].height}x{at_size[0].width}")
    at_steps = [line for line in lines if line.steps == most]
    draw_lines(sizes, at_steps, lambda line: line.height * line.width / 1e6, f"megapixels, at {most} steps")
    for axes in (bars, steps, sizes):
        axes.axhline(PAPER_SECONDS, color="black", linestyle="--", linewidth=1, label=f"{PAPER_SECONDS:g} s: {PAPER}")
        axes.set_yscale("log")
        axes.set_ylabel("seconds an image")
    handles, labels = sizes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(title)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def draw_bars(axes: Any, lines: Sequence[LatencySummary]) -> None:
    """The largest size at the most steps; a runner whose image is wrong is hatched."""
    largest = max(lines, key=lambda line: (line.height * line.width, line.steps))
    shown = [
        one for one in lines if (one.height, one.width, one.steps) == (largest.height, largest.width, largest.steps)
    ]
    names = [label(line) for line in shown]
    colours = [f"C{i}" for i in range(len(shown))]  # the lines' too, which are drawn in the same order
    drawn = axes.bar(
        names, [line.seconds for line in shown], yerr=[line.spread / 2 for line in shown], capsize=3, color=colours
    )
    for bar, line in zip(drawn, shown, strict=True):
        bar.set_hatch("" if line.sound else "//")
    axes.tick_params(axis="x", rotation=20)
    axes.set_xlabel(f"{largest.height}x{largest.width}, {largest.steps} steps")


def draw_lines(axes: Any, lines: Sequence[LatencySummary], x: Callable[[LatencySummary], float], words: str) -> None:
    """One line per runner."""
    for name, group in grouped(lines, label).items():
        points = sorted((x(line), line.seconds) for line in group)
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xlim(left=0)
    axes.set_xlabel(words)


def label(line: LatencySummary) -> str:
    """A runner's name, and whether its image is another one than the reference's."""
    return line.runner if line.sound else f"{line.runner} (wrong image)"
