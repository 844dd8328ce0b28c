"""The options of ``uid-train``'s stages."""

from pathlib import Path

import click

from uid.train.stages import StageEntry

FILE_OR_FOLDER = click.Path(path_type=Path, exists=True)
DATA_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
CHECKPOINT = click.Path(path_type=Path, file_okay=False)
COUNT = click.IntRange(1)
PRESET = "  [default: the configuration's]"

PLACES = (
    click.Argument(["checkpoint"], type=CHECKPOINT),
    click.Option(
        ["-o", "--output"],
        type=CHECKPOINT,
        metavar="FOLDER",
        help="New folder for the trained checkpoint; CHECKPOINT stays as it is.",
    ),
    click.Option(["--in-place"], is_flag=True, help="Write what was trained into CHECKPOINT itself."),
    click.Option(["--config"], metavar="NAME", help="Start a new checkpoint of this model size: edge, tiny or sd15."),
    click.Option(
        ["--random"], is_flag=True, help="With --config sd15: start from random weights, not from published ones."
    ),
)
DATA = (
    click.Option(
        ["--sharp"],
        type=FILE_OR_FOLDER,
        metavar="PLACE",
        help="Sharp images, a folder or a list of files; their blur is synthetic.  [default: procedural ones]",
    ),
    click.Option(
        ["--pairs"],
        type=(DATA_FOLDER, DATA_FOLDER),
        metavar="BLURRY SHARP",
        help="Blurred images and their sharp ones: two folders, or the same one twice where both lie in it.",
    ),
    click.Option(
        ["--pair-list"],
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="Blurred images and their sharp ones: two paths a line, the sharp image's first, as in RealBlur's lists.",
    ),
    click.Option(["--images"], default=6000, type=COUNT, help="Procedural images to make, where no others are given."),
    click.Option(["--size"], type=click.IntRange(16), help=f"Side of the training images, in pixels.{PRESET}"),
)
DOMAIN = (
    click.Option(
        ["--blurry"],
        type=FILE_OR_FOLDER,
        metavar="PLACE",
        help="Blurred images of your own domain, for T_2 and T_3, a folder or a list; they need no sharp ones.",
    ),
)
RUN = (
    click.Option(["--steps"], required=True, type=COUNT, help="Steps in all, including those of earlier runs."),
    click.Option(["--batch"], type=COUNT, help=f"Images at a time in each process.{PRESET}"),
    click.Option(["--accumulate"], type=COUNT, help=f"Batches of each process in a step.{PRESET}"),
    click.Option(
        ["--learning-rate"],
        type=click.FloatRange(0.0, min_open=True),
        help="Highest learning rate of AdamW.  [default: 5e-5, the paper's; 3e-4 for edge and tiny]",
    ),
    click.Option(["--seed"], default=0, type=click.IntRange(0), help="Seed of examples and noise."),
    click.Option(["--save-every"], default=250, type=COUNT, help="Steps between states, to go on from."),
    click.Option(["--sheet-every"], default=1000, type=COUNT, help="Steps between sample sheets."),
    click.Option(["--workers"], default=1, type=click.IntRange(0), help="Processes that make examples, for each one."),
    click.Option(
        ["--mixed-precision"],
        type=click.Choice(["no", "bf16", "fp16"]),
        help=f"Autocast to this dtype, and hold in it what is frozen.{PRESET}",
    ),
    click.Option(
        ["--checkpointing/--no-checkpointing"],
        default=None,
        help=f"Compute activations twice, instead of storing them.{PRESET}",
    ),
    click.Option(
        ["--optimizer"],
        default="adamw",
        type=click.Choice(["adamw", "adamw-8bit"]),
        help="adamw-8bit stores a quarter of AdamW's state; needs bitsandbytes.",
    ),
)
OWN = {
    "structured_transfer": click.Option(
        ["--structured-transfer"], is_flag=True, help="T_2 sees the structure of its target too, unlike eq. 6."
    ),
    "backbone": click.Option(
        ["--backbone/--no-backbone"], default=None, help=f"Train U-Net and image encoder too.{PRESET}"
    ),
    "without": click.Option(
        ["--without"],
        multiple=True,
        type=click.Choice(["Q_s", "T_2", "T_3"]),
        help="Leave this out (ablation); repeat for more.",
    ),
}


def parameters(entry: StageEntry) -> list[click.Parameter]:
    """Those of a stage's command."""
    return [*PLACES, *DATA, *(DOMAIN if entry.domain else ()), *(OWN[name] for name in entry.options), *RUN]
