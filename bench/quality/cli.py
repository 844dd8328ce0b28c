"""The commands of ``uid-bench`` that measure how good the images are, on held-out photos."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import click

from uid import __version__
from uid.bench.quality import metrics
from uid.bench.rows import device, setting, versions, write_png, write_rows
from uid.command import Command, interval

if TYPE_CHECKING:
    from uid.bench.quality.photos import QualityRow
    from uid.bench.quality.tradeoff import TradeoffSummary
    from uid.bench.quality.transfer import TransferRow
    from uid.runtime.pipeline import Pipeline


@click.command(cls=Command, extra="bench")
@click.option(
    "-m",
    "--model",
    "models",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="BUNDLE",
    help="Repeat to compare bundles, each called by its folder. Default: the built-in bundle.",
)
@click.option("--backend", default="auto", show_default=True, metavar="NAME", help="See `uid-run doctor`.")
@click.option("--steps", type=click.IntRange(min=1), help="Denoising steps. Default: the bundle's.")
@click.option("--transforms", type=click.IntRange(1, 8), help="Flipped copies to average. Default: the bundle's.")
@click.option("--guidance", type=click.FloatRange(min=0), help="Guidance scale. Default: the bundle's.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the initial noise.")
@click.option("--photo", "names", multiple=True, metavar="NAME", help="Only this held-out photo; repeat for more.")
@click.option(
    "--noise",
    type=click.FloatRange(min=0),
    default=0.003,
    show_default=True,
    help="Of the camera: standard deviation at white, in linear light.",
)
@click.option("--jpeg", type=click.IntRange(1, 100), metavar="QUALITY", help="Compress the blurred images so.")
@click.option(
    "--metric",
    "learned",
    type=click.Choice(list(metrics.METRICS)),
    multiple=True,
    help="Score the images with this learned metric too; repeat for more.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.jsonl", help="One JSON object per row.")
@click.option("--sheet", type=click.Path(path_type=Path), metavar="FILE.png", help="Images side by side.")
def quality(
    models: Sequence[Path],
    backend: str,
    steps: int | None,
    transforms: int | None,
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

    Of several bundles each takes those of the options that it has: one without a denoising loop takes no steps.
    Beside them stand the blurred input, an unsharp mask, and Richardson-Lucy deconvolution, which is told the kernel.
    Learned metrics need pip install 'uid-runtime[metrics]' and weights; what is missing is told, not downloaded.
    """
    from uid.bench.quality.methods import method_names, options_of_each
    from uid.bench.quality.photos import CASE_SEED, contact_sheet, held_out, measure
    from uid.runtime.options import Options
    from uid.runtime.pipeline import load

    scores = metrics.load(learned)
    photos = held_out(names)
    folders: Sequence[Path | None] = models or [None]
    pipeline, *more = [load(folder, backend=backend) for folder in folders]
    others = dict(zip(method_names(models[1:]), more, strict=True))
    options = Options(steps=steps, transforms=transforms, guidance=guidance, seed=seed)
    comparisons = []
    for comparison in measure(pipeline, options, photos, noise=noise, jpeg=jpeg, metrics=scores, others=others):
        comparisons.append(comparison)
        for row in comparison.rows:
            click.echo(f"{row.photo}, {row.kernel}: {row.method} {row.psnr:.2f} dB", err=True)
    rows = [row for comparison in comparisons for row in comparison.rows]
    if output is not None:
        own, *theirs = options_of_each(options, [one.bundle for one in (pipeline, *more)])
        common = {**setting(pipeline, own), "noise": noise, "jpeg": jpeg, "case_seed": CASE_SEED}
        if others:
            common["others"] = {name: setting(others[name], used) for name, used in zip(others, theirs, strict=True)}
        if scores:
            common["versions"] |= versions(metrics.LIBRARIES)
        write_rows(output, rows, common)
    if sheet is not None:
        write_png(sheet, contact_sheet(comparisons))
    show_summary(rows, pipeline)


@click.command(cls=Command, extra="bench")
@click.option("-m", "--model", type=click.Path(path_type=Path), metavar="BUNDLE", help="Default: the built-in bundle.")
@click.option("--backend", default="auto", show_default=True, metavar="NAME", help="See `uid-run doctor`.")
@click.option("--photo", "names", multiple=True, metavar="NAME", help="Only this held-out photo; repeat for more.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.jsonl", help="One JSON object per row.")
@click.option("--sheet", type=click.Path(path_type=Path), metavar="FILE.png", help="Images side by side.")
def transfer(model: Path | None, backend: str, names: Sequence[str], output: Path | None, sheet: Path | None) -> None:
    """Give held-out photos each other's blur, and compare them with the same blur done by convolution."""
    from uid.bench.quality import transfer as transfers
    from uid.bench.quality.photos import CASE_SEED, held_out
    from uid.runtime.options import Options
    from uid.runtime.pipeline import load

    photos = held_out(names)
    pipeline = load(model, backend=backend)
    options = Options(mode="blur-transfer")
    made = list(transfers.measure(pipeline, options, photos))
    rows = [one.row for one in made]
    if output is not None:
        write_rows(output, rows, {**setting(pipeline, options), "case_seed": CASE_SEED})
    if sheet is not None:
        write_png(sheet, transfers.sheet(made))
    show_transfers(rows)


@click.command(cls=Command, extra="bench")
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
@click.option("--transforms", type=click.IntRange(1, 8), multiple=True, help="Repeat for more. Default: 8, 4, 2 and 1.")
@click.option("--cache-interval", type=click.IntRange(min=1), multiple=True, help="As with `uid-run`; repeat for more.")
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
@click.option("--record", is_flag=True, help="Write the figures of the bundle's presets into its manifest.")
def tradeoff(
    model: Path | None,
    others: Sequence[Path],
    backend: str,
    steps: Sequence[int],
    transforms: Sequence[int],
    cache_interval: Sequence[int],
    intervals: Sequence[tuple[float, float]],
    names: Sequence[str],
    noise: float,
    output: Path | None,
    record: bool,
) -> None:
    """What fewer steps and transforms and the shortcuts cost on held-out photos, and how much faster than in full they
    are.

    The first setting is the most steps with the most transforms and no shortcut, and stands for the full run.
    """
    from uid.bench.quality import tradeoff as tradeoffs
    from uid.bench.quality.photos import CASE_SEED, held_out
    from uid.errors import InputError
    from uid.runtime.options import Options
    from uid.runtime.pipeline import load

    photos = held_out(names)
    pipeline = load(model, backend=backend)
    all_pipelines = [pipeline, *(load(path, backend=backend) for path in others)]
    pipelines = {one.bundle.folder.name: one for one in all_pipelines}
    if len(pipelines) < len(all_pipelines):
        raise InputError("bundles are told apart by their folders' names, and two have the same: rename one")
    counts = steps or [pipeline.bundle.steps], transforms or [8, 4, 2, 1]
    rows = list(
        tradeoffs.measure(
            pipelines, tradeoffs.settings(pipelines, *counts, cache_interval, intervals), photos, noise=noise
        )
    )
    if output is not None:
        common = setting(pipeline, Options())
        for key in ("bundle", "steps", "transforms"):
            del common[key]
        write_rows(output, rows, {**common, "noise": noise, "case_seed": CASE_SEED})
    lines = tradeoffs.summarise(rows)
    show_tradeoff(lines)
    if record:
        named = tradeoffs.record(pipeline.bundle.folder, lines)
        click.echo(f"recorded in {pipeline.bundle.folder}: {', '.join(named) or 'nothing'}")


@click.command(cls=Command, extra="train")
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--steps", required=True, type=click.IntRange(1), help="Training steps of each variant.")
@click.option("--learning-rate", default=2e-4, show_default=True, type=click.FloatRange(0.0, min_open=True))
@click.option("--size", default=128, show_default=True, type=click.IntRange(16), help="Side of the training images.")
@click.option("--images", default=6000, show_default=True, type=click.IntRange(1), help="Images to train on.")
@click.option("--photo", "names", multiple=True, metavar="NAME", help="Only this held-out photo; repeat for more.")
@click.option("--mixed-precision", default="no", show_default=True, type=click.Choice(["no", "bf16", "fp16"]))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.jsonl", help="One JSON object per row.")
def ablation(
    checkpoint: Path,
    steps: int,
    learning_rate: float,
    size: int,
    images: int,
    names: Sequence[str],
    mixed_precision: str,
    output: Path | None,
) -> None:
    """Train CHECKPOINT's diffusion without each part of the method in turn, and compare them on held-out photos.

    Runs in CHECKPOINT.training/ablation, beside the checkpoint, and goes on from there when started again. CHECKPOINT
    itself stays as it is.
    """
    from uid.bench.quality.ablation import score
    from uid.bench.quality.methods import BLURRED
    from uid.bench.quality.photos import held_out
    from uid.train.ablation import ablate
    from uid.train.checkpoints import make_state_folder, state_folder
    from uid.train.data import Blurred, BlurredAlike, Examples, ProceduralImages
    from uid.train.loop import TrainingSettings

    work = state_folder(checkpoint)
    make_state_folder(work)
    made = ProceduralImages(work / f"pictures-0-{images}.npy", images, 0, click.echo)
    settings = TrainingSettings(steps=steps, learning_rate=learning_rate, mixed_precision=mixed_precision)
    photos = held_out(names)
    rows = [score(BLURRED, lambda blurred: blurred, photos, 0)]
    examples = Examples(Blurred(made), size, 0, BlurredAlike(made))
    for variant, method in ablate(checkpoint, work / "ablation", examples, settings):
        rows.append(score(variant.name, method, photos, steps))
    if output is not None:
        write_rows(output, rows, {"device": device(), "uid": __version__, "checkpoint": checkpoint.name})
    click.echo("| variant | PSNR dB | SSIM | gain dB | training steps |\n|---|---|---|---|---|")
    for row in rows:
        click.echo(f"| {row.variant} | {row.psnr:.2f} | {row.ssim:.3f} | {row.gain:+.2f} | {row.steps} |")


def show_transfers(rows: "Sequence[TransferRow]") -> None:
    """A line for each case, and what they add up to."""
    from uid.bench.quality.transfer import STRENGTHS
    from uid.train.blur import UNKNOWN_KERNELS

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


def show_tradeoff(lines: "Sequence[TradeoffSummary]") -> None:
    """A Markdown table, a line for each setting."""
    columns = "bundle, steps, transforms, cache interval, guidance, gain dB, worst dB, dB to first, SSIM to first"
    columns += ", times as fast, its steps, on the front"
    click.echo(f"| {columns.replace(', ', ' | ')} |")
    click.echo("|---" * 12 + "|")
    for line in lines:
        figures = f"{line.gain:+.2f} | {line.worst:+.2f} | {line.psnr_to_first:.1f} | {line.ssim_to_first:.4f}"
        front = "yes" if line.front else "no"
        one = line.setting
        ends = ":".join(f"{end:g}" for end in one.guidance_interval)
        what = f"{one.bundle} | {one.steps} | {one.transforms} | {one.cache_interval} | {ends}"
        click.echo(f"| {what} | {figures} | {line.speed:.2f} | {line.step_speed:.2f} | {front} |")


def show_summary(rows: Sequence["QualityRow"], pipeline: "Pipeline") -> None:
    """A table of the methods on standard output, and what becomes of an image that was sharp already."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from uid.bench.quality.photos import UID_ON_SHARP, summarise
    from uid.bench.speed.tables import WIDE

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


COMMANDS = (quality, transfer, tradeoff, ablation)
