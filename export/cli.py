"""``uid-export``: checkpoints to bundles."""

from pathlib import Path

import click

from uid import __version__
from uid.command import plain_errors, quieten_libraries
from uid.runtime.files import folder_written_whole


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="uid-export")
def main() -> None:
    r"""Export UID-Diff checkpoints to bundles that uid-run runs without torch.

    \b
    uid-export random edge checkpoint/           a seeded random checkpoint
    uid-export bundle checkpoint/ -o bundle/     checkpoint to bundle, compared with PyTorch
    """
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
