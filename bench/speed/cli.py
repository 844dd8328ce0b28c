"""The commands of ``uid-bench`` that measure how fast, how large and how exact."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uid.bench.options import (
    CHECKPOINT,
    MODEL,
    OUTPUT,
    OUTPUT_ROWS,
    PLOT,
    REPEATS,
    RUNS,
    SIZES,
    STEPS,
    THREADS,
    TILE,
    one_size,
)
from uid.command import Command, quieten_libraries

if TYPE_CHECKING:
    from uid.bench.rows import LatencyRow
    from uid.bench.speed.summary import LatencySummary
    from uid.bundles.declarations import Bundle


@click.command(cls=Command, extra="bench")
@RUNS
@STEPS
@REPEATS
@click.option(
    "--oracle",
    type=OUTPUT,
    metavar="FILE.npz",
    help="Hold every image against this one, of `uid-bench oracle`; then only what --backend names runs.",
)
@click.option(
    "--no-peaks",
    "peaks",
    flag_value=False,
    type=bool,
    default=True,
    help="Do not measure the peak rates of each library; that takes a minute with a backend that builds engines.",
)
@click.option("--csv", "table", type=OUTPUT, metavar="FILE.csv", help="The same rows as a table.")
@PLOT
@click.option(
    "--process",
    is_flag=True,
    help="Time `uid-run` as a whole process instead, from start to exit; with --checkpoint, PyTorch too.",
)
def latency(process: bool, table: Path | None, plotted: Path | None, output: Path | None, **values: Any) -> None:
    """Time images on every backend in turn, and hold each image against the reference's.

    Each backend runs in a process of its own. Beside its time stand its peak memory, what it took to load, and the rate
    of its arithmetic beside that of a large matrix product. A fast wrong image is marked.
    """
    if process:
        if plotted is not None:
            raise click.UsageError("--process draws no plot; leave --plot out")
        rows = _starts(values)
        _write(rows, output, table)
    else:
        rows = _measured(output, **values)
        _write(rows, None, table)
        _show(rows, plotted)


@click.command(cls=Command, extra="bench")
@MODEL
@CHECKPOINT
@click.option("--size", callback=one_size, metavar="HxW", help="Of the image.  Default: 512x512, or the model's tile.")
@click.option("--steps", type=click.IntRange(min=1), help="Denoising steps.  Default: the model's.")
@THREADS
@click.option("-o", "--output", required=True, type=OUTPUT, metavar="FILE.npz", help="What to write.")
def oracle(
    model: Path | None,
    checkpoint: Path | None,
    size: tuple[int, int] | None,
    steps: int | None,
    threads: int | None,
    output: Path,
) -> None:
    """Keep the image that others are held against, for `uid-bench latency --oracle`.

    It is that of --checkpoint by PyTorch in float32, or else that of the bundle by ONNX Runtime on the CPU.
    """
    from uid.bench.speed.latency import bundle_oracle, checkpoint_oracle

    quieten_libraries()
    if checkpoint is None:
        made = bundle_oracle(_bundle(model), size, steps, threads)
    else:
        made = checkpoint_oracle(checkpoint, size, steps, threads)
    made.write(output)
    click.echo(f"wrote {output}: {made.terms}, by {made.against}")


@click.command(cls=Command, extra="bench")
@RUNS
@TILE
def memory(output: Path | None, **values: Any) -> None:
    """Peak memory of every backend at rising sizes, and whether it grows in proportion to the pixels."""
    from uid.bench.speed.summary import summarise

    rows = _measured(output, **values, steps=(1,), repeats=1, warm_up=0)
    lines = summarise(rows)
    for line in lines:
        click.echo(f"{line.runner}, {line.height}x{line.width}: {line.peak_bytes / 1e6:.0f} MB at its peak")
    for name, group in _by_runner(lines):
        points = [(line.height * line.width / 1e6, line.peak_bytes / 1e6) for line in group]
        click.echo(f"{name}: {_fitted(points, 'MB', 'megapixel')}")


@click.command(cls=Command, extra="bench")
@RUNS
@STEPS
@REPEATS
@TILE
@PLOT
def scaling(output: Path | None, plotted: Path | None, **values: Any) -> None:
    """Time against steps and against size: what is fixed, what each step and each megapixel adds."""
    from uid.bench.speed.summary import grouped

    rows = _measured(output, **values)
    lines = _show(rows, plotted)
    for name, group in _by_runner(lines):
        for (height, width), same in grouped(group, lambda line: (line.height, line.width)).items():
            points = [(float(line.steps), line.seconds) for line in same]
            click.echo(f"{name}, {height}x{width}: {_fitted(points, 's', 'step')}")
        for steps, same in grouped(group, lambda line: line.steps).items():
            points = [(line.height * line.width / 1e6, line.seconds) for line in same]
            click.echo(f"{name}, {steps} steps: {_fitted(points, 's', 'megapixel')}")


@click.command(cls=Command, extra="bench")
@RUNS
@STEPS
@click.pass_context
def parity(ctx: click.Context, /, output: Path | None, **values: Any) -> None:
    """Every component and the whole image, in floats, against PyTorch; exit status 2 if one differs too much.

    Without --checkpoint, whole images alone, against ONNX Runtime on the CPU.
    """
    import numpy as np

    from uid.bench.speed.summary import SOUND_PSNR, summarise

    sound = True
    if values["checkpoint"] is not None:
        sound = _components(values)
    rows = _measured(output, **values, repeats=1, warm_up=0, dtype=np.float32)
    for line in summarise(rows):
        sound &= line.sound
        click.echo(
            f"{line.runner}, {line.height}x{line.width}, {line.steps} steps: {line.psnr:.1f} dB, largest "
            f"difference {line.max_difference:.1e} of 1, against {line.against}{'' if line.sound else ': WRONG'}"
        )
    if not sound:
        click.echo(f"wrong: a component beyond the export's tolerance, or an image under {SOUND_PSNR:g} dB", err=True)
    ctx.exit(0 if sound else 2)


@click.command(cls=Command, extra="bench")
@MODEL
@SIZES
@click.option(
    "--transforms", multiple=True, type=click.IntRange(1, 8), help="Flipped copies; repeat for more.  Default: 1 and 2."
)
@TILE
@click.option("--repeats", type=click.IntRange(min=1), default=15, show_default=True, help="Images that count.")
@OUTPUT_ROWS
def host(
    model: Path | None, sizes: Sequence[tuple[int, int]], transforms: Sequence[int], output: Path | None, **how: Any
) -> None:
    """What an image costs the host beside a GPU: the runtime on a backend that computes nothing."""
    from statistics import median

    from uid.bench.speed.host import measure
    from uid.bench.speed.lineup import default_size
    from uid.bench.speed.summary import grouped

    bundle = _bundle(model)
    rows = list(measure(bundle, sizes or [default_size(bundle)], transforms or (1, 2), **how))
    _write(rows, output)
    for (height, width, count), same in grouped(rows, lambda row: (row.height, row.width, row.transforms)).items():
        seconds = median(row.seconds for row in same)
        click.echo(
            f"{height}x{width}, {count} transforms of {same[0].tiles} tiles: {1000 * seconds:.2f} ms, "
            f"{1 / seconds:.0f} images a second at most"
        )


def _bundle(model: Path | None) -> "Bundle":
    """The bundle to measure."""
    from uid.bundles.declarations import built_in
    from uid.bundles.manifest import read_bundle

    return read_bundle(model or built_in())


def _measured(output: Path | None, model: Path | None, **values: Any) -> "list[LatencyRow]":
    """Rows, each in the file as soon as it is made; what happens meanwhile goes to standard error.

    Raises ``BackendError`` when no runner gave any.
    """
    from uid.bench.rows import RowFile
    from uid.bench.speed.latency import measure
    from uid.bench.speed.lineup import Choice, plan
    from uid.errors import BackendError

    quieten_libraries()

    def tell(line: str) -> None:
        click.echo(line, err=True)

    choice = Choice(**{field.name: values.pop(field.name) for field in fields(Choice) if field.name in values})
    file, rows = RowFile(output) if output else None, []
    for row in measure(plan(_bundle(model), choice, tell, **values), tell):
        rows.append(row)
        if file is not None:
            file.add(row)
    if not rows:
        raise BackendError("no runner made an image; what is above says why")
    return rows


def _starts(values: dict[str, Any]) -> list[Any]:
    """Rows of whole processes, and the medians of their stages."""
    from statistics import median

    from uid.bench.speed.lineup import PYTORCH, default_size, usable_cores, working
    from uid.bench.speed.startup import Repeats, starts

    bundle, checkpoint = _bundle(values["model"]), values["checkpoint"]
    runners = [*working(values["backends"]), *([PYTORCH] if checkpoint else [])]
    repeats = Repeats(values["threads"] or usable_cores(), values["warm_up"], values["repeats"])
    rows: list[Any] = []
    for size in values["sizes"] or [default_size(bundle)]:
        for steps in values["steps"] or [bundle.steps]:
            # One start of each in turn, so that what slows the machine slows them all.
            each = [starts(bundle, runner, size, steps, repeats, checkpoint) for runner in runners]
            turns = list(zip(*each, strict=True))
            rows += [row for turn in turns for row in turn]
            for made in zip(*turns, strict=True):
                stages = ("seconds", "interpreter", "imports", "load", "compute")
                figures = ", ".join(f"{name} {median(getattr(row, name) for row in made):.2f}" for name in stages)
                click.echo(f"{made[0].backend}, {size[0]}x{size[1]}, {steps} steps: {figures}")
    return rows


def _components(values: dict[str, Any]) -> bool:
    """Print the parity of every component; whether all are within the export's tolerance."""
    from uid.bench.speed.lineup import usable_cores, working
    from uid.bench.speed.parity import component_parities

    quieten_libraries()
    sound = True
    found = component_parities(
        _bundle(values["model"]), values["checkpoint"], working(values["backends"]), values["threads"] or usable_cores()
    )
    for one in found:
        sound &= one.sound
        click.echo(
            f"{one.backend}, {one.component} ({one.output}): {one.psnr:.1f} dB, largest difference "
            f"{one.max_difference:.1e}, {one.relative:.1e} of the largest value{'' if one.sound else ': WRONG'}"
        )
    return sound


def _write(rows: Sequence[Any], output: Path | None, table: Path | None = None) -> None:
    """The rows to the files that were asked for."""
    from uid.bench.rows import write_csv, write_rows

    if output is not None:
        write_rows(output, rows)
    if table is not None:
        write_csv(table, rows)


def _show(rows: "Sequence[LatencyRow]", plotted: Path | None) -> "list[LatencySummary]":
    """The table on standard output, and the plot where one was asked for."""
    from uid.bench.speed.summary import summarise
    from uid.bench.speed.tables import show_summaries

    lines = summarise(rows)
    show_summaries(lines)
    if plotted is not None:
        from uid.bench.speed.plot import plot

        plot(plotted, lines, f"bundle {rows[0].bundle} on {rows[0].device}")
    return lines


def _by_runner(lines: "Sequence[LatencySummary]") -> "list[tuple[str, list[LatencySummary]]]":
    """Summaries by runner."""
    from uid.bench.speed.summary import grouped

    return list(grouped(lines, lambda line: line.runner).items())


def _fitted(points: Sequence[tuple[float, float]], unit: str, per: str) -> str:
    """What a line through the points says, in words."""
    from uid.bench.speed.summary import fit_line

    line = fit_line(points)
    if line is None:
        return f"no line per {per}: that takes three different ones, or more"
    words = "linear" if line.straight else "not linear"
    miss = f"the furthest point misses the line by {line.miss:.0%} of the range"
    return f"{line.start:.3g} {unit} + {line.slope:.3g} {unit} per {per}; {words}: {miss}"


COMMANDS = (latency, oracle, memory, scaling, host, parity)
