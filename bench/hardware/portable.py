"""``python -m uid.bench.hardware.portable BUNDLE COPY``: a bundle without the variants of its graphs for one library.

What a backend makes of the portable graphs, beside what it makes of those that were made for it.
"""

import json
import shutil
from pathlib import Path

import click

from uid.bundles.files import folder_written_whole
from uid.bundles.manifest import MANIFEST, read_manifest
from uid.command import Command


def write_portable(source: Path, destination: Path) -> dict[str, list[str]]:
    """Write the copy; returns the variants left out, by component."""
    manifest = read_manifest(source)
    left_out = {name: entry.pop("variants", {}) for name, entry in manifest["components"].items()}
    files = {file for variants in left_out.values() for file in variants.values()}
    manifest["files"] = {name: digest for name, digest in manifest["files"].items() if name not in files}
    manifest["name"] += "-plain"
    with folder_written_whole(destination) as folder:
        for name in manifest["files"]:
            shutil.copyfile(source / name, folder / name)  # onnx refuses weights that have two links
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return {name: list(variants) for name, variants in left_out.items() if variants}


@click.command(cls=Command, extra="bench")
@click.argument("source", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("destination", metavar="COPY", type=click.Path(path_type=Path))
def main(source: Path, destination: Path) -> None:
    """Write COPY, and say which variants of BUNDLE it lacks."""
    left_out = write_portable(source, destination)
    for component, libraries in left_out.items():
        click.echo(f"{component}: without its variant for {', '.join(libraries)}")
    if not left_out:
        click.echo(f"{source} has no variants: both are the same")


if __name__ == "__main__":
    main()
