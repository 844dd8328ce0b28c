"""Files of weights of any family: safetensors or pickled, told apart by what they begin with, not by their names."""

import codecs
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from uid.errors import CheckpointError
from uid.families.weights import checked_weights, listed

BEGINNING = 512  # bytes that tell what a file is
LARGEST_HEADER = 100_000_000  # bytes, of safetensors
LFS_POINTER = b"version https://git-lfs"
# Keys that files have their weights under, the averaged ones (EMA) first.
WRAPPERS = ("params_ema", "ema", "params", "params_g", "state_dict", "model_state_dict", "model", "module")
DEEPEST = 3  # of these inside each other
PARALLEL = "module."  # in front of every name, where the weights were saved from a network on several GPUs


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of one file, safetensors or pickled; what they are wrapped in, and a prefix, are taken off.

    A pickled file is read with ``weights_only=True``, which runs no code of it. Values are not looked at: ``misfits``
    does that once shapes are known. Raises ``CheckpointError``.
    """
    beginning = read_beginning(file)
    check_kind(file, beginning)
    try:
        contents = load_file(file) if is_safetensors(beginning) else unpickled(file)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is no checkpoint, or holds more than tensors, which may be code; expected a state dict, as it is "
            "published"
        ) from error
    except Exception as error:  # what altered bytes make the libraries raise has no common class
        first = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise CheckpointError(f"cannot read {file}: it is cut off or no checkpoint ({first}); get it again") from error
    return without_prefix(checked_weights(unwrapped(contents, file), file))


def read_beginning(file: Path) -> bytes:
    """The first bytes of a file; raises ``CheckpointError`` where there are none."""
    try:
        with file.open("rb") as opened:
            beginning = opened.read(BEGINNING)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    if not beginning:
        raise CheckpointError(f"{file} holds no weights: it is empty; get it again")
    return beginning


def check_kind(file: Path, beginning: bytes) -> None:
    """Raise ``CheckpointError`` for text: a page that was saved in place of the file, or a pointer to it."""
    if beginning.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{file} holds no weights: it is a Git LFS pointer, which stands for them; run `git lfs pull` in its folder"
        )
    if is_text(beginning):
        start = beginning.decode("utf-8", "ignore").strip()[:40]
        raise CheckpointError(
            f"{file} holds no weights: it is a text file that begins with {start!r}; get the file itself again"
        )


def is_text(beginning: bytes) -> bool:
    """Whether bytes are printable UTF-8; the last character may be cut off."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(beginning)
    except UnicodeDecodeError:
        return False
    return all(one.isprintable() or one.isspace() for one in text.removeprefix("\ufeff"))


def is_safetensors(beginning: bytes) -> bool:
    """Whether bytes begin with the length of a header in JSON, and with its brace."""
    return beginning[8:9] == b"{" and int.from_bytes(beginning[:8], "little") <= LARGEST_HEADER


def unpickled(file: Path) -> Any:
    """What a pickled file holds."""
    if file.suffix == ".safetensors":  # which PyTorch, given the name, would believe
        with file.open("rb") as opened:
            return torch.load(opened, map_location="cpu", weights_only=True)
    mapped = zipfile.is_zipfile(file)  # the files of PyTorch before 1.6 are none, and cannot be mapped
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)


def unwrapped(contents: object, file: Path) -> Mapping[str, Tensor]:
    """The tensors in what a file holds, bare or under some of ``WRAPPERS``; raises ``CheckpointError`` for none."""
    found = tensors_in(contents)
    if found is None:
        keys = listed(sorted(map(str, contents))) or "none" if isinstance(contents, Mapping) else ""
        holds = f"its keys are {keys}" if keys else f"it holds a {type(contents).__name__}"
        raise CheckpointError(
            f"{file} is no flat dict of tensors: {holds}; expected a state dict, as it is published, bare or under one "
            f"of {', '.join(WRAPPERS)}"
        )
    return found


def tensors_in(contents: object, deepest: int = DEEPEST) -> Mapping[str, Tensor] | None:
    """The first tensors by name in wrappers inside each other; None where there are none."""
    if not isinstance(contents, Mapping) or not contents:
        return None
    if deepest:
        for key in WRAPPERS:
            if (found := tensors_in(contents.get(key), deepest - 1)) is not None:
                return found
    flat = all(isinstance(key, str) and isinstance(one, Tensor) for key, one in contents.items())
    return contents if flat else None


def without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the prefix that all of their names may have."""
    if all(key.startswith(PARALLEL) for key in weights):
        return {key.removeprefix(PARALLEL): value for key, value in weights.items()}
    return weights
