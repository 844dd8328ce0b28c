"""Summaries as tables: on the terminal, in Markdown, and between two markers of a page."""

from collections.abc import Sequence
from pathlib import Path

from uid.bench.rows import LatencyRow
from uid.bench.speed.summary import (
    CONFIDENCE,
    PAPER,
    PAPER_SECONDS,
    SOUND_PSNR,
    LatencySummary,
    Ratio,
    grouped,
    summarise,
)
from uid.bundles.files import written_whole
from uid.errors import InputError

BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"
WRONG = "WRONG"
WIDE = 160  # characters
HEADINGS = ("runner", "size", "steps", "s (IQR)", "ms/step", "prepare, finish s")
MORE_HEADINGS = ("GFLOP/s, of product", "peak MB", "load s", "PSNR dB")


def cells(line: LatencySummary) -> list[str]:
    """One table row."""
    return [
        line.runner,
        f"{line.height}x{line.width}",
        str(line.steps),
        f"{line.seconds:.3g} ({line.spread:.2g})",
        f"{1000 * line.seconds_per_step:.3g}",
        f"{line.prepare:.2g}, {line.finish:.2g}",
        f"{line.flop_rate / 1e9:.3g}" + ("" if line.of_peak is None else f", {line.of_peak:.0%}"),
        f"{line.peak_bytes / 1e6:.0f}" + (f", GPU {line.gpu_bytes / 1e6:.0f}" if line.gpu_bytes else ""),
        f"{line.load_seconds:.2g}",
        f"{line.psnr:.1f}" if line.sound else f"{line.psnr:.1f} {WRONG}",
    ]


def paper_cells() -> list[str]:
    """The published figure, in the same columns."""
    return [PAPER, "-", "30", f"{PAPER_SECONDS:g}", *["-"] * (len(HEADINGS) + len(MORE_HEADINGS) - 4)]


def notes(lines: Sequence[LatencySummary]) -> list[str]:
    """What the columns mean."""
    against = " and ".join(dict.fromkeys(line.against for line in lines))
    known = [line for line in lines if line.peak_flop_rate]
    peaks = grouped(known, lambda line: (line.runner, line.peak_flop_rate, line.peak_copy_rate))
    rates = "; ".join(f"{name} {flops / 1e9:.3g} GFLOP/s, {copy / 1e9:.3g} GB/s" for name, flops, copy in peaks)
    return [
        f"Medians of {_span([line.repeats for line in lines])} interleaved repeats, interquartile range in brackets; "
        "peak: resident memory of the runner's own process; load: start of the process to ready.",
        f"PSNR: the worst image of the repeats against {against}; below {SOUND_PSNR:g} dB it is another image "
        f"({WRONG}), and its time means nothing.",
        *([f"Matrix product and copy by the same library: {rates}."] if rates else []),
    ]


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def show_summaries(lines: Sequence[LatencySummary]) -> None:
    """The table on standard output."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE)
    for heading in (*HEADINGS, *MORE_HEADINGS):
        table.add_column(heading, justify="left" if heading == "runner" else "right")
    for line in lines:
        table.add_row(*cells(line), style=None if line.sound else "red")
    table.add_row(*paper_cells(), style="dim")
    console = Console()
    if not console.is_terminal:
        console.width = WIDE  # in a file nothing is gained by folding
    console.print(table)
    for note in notes(lines):
        console.print(note, soft_wrap=True, highlight=False)


def ratio_lines(ratios: Sequence[Ratio]) -> list[str]:
    """Comparisons as Markdown."""
    made = [f"| runner | size | steps | B / A | {CONFIDENCE:.0%} interval | |", "|---|---|---|---|---|---|"]
    for one in ratios:
        name, height, width, steps = one.case
        interval = "-" if one.low is None else f"{one.low:.3f} to {one.high:.3f}"
        made.append(f"| {name} | {height}x{width} | {steps} | {one.ratio:.3f} | {interval} | {one.verdict} |")
    return made


# -- the page ---------------------------------------------------------------------------------------------------------


def performance(rows: Sequence[LatencyRow]) -> str:
    """Rows as Markdown: a table per bundle, machine and thread count."""
    parts = []
    for (bundle, precision, trained, device, threads), group in grouped(rows, _machine).items():
        weights = "trained" if trained else "random weights"
        words = ", ".join(f"{name} {version}" for name, version in group[0].versions.items())
        lines = summarise(group)
        table = [_markdown((*HEADINGS, *MORE_HEADINGS)), "|---" * (len(HEADINGS) + len(MORE_HEADINGS)) + "|"]
        table += [_markdown(cells(line)) for line in lines] + [_markdown(paper_cells())]
        title = f"Bundle `{bundle}` ({precision}, {weights}) on {device}, {threads} threads; {words}."
        parts.append("\n".join([title, "", *table, "", " ".join(notes(lines))]))
    return "\n\n".join(parts)


def _machine(row: LatencyRow) -> tuple[str, str, bool, str, int]:
    return row.bundle, row.precision, row.trained, row.device, row.threads


def _markdown(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def with_performance(page: str, table: str, name: str) -> str:
    """The page with the table between its markers; raises ``InputError`` where there is not one pair of them."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise InputError(f"{name} needs the lines {BEGIN} and {END}, once and in this order: the table goes between")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def update(path: Path, rows: Sequence[LatencyRow], *, check: bool) -> bool:
    """Put the rows' table into a page, or only say whether it is there already, to the letter."""
    try:
        page = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    wanted = with_performance(page, performance(rows), str(path))
    if wanted == page:
        return True
    if not check:
        with written_whole(path) as temporary:
            temporary.write_text(wanted, encoding="utf-8")
    return not check
