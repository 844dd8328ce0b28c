"""Where training reads and writes: a checkpoint is changed only where that was asked for, and its state lies beside."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uid.bundles.files import folder_written_whole
from uid.errors import OutputError
from uid.families.uid_diff import checkpoint as checkpoints

STATE_SUFFIX = ".training"  # of the folder beside a checkpoint that holds what is needed to go on
EARLIER = "training"  # where the state lay until version 0.2, inside the checkpoint


@dataclass(frozen=True)
class Target:
    """The checkpoint that training starts from, and where what it trains is written."""

    source: Path
    output: Path | None  # a new folder; None: the source itself

    @property
    def state(self) -> Path:
        """The folder of the state, beside what is written."""
        return state_folder(self.output or self.source)

    def check(self) -> None:
        """Raise ``OutputError`` for an output that is in use, before hours of work go into it."""
        if self.output is None:
            return
        if self.output.resolve().is_relative_to(self.source.resolve()):
            raise OutputError(f"{self.output} lies in the checkpoint itself; choose a folder outside of it")
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise OutputError(
                f"{self.output} is in use; choose a new folder, or train that checkpoint further with --in-place"
            )

    def write(self, components: Mapping[str, Any], *, trained: bool) -> Path:
        """Write the trained components, by name, and return the checkpoint that has them.

        ``trained``: its index says from now on that it makes deblurred images.
        """
        if self.output is not None:
            with folder_written_whole(self.output) as folder:
                copied(self.source, folder, without=components)
                finish(folder, components, trained)
            return self.output
        finish(self.source, components, trained)
        return self.source


def state_folder(checkpoint: Path) -> Path:
    """The folder beside a checkpoint that holds the state of its training; git ignores what it holds.

    Raises ``OutputError`` where an earlier version left the state inside the checkpoint.
    """
    checkpoint = checkpoint.resolve()
    folder = checkpoint.with_name(checkpoint.name + STATE_SUFFIX)
    if (checkpoint / EARLIER).is_dir() and not folder.exists():
        raise OutputError(
            f"{checkpoint / EARLIER} holds the state of an earlier version's training; move it to {folder} to go on "
            "from there, or remove it"
        )
    return folder


def make_state_folder(folder: Path) -> None:
    """Make the folder of a training's state, which no commit takes in by accident."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")


def copied(source: Path, folder: Path, without: Mapping[str, Any]) -> None:
    """Copy a checkpoint but for some components, and for what is no part of it."""
    for path in source.iterdir():
        if path.name in without or path.name == EARLIER or path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copyfile(path, folder / path.name)


def finish(folder: Path, components: Mapping[str, Any], trained: bool) -> None:
    """Put components into a checkpoint."""
    for name, module in components.items():
        replace_component(folder / name, module)
    if trained:
        checkpoints.mark_trained(folder)


def replace_component(folder: Path, module: Any) -> None:
    """Write a component beside its folder and then in its place, so that either version is whole at any time."""
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    module.save_pretrained(new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
