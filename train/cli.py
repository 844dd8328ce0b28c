"""``uid-train``: one stage of training on one checkpoint folder, resumable; ``uid-train init`` begins one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uid import __version__
from uid.command import Command, quieten_libraries
from uid.train.init import init

if TYPE_CHECKING:
    from uid.families.uid_diff.model import UIDDiff

__all__ = ["init", "main"]

STAGES = (
    "vae",
    "refiner",
    "encoder-refiner",
    "decoder-refiner",
    "base",
    "deblur",
    "blur-transfer",
    "joint",
    "delivery",
)


@click.command(
    cls=Command, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, extra="train"
)
@click.argument("stage", type=click.Choice(STAGES))
@click.argument("checkpoint", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="New folder for the trained checkpoint; CHECKPOINT stays as it is.",
)
@click.option("--in-place", is_flag=True, help="Write what was trained into CHECKPOINT itself.")
@click.option("--config", metavar="NAME", help="Start a new checkpoint of this model size: edge, tiny or sd15.")
@click.option("--random", is_flag=True, help="With --config sd15: start from random weights, not from published ones.")
@click.option("--steps", required=True, type=click.IntRange(1), help="Steps in all, including those of earlier runs.")
@click.option(
    "--sharp",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of sharp images.  [default: procedural ones]",
)
@click.option(
    "--blurry",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Blurry images of your own domain, for T_2 and T_3; they need no sharp ones.",
)
@click.option("--images", default=6000, type=click.IntRange(1), help="Procedural images to make without --sharp.")
@click.option("--size", default=128, type=click.IntRange(16), help="Side of the training images, in pixels.")
@click.option("--batch", default=8, type=click.IntRange(1), help="Images per step.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0.0, min_open=True),
    help="Highest learning rate of AdamW.  [default: 5e-5, the paper's; 3e-4 for edge and tiny]",
)
@click.option("--seed", default=0, type=click.IntRange(0), help="Seed of examples and noise.")
@click.option("--save-every", default=250, type=click.IntRange(1), help="Steps between checkpoints.")
@click.option("--sheet-every", default=1000, type=click.IntRange(1), help="Steps between sample sheets.")
@click.option(
    "--backbone", is_flag=True, help="Stages deblur and joint: train U-Net and image encoder too, as edge needs."
)
@click.option(
    "--without", multiple=True, type=click.Choice(["Q_s", "T_2", "T_3"]), help="Stage joint: leave this out (ablation)."
)
@click.option("--workers", default=1, type=click.IntRange(0), help="Processes that make examples.")
@click.option(
    "--mixed-precision", default="no", type=click.Choice(["no", "bf16", "fp16"]), help="Autocast to this dtype."
)
@click.version_option(__version__, prog_name="uid-train")
def main(
    stage: str,
    checkpoint: Path,
    output: Path | None,
    in_place: bool,
    config: str | None,
    random: bool,
    sharp: Path | None,
    blurry: Path | None,
    images: int,
    size: int,
    backbone: bool,
    without: tuple[str, ...],
    learning_rate: float | None,
    **settings: Any,
) -> None:
    """Train STAGE of CHECKPOINT, a folder in the diffusers layout.

    What is trained goes into a new checkpoint, -o FOLDER, or back into CHECKPOINT with --in-place. Without --sharp,
    procedural images are used. A run that was stopped goes on when it is started again: its state lies beside the
    checkpoint that it writes, in FOLDER.training/STAGE.

    `uid-train init` makes an sd15 checkpoint from published weights.
    """
    if (output is None) == (not in_place):
        raise click.UsageError(
            "give one of -o FOLDER, for a new checkpoint, and --in-place, to change CHECKPOINT itself"
        )
    quieten_libraries()
    from uid.families.registry import read_index
    from uid.families.uid_diff import checkpoint as checkpoints
    from uid.train.checkpoints import Target, make_state_folder
    from uid.train.data import ImageFolder, ProceduralImages
    from uid.train.loop import TrainingSettings, train

    target = Target(checkpoint, output)
    target.check()
    if config and not checkpoint.exists():
        checkpoints.write_untrained(checkpoint, config, seed=settings["seed"], random=random)
    index = read_index(checkpoint)
    settings["learning_rate"] = learning_rate or default_learning_rate(index["name"])
    make_state_folder(target.state)
    made_file = target.state / f"pictures-{settings['seed']}-{images}.npy"
    source = ImageFolder(sharp) if sharp else ProceduralImages(made_file, images, settings["seed"], click.echo)
    module = build(stage, checkpoints.load(checkpoint), backbone, without, index["steps"])
    examples = examples_of(stage, source, size, settings["seed"], blurry)
    train(module, examples, TrainingSettings(**settings), target.state / stage, report=click.echo)
    if stage == "vae":
        module.set_scaling_factor(examples[i] for i in range(64))
    written = target.write(module.trained, trained=stage in ("deblur", "joint", "delivery"))
    click.echo("\n".join(f"wrote {written / name}" for name in module.trained))


def examples_of(stage: str, source: Any, size: int, seed: int, blurry: Path | None) -> Any:
    """What a stage is trained on: pairs of a sharp image and its blurred one, or images of three domains."""
    from uid.train.data import Domains, ImageFolder, Pairs

    if stage in ("blur-transfer", "joint"):
        return Domains(source, size, seed, ImageFolder(blurry) if blurry else None)
    return Pairs(source, size, seed)


def default_learning_rate(name: str) -> float:
    """What a checkpoint of this name is trained at: its configuration's rate, or the paper's."""
    from uid.families.uid_diff.configs import CONFIGS, SD15

    return CONFIGS.get(name, SD15).learning_rate


def build(stage: str, model: "UIDDiff", backbone: bool, without: tuple[str, ...], steps: int) -> Any:
    """The stage's module; ``steps`` are the checkpoint's denoising steps."""
    from uid.train import diffusion, vae

    autoencoder, refiner = model.encoder.vae, model.refiner
    stages = {
        "vae": lambda: vae.BaseVAE(autoencoder),
        "refiner": lambda: vae.JointRefiner(autoencoder, refiner),
        "encoder-refiner": lambda: vae.EncoderRefiner(autoencoder, refiner),
        "decoder-refiner": lambda: vae.DecoderRefiner(autoencoder, refiner),
        "base": lambda: diffusion.BaseDiffusion(model, steps=steps),
        "deblur": lambda: diffusion.Deblurring(model, steps=steps, backbone=backbone),
        "blur-transfer": lambda: diffusion.BlurTransfer(model, steps=steps),
        "joint": lambda: diffusion.Joint(model, steps=steps, backbone=backbone, without=without),
        "delivery": lambda: diffusion.Delivery(model, steps=steps),
    }
    return stages[stage]()
