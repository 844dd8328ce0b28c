"""The commands of ``uid-bench`` that measure how good the images are, on held-out photos."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uid import __version__
from uid.bench.quality import metrics
from uid.bench.rows import device, setting, versions, write_png, write_rows
from uid.command import Command, interval

if TYPE_CHECKING:
    from uid.bench.quality.comparison import Comparison, QualityRow
    from uid.runtime.options import Options
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
    help="Of the camera: standard deviation at white, in linear light. Default: 0.003.",
)
@click.option("--jpeg", type=click.IntRange(1, 100), metavar="QUALITY", help="Compress the blurred images so.")
@click.option(
    "--metric",
    "learned",
    type=click.Choice(list(metrics.METRICS)),
    multiple=True,
    help="Score the images with this learned metric too; repeat for more.",
)
@click.option("--wide", is_flag=True, help="Blur of four families, three lengths and three levels of noise instead.")
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
    noise: float | None,
    jpeg: int | None,
    learned: Sequence[str],
    wide: bool,
    output: Path | None,
    sheet: Path | None,
) -> None:
    """Compare a bundle's output on held-out photos, blurred in ways that training never shows, with the sharp photos.

    Of several bundles each takes those of the options that it has: one without a denoising loop takes no steps.
    Beside them stand the blurred input, an unsharp mask, and Richardson-Lucy deconvolution, which is told the kernel;
    then the gates: what the bundle gives where a part of its diffusion is taken away or made perfect. Images that are
    sharp must come back as they are.

    Learned metrics need pip install 'uid-runtime[metrics]' and weights; what is missing is told, not downloaded.
    """
    from uid.bench.quality.comparison import measure, measure_wide
    from uid.bench.quality.methods import method_names
    from uid.bench.quality.sheet import contact_sheet
    from uid.bench.quality.show import show_summary
    from uid.runtime.options import Options
    from uid.runtime.pipeline import load
    from uid.train.held_out import CAMERA_NOISE, held_out

    check_wide(wide, noise, jpeg, sheet)
    scores = metrics.load(learned)
    photos = held_out(names)
    folders: Sequence[Path | None] = models or [None]
    pipeline, *more = [load(folder, backend=backend) for folder in folders]
    others = dict(zip(method_names(models[1:]), more, strict=True))
    options = Options(steps=steps, transforms=transforms, guidance=guidance, seed=seed)
    camera: Any = {"noise": CAMERA_NOISE if noise is None else noise, "jpeg": jpeg}
    given: Any = {"metrics": scores, "others": others}
    measured = (
        measure_wide(pipeline, options, photos, **given)
        if wide
        else measure(pipeline, options, photos, **camera, **given)
    )
    rows: list[QualityRow] = []
    comparisons: list[Comparison] = []
    for comparison in measured:
        rows += comparison.rows
        comparisons += [comparison] if sheet else []  # whose images take memory
        for row in comparison.rows:
            click.echo(f"{row.photo}, {row.kernel}: {row.method} {row.psnr:.2f} dB", err=True)
    if output is not None:
        write_rows(output, rows, common_to_all(pipeline, options, others, scores) | ({} if wide else camera))
    if sheet is not None:
        write_png(sheet, contact_sheet(comparisons))
    show_summary(rows, pipeline, wide)


def check_wide(wide: bool, noise: float | None, jpeg: int | None, sheet: Path | None) -> None:
    """Raise ``InputError`` for what the wide cases do not have."""
    from uid.errors import InputError

    if wide and any(value is not None for value in (noise, jpeg, sheet)):
        raise InputError("wide cases have noise of their own, no JPEG and no sheet: leave --noise, --jpeg, --sheet out")


def common_to_all(
    pipeline: "Pipeline", options: "Options", others: Mapping[str, "Pipeline"], scores: Mapping[str, metrics.Score]
) -> dict[str, Any]:
    """What each row of ``uid-bench quality`` states beside its figures."""
    from uid.bench.quality.methods import options_of_each
    from uid.train.held_out import CASE_SEED

    own, *theirs = options_of_each(options, [one.bundle for one in (pipeline, *others.values())])
    common = {**setting(pipeline, own), "case_seed": CASE_SEED}
    if others:
        common["others"] = {name: setting(others[name], used) for name, used in zip(others, theirs, strict=True)}
    if scores:
        common["versions"] |= versions(metrics.LIBRARIES)
    return common


@click.command(cls=Command, extra="bench")
@click.option("-m", "--model", type=click.Path(path_type=Path), metavar="BUNDLE", help="Default: the built-in bundle.")
@click.option("--backend", default="auto", show_default=True, metavar="NAME", help="See `uid-run doctor`.")
@click.option("--photo", "names", multiple=True, metavar="NAME", help="Only this held-out photo; repeat for more.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.jsonl", help="One JSON object per row.")
@click.option("--sheet", type=click.Path(path_type=Path), metavar="FILE.png", help="Images side by side.")
def transfer(model: Path | None, backend: str, names: Sequence[str], output: Path | None, sheet: Path | None) -> None:
    """Give held-out photos each other's blur, and compare them with the same blur done by convolution."""
    from uid.bench.quality import transfer as transfers
    from uid.bench.quality.show import show_transfers
    from uid.runtime.options import Options
    from uid.runtime.pipeline import load
    from uid.train.held_out import CASE_SEED, held_out

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
    from uid.bench.quality.show import show_tradeoff
    from uid.errors import InputError
    from uid.runtime.options import Options
    from uid.runtime.pipeline import load
    from uid.train.held_out import CASE_SEED, held_out

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
    from uid.bench.quality.tables import ablation_table
    from uid.train.ablation import ablate
    from uid.train.checkpoints import make_state_folder, state_folder
    from uid.train.data import Blurred, BlurredAlike, Examples, ProceduralImages
    from uid.train.held_out import held_out
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
    click.echo("\n".join(ablation_table(rows)))


@click.command(cls=Command, extra="bench")
@click.argument("pages", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--rows",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default="bench/results",
    show_default=True,
    help="Where the rows are.",
)
@click.option("--check", is_flag=True, help="Change nothing; exit status 1 if a table is not what the rows give.")
def tables(pages: Sequence[Path], folder: Path, check: bool) -> None:
    """Write the tables of quality in PAGES, each between its two markers, from the rows of earlier measurements."""
    from uid.bench.quality.pages import update

    stale = [str(page) for page in pages if not update(page, folder, check=check)]
    if check and stale:
        raise click.ClickException(f"tables are not those of the rows: uid-bench tables {' '.join(stale)}")


COMMANDS = (quality, transfer, tradeoff, ablation, tables)
