"""``uid-train lists``: the splits of the data sets that the paper trains and tests on, as lists of files."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from uid.bundles.files import written_whole
from uid.command import Command
from uid.errors import InputError

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
Pairs = Sequence[tuple[Path, Path]]


@dataclass(frozen=True)
class Split:
    """A part of a data set: its list's name, what it is read from in the data set's folder, its published size."""

    name: str
    places: tuple[str, ...]  # a list of files, or folders of blurred and of sharp images
    published: int  # pairs


# As their authors publish them.
SPLITS = {
    "gopro": (Split("gopro-train", ("train", "train"), 2103), Split("gopro-test", ("test", "test"), 1111)),
    "realblur": (
        Split("realblur-j-train", ("RealBlur_J_train_list.txt",), 3758),
        Split("realblur-j-test", ("RealBlur_J_test_list.txt",), 980),
        Split("realblur-r-train", ("RealBlur_R_train_list.txt",), 3758),
        Split("realblur-r-test", ("RealBlur_R_test_list.txt",), 980),
    ),
    "reds": (
        Split("reds-train", ("train/train_blur", "train/train_sharp"), 24000),
        Split("reds-val", ("val/val_blur", "val/val_sharp"), 3000),
    ),
}


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]}, extra="train")
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path, file_okay=False))
@click.option("--gopro", type=FOLDER, help="GOPRO_Large: train/ and test/, each scene with blur/ and sharp/.")
@click.option("--realblur", type=FOLDER, help="RealBlur with its list files, RealBlur_J_train_list.txt and so on.")
@click.option("--reds", type=FOLDER, help="REDS: train_blur/, train_sharp/, val_blur/ and val_sharp/.")
def lists(output: Path, **folders: Path | None) -> None:
    """Write the splits of data sets into OUT, as lists of files.

    Each split gives NAME.txt, pairs for --pair-list, and NAME-blurred.txt, the blurred images alone for --blurry. A
    split that is not there is left out.
    """
    given = {name: folder for name, folder in folders.items() if folder}
    if not given:
        raise click.UsageError("give the folder of one data set at least")
    for name, folder in given.items():
        for split in SPLITS[name]:
            click.echo(written(split, folder, output))


def written(split: Split, folder: Path, output: Path) -> str:
    """Write a split's lists; returns what there is to say."""
    read = reader(split, folder)
    if read is None:
        return f"{split.name}: left out, {folder} has no {split.places[0]}"
    pairs = read()
    write_list(output / f"{split.name}.txt", pairs)
    write_list(output / f"{split.name}-blurred.txt", [(blurred,) for _, blurred in pairs])
    return f"{split.name}: {len(pairs)} pairs; published: {split.published}"


def reader(split: Split, folder: Path) -> Callable[[], Pairs] | None:
    """What gives a split's pairs; None where the data set's folder lacks it."""
    from uid.train import files

    places = [place for name in split.places if (place := found(folder, name))]
    if len(places) < len(split.places):
        return None
    if len(places) == 1:
        return lambda: files.listed_pairs(places[0])
    return lambda: files.pairs(places[0], places[1], click.echo)


def found(folder: Path, name: str) -> Path | None:
    """A place below a data set's folder; REDS's archives are unpacked with the folder around them or without."""
    options = (folder / name, folder / Path(name).name)
    return next((place for place in options if place.exists()), None)


def write_list(path: Path, lines: Sequence[Sequence[Path]]) -> None:
    """A list of files, relative to its folder."""
    text = "".join("\t".join(relative(image, path.parent) for image in line) + "\n" for line in lines)
    if any(set("\t\n") & set(str(image)) for line in lines for image in line):
        raise InputError(f"{path} cannot hold names of files with tabs or line breaks; rename them")
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def relative(image: Path, folder: Path) -> str:
    """An image's path as seen from a folder."""
    return os.path.relpath(image.resolve(), folder.resolve())
