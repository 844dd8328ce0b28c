"""``uid-export``: checkpoints to bundles, bundles to TensorRT engines."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from uid import __version__
from uid.command import plain_errors, quieten_libraries
from uid.errors import BackendError
from uid.runtime.files import folder_written_whole

if TYPE_CHECKING:
    from rich.table import Table

    from uid.engines.cache import Sidecar
    from uid.engines.profiles import Target

MAY_NOT_LOAD = 2
EXAMPLES = """\b
Examples:
  uid-export random edge checkpoint/           a seeded random checkpoint
  uid-export half checkpoint/ small/           the same in float16
  uid-export bundle checkpoint/ -o bundle/     checkpoint to bundle, compared with PyTorch
  uid-export build bundle/ --backend tensorrt  bundle to engines for the GPU here
  uid-export inspect bundle/engines/           what engines were built for
"""  # \b: click keeps the lines as they are


@click.group(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="uid-export")
def main() -> None:
    """Export UID-Diff checkpoints to bundles that uid-run runs without torch, and bundles to TensorRT engines."""
    quieten_libraries()


@main.command()
@click.argument("preset", type=click.Choice(["sd15", "edge", "tiny"]))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", default=0, help="Seed of the weights.")
@click.option("--half", is_flag=True, help="Store float16 weights.")
def random(preset: str, folder: Path, seed: int, half: bool) -> None:
    """Write a random checkpoint of PRESET to FOLDER, to try the tools without trained weights."""
    with plain_errors("export"):
        from uid.reference.checkpoint import write_random

        with folder_written_whole(folder) as temporary:
            write_random(temporary, preset, seed=seed, half=half)
    click.echo(f"wrote {folder}")


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def half(checkpoint: Path, folder: Path) -> None:
    """Write CHECKPOINT to FOLDER with float16 weights, and without what training left there."""
    with plain_errors("export"):
        from uid.reference.checkpoint import write_half

        with folder_written_whole(folder) as temporary:
            write_half(checkpoint, temporary)
    click.echo(f"wrote {folder}")


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Bundle folder to write.")
@click.option("--precision", default="fp32", type=click.Choice(["fp32", "fp16"]), help="Of weights and arithmetic.")
@click.option("--image-steps", type=click.IntRange(1), help="Steps of the whole-image comparison.  [default: its own]")
@click.option("--allow-pickle", is_flag=True, help="Read pickled weights too, with weights_only=True.")
def bundle(checkpoint: Path, output: Path, precision: str, image_steps: int | None, allow_pickle: bool) -> None:
    """Export CHECKPOINT, a folder in the diffusers layout, and compare every component with PyTorch."""
    with plain_errors("export"):
        from uid.export.bundle import export_bundle

        export_bundle(
            checkpoint,
            output,
            precision=precision,
            image_steps=image_steps,
            allow_pickle=allow_pickle,
            report=click.echo,
        )
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
    help="Picture sizes: 720p, 1080p, the side of a square, or one height x width; repeat for more.  "
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
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder.  [default: in the bundle]")
def build(
    bundle: Path,
    backend: str,
    profiles: tuple[str, ...],
    capabilities: tuple[str, ...],
    workspace: int | None,
    output: Path | None,
) -> None:
    """Build TensorRT engines from every component of BUNDLE, or reuse those that fit."""
    with plain_errors(backend):
        from uid.engines.cache import engine_for
        from uid.engines.profiles import parse_profile, square
        from uid.engines.tensorrt import open_library
        from uid.engines.tensorrt_build import BuildOptions
        from uid.runtime.bundle import read_bundle

        classes = dict.fromkeys(parse_profile(text) for text in profiles)
        library = open_library(backend)
        target = _target(backend, capabilities)
        checked = read_bundle(bundle)
        rounded = [profile.rounded(checked.size_multiple) for profile in classes or [square(checked.tile)]]
        for profile in rounded:
            click.echo(f"profile {profile.name}: height {profile.height}; width {profile.width}")
        for component in checked.components.values():
            engine_for(
                checked,
                component,
                library,
                target,
                rounded,
                BuildOptions(workspace),
                folder=output,
                report=click.echo,
            )


def _target(backend: str, capabilities: tuple[str, ...]) -> "Target":
    """Ahead of time where it is asked for or all that there is, or else the GPU here."""
    from uid.engines.profiles import Target

    if capabilities or backend == "tensorrt-rtx":
        return Target.ahead(capabilities)

    from uid.engines.cuda import Device
    from uid.engines.tensorrt import target_of

    return target_of(Device.find())


@main.command()
@click.argument("engines", type=click.Path(path_type=Path, exists=True), metavar="ENGINE_OR_DIR")
@click.pass_context
def inspect(ctx: click.Context, engines: Path) -> None:
    """Show what built engines are for; exit status 2 if one may not be loaded."""
    from rich.console import Console

    from uid.engines.cache import check, read_sidecar

    paths = sorted(engines.rglob("[!.]*.engine")) if engines.is_dir() else [engines]
    if not paths:
        raise click.ClickException(f"{engines} holds no engine; `uid-export build` makes them")
    refused = []
    for path in paths:
        sound, reason = check(path)
        if sound:
            sidecar = read_sidecar(path)
            Console().print(_table(path, sidecar))
            reason = _foreign(sidecar)
        if reason:
            refused.append(f"{path} may not be loaded: it {reason}")
    for line in refused:
        click.echo(line, err=True)
    ctx.exit(MAY_NOT_LOAD if refused else 0)


def _foreign(sidecar: "Sidecar") -> str:
    """Why the library installed here must not load an engine that is sound in itself, or "" (also where none is)."""
    from uid.engines.tensorrt import open_library

    backend, version = sidecar.key["backend"], sidecar.key["version"]
    try:
        library = open_library(backend)
    except BackendError:
        return ""
    return "" if library.version == version else f"was built with {backend} {version}, installed is {library.version}"


def _table(path: Path, sidecar: "Sidecar") -> "Table":
    """What an engine was built from and for."""
    from rich.table import Table

    from uid.engines.cache import target_from
    from uid.engines.profiles import Profile, Range

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
        ranges = {side: Range(**entry[side]) for side in ("height", "width", "blur")}
        profile = Profile(name=entry["name"], **ranges)
        table.add_row(f"profile {index}", f"{profile.name}: height {profile.height}; width {profile.width}")
    for tensor in sidecar.tensors:
        shape = ", ".join(str(size) for size in tensor["shape"])
        table.add_row(tensor["mode"], f"{tensor['name']} {tensor['dtype']}[{shape}]")
    return table
