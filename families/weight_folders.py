"""Folders of weights as diffusers and transformers write them: in one file or in parts, in full or in float16."""

from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from torch import Tensor

from uid.bundles.names import KEY
from uid.bundles.reading import parsed_json, read_limited
from uid.bundles.values import shown
from uid.errors import CheckpointError
from uid.families.weight_files import read_weights
from uid.families.weights import listed

LARGEST_INDEX = 1 << 24  # bytes of an index of sharded weights
VARIANTS = ("", ".fp16")  # the full one first
KINDS = ("safetensors", "bin", "pt")  # those that cannot run code first


def read_folder(folder: Path, stems: Iterable[str]) -> dict[Path, dict[str, Tensor]]:
    """The tensors of a folder of weights, by the file that they are in; on the disk still, where the file allows it.

    ``stems`` are the names that a file may have without its suffix. Of several copies the one with full precision is
    taken, and of those the safetensors. Pickled files are read with ``weights_only=True``, which runs no code of them.
    Raises ``CheckpointError``.
    """
    return {file: read_weights(file) for file in weight_files(folder, tuple(stems))}


def weight_files(folder: Path, stems: tuple[str, ...]) -> list[Path]:
    """The file of a folder's weights, or its parts; raises ``CheckpointError`` where there is none."""
    for whole, indexes in copies(stems):
        if (folder / whole).is_file():
            return [folder / whole]
        for index in indexes:
            if (folder / index).is_file():
                return sorted({folder / part for part in parts(folder, index)})
    holds = listed(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ""
    raise CheckpointError(
        f"{folder} has no weights: it holds {holds or 'nothing'}; expected {stems[0]}.safetensors, or as it is "
        "published in float16, in parts or pickled"
    )


def copies(stems: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names that a whole file may have, the best first, and those of the index of one in parts.

    Where the variant stands in the index's name has changed with the versions of diffusers.
    """
    for variant, kind, stem in product(VARIANTS, KINDS, stems):
        indexes = {f"{stem}.{kind}.index{variant}.json", f"{stem}.{kind}{variant}.index.json"}
        yield f"{stem}{variant}.{kind}", (*sorted(indexes), f"{stem}{variant}.{kind}.index.json")


def parts(folder: Path, index: str) -> set[str]:
    """The names of the files that an index names."""
    try:
        names = set(parsed_json(read_limited(folder / index, LARGEST_INDEX))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot read the index of the weights, {folder / index}: {error}") from error
    check_parts(folder, names)
    return names


def check_parts(folder: Path, names: Iterable[object]) -> None:
    """Raise ``CheckpointError`` for parts of the weights that are not files in ``folder``."""
    for part in names:
        if not isinstance(part, str) or not KEY.fullmatch(part):
            raise CheckpointError(
                f"the weights in {folder} have a part {shown(part)}, which is no plain name beside their index; do not "
                "use this checkpoint"
            )
