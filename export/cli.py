"""``uid-export``: checkpoints to bundles, bundles to TensorRT engines."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from uid import __version__
from uid.bundles.files import folder_written_whole
from uid.command import plain_errors, quieten_libraries
from uid.errors import BackendError
from uid.families import registry

if TYPE_CHECKING:
    from rich.table import Table

    from uid.engines.trt.cache import Sidecar
    from uid.engines.trt.profiles import Target
    from uid.export.findings import LayerRow

MAY_NOT_LOAD = 2
LAYER_FOUND = 1
EXAMPLES = """\b
Examples:
  uid-export random edge checkpoint/           a seeded random checkpoint
  uid-export half checkpoint/ small/           the same in float16
  uid-export bundle checkpoint/ -o bundle/     checkpoint to bundle, compared with PyTorch
  uid-export bundle deblurdiff.pth -o bundle/  the same of DeblurDiff's published file
  uid-export restorer nafnet.pth -o bundle/    the same of a network without a denoising loop
  uid-export build bundle/ --backend tensorrt  bundle to engines for the GPU here
  uid-export inspect bundle/engines/           what engines were built for
  uid-export check bundle/ --image photo.jpg   which layer makes an image wrong
"""  # \b: click keeps the lines as they are


@click.group(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="uid-export")
def main() -> None:
    """Export checkpoints of UID-Diff and DeblurDiff to bundles, and bundles to TensorRT engines.

    uid-run runs a bundle without torch.
    """
    quieten_libraries()


@main.command()
@click.argument("config", type=click.Choice(list(registry.configs())))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", default=0, help="Seed of the weights.")
@click.option("--half", is_flag=True, help="Store float16 weights.")
def random(config: str, folder: Path, seed: int, half: bool) -> None:
    """Write a random checkpoint of CONFIG to FOLDER, to try the tools without trained weights."""
    with plain_errors("export"), folder_written_whole(folder) as temporary:
        registry.create(registry.configs()[config]).write_random(temporary, config, seed=seed, half=half)
    click.echo(f"wrote {folder}")


@main.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("folder", type=click.Path(path_type=Path))
def convert(file: Path, folder: Path) -> None:
    """Write FILE, a published checkpoint of DeblurDiff, to FOLDER as safetensors.

    FOLDER/model_index.json holds the prompts and the numbers of steps, which may be edited before the export.
    """
    with plain_errors("export"), folder_written_whole(folder) as temporary:
        registry.family_of(file).convert(file, temporary)
    click.echo(f"wrote {folder}")


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def half(checkpoint: Path, folder: Path) -> None:
    """Write CHECKPOINT to FOLDER with float16 weights, and without training state."""
    with plain_errors("export"):
        from uid.families.weights import halved

        with folder_written_whole(folder) as temporary:
            registry.family_of(checkpoint).rewrite(checkpoint, temporary, halved)
    click.echo(f"wrote {folder}")


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def int8(checkpoint: Path, folder: Path) -> None:
    """Write CHECKPOINT to FOLDER with weights rounded to 8 bits, for a bundle of half the size."""
    with plain_errors("export"):
        from uid.families.weights import rounded_to_int8

        with folder_written_whole(folder) as temporary:
            registry.family_of(checkpoint).rewrite(checkpoint, temporary, rounded_to_int8)
    click.echo(f"wrote {folder}")


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Bundle folder to write.")
@click.option("--precision", default="fp32", type=click.Choice(["fp32", "fp16"]), help="Of weights and arithmetic.")
@click.option(
    "--shortcuts",
    is_flag=True,
    help="Add the steps that uid-run's --guidance-interval and --cache-interval need.",
)
@click.option("--image-steps", type=click.IntRange(1), help="Steps of the whole-image comparison.  [default: its own]")
@click.option("--allow-pickle", is_flag=True, help="Read pickled weights too, with weights_only=True.")
def bundle(
    checkpoint: Path, output: Path, precision: str, shortcuts: bool, image_steps: int | None, allow_pickle: bool
) -> None:
    """Export CHECKPOINT, and compare every component with PyTorch.

    CHECKPOINT is a folder: of UID-Diff in the diffusers layout, of DeblurDiff as `convert` writes it. Or it is the file
    that DeblurDiff's authors publish.
    """
    with plain_errors("export"):
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


@main.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Bundle folder to write.")
@click.option("--precision", default="fp32", type=click.Choice(["fp32", "fp16"]), help="Of weights and arithmetic.")
def restorer(model: Path, output: Path, precision: str) -> None:
    """Export MODEL, a file of weights of a network without a denoising loop, and compare it with PyTorch.

    NAFNet's weights are read as published; those of other architectures by the spandrel library, where it is installed.
    """
    with plain_errors("export"):
        from uid.export.bundle import export_bundle

        export_bundle(model, output, family="restorer", precision=precision, report=click.echo)
    click.echo(f"wrote {output}")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend", required=True, type=click.Choice(["tensorrt", "tensorrt-rtx"]), help="Library to build with."
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME|HxW",
    help="Image sizes: 720p, 1080p, the side of a square, or one height x width; repeat for more.  "
    "[default: the side of the bundle's tiles]",
)
@click.option(
    "--target-compute-capability",
    "capabilities",
    multiple=True,
    metavar="X.Y",
    help="GPUs to build for, with tensorrt-rtx; repeat for more.  [default: 8.0 and later]",
)
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="Limit of a layer's scratch memory.")
@click.option(
    "--strip", is_flag=True, help="With tensorrt: leave the weights out; the bundle's are put in at each load."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder.  [default: in the bundle]")
def build(
    bundle: Path,
    backend: str,
    profiles: tuple[str, ...],
    capabilities: tuple[str, ...],
    workspace: int | None,
    strip: bool,
    output: Path | None,
) -> None:
    """Build TensorRT engines from every component of BUNDLE, or reuse those that fit."""
    with plain_errors(backend):
        from uid.bundles.manifest import read_bundle
        from uid.engines.trt.build import BuildOptions
        from uid.engines.trt.cache import engine_for
        from uid.engines.trt.library import open_library
        from uid.engines.trt.profiles import parse_profile, square

        classes = dict.fromkeys(parse_profile(text) for text in profiles)
        library = open_library(backend)
        target = _target(backend, capabilities)
        checked = read_bundle(bundle)
        rounded = [
            profile.rounded(checked.size_multiple).with_batch(checked.tile)
            for profile in classes or [square(checked.tile)]
        ]
        for profile in rounded:
            click.echo(f"profile {profile}")
        for component in checked.components.values():
            engine_for(
                checked,
                component,
                library,
                target,
                rounded,
                BuildOptions(workspace, strip),
                folder=output,
                report=click.echo,
            )


def _target(backend: str, capabilities: tuple[str, ...]) -> "Target":
    """Ahead of time where that is asked for or the only way, or else for the GPU of this machine."""
    from uid.engines.trt.profiles import Target

    if capabilities or backend == "tensorrt-rtx":
        return Target.ahead(capabilities)

    from uid.engines.cuda_device import Device
    from uid.engines.trt.library import target_of

    return target_of(Device.find())


@main.command()
@click.argument("engines", type=click.Path(path_type=Path, exists=True), metavar="ENGINE_OR_DIR")
@click.pass_context
def inspect(ctx: click.Context, engines: Path) -> None:
    """Show what built engines are for; exit status 2 if one may not be loaded."""
    from rich.console import Console

    from uid.engines.trt.cache import check, read_sidecar

    paths = sorted(engines.rglob("[!.]*.engine")) if engines.is_dir() else [engines]
    if not paths:
        raise click.ClickException(f"{engines} holds no engine; `uid-export build` makes them")
    refused = []
    for path in paths:
        sound, reason = check(path)
        if sound:
            sidecar = read_sidecar(path)
            Console(markup=False).print(_table(path, sidecar))
            reason = _foreign(sidecar)
        if reason:
            refused.append(f"{path} may not be loaded: it {reason}")
    for line in refused:
        click.echo(line, err=True)
    ctx.exit(MAY_NOT_LOAD if refused else 0)


def _foreign(sidecar: "Sidecar") -> str:
    """Why the library installed here must not load an engine that is sound in itself, or "" (also where none is)."""
    from uid.engines.trt.library import open_library

    backend, version = sidecar.key["backend"], sidecar.key["version"]
    try:
        library = open_library(backend)
    except BackendError:
        return ""
    return "" if library.version == version else f"was built with {backend} {version}, installed is {library.version}"


def _table(path: Path, sidecar: "Sidecar") -> "Table":
    """What an engine was built from and for."""
    from rich.table import Table

    from uid.engines.trt.cache import target_from
    from uid.engines.trt.profiles import Profile, Range

    key = sidecar.key
    table = Table("", "", title=str(path), title_justify="left", show_header=False)
    table.add_row("component", f"{key['component']}, {key['precision']}")
    table.add_row("built with", f"{key['backend']} {key['version']} in {sidecar.seconds:.1f} s")
    table.add_row("for", str(target_from(key["target"])))
    table.add_row("size", f"{sidecar.size / 1e6:.1f} MB, sha256 {sidecar.sha256[:16]}...")
    for name, digest in key["sources"].items():
        table.add_row("from", f"{name}, sha256 {digest[:16]}...")
    for name, value in key["options"].items():
        table.add_row("option", f"{name}: {value}")
    for index, entry in enumerate(key["profiles"]):
        # An earlier version wrote no "batch".
        ranges = {side: Range(**entry[side]) for side in ("height", "width", "batch") if side in entry}
        table.add_row(f"profile {index}", str(Profile(name=entry["name"], **ranges)))
    for tensor in sidecar.tensors:
        shape = ", ".join(str(size) for size in tensor["shape"])
        table.add_row(tensor["mode"], f"{tensor['name']} {tensor['dtype']}[{shape}]")
    return table


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--component", "components", multiple=True, metavar="NAME", help="Repeat for more.  [default: all]")
@click.option("--image", type=click.Path(path_type=Path), help="Image to run.  [default: a generated one]")
@click.option("--size", default=256, type=click.IntRange(16), help="Side in pixels of the middle part that is run.")
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
    size: int,
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
    with plain_errors("export"):
        import json

        from uid.bundles.files import written_whole
        from uid.bundles.manifest import read_bundle
        from uid.export.check import check as check_layers
        from uid.export.check import example_image

        rows = check_layers(
            read_bundle(bundle),
            example_image(image, size),
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
