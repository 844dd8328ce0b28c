"""The table of model families. A new family is a row here and a folder beside this file."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uid.bundles.reading import LARGEST_JSON, parsed_json, read_limited
from uid.errors import CheckpointError

if TYPE_CHECKING:  # torch takes seconds to import: a command's help need not wait for it
    from uid.families.contract import Family, Model

INDEX = "model_index.json"


@dataclass(frozen=True)
class FamilyEntry:
    """Where a family is, and its configurations."""

    factory: str  # "module:class", imported when first used
    configs: tuple[str, ...] = ()  # names of model sizes that it can write random checkpoints of
    single_file: bool = False  # whether a file without a word about its family is this one's


FAMILIES = {
    "uid-diff": FamilyEntry("uid.families.uid_diff.family:UIDDiffFamily", ("sd15", "edge", "tiny")),
    "deblurdiff": FamilyEntry(
        "uid.families.deblurdiff.family:DeblurDiffFamily", ("deblurdiff", "deblurdiff-tiny"), single_file=True
    ),
    "restorer": FamilyEntry("uid.families.restorers.family:RestorerFamily"),
}


def create(name: str) -> "Family":
    """The family called ``name``; raises ``CheckpointError`` for an unknown one."""
    if name not in FAMILIES:
        raise CheckpointError(f"unknown model family {name!r}; expected one of {', '.join(FAMILIES)}")
    module, attribute = FAMILIES[name].factory.split(":")
    family: Family = getattr(importlib.import_module(module), attribute)()
    return family


def configs() -> dict[str, str]:
    """Every configuration's family."""
    return {config: name for name, entry in FAMILIES.items() for config in entry.configs}


def family_of(checkpoint: Path, family: str | None = None) -> "Family":
    """The family of a checkpoint, a folder or a file; ``family``: what a file is said to be."""
    return create(read_index(checkpoint, family)["family"])


def load(checkpoint: Path, *, family: str | None = None, allow_pickle: bool = False) -> "Model":
    """Load a checkpoint, a folder or a file, of any family, in float32 on the CPU; raises ``CheckpointError``."""
    from uid.families.index import check_values, run_rules

    model = family_of(checkpoint, family).load(checkpoint, allow_pickle=allow_pickle)
    rules = run_rules(model.schedule, model.size_multiple, model.min_side)
    check_values(model.index, rules, place_of(checkpoint))
    return model


def read_index(folder: Path, family: str | None = None) -> dict[str, Any]:
    """A checkpoint's ``model_index.json``, checked: family, name, whether trained, and run-time defaults.

    A checkpoint that is one file has those of ``family``; None: of the family whose published file is recognised.
    """
    if folder.is_file():
        (published,) = (name for name, entry in FAMILIES.items() if entry.single_file)
        index = create(family or published).file_index(folder)
    else:
        index = folder_index(folder)
    create(index["family"]).check_index(index, place_of(folder))
    return index


def folder_index(folder: Path) -> dict[str, Any]:
    """The index of a checkpoint that is a folder, whose family is known."""
    if not folder.exists():
        raise CheckpointError(f"there is no {folder}; expected a checkpoint, a folder or a file")
    try:
        index = parsed_json(read_limited(folder / INDEX, LARGEST_JSON))
    except OSError as error:
        raise CheckpointError(f"{folder} is not a checkpoint: cannot read {INDEX} ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / INDEX} is not JSON: {error}") from error
    said = index.get("family") if isinstance(index, dict) else None
    if not isinstance(said, str) or said not in FAMILIES:
        raise CheckpointError(f"{folder / INDEX} says family {said!r}; expected one of {', '.join(FAMILIES)}")
    return dict(index)


def place_of(checkpoint: Path) -> Path:
    """What has a checkpoint's index: its file of that name, or the checkpoint itself where it is one file."""
    return checkpoint if checkpoint.is_file() else checkpoint / INDEX
