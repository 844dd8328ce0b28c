"""``uid-bench pairs``: bundles on the user's copy of a data set."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uid.bench.quality import metrics
from uid.bench.rows import setting, versions, write_png, write_rows
from uid.command import Command

if TYPE_CHECKING:
    from uid.bench.quality.pairs import Pair, PairRow, Restore
    from uid.runtime.options import Options
    from uid.runtime.pipeline import Pipeline

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command(cls=Command, extra="bench")
@click.argument("blurry", type=FOLDER)
@click.argument("sharp", type=FOLDER, required=False)
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
@click.option("--steps", type=click.IntRange(min=1), help="Denoising steps. Default: each bundle's.")
@click.option("--transforms", type=click.IntRange(1, 8), help="Flipped copies to average. Default: each bundle's.")
@click.option("--guidance", type=click.FloatRange(min=0), help="Guidance scale. Default: each bundle's.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the initial noise.")
@click.option(
    "--metric",
    "learned",
    type=click.Choice(list(metrics.METRICS)),
    multiple=True,
    help="Score the images with this learned metric too; repeat for more.",
)
@click.option("--fid", "with_fid", is_flag=True, help="FID of each set of images to the sharp ones, by torch-fidelity.")
@click.option("--images", type=click.Path(path_type=Path, file_okay=False), help="Store the output images there.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.jsonl", help="One JSON object per row.")
def pairs(
    blurry: Path,
    sharp: Path | None,
    models: Sequence[Path],
    backend: str,
    steps: int | None,
    transforms: int | None,
    guidance: float | None,
    seed: int,
    learned: Sequence[str],
    with_fid: bool,
    images: Path | None,
    output: Path | None,
) -> None:
    """Compare bundles on the images of folder BLURRY, each with the image of the same name in folder SHARP.

    Without SHARP the one folder has both: in folders blur/ and sharp/ as GoPro's, or blur/ and gt/ as RealBlur's, at
    any depth. Figures are of whole images in 8 bits. Learned metrics and FID need pip install 'uid-runtime[metrics]'
    and weights; what is missing is told, not downloaded.
    """
    from uid.bench.quality.fid import ENOUGH, check_fid
    from uid.bench.quality.pairs import find_pairs, measure
    from uid.bench.quality.tables import pairs_table
    from uid.runtime.options import Options

    found = find_pairs(blurry, sharp or blurry)
    scores = metrics.load(learned)
    if with_fid:
        check_fid()
        if len(found) < ENOUGH:
            click.echo(f"FID of {len(found)} images says little: it takes {ENOUGH} and more", err=True)
    options = Options(steps=steps, transforms=transforms, guidance=guidance, seed=seed)
    pipelines, each = loaded(models, backend, options)
    rows: list[PairRow] = []
    with nullcontext(str(images)) if images or not with_fid else tempfile.TemporaryDirectory() as folder:
        for pair, row, pixels in measure(found, restorers(pipelines, each), scores):
            rows.append(row)
            click.echo(f"{pair.name}: {row.method} {row.psnr:.2f} dB", err=True)
            if images or with_fid:
                write_png(place(folder, row.method, pair), pixels)
        if with_fid:
            rows = with_distances(rows, found, folder)
    if output is not None:
        bundles = {name: setting(pipelines[name], each[name]) for name in pipelines}
        data = {"blurry": blurry.name, "sharp": (sharp or blurry).name, "bundles": bundles}
        write_rows(output, rows, data | {"versions": versions(metrics.LIBRARIES)})
    click.echo(f"{len(found)} pairs\n\n" + "\n".join(pairs_table(rows)))


def loaded(
    models: Sequence[Path], backend: str, options: "Options"
) -> "tuple[dict[str, Pipeline], dict[str, Options]]":
    """The pipelines by what they are called, and what each is run with."""
    from uid.bench.quality.comparison import check_size
    from uid.bench.quality.methods import method_names, options_of_each
    from uid.bundles.declarations import built_in
    from uid.runtime.pipeline import load

    folders = models or [built_in()]
    pipelines = dict(zip(method_names(folders), (load(folder, backend=backend) for folder in folders), strict=True))
    each = options_of_each(options, [one.bundle for one in pipelines.values()])
    for pipeline, used in zip(pipelines.values(), each, strict=True):
        check_size(pipeline, used)
    return pipelines, dict(zip(pipelines, each, strict=True))


def restorers(pipelines: "Mapping[str, Pipeline]", options: "Mapping[str, Options]") -> "dict[str, Restore]":
    """The blurred image as it is, and each pipeline."""
    from uid.bench.quality.methods import BLURRED

    def restorer(name: str) -> Any:
        return lambda image: pipelines[name](image, options[name]).image

    return {BLURRED: lambda image: image, **{name: restorer(name) for name in pipelines}}


def with_distances(rows: "Sequence[PairRow]", found: "Sequence[Pair]", folder: str) -> "list[PairRow]":
    """The rows with the FID of their methods, whose images are in the folder."""
    from uid.bench.quality.fid import fid

    methods = dict.fromkeys(row.method for row in rows)
    sharp = [pair.sharp for pair in found]
    distances = {name: fid([place(folder, name, pair) for pair in found], sharp) for name in methods}
    return [replace(row, fid=distances[row.method]) for row in rows]


def place(folder: str, method: str, pair: "Pair") -> Path:
    """Where a method's image of a pair is stored."""
    return Path(folder) / method / f"{pair.name}.png"


COMMANDS = (pairs,)
