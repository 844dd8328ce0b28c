"""``uid-train init``: a checkpoint to train, from published weights."""

from pathlib import Path

import click

from uid.command import Command, quieten_libraries

PUBLISHED = click.Path(path_type=Path, exists=True, file_okay=False)
CONFIG = "sd15"


@click.command(
    cls=Command, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, extra="train"
)
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--stable-diffusion",
    required=True,
    type=PUBLISHED,
    help="Stable Diffusion 1.5: unet/, vae/, text_encoder/ and more.",
)
@click.option("--clip", required=True, type=PUBLISHED, help="CLIP ViT-L/14, whole or its vision model.")
@click.option("--qformer", required=True, type=PUBLISHED, help="BLIP-Diffusion, or its qformer/.")
def init(output: Path, stable_diffusion: Path, clip: Path, qformer: Path) -> None:
    """Assemble OUT, an sd15 checkpoint to train, from published weights.

    The folders are as diffusers and transformers publish them: safetensors or pickled, whole or in parts, in full or
    in float16. The adapter starts as a copy of the U-Net's encoder whose outputs are zero, the refiners as
    identities. OUT/origins.csv lists every tensor that was taken, made or left.
    """
    quieten_libraries()
    from uid.bundles.files import folder_written_whole
    from uid.families.uid_diff.assembly import ORIGINS, Given, assemble, summary
    from uid.families.uid_diff.configs import CONFIGS

    with folder_written_whole(output) as folder:
        rows = assemble(folder, Given(stable_diffusion, clip, qformer), CONFIG, CONFIGS[CONFIG])
    click.echo("\n".join([*summary(rows), f"wrote {output}; {output / ORIGINS} lists every tensor"]))
