"""``uid-export``: checkpoints to bundles, bundles to TensorRT engines."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from uid import __version__
from uid.bundles.files import folder_written_whole
from uid.command import Commands, quieten_libraries
from uid.export.engine_commands import SETTINGS, build, inspect, triton
from uid.families import registry

if TYPE_CHECKING:
    from uid.export.findings import LayerRow

LAYER_FOUND = 1
LARGEST_SIDE = 256  # pixels, that a check runs unless more is asked for
EXAMPLES = """\b
Examples:
  uid-export random edge checkpoint/           a seeded random checkpoint
  uid-export half checkpoint/ small/           the same in float16
  uid-export bundle checkpoint/ -o bundle/     checkpoint to bundle, compared with PyTorch
  uid-export bundle deblurdiff.pth -o bundle/  the same of DeblurDiff's published file
  uid-export restorer nafnet.pth -o bundle/    the same of a network without a denoising loop
  uid-export build bundle/ --backend tensorrt  bundle to engines for the GPU here
  uid-export inspect ~/.cache/uid-runtime/     what engines were built for
  uid-export check bundle/ --image photo.jpg   which layer makes an image wrong
  uid-export triton bundle/ models/            bundle to a model repository of Triton
"""  # \b: click keeps the lines as they are


@click.group(cls=Commands, epilog=EXAMPLES, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="uid-export")
def main() -> None:
    """Export checkpoints of UID-Diff, DeblurDiff and restorers to bundles, and bundles to TensorRT engines.

    uid-run runs a bundle without torch.
    """
    quieten_libraries()


@main.command(extra="export")
@click.argument("config", type=click.Choice(list(registry.configs())))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", default=0, help="Seed of the weights.")
@click.option("--half", is_flag=True, help="Store float16 weights.")
def random(config: str, folder: Path, seed: int, half: bool) -> None:
    """Write a random checkpoint of CONFIG to FOLDER, to try the tools without trained weights."""
    with folder_written_whole(folder) as temporary:
        registry.create(registry.configs()[config]).write_random(temporary, config, seed=seed, half=half)
    click.echo(f"wrote {folder}")


@main.command(extra="export")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("folder", type=click.Path(path_type=Path))
def convert(file: Path, folder: Path) -> None:
    """Write FILE, a published checkpoint of DeblurDiff, to FOLDER as safetensors.

    FOLDER/model_index.json holds the prompts and the numbers of steps, which may be edited before the export.
    """
    with folder_written_whole(folder) as temporary:
        registry.family_of(file).convert(file, temporary)
    click.echo(f"wrote {folder}")


@main.command(extra="export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def half(checkpoint: Path, folder: Path) -> None:
    """Write CHECKPOINT, of UID-Diff, to FOLDER with float16 weights, and without training state."""
    from uid.families.weights import halved

    with folder_written_whole(folder) as temporary:
        registry.family_of(checkpoint).rewrite(checkpoint, temporary, halved)
    click.echo(f"wrote {folder}")


@main.command(extra="export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def int8(checkpoint: Path, folder: Path) -> None:
    """Write CHECKPOINT, of UID-Diff, to FOLDER with weights rounded to 8 bits, for a bundle of half the size."""
    from uid.families.weights import rounded_to_int8

    with folder_written_whole(folder) as temporary:
        registry.family_of(checkpoint).rewrite(checkpoint, temporary, rounded_to_int8)
    click.echo(f"wrote {folder}")


@main.command(extra="export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Bundle folder to write.")
@click.option("--precision", default="fp32", type=click.Choice(["fp32", "fp16"]), help="Of weights and arithmetic.")
@click.option(
    "--shortcuts",
    is_flag=True,
    help="Add the steps that uid-run's --guidance-interval and --cache-interval need.",
)
@click.option("--image-steps", type=click.IntRange(1), help="Steps of the whole-image comparison.  [default: its own]")
@click.option("--allow-pickle", is_flag=True, help="Read pickled weights in folders too, with weights_only=True.")
def bundle(
    checkpoint: Path, output: Path, precision: str, shortcuts: bool, image_steps: int | None, allow_pickle: bool
) -> None:
    """Export CHECKPOINT, and compare every component with PyTorch.

    CHECKPOINT is a folder: of UID-Diff in the diffusers layout, of DeblurDiff as `convert` writes it. Or it is the file
    that DeblurDiff's authors publish. Files of networks without a denoising loop, such as NAFNet: `restorer`.
    """
    from uid.export.bundle import export_bundle

    export_bundle(
        checkpoint,
        output,
        precision=precision,
        shortcuts=shortcuts,
        image_steps=image_steps,
        allow_pickle=allow_pickle,
        report=click.echo,
    )
    click.echo(f"wrote {output}")


@main.command(extra="export")
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Bundle folder to write.")
@click.option("--precision", default="fp32", type=click.Choice(["fp32", "fp16"]), help="Of weights and arithmetic.")
def restorer(model: Path, output: Path, precision: str) -> None:
    """Export MODEL, a file of weights of a network without a denoising loop, and compare it with PyTorch.

    The weights of NAFNet, Restormer and FFTformer are read as published; those of other architectures by the spandrel
    library, where it is installed.
    """
    from uid.export.bundle import export_bundle

    export_bundle(model, output, family="restorer", precision=precision, report=click.echo)
    click.echo(f"wrote {output}")


@main.command(extra="export")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--component", "components", multiple=True, metavar="NAME", help="Repeat for more.  [default: all]")
@click.option("--image", type=click.Path(path_type=Path), help="Image to run.  [default: a generated one]")
@click.option(
    "--size",
    type=click.IntRange(16),
    metavar="PIXELS",
    help="Side of the middle part that is run.  [default: the bundle's tile, 256 at most]",
)
@click.option("--step", default=1, type=click.IntRange(1), help="Denoising step to look at.")
@click.option(
    "--backend", help="Run the graphs unchanged on this backend.  [default: the CPU, rounding after each layer]"
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Compare with this bundle.  [default: BUNDLE itself in float32]",
)
@click.option("--top", default=10, type=click.IntRange(1), help="Layers to show.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON lines to write, one for every layer.")
@click.pass_context
def check(
    ctx: click.Context,
    bundle: Path,
    components: tuple[str, ...],
    image: Path | None,
    size: int | None,
    step: int,
    backend: str | None,
    reference: Path | None,
    top: int,
    output: Path | None,
) -> None:
    """Find the layers of BUNDLE that make an image wrong.

    Every component reads what it would read when the image is run. The command finds layers whose values overflow
    float16 or come near it, and, against float32 arithmetic, those that add more than ten times the error of what they
    read. The graphs of an fp16 bundle are run rounding to float16 after every layer, or as they are by --backend; an
    fp32 bundle's values are judged as if they were float16. Every layer is made an output, which keeps a backend from
    fusing it with others; the component's own outputs are computed as in use, so an error that jumps there alone is of
    a fusion.

    Exit status: 0 nothing found, 1 a layer overflows or adds an error (or the check failed), 2 wrong usage.
    """
    import json

    from uid.bundles.files import written_whole
    from uid.bundles.manifest import read_bundle
    from uid.export.check import check as check_layers
    from uid.export.check import example_image

    checked = read_bundle(bundle)
    rows = check_layers(
        checked,
        example_image(image, size or min(LARGEST_SIDE, checked.tile)),
        components=components,
        reference=None if reference is None else read_bundle(reference),
        backend=backend,
        step=step,
        report=click.echo,
    )
    if output is not None:
        with written_whole(output) as temporary:
            temporary.write_text("".join(json.dumps(row.record()) + "\n" for row in rows), encoding="utf-8")
    _show(rows, top)
    ctx.exit(LAYER_FOUND if any(row.wrong for row in rows) else 0)


def _show(rows: "list[LayerRow]", top: int) -> None:
    """The worst layers as a table, and what else was found as lines."""
    from rich.console import Console
    from rich.table import Table

    from uid.export.findings import summary, worst_first

    worst = worst_first(rows)
    if worst:
        table = Table("found", "layer", "largest", "error of what it reads", "its error", show_lines=True)
        table.columns[1].overflow = "fold"  # names are to be read whole
        for row in worst[:top]:
            where = f"{row.component}: {row.layer.node} ({row.layer.op}) -> {row.layer.tensor}\n{row.layer.module}"
            table.add_row(", ".join(row.findings), where.strip(), *row.figures())
        Console().print(table)
    for line in summary(rows, min(top, len(worst))):
        click.echo(line)


main.add_command(build)
main.add_command(inspect)
main.add_command(triton)
