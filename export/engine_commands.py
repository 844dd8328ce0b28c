"""The commands of ``uid-export`` that make TensorRT engines, tell what they are for, and hand models to Triton."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from uid.command import Command
from uid.errors import BackendError, InputError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.table import Table

    from uid.bundles.declarations import Bundle, Component
    from uid.engines.trt.profiles import Profile, Target
    from uid.engines.trt.sidecar import Sidecar

SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}
MAY_NOT_LOAD = 2


@click.command(cls=Command, extra="backend", context_settings=SETTINGS)
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
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder.  [default: the user's cache]")
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
    from uid.bundles.manifest import read_bundle
    from uid.engines.trt.build import BuildOptions
    from uid.engines.trt.cache import engine_for
    from uid.engines.trt.library import open_library

    classes = _classes(profiles)
    library = open_library(backend)
    target = _target(backend, capabilities)
    checked = read_bundle(bundle)
    rounded = _rounded(classes, checked)
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


def _classes(texts: "Iterable[str]") -> "list[Profile]":
    """The profiles that are named, each once."""
    from uid.engines.trt.profiles import parse_profile

    return list(dict.fromkeys(parse_profile(text) for text in texts))


def _rounded(classes: "list[Profile]", bundle: "Bundle") -> "list[Profile]":
    """Profiles (none: that of the bundle's tiles) as the bundle's images are padded and batched."""
    from uid.engines.trt.profiles import square

    return [one.rounded(bundle.size_multiple).with_batch(bundle.tile) for one in classes or [square(bundle.tile)]]


def _target(backend: str, capabilities: tuple[str, ...]) -> "Target":
    """Ahead of time where that is asked for or the only way, or else for the GPU of this machine."""
    from uid.engines.trt.profiles import Target

    if capabilities or backend == "tensorrt-rtx":
        return Target.ahead(capabilities)

    from uid.engines.cuda_device import Device
    from uid.engines.trt.library import target_of

    return target_of(Device.find())


@click.command(cls=Command, extra="tensorrt", context_settings=SETTINGS)
@click.argument("engines", type=click.Path(path_type=Path, exists=True), metavar="ENGINE_OR_DIR")
@click.pass_context
def inspect(ctx: click.Context, engines: Path) -> None:
    """Show what built engines are for; exit status 2 if one may not be loaded."""
    from rich.console import Console

    from uid.engines.trt.cache import check
    from uid.engines.trt.sidecar import read_sidecar

    paths = sorted(engines.rglob("[!.]*.engine")) if engines.is_dir() else [engines]
    if not paths:
        raise click.ClickException(f"{engines} holds no engine; `uid-export build` makes them")
    refused = []
    for path in paths:
        sound, reason = check(path)
        if sound:
            sidecar = read_sidecar(path)
            Console(markup=False, emoji=False).print(_table(path, sidecar))
            reason = _foreign(sidecar)
        if reason:
            refused.append(f"{path} may not be loaded: it {reason}")
    for line in refused:
        click.echo(printable(line), err=True)
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

    from uid.engines.trt.profiles import Profile, Range
    from uid.engines.trt.sidecar import target_from

    key = sidecar.key
    table = Table("", "", title=printable(str(path)), title_justify="left", show_header=False)
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


# -- Triton -----------------------------------------------------------------------------------------------------------


@click.command(cls=Command, extra="export", context_settings=SETTINGS)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("repository", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Of the model that runs whole images.  [default: the bundle's]")
@click.option(
    "--backend",
    default="onnxruntime",
    type=click.Choice(["onnxruntime", "onnxruntime-cuda", "tensorrt"]),
    help="What runs the components. tensorrt builds engines for the GPU of this machine.",
)
@click.option("--profile", "profiles", multiple=True, metavar="NAME|HxW", help="Image sizes of engines, as of `build`.")
@click.option("--instances", default=1, type=click.IntRange(1), help="Images that are worked on at once.")
@click.option("--queue", default=32, type=click.IntRange(1), help="Most images that wait; more are refused.")
@click.option(
    "--timeout",
    default=300.0,
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Longest time that an image waits.",
)
def triton(
    bundle: Path,
    repository: Path,
    name: str | None,
    backend: str,
    profiles: tuple[str, ...],
    instances: int,
    queue: int,
    timeout: float,
) -> None:
    """Write BUNDLE to REPOSITORY as models of the Triton inference server.

    There is a model for each component, and one that runs whole images, for which this package must be installed where
    Triton runs. No Triton server has run them yet.
    """
    from uid.bundles.manifest import read_bundle
    from uid.bundles.names import NAME, name_rule
    from uid.engines.contract import GPU_BATCH
    from uid.export.triton import CUDA, TENSORRT, Serving, write_repository

    if name is not None and not NAME.fullmatch(name):
        raise InputError(f"the name is {name!r}; expected {name_rule().expected}")
    if profiles and backend != TENSORRT:
        raise InputError(f"--profile is for the engines of {TENSORRT}, and the backend is {backend}")
    read = read_bundle(bundle)
    sizes = _rounded(_classes(profiles), read) if backend == TENSORRT else []
    # An engine takes the batches of its profiles alone.
    batch = min((one.batch.maximum for one in sizes), default=GPU_BATCH if backend == CUDA else 1)
    serving = Serving(name or read.name, backend, instances, queue, timeout, batch, len(sizes))
    plan = _plan(read, sizes) if sizes else None
    write_repository(read, repository, serving, plan, click.echo)
    click.echo(f"wrote {repository}")


def _plan(bundle: "Bundle", profiles: "list[Profile]") -> "Callable[[Component, Path], None]":
    """What writes the TensorRT engine of a component to a file."""
    import shutil

    from uid.engines.trt.cache import engine_for
    from uid.engines.trt.library import open_library

    library, target = open_library("tensorrt"), _target("tensorrt", ())

    def write(component: "Component", path: Path) -> None:
        shutil.copyfile(engine_for(bundle, component, library, target, profiles, report=click.echo), path)

    return write
