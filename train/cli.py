"""``uid-train``: a command for each stage of training, on one checkpoint folder, resumable; and what goes before."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uid import __version__
from uid.command import Command, Commands, quieten_libraries
from uid.errors import InputError
from uid.train.init import init
from uid.train.lists import lists
from uid.train.options import parameters
from uid.train.presets import preset_of
from uid.train.recipe_cli import recipe
from uid.train.stages import STAGES, StageEntry

if TYPE_CHECKING:
    from uid.train.data import Examples, PairSource, Source
    from uid.train.files import Report

SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}
FROM_PRESET = ("size", "batch", "accumulate", "learning_rate", "mixed_precision", "checkpointing")
ABOUT = """
What is trained goes into a new checkpoint, -o FOLDER, or back into CHECKPOINT with --in-place. Without other images,
procedural ones are used. A run that was stopped goes on when it is started again: its state lies beside the checkpoint
that it writes, in FOLDER.training. On several devices: `torchrun --nproc-per-node 2 -m uid train STAGE ...`
"""


@click.group(cls=Commands, context_settings=SETTINGS, help=f"Train one stage of a checkpoint.\n{ABOUT}")
@click.version_option(__version__, prog_name="uid-train")
def main() -> None:
    """Train one stage of a checkpoint."""


def stage_command(name: str, entry: StageEntry) -> click.Command:
    """The command that trains one stage of CHECKPOINT."""
    return Command(
        name,
        extra="train",
        callback=partial(run, name),
        params=parameters(entry),
        help=f"Train {entry.trains}.\n{ABOUT}",
        short_help=entry.trains,
        context_settings=SETTINGS,
    )


def run(
    name: str,
    *,
    checkpoint: Path,
    output: Path | None,
    in_place: bool,
    config: str | None,
    random: bool,
    backbone: bool | None = None,
    structured_transfer: bool = False,
    without: tuple[str, ...] = (),
    **given: Any,
) -> None:
    """Train the stage called ``name``, in this process or as one of several."""
    if (output is None) == (not in_place):
        raise click.UsageError(
            "give one of -o FOLDER, for a new checkpoint, and --in-place, to change CHECKPOINT itself"
        )
    quieten_libraries()
    import torch
    from accelerate import PartialState

    from uid.families.registry import read_index
    from uid.families.uid_diff import checkpoint as checkpoints
    from uid.train.beginning import write_beginning
    from uid.train.checkpoints import Target, make_state_folder
    from uid.train.loop import TrainingSettings, train
    from uid.train.stage import Choices

    entry, target = STAGES[name], Target(checkpoint, output)
    processes = PartialState(cpu=not torch.accelerator.is_available())
    report = click.echo if processes.is_main_process else silent
    with processes.main_process_first():
        target.check()
        if config and not checkpoint.exists():
            write_beginning(checkpoint, config, seed=given["seed"], random=random)
        make_state_folder(target.state)
        index = read_index(checkpoint)
        preset = preset_of(index["name"])
        given |= {option: getattr(preset, option) for option in FROM_PRESET if given[option] is None}
        examples = examples_of(entry, target.state, report, given)
    trained_too = preset.backbone if backbone is None else backbone
    choices = Choices(
        index["steps"], index["guidance"], trained_too, preset.visited, structured_transfer, frozenset(without)
    )
    module = entry.make(checkpoints.load(checkpoint), choices)
    train(module, examples, TrainingSettings(**given), target.state / name, report)
    if processes.is_main_process:
        module.finish(examples[i] for i in range(64))
        written = target.write(module.trained, trained=entry.delivers)
        report("\n".join(f"wrote {written / part}" for part in module.trained))
    processes.wait_for_everyone()
    processes.destroy_process_group()


def silent(line: str) -> None:
    """What processes say that are not the main one."""


def examples_of(entry: StageEntry, folder: Path, report: "Report", given: dict[str, Any]) -> "Examples":
    """What a stage is trained on; takes the options that say so out of ``given``. ``folder`` holds what is made."""
    from uid.train import data, files

    sharp, pairs, pair_list, blurry = (given.pop(name, None) for name in ("sharp", "pairs", "pair_list", "blurry"))
    size, images, seed = given.pop("size"), given.pop("images"), given["seed"]
    if sum(place is not None for place in (sharp, pairs, pair_list)) > 1:
        raise click.UsageError("give one of --sharp, --pairs and --pair-list")
    own: Callable[[], PairSource]  # the domain, where no other is given
    source: PairSource
    if pairs or pair_list:
        paths = files.pairs(pairs[0], pairs[1], report) if pairs else files.listed_pairs(pair_list)
        source, own = data.FilePairs(paths), lambda: data.TwoOf([blurred for _, blurred in paths])
    else:
        single = data.Images(files.images(sharp, files.SHARP, report)) if sharp else made(folder, images, seed, size)
        source, own = data.Blurred(single), lambda: data.BlurredAlike(single)
    other = data.TwoOf(files.images(blurry, files.BLURRED, report)) if blurry else None
    return data.Examples(source, size, seed, (other or own()) if entry.domain else None)


def made(folder: Path, count: int, seed: int, size: int) -> "Source":
    """Procedural images, made before if they lie in ``folder``."""
    from uid.train.data import MADE_SIDE, ProceduralImages

    if size > MADE_SIDE:
        raise InputError(
            f"procedural images are {MADE_SIDE} x {MADE_SIDE}; give others (--sharp, --pairs or --pair-list), "
            "or train at a smaller size",
            option="size",
        )
    return ProceduralImages(folder / f"pictures-{seed}-{count}.npy", count, seed, click.echo)


for stage, row in STAGES.items():
    main.add_command(stage_command(stage, row))
main.add_command(init)
main.add_command(recipe)
main.add_command(lists)


if __name__ == "__main__":
    main()
