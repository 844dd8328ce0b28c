"""``uid-train recipe``: a whole training that is told nothing but its time."""

from pathlib import Path

import click

from uid.command import Command, quieten_libraries
from uid.errors import OutputError
from uid.train.presets import RECIPES

FOLDER = click.Path(path_type=Path, file_okay=False)
SHIPPED = Path("checkpoints")


@click.command(
    cls=Command, extra="train", context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.argument("name", type=click.Choice(list(RECIPES)))
@click.argument("output", metavar="OUT", type=FOLDER)
@click.option("--minutes", default=9.0, type=click.FloatRange(0.0, min_open=True), help="Time in all.")
@click.option(
    "--start",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="CHECKPOINT",
    help="Go on from these weights.  [default: OUT, where that is there; then checkpoints/ of this folder; then none]",
)
@click.option("--seed", default=0, type=click.IntRange(0), help="Seed of images and noise; give each run another.")
def recipe(name: str, output: Path, minutes: float, start: Path | None, seed: int) -> None:
    """Train for some minutes, on a GPU if there is one, and write the best weights to OUT.

    Images are made by the host and blurred by the device. Held-out photos are measured once a minute; weights that are
    better than those before are written, in float16.
    """
    if output.is_dir() and any(output.iterdir()) and (start or not is_checkpoint(output)):
        raise OutputError(
            f"{output} is in use; give a new folder, or an earlier run's without --start, to go on from it"
        )
    quieten_libraries()
    from uid.train.recipe import follow

    chosen = RECIPES[name]
    score = follow(chosen, start or found(output, chosen.config), output, minutes, seed, click.echo)
    click.echo(f"{output if output.exists() else 'nothing was better than the start; it'} has {score}")


def found(output: Path, config: str) -> Path | None:
    """The weights to go on from, where none were named."""
    return next((one for one in (output, SHIPPED / config) if is_checkpoint(one)), None)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder looks like a checkpoint."""
    return (folder / "model_index.json").is_file()
