"""``uid-train``: one stage of training on one checkpoint folder, resumable."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uid import __version__
from uid.command import plain_errors, quieten_libraries

if TYPE_CHECKING:
    from uid.reference.model import UIDDiff

STAGES = ("vae", "encoder-refiner", "decoder-refiner", "base", "deblur")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("stage", type=click.Choice(STAGES))
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--steps", required=True, type=click.IntRange(1), help="Steps in all, those of earlier runs included.")
@click.option("--sharp", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Sharp pictures.")
@click.option("--size", default=128, type=click.IntRange(16), help="Side of the training pictures, in pixels.")
@click.option("--batch", default=8, type=click.IntRange(1), help="Pictures in a step.")
@click.option("--learning-rate", default=3e-4, type=click.FloatRange(0.0, min_open=True), help="Highest, of AdamW.")
@click.option("--seed", default=0, type=click.IntRange(0), help="Of examples and noise.")
@click.option("--save-every", default=250, type=click.IntRange(1), help="Steps between checkpoints.")
@click.option("--sheet-every", default=1000, type=click.IntRange(1), help="Steps between sample sheets.")
@click.option("--backbone", is_flag=True, help="Stage deblur: train U-Net and image encoder too, as edge needs.")
@click.option("--workers", default=1, type=click.IntRange(0), help="Processes that make examples.")
@click.option("--mixed-precision", default="no", type=click.Choice(["no", "bf16", "fp16"]))
@click.version_option(__version__, prog_name="uid-train")
def main(stage: str, checkpoint: Path, sharp: Path | None, size: int, backbone: bool, **settings: Any) -> None:
    """Train STAGE of CHECKPOINT, a folder in the diffusers layout, and write what it trained back into it.

    Without --sharp, procedural pictures are used. A run that was stopped goes on from CHECKPOINT/training/STAGE when it
    is started again.
    """
    quieten_libraries()
    with plain_errors("train"):
        from uid.reference import checkpoint as checkpoints
        from uid.train.data import Pairs, PictureFolder
        from uid.train.loop import Settings, train
        from uid.train.pictures import picture

        source = PictureFolder(sharp) if sharp else picture
        made, saved = build(stage, checkpoints.load(checkpoint), backbone)
        examples = Pairs(source, size, settings["seed"])
        train(made, examples, Settings(**settings), checkpoint / "training" / stage, report=click.echo)
        if stage == "vae":
            made.set_scaling_factor(examples[i] for i in range(64))
        for name, module in saved.items():
            replace_component(checkpoint / name, module)
            click.echo(f"wrote {checkpoint / name}")


def build(stage: str, model: "UIDDiff", backbone: bool) -> tuple[Any, dict[str, Any]]:
    """The stage's module, and the components that it trains by name."""
    from uid.train.diffusion import BaseDiffusion, Deblurring
    from uid.train.vae import BaseVAE, DecoderRefiner, EncoderRefiner

    vae, refiner = model.encoder.vae, model.refiner
    if stage == "vae":
        return BaseVAE(vae), {"vae": vae}
    if stage in ("encoder-refiner", "decoder-refiner"):
        refined = EncoderRefiner if stage == "encoder-refiner" else DecoderRefiner
        return refined(vae, refiner), {"vae_refiner": refiner}
    base = {"unet": model.step.unet, "text_encoder": model.text_encoder}
    if stage == "base":
        return BaseDiffusion(model), base
    saved = {"structure_extractor": model.structure.q_former, "adapter": model.step.adapter}
    if backbone:
        saved |= {"unet": model.step.unet, "image_encoder": model.structure.image_encoder}
    return Deblurring(model, backbone=backbone), saved


def replace_component(folder: Path, module: Any) -> None:
    """Write a component beside its folder and then in its place, so that either version is whole at any time."""
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    module.save_pretrained(new)
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old)
