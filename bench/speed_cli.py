"""The commands of ``uid-bench`` that measure how fast, how large and how exact: views of one measurement."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from uid.command import plain_errors, quieten_libraries

if TYPE_CHECKING:
    from uid.bench.rows import Row
    from uid.bench.summary import Summary
    from uid.runtime.bundle import Bundle

F = TypeVar("F", bound=Callable[..., Any])
OUTPUT = click.Path(path_type=Path, dir_okay=False)


def _size(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Height and width in pixels; the two separated as in 480x640."""
    sizes = []
    for value in values:
        match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", value)
        if match is None:
            raise click.BadParameter(f"{value!r} is no size; expected HEIGHTxWIDTH such as 480x640, or a square's side")
        sizes.append((int(match[1]), int(match[2] or match[1])))
    return tuple(dict.fromkeys(sizes))


def _one_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """The same of one."""
    return None if value is None else _size(ctx, param, [value])[0]


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown in this order."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


MODEL = click.option(
    "-m", "--model", type=click.Path(path_type=Path), metavar="BUNDLE", help="Default: the built-in one."
)
SIZES = click.option(
    "--size",
    "sizes",
    multiple=True,
    callback=_size,
    metavar="HxW",
    help="Of the picture; repeat for more.  Default: 512x512, or the bundle's tile.",
)
OUTPUT_ROWS = click.option(
    "-o", "--output", type=OUTPUT, metavar="FILE.jsonl", help="One JSON object per picture, written as it is made."
)
CHECKPOINT = click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="What the bundle was exported from: PyTorch runs too, and every picture is held against its.",
)
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads.  Default: every core that may be used."
)
RUNS = _options(
    MODEL,
    CHECKPOINT,
    click.option(
        "--backend",
        "backends",
        multiple=True,
        metavar="NAME",
        help="Repeat for more; with --checkpoint also pytorch-fp16, pytorch-fp16-channels-last, pytorch-compiled and "
        "pytorch-fp16-compiled (which takes minutes).  Default: all that work here.",
    ),
    SIZES,
    THREADS,
    OUTPUT_ROWS,
)
STEPS = click.option(
    "--steps",
    multiple=True,
    type=click.IntRange(min=1),
    help="Denoising steps; repeat for more.  Default: the bundle's.",
)
REPEATS = _options(
    click.option("--repeats", type=click.IntRange(min=1), default=7, show_default=True, help="Pictures that count."),
    click.option("--warm-up", type=click.IntRange(min=0), default=2, show_default=True, help="Pictures before them."),
)
TILE = click.option(
    "--tile", type=click.IntRange(min=1), help="Run pictures in tiles of this side, as `uid-run` does.  Default: whole."
)
PLOT = click.option("--plot", "plotted", type=OUTPUT, metavar="FILE.png", help="Times as a picture.")


@click.command()
@RUNS
@STEPS
@REPEATS
@click.option(
    "--oracle",
    type=OUTPUT,
    metavar="FILE.npz",
    help="Hold every picture against this one, of `uid-bench oracle`; then only what --backend names runs.",
)
@click.option(
    "--no-ceilings",
    "ceilings",
    flag_value=False,
    type=bool,
    default=True,
    help="Do not measure what each library can do at most, which takes a backend that builds engines a minute.",
)
@click.option("--csv", "table", type=OUTPUT, metavar="FILE.csv", help="The same rows as a table.")
@PLOT
@click.option(
    "--process",
    is_flag=True,
    help="Time `uid-run` as a whole process instead, from start to exit; with --checkpoint, PyTorch too.",
)
def latency(process: bool, table: Path | None, plotted: Path | None, output: Path | None, **values: Any) -> None:
    """Time pictures on every backend in turn, and hold each picture against the reference's.

    Each backend runs in a process of its own. Beside its time stand its peak memory, what it took to load, and the rate
    of its arithmetic beside that of a large matrix product. A fast wrong picture is marked.
    """
    with plain_errors("bench"):
        if process:
            if plotted is not None:
                raise click.UsageError("--process draws no plot; leave --plot out")
            rows = _starts(values)
            _write(rows, output, table)
        else:
            rows = _measured(output, **values)
            _write(rows, None, table)
            _show(rows, plotted)


@click.command()
@MODEL
@CHECKPOINT
@click.option(
    "--size", callback=_one_size, metavar="HxW", help="Of the picture.  Default: 512x512, or the model's tile."
)
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
    """Keep the picture that others are held against, for `uid-bench latency --oracle`.

    It is that of --checkpoint by PyTorch in float32, or else that of the bundle by ONNX Runtime on the CPU.
    """
    with plain_errors("bench"):
        from uid.bench.latency import bundle_oracle, checkpoint_oracle

        quieten_libraries()
        if checkpoint is None:
            made = bundle_oracle(_bundle(model), size, steps, threads)
        else:
            made = checkpoint_oracle(checkpoint, size, steps, threads)
        made.write(output)
    click.echo(f"wrote {output}: {made.terms}, by {made.against}")


@click.command()
@RUNS
@TILE
def memory(output: Path | None, **values: Any) -> None:
    """Peak memory of every backend at rising sizes, and whether it grows in proportion to the pixels."""
    with plain_errors("bench"):
        from uid.bench.summary import summarise

        rows = _measured(output, **values, steps=(1,), repeats=1, warm_up=0)
        lines = summarise(rows)
        for line in lines:
            click.echo(f"{line.runner}, {line.height}x{line.width}: {line.peak_bytes / 1e6:.0f} MB at its peak")
        for name, group in _by_runner(lines):
            points = [(line.height * line.width / 1e6, line.peak_bytes / 1e6) for line in group]
            click.echo(f"{name}: {_fitted(points, 'MB', 'megapixel')}")


@click.command()
@RUNS
@STEPS
@REPEATS
@TILE
@PLOT
def scaling(output: Path | None, plotted: Path | None, **values: Any) -> None:
    """Time against steps and against size: what is fixed, what each step and each megapixel adds."""
    with plain_errors("bench"):
        from uid.bench.summary import grouped

        rows = _measured(output, **values)
        lines = _show(rows, plotted)
        for name, group in _by_runner(lines):
            for (height, width), same in grouped(group, lambda line: (line.height, line.width)).items():
                points = [(float(line.steps), line.seconds) for line in same]
                click.echo(f"{name}, {height}x{width}: {_fitted(points, 's', 'step')}")
            for steps, same in grouped(group, lambda line: line.steps).items():
                points = [(line.height * line.width / 1e6, line.seconds) for line in same]
                click.echo(f"{name}, {steps} steps: {_fitted(points, 's', 'megapixel')}")


@click.command()
@RUNS
@STEPS
@click.pass_context
def parity(ctx: click.Context, /, output: Path | None, **values: Any) -> None:
    """Every component and the whole picture, in floats, against PyTorch; exit status 2 if one differs too much.

    Without --checkpoint, whole pictures alone, against ONNX Runtime on the CPU.
    """
    with plain_errors("bench"):
        import numpy as np

        from uid.bench.summary import SOUND_PSNR, summarise

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
            click.echo(
                f"wrong: a component beyond the export's tolerance, or a picture under {SOUND_PSNR:g} dB", err=True
            )
    ctx.exit(0 if sound else 2)


@click.command()
@MODEL
@SIZES
@click.option("--views", multiple=True, type=click.IntRange(1, 8), help="Repeat for more.  Default: 1, and 2.")
@TILE
@click.option("--repeats", type=click.IntRange(min=1), default=15, show_default=True, help="Pictures that count.")
@OUTPUT_ROWS
def host(
    model: Path | None, sizes: Sequence[tuple[int, int]], views: Sequence[int], output: Path | None, **how: Any
) -> None:
    """What a picture costs the host beside a GPU: the runtime on a backend that computes nothing."""
    with plain_errors("bench"):
        from statistics import median

        from uid.bench.host import measure
        from uid.bench.lineup import default_size
        from uid.bench.summary import grouped

        bundle = _bundle(model)
        rows = list(measure(bundle, sizes or [default_size(bundle)], views or (1, 2), **how))
        _write(rows, output)
        for (height, width, count), same in grouped(rows, lambda row: (row.height, row.width, row.views)).items():
            seconds = median(row.seconds for row in same)
            click.echo(
                f"{height}x{width}, {count} views of {same[0].tiles} tiles: {1000 * seconds:.2f} ms, "
                f"{1 / seconds:.0f} pictures a second at most"
            )


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
def compare(a: Path, b: Path) -> None:
    """Rows of B against those of A: the ratio of medians for every backend, size and steps that both have."""
    with plain_errors("bench"):
        from uid.bench import summary
        from uid.bench.rows import read_rows
        from uid.bench.tables import ratio_lines
        from uid.errors import InputError

        rows_a, rows_b = read_rows(a), read_rows(b)
        ratios = summary.compare(rows_a, rows_b)
        if not ratios:
            raise InputError(f"{a} and {b} have no backend, size and steps in common")
        click.echo("\n".join(ratio_lines(ratios)))
        compared = {one.case for one in ratios}
        for path, rows in ((a, rows_a), (b, rows_b)):
            for line in summary.summarise(rows):
                words = f"{line.runner}, {line.height}x{line.width}, {line.steps} steps"
                if summary.case_of(line) not in compared:
                    click.echo(f"only in {path}: {words}", err=True)
                elif not line.sound:
                    click.echo(
                        f"{path}: {words}: {line.psnr:.1f} dB is another picture, its time means nothing", err=True
                    )
        for what in ("device", "threads", "bundle", "precision", "versions"):
            if (before := _all(rows_a, what)) != (after := _all(rows_b, what)):
                click.echo(f"{what} differs: {before} in {a}, {after} in {b}", err=True)


@click.command()
@click.argument("page", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ROWS.jsonl...")
@click.option("--check", is_flag=True, help="Change nothing; exit status 1 if the table is not what the rows give.")
def report(page: Path, files: Sequence[Path], check: bool) -> None:
    """Write the performance table of PAGE, between its two markers, from rows of `uid-bench latency`."""
    with plain_errors("bench"):
        from uid.bench.rows import read_rows
        from uid.bench.tables import update

        rows = [row for path in files for row in read_rows(path)]
        if not update(page, rows, check=check):
            names = " ".join(str(path) for path in files)
            raise click.ClickException(f"the table in {page} is not that of the rows: uid-bench report {page} {names}")


# -- what they share --------------------------------------------------------------------------------------------------


def _bundle(model: Path | None) -> "Bundle":
    """The bundle to measure."""
    from uid.runtime.bundle import built_in, read_bundle

    return read_bundle(model or built_in())


def _measured(output: Path | None, model: Path | None, **values: Any) -> "list[Row]":
    """Rows, each in the file as soon as it is made; what happens meanwhile goes to standard error.

    Raises ``BackendError`` when no runner gave any.
    """
    from uid.bench.latency import measure
    from uid.bench.lineup import plan
    from uid.bench.rows import RowFile
    from uid.errors import BackendError

    quieten_libraries()

    def tell(line: str) -> None:
        click.echo(line, err=True)

    file, rows = RowFile(output) if output else None, []
    for row in measure(plan(_bundle(model), report=tell, **values), tell):
        rows.append(row)
        if file is not None:
            file.add(row)
    if not rows:
        raise BackendError("no runner made a picture; what is above says why")
    return rows


def _starts(values: dict[str, Any]) -> list[Any]:
    """Rows of whole processes, and the medians of their stages."""
    from statistics import median

    from uid.bench.lineup import PYTORCH, default_size, usable_cores, working
    from uid.bench.startup import starts

    bundle, checkpoint = _bundle(values["model"]), values["checkpoint"]
    runners = [*working(values["backends"]), *([PYTORCH] if checkpoint else [])]
    settings = {"warm_up": values["warm_up"], "repeats": values["repeats"], "checkpoint": checkpoint}
    settings["threads"] = values["threads"] or usable_cores()
    rows: list[Any] = []
    for size in values["sizes"] or [default_size(bundle)]:
        for steps in values["steps"] or [bundle.steps]:
            # One start of each in turn, so that what slows the machine slows them all.
            turns = list(zip(*(starts(bundle, runner, size, steps, **settings) for runner in runners), strict=True))
            rows += [row for turn in turns for row in turn]
            for made in zip(*turns, strict=True):
                stages = ("seconds", "interpreter", "imports", "load", "compute")
                figures = ", ".join(f"{name} {median(getattr(row, name) for row in made):.2f}" for name in stages)
                click.echo(f"{made[0].backend}, {size[0]}x{size[1]}, {steps} steps: {figures}")
    return rows


def _components(values: dict[str, Any]) -> bool:
    """Print the parity of every component; whether all are within the export's tolerance."""
    from uid.bench.lineup import usable_cores, working
    from uid.bench.parity import component_parities

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


def _show(rows: "Sequence[Row]", plotted: Path | None) -> "list[Summary]":
    """The table on standard output, and the plot where one was asked for."""
    from uid.bench.summary import summarise
    from uid.bench.tables import show_summaries

    lines = summarise(rows)
    show_summaries(lines)
    if plotted is not None:
        from uid.bench.plot import plot

        plot(plotted, lines, f"bundle {rows[0].bundle} on {rows[0].device}")
    return lines


def _by_runner(lines: "Sequence[Summary]") -> "list[tuple[str, list[Summary]]]":
    """Summaries by runner."""
    from uid.bench.summary import grouped

    return list(grouped(lines, lambda line: line.runner).items())


def _fitted(points: Sequence[tuple[float, float]], unit: str, per: str) -> str:
    """What a line through the points says, in words."""
    from uid.bench.summary import fit_line

    line = fit_line(points)
    if line is None:
        return f"no line per {per}: that takes three different ones, or more"
    words = "linear" if line.straight else "not linear"
    miss = f"the furthest point misses the line by {line.miss:.0%} of the range"
    return f"{line.start:.3g} {unit} + {line.slope:.3g} {unit} per {per}; {words}: {miss}"


def _all(rows: "Sequence[Row]", what: str) -> str:
    """Every value of a setting, in words."""
    return " and ".join(dict.fromkeys(str(getattr(row, what)) for row in rows))


COMMANDS = (latency, oracle, memory, scaling, host, parity, compare, report)
