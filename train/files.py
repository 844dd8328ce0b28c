"""Images as people have them: folders, the layouts of GoPro, RealBlur and REDS, and lists of files.

In the data sets' folders sharp and blurred images lie side by side, and the names of folders tell them apart:
``GOPR0372_07_00/sharp``, ``scene001/gt``, ``train_blur``. Only folders below the one that was named count.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from uid.errors import InputError
from uid.runtime.media.formats import is_image_path

SHARP, BLURRED = "sharp", "blurred"
WORDS = {
    SHARP: {"sharp", "gt", "target", "clean"},
    BLURRED: {"blur", "blurred", "blurry", "input"},
}
# Further forms of the same images: GoPro's blur_gamma, REDS's train_blur_comp and train_sharp_bicubic.
OTHER_FORMS = {"gamma", "comp", "bicubic"}

Report = Callable[[str], None]


def images(place: Path, kind: str, report: Report = print) -> list[Path]:
    """The sharp or the blurred images (``kind``) in a folder and its subfolders, or in a list of files.

    A list has one path a line, or two, the sharp image's first, as RealBlur's have. Raises ``InputError`` where there
    is none.
    """
    if place.is_file():
        return [pair[kind == BLURRED] if len(pair) > 1 else pair[0] for pair in listed(place)]
    found = in_folder(place)
    wanted = [path for path in found if kind_of(path, place) in (kind, None)]
    if not wanted:
        raise InputError(
            f"{place} holds no {kind} images: all {len(found)} lie in folders of other names, such as "
            f"{found[0].relative_to(place)}; name one of those folders if they are {kind}"
        )
    if len(wanted) < len(found):
        report(f"{place}: {len(wanted)} {kind} images; {len(found) - len(wanted)} others are left out by their folders")
    return wanted


def pairs(blurred: Path, sharp: Path, report: Report = print) -> list[tuple[Path, Path]]:
    """(sharp, blurred) of every blurred image whose sharp one has the same name, in two folders or in one.

    The same name: the path below the folder, without its extension and the words that tell sharp from blurred. So
    ``scene001/blur/blur_1.png`` goes with ``scene001/gt/gt_1.png``. Raises ``InputError`` where none has.
    """
    partners = {name_of(path, sharp): path for path in images(sharp, SHARP, lambda line: None)}
    candidates = images(blurred, BLURRED, lambda line: None)
    found = [(partners[name], path) for path in candidates if (name := name_of(path, blurred)) in partners]
    found = [(one, other) for one, other in found if one != other]
    if not found:
        raise InputError(
            f"no blurred image in {blurred} has a sharp one of the same name in {sharp}; expected the same paths below "
            f"both, as of {candidates[0].relative_to(blurred)}"
        )
    if len(found) < len(candidates):
        report(f"{blurred}: {len(found)} pairs; {len(candidates) - len(found)} blurred images have no sharp one")
    return found


def listed_pairs(path: Path) -> list[tuple[Path, Path]]:
    """(sharp, blurred) of every line of a list."""
    lines = listed(path)
    for number, line in enumerate(lines, 1):
        if len(line) < 2:
            raise InputError(
                f"line {number} of {path} has one path; expected two, of the sharp image and the blurred one"
            )
    return [(line[0], line[1]) for line in lines]


def listed(path: Path) -> list[tuple[Path, ...]]:
    """The one or two paths of every line, relative to the list's folder."""
    text = path.read_text(encoding="utf-8")
    lines = [split(line.strip(), path.parent) for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path} is empty; expected a path of an image a line")
    for line in lines:
        for image in line:
            if not image.is_file():
                raise InputError(
                    f"{path} names {image}, which is no file; expected paths relative to the list's folder"
                )
    for first, *rest in lines:
        if rest and kind_of(first, path.parent) == BLURRED and kind_of(rest[0], path.parent) == SHARP:
            raise InputError(f"{path} has blurred images first, such as {first}; expected the sharp image's path first")
    return lines


def split(line: str, folder: Path) -> tuple[Path, ...]:
    """The first two paths of a line, parted by a tab, or by spaces where the line is not one path that has some."""
    whole = folder / line
    parts = line.split("\t") if "\t" in line else [line] if whole.is_file() else line.split()
    return tuple(folder / part for part in parts[:2])


def in_folder(folder: Path) -> list[Path]:
    """Every image in a folder and its subfolders, but for further forms of the same ones."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and is_image_path(path))
    kept = [path for path in found if not OTHER_FORMS & words(path.relative_to(folder).parts[:-1])]
    if not kept:
        raise InputError(f"{folder} holds no images; expected PNG, JPEG, WebP, TIFF or BMP files")
    return kept


def kind_of(path: Path, folder: Path) -> str | None:
    """What the folders between say of an image; None: nothing, or both."""
    below = path.relative_to(folder) if path.is_relative_to(folder) else path
    found = [kind for kind, names in WORDS.items() if names & words(below.parts[:-1])]
    return found[0] if len(found) == 1 else None


def name_of(path: Path, folder: Path) -> tuple[str, ...]:
    """What a sharp image and its blurred one have in common."""
    telling = set().union(*WORDS.values())
    parts = path.relative_to(folder).with_suffix("").parts
    kept = ["_".join(word for word in re.split(r"[_-]", part) if word.lower() not in telling) for part in parts]
    return tuple(part for part in kept if part)


def words(parts: Iterable[str]) -> set[str]:
    """The words of folders' names, in small letters."""
    return {word for part in parts for word in re.split(r"[^a-z0-9]+", part.lower())}
