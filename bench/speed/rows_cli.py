"""The commands of ``uid-bench`` that read rows of earlier measurements."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from uid.command import Command

if TYPE_CHECKING:
    from uid.bench.rows import LatencyRow


@click.command(cls=Command, extra="bench")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
def compare(a: Path, b: Path) -> None:
    """Rows of B against those of A: the ratio of medians for every backend, size and steps that both have."""
    from uid.bench.rows import read_rows
    from uid.bench.speed import summary
    from uid.bench.speed.tables import ratio_lines
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
                click.echo(f"{path}: {words}: {line.psnr:.1f} dB is another image, its time means nothing", err=True)
    for what in ("device", "threads", "bundle", "precision", "versions"):
        if (before := _all(rows_a, what)) != (after := _all(rows_b, what)):
            click.echo(f"{what} differs: {before} in {a}, {after} in {b}", err=True)


@click.command(cls=Command, extra="bench")
@click.argument("page", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ROWS.jsonl...")
@click.option("--check", is_flag=True, help="Change nothing; exit status 1 if the table is not what the rows give.")
def report(page: Path, files: Sequence[Path], check: bool) -> None:
    """Write the performance table of PAGE, between its two markers, from rows of `uid-bench latency`."""
    from uid.bench.rows import read_rows
    from uid.bench.speed.tables import update

    rows = [row for path in files for row in read_rows(path)]
    if not update(page, rows, check=check):
        names = " ".join(str(path) for path in files)
        raise click.ClickException(f"the table in {page} is not that of the rows: uid-bench report {page} {names}")


def _all(rows: "Sequence[LatencyRow]", what: str) -> str:
    """Every value of a setting, in words."""
    return " and ".join(dict.fromkeys(str(getattr(row, what)) for row in rows))


COMMANDS = (compare, report)
