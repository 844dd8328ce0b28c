"""What the commands print of the rows that they measured."""

from collections.abc import Sequence
from statistics import fmean

import click

from uid.bench.quality import tables
from uid.bench.quality.comparison import QualityRow, summarise
from uid.bench.quality.gates import is_gate
from uid.bench.quality.tradeoff import TradeoffSummary
from uid.bench.quality.transfer import STRENGTHS, TransferRow
from uid.runtime.pipeline import Pipeline
from uid.train.blur import UNKNOWN_KERNELS
from uid.train.held_out import PHOTOS


def show_summary(rows: Sequence[QualityRow], pipeline: Pipeline, wide: bool) -> None:
    """The tables of ``uid-bench quality``."""
    weights = "trained" if pipeline.bundle.trained else "random weights"
    photos = len({row.photo for row in rows} & set(PHOTOS))
    click.echo(f"bundle {pipeline.bundle.name} ({weights}), {photos} held-out photos")
    click.echo("gain, worst: PSNR over the blurred input; beats unsharp: share of cases, by PSNR and by HaarPSI")
    made = [tables.methods_table(rows)]
    if any(is_gate(row.method) for row in rows):
        made.append(tables.gates_table(rows))
    made.append(tables.wide_table(rows) if wide else tables.sharp_table(rows))
    for lines in made:
        click.echo("\n" + "\n".join(lines))
    seconds = ", ".join(f"{line.method} {line.seconds:.2f}" for line in summarise(tables.blurred_only(rows)))
    click.echo(f"\nseconds an image: {seconds}")


def show_transfers(rows: Sequence[TransferRow]) -> None:
    """A line for each case, and what they add up to."""
    for row in rows:
        click.echo(
            f"{row.photo} with the {row.kernel} of {row.blur_from}: {row.psnr:.2f} dB from it (untouched "
            f"{row.psnr_untouched:.2f}), sharpness {row.sharpness:.2f} (wanted {row.sharpness_wanted:.2f})"
        )
    unknown = [row for row in rows if row.kernel in UNKNOWN_KERNELS]
    nearer = fmean(row.psnr > row.psnr_untouched for row in unknown)
    gained = fmean(row.psnr - row.psnr_untouched for row in unknown)
    click.echo(
        f"kernels unknown to training: nearer to the wanted image than the untouched photo in {nearer:.0%}, by "
        f"{gained:+.2f} dB on average"
    )
    for kernel in (f"gaussian {deviation:g}" for deviation in STRENGTHS):
        same = [row for row in rows if row.kernel == kernel]
        figures = (fmean(row.sharpness for row in same), fmean(row.sharpness_wanted for row in same))
        click.echo(f"{kernel} px: sharpness {figures[0]:.2f} on average (wanted {figures[1]:.2f})")


def show_tradeoff(lines: Sequence[TradeoffSummary]) -> None:
    """A Markdown table, a line for each setting."""
    columns = "bundle, steps, transforms, cache interval, guidance, gain dB, worst dB, HaarPSI, dB to first"
    columns += ", SSIM to first, times as fast, its steps, on the front"
    click.echo(f"| {columns.replace(', ', ' | ')} |")
    click.echo("|---" * 13 + "|")
    for line in lines:
        figures = f"{line.gain:+.2f} | {line.worst:+.2f} | {line.haarpsi:.3f} | {line.psnr_to_first:.1f}"
        figures += f" | {line.ssim_to_first:.4f}"
        front = "yes" if line.front else "no"
        one = line.setting
        ends = ":".join(f"{end:g}" for end in one.guidance_interval)
        what = f"{one.bundle} | {one.steps} | {one.transforms} | {one.cache_interval} | {ends}"
        click.echo(f"| {what} | {figures} | {line.speed:.2f} | {line.step_speed:.2f} | {front} |")
