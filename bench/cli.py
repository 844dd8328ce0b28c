"""``uid-bench``: measurements of a bundle. Each row written says what ran, with which settings, on which versions."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import click

from uid import __version__
from uid.bench import metrics, speed_cli
from uid.bench.rows import device, setting, versions, write_png, write_rows
from uid.command import interval, plain_errors

if TYPE_CHECKING:
    from uid.bench.quality import Row
    from uid.runtime.pipeline import Pipeline


EXAMPLES = """\b
Examples:
  uid-bench quality -m bundle/ -o rows.jsonl --sheet sheet.png
  uid-bench quality --metric lpips --metric clip-iqa
  uid-bench tradeoff -m bundle/ --steps 1 --steps 4 --record
  uid-bench latency -m bundle/ --checkpoint checkpoint/ -o rows.jsonl --plot plot.png
  uid-bench compare before.jsonl after.jsonl
"""  # \b: click keeps the lines as they are


@click.group(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="uid-bench")
def main() -> None:
    """Measure what a bundle does: how well, how fast, how large."""


for command in speed_cli.COMMANDS:
    main.add_command(command)


@main.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), metavar="BUNDLE", help="Default: the built-in bundle.")
@click.option("--backend", default="auto", show_default=True, metavar="NAME", help="See `uid-run doctor`.")
@click.option("--steps", type=click.IntRange(min=1), help="Denoising steps. Default: the bundle's.")
@click.option("--views", type=click.IntRange(1, 8), help="Turned and mirrored copies. Default: the bundle's.")
@click.option("--guidance", type=click.FloatRange(min=0), help="Guidance scale. Default: the bundle's.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the starting noise.")
@click.option("--photo", "names", multiple=True, metavar="NAME", help="Only this held-out photo; repeat for more.")
@click.option(
    "--noise",
    type=click.FloatRange(min=0),
    default=0.003,
    show_default=True,
    help="Of the camera: standard deviation at white, in linear light.",
)
@click.option("--jpeg", type=click.IntRange(1, 100), metavar="QUALITY", help="Compress the blurred pictures so.")
@click.option(
    "--metric",
    "learned",
    type=click.Choice(list(metrics.METRICS)),
    multiple=True,
    help="Score the pictures with this learned metric too; repeat for more.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.jsonl", help="One JSON object per row.")
@click.option("--sheet", type=click.Path(path_type=Path), metavar="FILE.png", help="Pictures side by side.")
def quality(
    model: Path | None,
    backend: str,
    steps: int | None,
    views: int | None,
    guidance: float | None,
    seed: int,
    names: Sequence[str],
    noise: float,
    jpeg: int | None,
    learned: Sequence[str],
    output: Path | None,
    sheet: Path | None,
) -> None:
    """Compare a bundle's output on held-out photos, blurred in ways that training never shows, with the sharp photos.

    Beside it stand the blurred input, an unsharp mask, and Richardson-Lucy deconvolution, which is told the kernel.
    Learned metrics need pip install 'uid-runtime[metrics]' and weights; what is missing is told, not downloaded.
    """
    with plain_errors("bench"):
        from uid.bench.quality import CASE_SEED, contact_sheet, held_out, measure
        from uid.runtime.pipeline import Options, load

        scores = metrics.load(learned)
        photos = held_out(names)
        pipeline = load(model, backend=backend)
        options = Options(steps=steps, views=views, guidance=guidance, seed=seed)
        comparisons = []
        for comparison in measure(pipeline, options, photos, noise=noise, jpeg=jpeg, metrics=scores):
            comparisons.append(comparison)
            for row in comparison.rows:
                click.echo(f"{row.photo}, {row.kernel}: {row.method} {row.psnr:.2f} dB", err=True)
        rows = [row for comparison in comparisons for row in comparison.rows]
        if output is not None:
            common = {**setting(pipeline, options), "noise": noise, "jpeg": jpeg, "case_seed": CASE_SEED}
            if scores:
                common["versions"] |= versions(metrics.LIBRARIES)
            write_rows(output, rows, common)
        if sheet is not None:
            write_png(sheet, contact_sheet(comparisons))
        show_summary(rows, pipeline)


@main.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), metavar="BUNDLE", help="Default: the built-in bundle.")
@click.option("--backend", default="auto", show_default=True, metavar="NAME", help="See `uid-run doctor`.")
@click.option("--photo", "names", multiple=True, metavar="NAME", help="Only this held-out photo; repeat for more.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.jsonl", help="One JSON object per row.")
@click.option("--sheet", type=click.Path(path_type=Path), metavar="FILE.png", help="Pictures side by side.")
def transfer(model: Path | None, backend: str, names: Sequence[str], output: Path | None, sheet: Path | None) -> None:
    """Give held-out photos each other's blur, and compare them with the same blur done by convolution."""
    with plain_errors("bench"):
        from uid.bench import transfer as transfers
        from uid.bench.quality import CASE_SEED, held_out
        from uid.runtime.pipeline import Options, load
        from uid.train.blur import UNKNOWN_KERNELS

        photos = held_out(names)
        pipeline = load(model, backend=backend)
        options = Options(mode="blur-transfer")
        made = list(transfers.measure(pipeline, options, photos))
        rows = [one.row for one in made]
        if output is not None:
            write_rows(output, rows, {**setting(pipeline, options), "case_seed": CASE_SEED})
        if sheet is not None:
            write_png(sheet, transfers.sheet(made))
        for row in rows:
            click.echo(
                f"{row.photo} with the {row.kernel} of {row.blur_from}: {row.psnr:.2f} dB from it (untouched "
                f"{row.psnr_untouched:.2f}), sharpness {row.sharpness:.2f} (wanted {row.sharpness_wanted:.2f})"
            )
        unknown = [row for row in rows if row.kernel in UNKNOWN_KERNELS]
        nearer = fmean(row.psnr > row.psnr_untouched for row in unknown)
        gained = fmean(row.psnr - row.psnr_untouched for row in unknown)
        click.echo(
            f"kernels unknown to training: nearer to the wanted picture than the untouched photo in {nearer:.0%}, by "
            f"{gained:+.2f} dB on average"
        )
        for kernel in (f"gaussian {deviation:g}" for deviation in transfers.STRENGTHS):
            same = [row for row in rows if row.kernel == kernel]
            figures = (fmean(row.sharpness for row in same), fmean(row.sharpness_wanted for row in same))
            click.echo(f"{kernel} px: sharpness {figures[0]:.2f} on average (wanted {figures[1]:.2f})")


@main.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), metavar="BUNDLE", help="Default: the built-in bundle.")
@click.option("--backend", default="auto", show_default=True, metavar="NAME", help="See `uid-run doctor`.")
@click.option(
    "--other",
    "others",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="BUNDLE",
    help="One to hold against it, such as one with 8-bit weights; repeat for more.",
)
@click.option("--steps", type=click.IntRange(min=1), multiple=True, help="Repeat for more. Default: the bundle's.")
@click.option("--views", type=click.IntRange(1, 8), multiple=True, help="Repeat for more. Default: 8, 4, 2 and 1.")
@click.option("--reuse", type=click.IntRange(min=1), multiple=True, help="As with `uid-run`; repeat for more.")
@click.option(
    "--guidance-interval",
    "intervals",
    multiple=True,
    type=interval,
    metavar="START:END",
    help="As with `uid-run`; repeat for more.",
)
@click.option("--photo", "names", multiple=True, metavar="NAME", help="Only this held-out photo; repeat for more.")
@click.option("--noise", type=click.FloatRange(min=0), default=0.003, show_default=True, help="As with `quality`.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.jsonl", help="One JSON object per row.")
@click.option("--record", is_flag=True, help="Write the figures of the bundle's qualities into its manifest.")
def tradeoff(
    model: Path | None,
    others: Sequence[Path],
    backend: str,
    steps: Sequence[int],
    views: Sequence[int],
    reuse: Sequence[int],
    intervals: Sequence[tuple[float, float]],
    names: Sequence[str],
    noise: float,
    output: Path | None,
    record: bool,
) -> None:
    """What fewer steps and views and the shortcuts cost on held-out photos, and how much faster than in full they are.

    The first setting is the most steps with the most views and no shortcut, and stands for the full run.
    """
    with plain_errors("bench"):
        from uid.bench import tradeoff as tradeoffs
        from uid.bench.quality import CASE_SEED, held_out
        from uid.errors import InputError
        from uid.runtime.pipeline import Options, load

        photos = held_out(names)
        pipeline = load(model, backend=backend)
        all_pipelines = [pipeline, *(load(path, backend=backend) for path in others)]
        pipelines = {one.bundle.folder.name: one for one in all_pipelines}
        if len(pipelines) < len(all_pipelines):
            raise InputError("bundles are told apart by their folders' names, and two have the same: rename one")
        counts = steps or [pipeline.bundle.steps], views or [8, 4, 2, 1]
        rows = list(
            tradeoffs.measure(pipelines, tradeoffs.settings(pipelines, *counts, reuse, intervals), photos, noise=noise)
        )
        if output is not None:
            common = setting(pipeline, Options())
            for key in ("bundle", "steps", "views"):
                del common[key]
            write_rows(output, rows, {**common, "noise": noise, "case_seed": CASE_SEED})
        lines = tradeoffs.summarise(rows)
        click.echo(
            "| bundle | steps | views | reuse | guidance | gain dB | worst dB | dB to first | SSIM to first "
            "| times as fast | its steps | on the front |"
        )
        click.echo("|---" * 12 + "|")
        for line in lines:
            figures = f"{line.gain:+.2f} | {line.worst:+.2f} | {line.psnr_to_first:.1f} | {line.ssim_to_first:.4f}"
            front = "yes" if line.front else "no"
            one = line.setting
            ends = ":".join(f"{end:g}" for end in one.guidance_interval)
            what = f"{one.bundle} | {one.steps} | {one.views} | {one.reuse} | {ends}"
            click.echo(f"| {what} | {figures} | {line.speed:.2f} | {line.step_speed:.2f} | {front} |")
        if record:
            named = tradeoffs.record(pipeline.bundle.folder, lines)
            click.echo(f"recorded in {pipeline.bundle.folder}: {', '.join(named) or 'nothing'}")


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--steps", required=True, type=click.IntRange(1), help="Training steps of each variant.")
@click.option("--learning-rate", default=2e-4, show_default=True, type=click.FloatRange(0.0, min_open=True))
@click.option("--size", default=128, show_default=True, type=click.IntRange(16), help="Side of the training pictures.")
@click.option("--pictures", default=6000, show_default=True, type=click.IntRange(1), help="Pictures to train on.")
@click.option("--photo", "names", multiple=True, metavar="NAME", help="Only this held-out photo; repeat for more.")
@click.option("--mixed-precision", default="no", show_default=True, type=click.Choice(["no", "bf16", "fp16"]))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.jsonl", help="One JSON object per row.")
def ablation(
    checkpoint: Path,
    steps: int,
    learning_rate: float,
    size: int,
    pictures: int,
    names: Sequence[str],
    mixed_precision: str,
    output: Path | None,
) -> None:
    """Train CHECKPOINT's diffusion without each part of the method in turn, and compare them on held-out photos.

    Runs in CHECKPOINT/training/ablation, and goes on from there when started again. CHECKPOINT itself stays as it is.
    """
    with plain_errors("train"):
        from uid.bench.ablation import ablate
        from uid.bench.quality import held_out
        from uid.train.data import Domains, MadePictures
        from uid.train.loop import Settings

        work = checkpoint / "training"
        made = MadePictures(work / f"pictures-0-{pictures}.npy", pictures, 0, click.echo)
        settings = Settings(steps=steps, learning_rate=learning_rate, mixed_precision=mixed_precision)
        rows = list(ablate(checkpoint, work / "ablation", Domains(made, size, 0), settings, held_out(names)))
        if output is not None:
            write_rows(output, rows, {"device": device(), "uid": __version__, "checkpoint": checkpoint.name})
        click.echo("| variant | PSNR dB | SSIM | gain dB | training steps |\n|---|---|---|---|---|")
        for row in rows:
            click.echo(f"| {row.variant} | {row.psnr:.2f} | {row.ssim:.3f} | {row.gain:+.2f} | {row.steps} |")


def show_summary(rows: Sequence["Row"], pipeline: "Pipeline") -> None:
    """A table of the methods on standard output, and what becomes of a picture that was sharp already."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from uid.bench.quality import UID_ON_SHARP, summarise
    from uid.bench.tables import WIDE

    weights = "trained" if pipeline.bundle.trained else "random weights"
    photos = len({row.photo for row in rows})
    table = Table(title=f"bundle {pipeline.bundle.name} ({weights}), {photos} held-out photos", box=SIMPLE)
    learned = [metrics.heading(name) for name in rows[0].metrics]
    for column in ("method", "PSNR dB", "SSIM", *learned, "sharp", "gain dB", "worst dB", "beats usm", "s"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=column == "method")
    for line in summarise(rows):
        learned = [f"{value:.3f}" for value in line.metrics.values()]
        figures = f"{line.psnr:.2f}", f"{line.ssim:.3f}", *learned, f"{line.sharpness:.2f}"
        compared = _or_dash(line.gain, "+.2f"), _or_dash(line.worst, "+.2f"), _or_dash(line.beats_unsharp, ".0%")
        table.add_row(line.method, *figures, *compared, f"{line.seconds:.2f}")
    console = Console()
    if not console.is_terminal:
        console.width = WIDE  # in a file nothing is gained by folding
    console.print(table)
    sharp = [row.psnr for row in rows if row.method == UID_ON_SHARP]
    click.echo("gain, worst: PSNR over the blurred input; beats usm: share of cases better than the unsharp mask")
    click.echo(f"what was sharp comes back at {fmean(sharp):.2f} dB, {min(sharp):.2f} dB at worst")


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    main()
